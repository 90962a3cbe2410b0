"""Checkpoints know whether they are whole, and whose they are."""

import json
import re

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

import graphopt
from graphopt import checkpoint, fingerprint
from graphopt.examples import digits_cnn
from tests.helpers.batches import batches
from tests.helpers.faults import flips_that_are_found

pytestmark = pytest.mark.any_runtime

MOMENT = "moment.conv1.weight"


def digits_graph(model=None, loss="cross_entropy", *, build=None, **settings):
    model = digits_cnn.build() if model is None else model
    settings = {"learning_rate": 0.002, "momentum": 0.9} | settings
    optimizer = graphopt.RMSProp(graphopt.parameters(model), **settings)
    return graphopt.training_graph(model, loss, optimizer, **build or {})


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def graph():
    return digits_graph()


@pytest.fixture(scope="module")
def state(graph):
    """That of three steps."""
    session = graphopt.Session(graph)
    for feeds in batches(3):
        session.step(feeds)
    return session.state


@pytest.fixture
def path(graph, state, tmp_path):
    """A checkpoint of it."""
    path = tmp_path / "checkpoint.safetensors"
    entry = fingerprint.of_model(graph.model, graph.carried).entry
    checkpoint.save(path, state, entry, {"epoch": 3})
    return path


# --- whole ------------------------------------------------------------------------------------


@pytest.mark.quick
def test_what_is_read_is_what_was_written(path, state):
    stored = checkpoint.read_stored(path)
    assert_same_state(stored.state, state)
    assert_same_state(load_file(path), state)  # safetensors' own reader
    assert stored.note == {"epoch": 3}


def test_all_dtypes_are_written(tmp_path):
    names = ["float64", "float32", "float16", "bool"]
    names += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    arrays = {name: np.arange(5).astype(name) for name in names} | {
        "none": np.zeros((0, 3), np.float32),
        "scalar": np.array(2.5, np.float16),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    }
    checkpoint.save(tmp_path / "c", arrays)
    for found in (checkpoint.read(tmp_path / "c"), load_file(tmp_path / "c")):
        assert_same_state(found, arrays)
        assert {n: (a.dtype, a.shape) for n, a in found.items()} == {
            n: (a.dtype, a.shape) for n, a in arrays.items()
        }
    with pytest.raises(TypeError, match="'c' has dtype complex128, which a checkpoint cannot hold"):
        checkpoint.save(tmp_path / "d", {"c": np.zeros(2, np.complex128)})


def test_every_flipped_bit_is_found(tmp_path):
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (30, 20))], momentum=0.9)
    session = graphopt.Session(
        graphopt.update_graph(optimizer), parameters={"w": np.ones((30, 20), np.float32)}
    )
    session.save_checkpoint(tmp_path / "c")
    flips_that_are_found(tmp_path / "c", session.load_checkpoint)


def test_flipped_bits_of_a_real_one_are_found(path):
    flips_that_are_found(path, checkpoint.read, flips=100)


def test_a_cut_one_is_refused(path):
    whole = path.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=str(path)):
            checkpoint.read(path)


def swapped(state):
    one, other = "conv1.weight", MOMENT
    return state | {one: state[other], other: state[one]}


def test_swapped_tensors_are_refused(path, state):
    with checkpoint.opened(path) as tensors:
        metadata = tensors._file.metadata
    save_file(swapped(state), path, metadata=metadata)
    with pytest.raises(ValueError, match=r"its tensor '.*conv1\.weight' is not what was written"):
        checkpoint.read(path)


def test_a_missing_tensor_is_noticed_before_it_is_asked_for(path, state):
    with checkpoint.opened(path) as tensors:
        metadata = tensors._file.metadata
    save_file({n: a for n, a in state.items() if n != MOMENT}, path, metadata=metadata)
    with pytest.raises(ValueError, match="does not have the tensors that were written"):
        checkpoint.read(path)


def test_an_old_one_loads_with_a_warning(graph, path, state):
    save_file(state, path, metadata={"format": "graphopt", "version": "1"})
    session = graphopt.Session(graph)
    with pytest.warns(UserWarning, match="has no checksums, because an older graphopt wrote it"):
        session.load_checkpoint(path)
    assert_same_state(session.state, state)


# --- possible ---------------------------------------------------------------------------------

IMPOSSIBLE = {
    "NaN weight": ("conv1.weight", np.nan, " numbers of 'conv1.weight' is NaN or infinite"),
    "infinite moment": (MOMENT, -np.inf, f"numbers of '{MOMENT}' is NaN or infinite"),
    "negative mean square": (
        "mean_square.conv1.weight",
        -0.5,
        "the value -0.5, expected 0 or more",
    ),
    "negative step": ("global_step", -1, "'global_step' has the value -1, expected 0 or more"),
    "far step": ("global_step", 2**62, f"'global_step' is {2**62}, expected {2**53} at most"),
}


