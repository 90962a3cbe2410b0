"""What ranks do where something is different on one of them, or wrong."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import DataParallel, schedules
from graphopt.distributed import GradientGraph, gradient_graph, split
from graphopt.samples import Arrays
from graphopt.training_by_ranks import Company
from graphopt.training_run import History, Plan, Run, Stop, Target
from tests.helpers import everything
from tests.helpers.parallel import feeds_of, graph_of, network, part
from tests.helpers.ranks import Threads

ALONE = {"rank": 0, "size": 1}


def nothing(arrays):
    raise AssertionError(f"one rank needs no sum of {len(arrays)} arrays")


@pytest.mark.parametrize("layout", ["chunks", "separate", "foreach"])
def test_one_rank_with_everything_is_the_session_bit_for_bit(layout, tmp_path):
    graph = everything.graph_of(everything.network(), layout=layout, group_mask=True)
    whole, session = graphopt.Session(graph), DataParallel(graph, nothing, **ALONE)
    assert {feed.name for feed in session.inputs} == {feed.name for feed in whole.inputs}
    for step in range(10):
        feeds = everything.feeds_of(step, group_mask=np.array([step % 4 != 1, True]))
        expected, made = whole.step(feeds), session.step(feeds)
        assert expected.keys() == made.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(made[name], value, err_msg=name)
    for name, value in whole.state.items():
        np.testing.assert_array_equal(session.state[name], value, err_msg=name)
    assert session.fingerprint == whole.fingerprint
    session.save_checkpoint(tmp_path / "state.safetensors")
    whole.load_checkpoint(tmp_path / "state.safetensors")
    whole.export(tmp_path / "one.onnx")
    session.export(tmp_path / "other.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


def test_ranks_drop_other_elements_and_share_running_statistics():
    graph = everything.graph_of(everything.network())

    def work(engine):
        session = DataParallel(graph, engine, compare_every=1)
        rows = slice(2 * engine.rank, 2 * engine.rank + 2)  # of five: one is left out
        made = session.step({n: a[rows] for n, a in everything.feeds_of(0).items()})
        same = session.step({n: a[:2] for n, a in everything.feeds_of(1).items()})
        return session.state, made, same

    (one, made, same), (other, _, same_there) = Threads(2).run(work)
    assert made["updated"] == same["updated"]
    assert not np.array_equal(same["y"], same_there["y"])
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array, err_msg=name)
    x = everything.feeds_of(0)["x"][:4], everything.feeds_of(1)["x"][:2]
    (w,) = (
        numpy_helper.to_array(t) for t in everything.network().graph.initializer if t.name == "w"
    )
    mean = 0.9 * 0.1 * (x[0] @ w).mean(0) + 0.1 * (x[1] @ w).mean(0)  # momentum 0.9, from zero
    np.testing.assert_allclose(one["mean"], mean, 1e-5, 1e-6)


def test_a_rank_without_examples_takes_part():
    graph = graph_of()

    def work(engine):
        session = DataParallel(graph, engine)
        feeds = feeds_of(0) if engine.rank == 1 else {}
        return session.step(feeds), session.state

    (none, state), (made, _) = Threads(2).run(work)
    assert none.keys() == {"loss", "updated"}
    assert made.keys() == {"y", "loss", "updated"}
    assert none["loss"] == made["loss"]
    whole = graphopt.Session(graph)
    assert whole.step(feeds_of(0))["loss"] == made["loss"]
    for name, value in whole.state.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_examples_may_be_counted_otherwise():
    params = graphopt.parameters(network())
    optimizer = graphopt.RMSProp(params, 1e-2, epsilon=1e-3)
    graph = graphopt.training_graph(network(), _over_weights, optimizer)
    feeds = {**feeds_of(0), "weights": np.array([1, 1, 1, 0, 0, 0, 0, 0, 1], np.float32)}

    def work(engine):
        session = DataParallel(graph, engine)
        mine = part(feeds, engine.rank, engine.size)
        return session.step(mine, examples=int(mine["weights"].sum()))["loss"], session.state

    (loss, state), _ = Threads(2).run(work)
    whole = graphopt.Session(graph)
    np.testing.assert_allclose(loss, whole.step(feeds)["loss"], 1e-6)
    for name, value in whole.state.items():
        np.testing.assert_allclose(state[name], value, 1e-5, 1e-6, err_msg=name)


def _over_weights(op, output):
    labels = op.input("labels", np.float32, ["N", 3])
    weights = op.input("weights", np.float32, ["N"])
    error = op.ReduceMean(op.Pow(op.Sub(output, labels), 2.0), axes=[1], keepdims=0)
    total = op.ReduceSum(op.Mul(error, weights), keepdims=0)
    return op.Div(total, op.ReduceSum(weights, keepdims=0))


# ONNX Runtime 1.19 has no float64 kernel of a product that it makes of two nodes.
@pytest.mark.parametrize(
    "dtype", ["float16", pytest.param("float64", marks=pytest.mark.any_runtime)]
)
def test_parameters_of_other_dtypes(dtype):
    made = onnx.ModelProto()
    made.CopyFrom(network())
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = kind
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    scale = 1.0 if dtype == "float64" else graphopt.DynamicLossScale(256.0, growth_interval=3)
    optimizer = graphopt.RMSProp(
        graphopt.parameters(made), 1e-2, epsilon=1e-3, loss_scale=scale, momentum=0.5
    )
    graph = graphopt.training_graph(made, "mse", optimizer)

    def cast(feeds):
        kinds = {feed.name: feed.dtype for feed in whole.inputs}
        return {name: array.astype(kinds[name]) for name, array in feeds.items()}

    whole = graphopt.Session(graph)

    def work(engine):
        session = DataParallel(graph, engine, compare_every=1)
        for step in range(5):
            session.step(cast(part(feeds_of(step), engine.rank, engine.size)))
        return session.state

    for step in range(5):
        whole.step(cast(feeds_of(step)))
    alone = DataParallel(graph, nothing, **ALONE)
    for step in range(5):
        alone.step(cast(feeds_of(step)))
    state, _ = Threads(2).run(work)
    bound = 1e-12 if dtype == "float64" else 2e-2
    for name, value in whole.state.items():
        # Where float16 is computed in float32, what is rounded depends on the nodes after it.
        exact = 1e-5 if dtype == "float16" else 0
        np.testing.assert_allclose(alone.state[name], value, exact, exact, err_msg=name)
        np.testing.assert_allclose(state[name], value, bound, bound, err_msg=name)


def test_gradients_pass_in_few_messages():
    graph, threads = graph_of(options={"layout": "separate"}), Threads(2)
    sent = []
    for message in (1, 2**24):

        def work(engine, message=message):
            session = DataParallel(graph, engine, compare_every=None, message=message)
            threads.messages = 0
            session.step(part(feeds_of(0), engine.rank, 2))
            return session.state["w"]

        sent.append((threads.run(work)[0], threads.messages))
    (w, many), (again, few) = sent
    np.testing.assert_array_equal(w, again)
    assert (many, few) == (7, 3)  # examples; loss; and five gradients, or all of them


def test_what_one_rank_refuses_ends_the_step_on_all():
    graph = graph_of()

    def work(engine):
        session = DataParallel(graph, engine)
        before, errors = session.state, []
        feeds = part(feeds_of(0), engine.rank, engine.size)
        for bad in ({"x": feeds["x"]}, {**feeds, "x": feeds["x"].astype(np.float64)}):
            with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
                session.step(bad if engine.rank == 2 else feeds)
            errors.append(caught.value)
        for name, array in session.state.items():
            np.testing.assert_array_equal(array, before[name])
        session.step(feeds)  # goes on
        return errors

    results = Threads(3).run(work)
    assert [type(error) for error in results[2]] == [ValueError, TypeError]
    for errors in results[:2]:
        assert str(errors[0]).startswith("rank 2 of 3 failed, nothing was updated: ValueError: ")
        assert "'labels' is missing" in str(errors[0])
        assert "TypeError: feed 'x': got dtype float64" in str(errors[1])


def test_what_fails_in_the_runtime_ends_the_step_on_all():
    made = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        net (int64[N] i) => (float[N, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}>
        { y = Gather (w, i) }""")
    graph = graphopt.training_graph(made, "mse", graphopt.RMSProp(graphopt.parameters(made), 0.1))

    def work(engine):
        session = DataParallel(graph, engine)
        feeds = {"i": np.array([engine.rank * 9]), "labels": np.zeros((1, 2), np.float32)}
        with pytest.raises((RuntimeError, ValueError)) as caught:
            session.step(feeds)
        return caught.value, session.state

    (error, state), (own, _) = Threads(2).run(work)
    assert "rank 1 of 2 failed, nothing was updated: " in str(error)
    assert "indices" in str(own)
    np.testing.assert_array_equal(state["w"], np.arange(1, 7).reshape(3, 2))
    assert state["global_step"] == 0


