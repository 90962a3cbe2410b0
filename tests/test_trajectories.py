"""The update against trajectories of mindspore.nn.RMSProp: every step, every array."""

import json
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.reference import ReferenceRMSProp

FOLDER = Path(__file__).parent / "reference" / "trajectories"
CASES = [
    "p00_plain",
    "p01_mom",
    "p02_cent",
    "p03_cent_mom",
    "p04_wd",
    "p05_ls_wd",
    "p20_large_g",
    "p21_eps",
    "p22_zero_g",
    "p23_tiny_g",
]
STATES = {"ms": "mean_square.", "mg": "mean_grad.", "mom": "moment.", "w": ""}


class Trajectory:
    def __init__(self, case):
        with np.load(FOLDER / f"{case}.npz") as file:
            self.arrays = dict(file)
        config = json.loads(str(self.arrays.pop("config")))
        self.steps = config["steps"]
        self.tolerance = 5e-6 if "eps_sensitive" in config["flags"] else 5e-7
        specs = {p["name"]: p for p in config["params"]}
        params = [graphopt.Parameter(**specs[name]) for name in config["order"]]
        self.optimizer = graphopt.RMSProp(params, **config["optimizer"])
        self.initial = {p.name: self.arrays[f"init/{p.name}"] for p in params}
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


@pytest.fixture(params=CASES)
def trajectory(request):
    return Trajectory(request.param)


def test_graph(trajectory):
    graph = graphopt.update_graph(trajectory.optimizer)
    session = graphopt.Session(graph, parameters=trajectory.initial)
    stored = set(trajectory.expected)
    if trajectory.optimizer.momentum == 0:
        stored = {name for name in stored if not name.startswith("moment.")}
    assert set(session.state) == stored | {"global_step"}
    for step in range(trajectory.steps):
        feeds = {f"{name}_grad": g for name, g in trajectory.gradients(step).items()}
        session.step(feeds)
        state = session.state
        assert state["global_step"] == step + 1
        trajectory.check(state, step, stored)


def test_reference(trajectory):
    reference = ReferenceRMSProp(trajectory.optimizer, trajectory.initial)
    assert set(reference.state) == {*trajectory.expected, "global_step"}
    for step in range(trajectory.steps):
        reference.step(trajectory.gradients(step))
        assert reference.state["global_step"] == step + 1
        trajectory.check(reference.state, step, trajectory.expected)