@pytest.mark.parametrize(("name", "value", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@pytest.mark.parametrize("strict", [True, False])
def test_impossible_values_are_refused(graph, path, state, name, value, message, strict):
    wrong = state[name].copy()
    wrong.flat[-1] = value
    checkpoint.save(path, state | {name: wrong})
    session = graphopt.Session(graph)
    before = session.state
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        session.load_checkpoint(path, strict=strict)
    assert str(path) in str(caught.value)
    assert_same_state(session.state, before)


# --- whose ------------------------------------------------------------------------------------


def with_tanh():
    model = digits_cnn.build()
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Tanh"
    return model


def with_stride():
    model = digits_cnn.build()
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    next(a for a in pool.attribute if a.name == "kernel_shape").ints[:] = [2, 1]
    return model


def half_of_mse(op, logits):
    return op.ReduceMean(op.Mul(logits, logits), keepdims=0)


def groups(model, **of_convolutions):
    params = graphopt.parameters(model)
    convolutions = params.matching("conv*")
    return [{"params": convolutions, **of_convolutions}, {"params": params.without(convolutions)}]


def grouped(**of_convolutions):
    model = digits_cnn.build()
    optimizer = graphopt.RMSProp(
        groups(model, **of_convolutions), learning_rate=0.002, momentum=0.9
    )
    return graphopt.training_graph(model, "cross_entropy", optimizer)


OTHERS = {
    "another operator": (
        lambda: digits_graph(with_tanh()),
        ["3 Relu in it, but 0 in the graph", "the first that is different is Tanh 'relu1'"],
    ),
    "another attribute": (
        lambda: digits_graph(with_stride()),
        ["nodes are different; the first that is different is MaxPool 'pool1'"],
    ),
    "another loss": (
        lambda: digits_graph(loss=half_of_mse),
        ['the loss\'s name is "cross_entropy" in it, but "half_of_mse" in the graph'],
    ),
    "another rate": (
        lambda: digits_graph(learning_rate=5.0),
        ["learning_rate of 'conv1.bias' and 7 more is 0.002 in it, but 5.0 in the graph"],
    ),
    "hyperparameters": (
        lambda: digits_graph(momentum=0.1, decay=0.5, epsilon=1e-3),
        [
            f"{name} is {before} in it, but {now} in the graph"
            for name, before, now in (
                ("decay", 0.9, 0.5),
                ("epsilon", 1e-10, 0.001),
                ("momentum", 0.9, 0.1),
            )
        ],
    ),
    "a group's rate": (
        lambda: grouped(lr=0.1),
        ["learning_rate of 'conv1.bias' and 3 more is 0.002 in it, but 0.1 in the graph"],
    ),
    "a schedule": (
        lambda: digits_graph(learning_rate=graphopt.schedules.CosineDecayLR(0.0, 0.1, 10)),
        ['is 0.002 in it, but {"schedule": "CosineDecayLR"'],
    ),
    "a list of as many rates": (
        lambda: digits_graph(learning_rate=[0.1] * 9),
        ['is 0.002 in it, but {"schedule": "list", "length": 9, "digest": "'],
    ),
    "weight decay": (
        lambda: digits_graph(weight_decay=0.1),
        ["weight_decay of 'conv1.bias' and 7 more is 0.0 in it, but 0.1 in the graph"],
    ),
}


@pytest.mark.parametrize(("other", "messages"), OTHERS.values(), ids=OTHERS)
def test_another_graph_is_refused_by_what_differs(path, state, other, messages):
    session = graphopt.Session(other())
    before = session.state
    with pytest.raises(ValueError, match="does not belong to this graph") as caught:
        session.load_checkpoint(path)
    for message in messages:
        assert message in str(caught.value)
    assert_same_state(session.state, before)
    report = session.load_checkpoint(path, strict=False)
    assert all(any(m in difference for difference in report.differences) for m in messages)
    assert set(report.loaded) == set(state)
    assert not report.kept
    assert_same_state(session.state, state)


ALIKE = {
    "other values": lambda: digits_graph(digits_cnn.build(seed=5)),
    "use_locking": lambda: digits_graph(use_locking=True),
    "equal groups": grouped,
    **{
        f"{name}={value}": lambda name=name, value=value: digits_graph(build={name: value})
        for name, value in {
            "layout": "separate",
            "memory": "low",
            "provider": "CUDAExecutionProvider",
            "group_mask": True,
        }.items()
    },
}


@pytest.mark.parametrize("other", ALIKE.values(), ids=ALIKE)
def test_how_a_graph_computes_it_does_not_matter(path, state, other):
    session = graphopt.Session(other())
    assert session.load_checkpoint(path).differences == ()
    assert_same_state(session.state, state)


def renamed_and_reordered():
    """The same model: nodes in another order of the file, other names between them."""
    model = digits_cnn.build()
    inner = {name for node in model.graph.node for name in node.output}
    inner -= {value.name for value in model.graph.output}
    for node in model.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [f"other_{name}" if name in inner else name for name in names]
    spare = onnx.helper.make_node("Relu", ["x"], ["spare"])
    model.graph.node.insert(3, spare)
    return model


def test_inner_names_do_not_matter(path):
    graphopt.Session(digits_graph(renamed_and_reordered())).load_checkpoint(path)


def test_frozen_weights_belong_to_the_model():
    def entry(scale):
        model = digits_cnn.build()
        for tensor in model.graph.initializer:
            if tensor.name == "conv1.weight":
                array = onnx.numpy_helper.to_array(tensor) * np.float32(scale)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        params = graphopt.parameters(model).without(graphopt.parameters(model).matching("conv1.*"))
        graph = graphopt.training_graph(model, "cross_entropy", graphopt.RMSProp(params))
        return fingerprint.of_model(graph.model, graph.carried)

    first, same, other = entry(1), entry(1), entry(2)
    assert first.differences(json.loads(json.dumps(same.entry))) == []
    (difference,) = first.differences(other.entry)
    assert "the first that is different is Conv 'conv1'" in difference


def test_what_a_checkpoint_does_not_say_is_not_compared(graph, path, state):
    checkpoint.save(path, state)
    graphopt.Session(graph).load_checkpoint(path)
    later = json.loads(json.dumps(graphopt.Session(graph).fingerprint))
    later["optimizer"]["of_a_later_version"] = 1
    checkpoint.save(path, state, later)
    graphopt.Session(graph).load_checkpoint(path)


@pytest.mark.parametrize("part", ["model", "loss", "optimizer", "rules"])
@pytest.mark.parametrize("wrong", [5, [], {}, "x", [{}]], ids=str)
def test_a_description_that_is_something_else(graph, part, wrong):
    own = fingerprint.of_model(graph.model, graph.carried)
    found = own.differences({**own.entry, part: wrong})
    assert all(isinstance(line, str) for line in found)


def test_not_strict_loads_what_fits(path, state):
    model = digits_cnn.build()
    params = graphopt.parameters(model)
    graph = graphopt.training_graph(
        model,
        "cross_entropy",
        graphopt.RMSProp(params.without(params.matching("conv1.*")), centered=True),
    )
    session = graphopt.Session(graph)
    for feeds in batches(1):
        session.step(feeds)
    before = session.state
    report = session.load_checkpoint(path, strict=False)
    after = session.state
    assert set(report.loaded) == before.keys() & state.keys()
    assert set(report.kept) == before.keys() - state.keys()
    assert all(name.startswith("mean_grad.") for name in report.kept)
    assert set(report.ignored) == state.keys() - before.keys()
    assert "centered is false in it, but true in the graph" in report.differences
    for name, array in after.items():
        np.testing.assert_array_equal(
            array, (state | before if name in report.kept else state)[name]
        )


@pytest.mark.parametrize("layout", ["auto", "separate"])
def test_no_memory_for_a_part_changes_nothing(path, layout, monkeypatch):
    session = graphopt.Session(digits_graph(build={"layout": layout}))
    for feeds in batches(1):
        session.step(feeds)
    before, count = session.state, len(session.graph.carried)
    from graphopt import _bound_state

    joined = _bound_state.joined
    for fails in range(count):
        calls = []

        def fail(*arguments, fails=fails, calls=calls):
            calls.append(arguments)
            if len(calls) > fails:
                raise MemoryError
            return joined(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(_bound_state, "joined", fail)
            with pytest.raises(ValueError, match=r"checkpoint.* asks for more memory than there"):
                session.load_checkpoint(path)
        assert_same_state(session.state, before)


def test_another_list_of_as_many_rates_is_refused(tmp_path):
    file = tmp_path / "list.safetensors"
    rates = [0.1, 0.2, 0.3]
    graphopt.Session(digits_graph(learning_rate=rates)).save_checkpoint(file)
    graphopt.Session(digits_graph(learning_rate=np.array(rates))).load_checkpoint(file)
    other = graphopt.Session(digits_graph(learning_rate=rates[::-1]))
    with pytest.raises(ValueError, match=r'is {"schedule": "list", "length": 3, "digest"'):
        other.load_checkpoint(file)


def test_an_older_checkpoint_does_not_say_what_is_in_a_list():
    rates = fingerprint.of_model(*of(digits_graph(learning_rate=[0.1, 0.2])))
    entry = json.loads(json.dumps(rates.entry))
    for rule in entry["rules"]:
        assert rule["learning_rate"].pop("digest")
    assert rates.differences(entry) == []
    entry["rules"][0]["learning_rate"]["length"] = 5
    assert len(rates.differences(entry)) == 1


def of(graph):
    return graph.model, graph.carried