def test_states_that_are_different_are_said():
    graph = graph_of(momentum=0.9)

    def work(engine, loads, match):
        session = DataParallel(graph, engine, compare_every=4)
        feeds = part(feeds_of(0), engine.rank, engine.size)
        for _ in range(2):
            session.step(feeds)
        if engine.rank == 2:
            loads(session)
        if "after 4" in match:
            session.step(feeds)
        with pytest.raises(RuntimeError, match=match):
            session.step(feeds)
        session.broadcast()
        session.compare()
        session.step(feeds)

    def loads(session):
        session.load_state({"u": session.state["u"] + 1})

    def silently(session):  # as a fault of the memory would
        (value,) = (v for v in session.graph.carried if v.input == "bucket0")
        array = session._state.held(value).numpy()
        array.reshape(-1)[0] += 1

    before = r"after 2 steps, the state of rank 2 differs from that of rank 0 in 'u': give all"
    after = r"after 4 steps, the state of rank 2 differs from that of rank 0 in 'w'"
    Threads(3).run(lambda engine: work(engine, loads, before))
    Threads(3).run(lambda engine: work(engine, silently, after))


def test_ranks_begin_as_rank_0_does(tmp_path):
    graph = graph_of(momentum=0.9)
    values = {"w": np.full((6, 8), -0.0, np.float32)}
    values["w"][0, 0] = 7

    def work(engine):
        session = DataParallel(graph, engine, None if engine.rank else values)
        first = session.state["w"]
        session.step(part(feeds_of(0), engine.rank, 2))
        session.save_checkpoint(tmp_path / f"{engine.rank}.safetensors")
        session.export(tmp_path / f"{engine.rank}.onnx")
        with graphopt.Checkpoints(tmp_path / f"run{engine.rank}", every=1) as checkpoints:
            checkpoints.save(session)
        session.step(part(feeds_of(1), engine.rank, 2))
        if engine.rank == 0:
            session.load_checkpoint(tmp_path / "0.safetensors")
        session.broadcast()
        return first, session.state

    (first, state), (other, there) = Threads(2).run(work)
    assert first.tobytes() == other.tobytes() == values["w"].tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.onnx", "0.safetensors", "run0"]
    whole = graphopt.Session(graph)
    whole.load_checkpoint(tmp_path / "0.safetensors")
    for name, array in whole.state.items():
        assert state[name].tobytes() == there[name].tobytes() == array.tobytes(), name


