"""The floors that the modules of graphopt stand on."""

FLOORS = [
    [
        "_checks",
        "_file_sets",
        "_files",
        "_outputs",
        "_records",
        "_runtime",
        "_tables",
        "_words",
        "dtypes",
        "finite",
        "graphs",
        "limits",
        "marks",
        "versions",
    ],
    ["stage", "states", "forward", "soundness", "external_data"],
    ["builder"],
    ["shapes"],
    ["operators"],
    ["shapes.engine", "shapes.in_place", "dropping"],
    ["inference", "weights", "schedules"],
    ["average", "clipping", "loss_scale", "parameter", "groups", "rmsprop", "reference"],
    ["carried", "requirement", "manifest", "feeds", "losses", "in_place", "gradient_outputs"],
    ["update", "kernels"],
    ["gradients"],
    ["graph", "build", "model_digest", "fingerprint", "checkpoint", "samples"],
    ["_runtime_session", "_step_io", "_bound_state", "_start", "session", "on_device"],
    ["checkpoint_folder", "profiling", "torch"],
    ["training_run"],
    ["inspection.facts", "inspection.words"],
    ["inspection.opening"],
    ["inspection.reading"],
    ["inspection.structure"],
    ["inspection.costs"],
    ["inspection.hazards", "inspection.targets", "inspection.verification"],
    ["inspection.checkpoints", "inspection.comparison"],
    ["inspection.show"],
    ["inspection._inspect"],
    ["inspection", "inspection.commands"],
    [""],
    ["cli", "__main__"],
]
"""Modules and packages of graphopt, the lowest first; "" is what ``import graphopt`` runs.

A module may import what is on its own floor or below, TYPE_CHECKING or not. It stands where the
longest of its names in this table does.
"""
