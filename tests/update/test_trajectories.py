"""The update against trajectories of mindspore.nn.RMSProp: every step, every array."""

import numpy as np
import pytest

import graphopt
from graphopt.reference import ReferenceRMSProp
from tests.helpers.trajectories import CASES, Trajectory


@pytest.fixture(params=CASES)
def trajectory(request):
    return Trajectory(request.param)


@pytest.mark.quick
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


@pytest.mark.quick
def test_reference(trajectory):
    reference = ReferenceRMSProp(trajectory.optimizer, trajectory.initial)
    for rule, parameter in zip(
        trajectory.optimizer.rules, trajectory.optimizer.params, strict=True
    ):
        rates = [rule.learning_rate.value(step) for step in range(trajectory.steps)]
        np.testing.assert_allclose(
            rates, trajectory.rates[parameter.name], rtol=max(1e-6, trajectory.tolerance)
        )
    assert set(reference.state) == {*trajectory.expected, "global_step"}
    for step in range(trajectory.steps):
        reference.step(trajectory.gradients(step))
        assert reference.state["global_step"] == step + 1
        trajectory.check(reference.state, step, trajectory.expected)


def test_all_are_there():
    assert len(CASES) == 25