def test_all_ranks_have_the_same_graph():
    graphs = graph_of(), graph_of(momentum=0.9)
    with pytest.raises(RuntimeError, match=r"rank 1 has another training graph than rank 0"):
        Threads(2).run(lambda engine: DataParallel(graphs[engine.rank], engine))


def test_all_ranks_have_the_same_settings():
    with pytest.raises(
        RuntimeError, match=r"rank 1 has another .* or another compare_every, message"
    ):
        Threads(2).run(lambda e: DataParallel(graph_of(), e, compare_every=5 + e.rank))


@pytest.mark.parametrize(
    ("engine", "made"),
    [
        (lambda arrays: [array * 2 for array in arrays], "1.0"),  # not in its place
        (lambda arrays: [np.multiply(a, 1.5, out=a, casting="unsafe") for a in arrays], "1.5"),
    ],
)
def test_an_engine_that_does_not_add_up_is_refused(engine, made):
    match = rf"all_reduce: from 1 on each of 2 ranks it made {made} \(float32\), expected the sum"
    with pytest.raises(ValueError, match=match):
        DataParallel(graph_of(), engine, rank=0, size=2)


def test_an_engine_that_fails_is_told_about():
    def breaks(arrays):
        raise OSError(f"connection closed by peer, {len(arrays)} lost")

    with pytest.raises(RuntimeError, match=r"rank 1 of 2: no sum .* OSError: connection closed by"):
        DataParallel(graph_of(), breaks, rank=1, size=2)


