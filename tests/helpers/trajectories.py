"""Trajectories of mindspore.nn.RMSProp: every step, every array."""

import json

import numpy as np

import graphopt
from tests.helpers.folders import REFERENCE

FOLDER = REFERENCE / "trajectories"
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))
# Largest error over the largest value: what rounding to float32 allows, and where more is expected.
TOLERANCES = {"eps_sensitive": 5e-6, "mixed_lr": 5e-5, "fp16": 2e-3}
STATES = {"ms": "mean_square.", "mg": "mean_grad.", "mom": "moment.", "w": ""}


def centralized(shape):
    """The parameters that MindSpore centralizes, whatever the operator."""
    return len(shape) > 1 and shape[1] % 16 == 0


def with_schedule(settings, key):
    """The same settings, with a schedule in place of its description."""
    rate = settings.get(key)
    if not isinstance(rate, dict):
        return settings
    return settings | {key: getattr(graphopt.schedules, rate["schedule"])(**rate["args"])}


def grouped(groups, params):
    return [
        {
            key: [params[name] for name in value] if key.endswith("params") else value
            for key, value in with_schedule(group, "lr").items()
        }
        for group in groups or ()
    ]


class Trajectory:
    def __init__(self, case):
        with np.load(FOLDER / f"{case}.npz") as file:
            self.arrays = dict(file)
        config = json.loads(str(self.arrays.pop("config")))
        self.steps, flags = config["steps"], config["flags"]
        self.tolerance = max([5e-7, *(TOLERANCES.get(flag, 0) for flag in flags)])
        centralizes = {"gc_noop", "gc_patched"} & set(flags)
        params = {
            spec["name"]: graphopt.Parameter(
                **spec, op_type="Conv" if centralizes and centralized(spec["shape"]) else None
            )
            for spec in config["params"]
        }
        self.optimizer = graphopt.RMSProp(
            grouped(config["groups"], params) or [params[name] for name in config["order"]],
            **with_schedule(config["optimizer"], "learning_rate"),
        )
        assert [p.name for p in self.optimizer.params] == config["order"]
        self.rates = {name: self.arrays[f"lr/{name}"] for name in params}
        self.initial = {name: self.arrays[f"init/{name}"] for name in params}
        self.expected = {
            STATES[kind] + name: array
            for kind, name, array in (
                (*key.split("/"), array) for key, array in self.arrays.items() if "/" in key
            )
            if kind in STATES
        }

    def gradients(self, step):
        return {name: self.arrays[f"grad/{name}"][step] for name in self.initial}

    def check(self, state, step, names):
        for name in names:
            expected = self.expected[name].astype(np.float64)
            assert state[name].shape == expected.shape[1:], name
            error = np.abs(state[name] - expected[step]).max() / np.abs(expected).max()
            assert error < self.tolerance, f"{name} at step {step}: {error:.1e}"
