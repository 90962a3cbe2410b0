"""Training graphs of all networks are split: together, both halves compute what the whole does."""

import numpy as np
import pytest

import graphopt
from graphopt import DataParallel
from models.zoo import ZOO
from tests.helpers.zoo import zoo_graph

CASES = [
    *((name, "fast") for name in ("resnet", "language_model", "lstm", "gru")),
    *((name, "low") for name in ("transformer", "lstm")),
]


@pytest.mark.parametrize(("name", "memory"), CASES)
def test_the_halves_are_the_whole_bit_for_bit(name, memory):
    graph = zoo_graph(name, memory=memory)
    whole = graphopt.Session(graph)
    session = DataParallel(graph, list, rank=0, size=1)
    rng = np.random.default_rng(0)
    for _ in range(2):
        feeds = ZOO[name].feeds(rng, 2)
        expected, made = whole.step(feeds), session.step(feeds)
        assert expected.keys() == made.keys()
        for output, value in expected.items():
            np.testing.assert_array_equal(made[output], value, err_msg=output)
    state = session.state
    for key, value in whole.state.items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)