WRONG = [
    ({"all_reduce": 3}, TypeError, r"all_reduce: got int, expected a function"),
    (
        {"all_reduce": nothing},
        TypeError,
        r"rank: got None, expected an int, because all_reduce has",
    ),
    ({"all_reduce": nothing, "rank": 2, "size": 2}, ValueError, r"rank: got 2 of size 2"),
    ({"all_reduce": nothing, **ALONE, "message": 0}, ValueError, r"message: got 0"),
    ({"all_reduce": nothing, **ALONE, "compare_every": 0}, ValueError, r"compare_every: got 0"),
]


@pytest.mark.parametrize(("arguments", "kind", "match"), WRONG)
def test_wrong_arguments(arguments, kind, match):
    with pytest.raises(kind, match=match):
        DataParallel(graph_of(), **arguments)


def test_wrong_steps():
    session = DataParallel(graph_of(), nothing, **ALONE)
    with pytest.raises(ValueError, match=r"outputs: got 'z', expected some of y, loss, updated"):
        session.step(feeds_of(0), outputs=["z"])
    with pytest.raises(ValueError, match=r"examples: got 0"):
        session.step(feeds_of(0), examples=0)
    assert session.step(feeds_of(0), outputs=["updated"]) == {"updated": True}


def test_both_halves_without_a_session():
    optimizer = graphopt.RMSProp(graphopt.parameters(network()), 1e-3, momentum=0.9)
    made = gradient_graph(network(), "mse", optimizer)
    assert isinstance(made, GradientGraph)
    onnx.checker.check_model(made.model)
    onnx.checker.check_model(made.update.model)
    assert sum(made.flat.values()) == sum(p.size for p in optimizer.params)
    update = graphopt.Session(made.update)
    assert [feed.name for feed in update.inputs] == list(made.flat)
    assert graphopt.inspect(made.update.model).optimizer.name == "RMSProp"
    with pytest.raises(ValueError, match=r"does not say which of its values are gradients"):
        split(made.update)
    with pytest.raises(ValueError, match=r"does not say which of its values are gradients"):
        split(graphopt.update_graph(optimizer))


def test_a_gradient_that_is_a_parameter():
    made = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N] x) => (float l) <float[2] w = {1, 2}, float[2] v = {3, 4}>
        { p = Mul (w, v) s = ReduceSum <keepdims = 0> (p) m = ReduceMean <keepdims = 0> (x)
          l = Mul (s, m) }""")
    graph = graphopt.training_graph(made, "l", graphopt.RMSProp(graphopt.parameters(made), 0.1))
    whole, session = graphopt.Session(graph), DataParallel(graph, nothing, **ALONE)
    for _ in range(3):
        whole.step({"x": np.ones(3, np.float32)})
        session.step({"x": np.ones(3, np.float32)})
    for name, value in whole.state.items():
        np.testing.assert_array_equal(session.state[name], value, err_msg=name)


@pytest.mark.parametrize("case", ["mask", "rate"])
def test_ranks_without_examples_are_fed_the_constants(case):
    settings = {"options": {"group_mask": True}, "groups": True}
    constants = {"group_mask": np.array([True, False, False])}
    if case == "rate":
        settings, constants = {"rate": schedules.FromCaller()}, {"learning_rate": np.float32(0.01)}
    graph = graph_of(**settings)
    arrays = {name: array[:3] for name, array in feeds_of(0).items()}
    plan = Plan(Arrays(arrays), size=2, steps=2, epochs=2, seed=0, constants=constants)

    def work(engine):
        company = Company(engine)
        session = company.session(graph)
        made = company.run(session, plan, Target(None), History())
        made.resume(None)
        made.train(Stop())
        return session.state

    alone = Run(graphopt.Session(graph), plan, Target(None), History())
    alone.resume(None)
    alone.train(Stop())
    for state in Threads(2).run(work):
        for name, value in alone.session.state.items():
            np.testing.assert_allclose(state[name], value, 1e-4, 1e-6, err_msg=name)
