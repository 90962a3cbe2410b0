"""Gradients that are computed in pieces, of which one is added up while the next is computed."""

import numpy as np
import pytest

import graphopt
from graphopt import DataParallel
from graphopt.distributed import split
from graphopt.distributed._pieces import pieces
from models.zoo import ZOO
from tests.helpers import everything
from tests.helpers.parallel import CASES, STEPS, feeds_of, graph_of, part, trained
from tests.helpers.ranks import Threads
from tests.helpers.zoo import zoo_graph


class Overlapping(Threads):
    """Ranks whose engines may be called by a thread of their own."""

    def engine(self, rank):
        made = super().engine(rank)
        made.overlaps = True
        return made


@pytest.mark.parametrize("case", ["centered", "overflow", "accumulated", "separate"])
def test_ranks_train_as_in_one_piece(case):
    settings = CASES[case][0]
    options = {"layout": "separate", **settings.get("options", {})}
    graph = graph_of(**settings | {"options": options})

    def work(engine, count):
        session = DataParallel(graph, engine, compare_every=10, message=64, pieces=count)
        assert session._gradients.count == (1 if count == 1 else 2)
        return trained(session, case, engine.rank, engine.size)

    (whole, _), _ = Threads(2).run(lambda engine: work(engine, 1))
    for state, outputs in Overlapping(2).run(lambda engine: work(engine, 2)):
        assert len(outputs) == STEPS
        for name, array in whole.items():
            np.testing.assert_allclose(state[name], array, 1e-6, 1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("name", "memory"),
    [("resnet", "fast"), ("transformer", "low"), ("lstm", "fast"), ("language_model", "low")],
)
def test_the_pieces_compute_what_the_whole_does(name, memory):
    graph = zoo_graph(name, memory=memory, layout="separate")
    rng = np.random.default_rng(0)
    batches = [ZOO[name].feeds(rng, 2) for _ in range(2)]

    def work(engine, count):
        session = DataParallel(graph, engine, compare_every=1, pieces=count)
        outputs = [session.step(batch) for batch in batches]
        return session._gradients.count, outputs, session.state

    _, outputs, state = Threads(2).run(lambda engine: work(engine, 1))[0]
    count, made, there = Overlapping(2).run(lambda engine: work(engine, 3))[0]
    assert count == 3
    for one, other in zip(outputs, made, strict=True):
        assert one.keys() == other.keys()
        for output, value in one.items():
            np.testing.assert_allclose(other[output], value, 1e-5, 1e-6, err_msg=output)
    for key, value in state.items():
        np.testing.assert_allclose(there[key], value, 1e-4, 1e-5, err_msg=key)


@pytest.mark.any_runtime
def test_each_node_is_in_one_piece_and_each_gradient_too():
    half = split(everything.graph_of(everything.network(), layout="separate"))
    made = pieces(half, 2)
    assert len(made) == 2
    names = [node.output[0] for piece in made for node in piece.model.graph.node]
    assert sorted(names) == sorted(node.output[0] for node in half.model.graph.node)
    assert sorted(name for piece in made for name in piece.flat) == sorted(half.flat)
    assert len(made) < len(pieces(half, 99)) <= len(half.flat)
    assert len(pieces(half, 1)) == 1


def test_what_fails_in_one_piece_fails_on_all_ranks():
    graph = graph_of(options={"layout": "separate"})

    def work(engine):
        session = DataParallel(graph, engine, message=8, pieces=3)
        feeds = part(feeds_of(0), engine.rank, 2)
        session.step(feeds)
        before = session.state
        if engine.rank == 1:
            run = session._gradients._parts[1]
            run.run, kept = None, run.run
        with pytest.raises((RuntimeError, TypeError)) as caught:
            session.step(feeds)
        if engine.rank == 1:
            run.run = kept
        for name, array in session.state.items():
            np.testing.assert_array_equal(array, before[name])
        session.step(feeds if engine.rank else {})  # goes on, also without examples
        return caught.value, session.state

    (error, state), (own, there) = Overlapping(2).run(work)
    assert isinstance(own, TypeError)
    assert "rank 1 of 2 failed, nothing was updated: TypeError" in str(error)
    for name, array in state.items():
        np.testing.assert_array_equal(array, there[name])


def test_one_rank_and_other_engines_have_one_piece():
    alone = DataParallel(graph_of(), list, rank=0, size=1, pieces=4)
    assert alone._gradients.count == 1
    with pytest.raises(ValueError, match=r"pieces: got 0"):
        DataParallel(graph_of(), list, rank=0, size=1, pieces=0)
    counts = Threads(2).run(lambda e: DataParallel(graph_of(), e, pieces=4)._gradients.count)
    assert counts == [1, 1]
    assert graphopt.DataParallel is DataParallel
