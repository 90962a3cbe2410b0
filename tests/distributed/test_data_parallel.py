"""Ranks that are threads: together they train as one session with the whole batch does."""

import numpy as np
import pytest

import graphopt
from graphopt import DataParallel
from tests.helpers.parallel import CASES, graph_of, trained
from tests.helpers.ranks import Threads

# The sum over ranks rounds otherwise than that over a batch: 2**-24 a sum, carried on by 50 steps.
BOUND = 1e-6


@pytest.mark.quick
@pytest.mark.parametrize("case", CASES)
def test_ranks_train_as_one_session(case):
    graph = graph_of(**CASES[case][0])
    state, outputs = trained(graphopt.Session(graph), case)
    sizes = (1, 2, 4) if case in ("plain", "overflow") else (2,)
    for size in sizes:

        def work(engine):
            session = DataParallel(graph, engine, compare_every=10)
            return trained(session, case, engine.rank, engine.size)

        results = Threads(size).run(work)
        for other, reported in results:
            for name, array in other.items():
                np.testing.assert_array_equal(array, results[0][0][name], err_msg=name)
                bound = 0 if size == 1 else BOUND
                np.testing.assert_allclose(array, state[name], bound, bound, err_msg=name)
            for mine, whole in zip(reported, outputs, strict=True):
                assert mine["updated"] == whole["updated"]
                np.testing.assert_allclose(mine["loss"], whole["loss"], 1e-6)
    if case == "overflow":
        assert state["skipped_steps"] == 4
        assert state["loss_scale"] != 2.0**20
