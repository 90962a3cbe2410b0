"""Sessions: state in the runtime's memory, overwritten safely, saved, loaded and exported."""

import itertools
import json
import struct
import threading
import tracemalloc

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import _runtime, _runtime_session, in_place
from graphopt.builder import GraphBuilder
from graphopt.examples import digits_cnn
from graphopt.graph import assemble, manifest_of
from graphopt.update import emit, layout as layouts
from models.zoo import ZOO
from tests.helpers.batches import batches


def digits_graph(**settings):
    model = digits_cnn.build()
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model), **({"learning_rate": 0.002, "momentum": 0.9} | settings)
    )
    return graphopt.training_graph(model, "cross_entropy", optimizer)


def assert_same_state(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert np.array_equal(one[name], other[name]), name


# --- overwriting in place ---------------------------------------------------------------------


def two_readers(order, layout="separate"):
    """g = x'dy and dx = dy w', with the update of w; nodes in this file order."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="hazard")
    op = GraphBuilder(graph)
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (64, 16))], momentum=0.9)
    w = op.input("w", np.float32, [64, 16])
    xt, dy = op.input("xt", np.float32, [64, 32]), op.input("dy", np.float32, [32, 16])
    for name in order:
        if name == "gradient":
            gradient = op.MatMul(xt, dy)
        elif name == "reader":
            op.output(op.Gemm(dy, w, transB=1), "dx")
        else:
            update = emit.append_update(op, optimizer, {"w": w}, {"w": gradient}, layout=layout)
    return assemble(ir.Model(graph, ir_version=8), update, manifest_of(optimizer, update))


def run_in_place(graph, feeds, state):
    """One run that binds every carried output to the memory of its input; returns dx."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    memory = {  # a binding does not keep it alive
        value: onnxruntime.OrtValue.ortvalue_from_numpy(
            state[value.input].reshape(value.shape).copy()
        )
        for value in graph.carried
    }
    for value, ort_value in memory.items():
        binding.bind_ortvalue_input(value.input, ort_value)
        binding.bind_ortvalue_output(value.output, ort_value)
    binding.bind_output("dx", "cpu")
    session.run_with_iobinding(binding)
    return binding.get_outputs()[-1].numpy()  # in the order in which they were bound


ORDERS = [o for o in itertools.permutations(["gradient", "update", "reader"])
          if o.index("gradient") < o.index("update")]  # fmt: skip


@pytest.fixture
def hazard():
    rng = np.random.default_rng(0)
    feeds = {k: rng.normal(size=s).astype("f") for k, s in {"xt": (64, 32), "dy": (32, 16)}.items()}
    state = {
        "w": rng.normal(size=(64, 16)).astype("f"),
        "mean_square.w": np.ones(64 * 16, "f"),
        "moment.w": np.zeros(64 * 16, "f"),
        "global_step": np.array(0),
    }
    return feeds, state, feeds["dy"] @ state["w"].T


def without_waiting(monkeypatch):
    monkeypatch.setattr(emit.Gate, "wait_for", lambda _gate, _value: None)


@pytest.mark.parametrize("chunk", [256, 256 * 1024], ids=["chunks", "one piece"])
@pytest.mark.parametrize("layout", ["chunks", "buckets", "separate", "foreach"])
def test_writes_wait_for_all_readers(hazard, layout, chunk, monkeypatch):
    monkeypatch.setattr(layouts, "_CHUNK", chunk)
    feeds, state, expected = hazard
    graph = two_readers(["gradient", "reader", "update"], layout)
    shapes = {
        "separate": (64, 16),
        "foreach": (64, 16),
        "buckets": (1024,),
        "chunks": (max(1, 1024 // chunk), -1),
    }
    assert graph.carried[0].shape == np.empty(1024).reshape(shapes[layout]).shape
    assert in_place.overwritable(graph.model, graph.carried) == set(state)
    dx = run_in_place(graph, feeds, state)
    np.testing.assert_allclose(dx, expected, atol=1e-4)


@pytest.mark.parametrize("layout", ["chunks", "buckets", "separate", "foreach"])
@pytest.mark.parametrize("name", ["mlp", "digits_cnn", "gru"])
def test_the_optimized_graph_still_waits(name, layout, tmp_path, monkeypatch):
    """What is proven of the graph holds for what ONNX Runtime makes of it."""
    for limit, elements in (("_CHUNK", 64), ("_LARGE", 100), ("_MAX_ELEMENTS", 128)):
        monkeypatch.setattr(layouts, limit, elements)
    entry = ZOO[name]
    model = entry.build(batch=entry.batch)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), momentum=0.9, centered=True)
    graph = graphopt.training_graph(model, entry.loss, optimizer, layout=layout)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    graphopt.Session(graph, session_options=options, kernels=False)
    optimized = onnx.load(options.optimized_model_filepath)
    assert in_place.overwritable(optimized, graph.carried) == {c.input for c in graph.carried}


def test_without_the_wait_a_reader_sees_the_new_value(hazard, monkeypatch):
    """The hazard is real: the same graph without the wait is wrong, and the proof refuses it."""
    feeds, state, expected = hazard
    without_waiting(monkeypatch)
    wrong = []
    for order in ORDERS:
        graph = two_readers(order)
        assert "w" not in in_place.overwritable(graph.model, graph.carried)
        wrong.append(not np.allclose(run_in_place(graph, feeds, state), expected, atol=1e-4))
    assert any(wrong)


def test_session_is_right_without_the_wait(hazard, monkeypatch):
    feeds, state, expected = hazard
    without_waiting(monkeypatch)
    for order in ORDERS:
        session = graphopt.Session(two_readers(order), parameters={"w": state["w"]})
        np.testing.assert_allclose(session.step(feeds)["dx"], expected, atol=1e-4)


def test_a_feed_may_change_between_steps():
    """The same array with other numbers, another array, and the first one again."""
    opt = graphopt.RMSProp([graphopt.Parameter("w", (2,))], learning_rate=1.0, decay=0.0)
    session = graphopt.Session(graphopt.update_graph(opt), parameters={"w": np.zeros(2, "f")})
    first, second = np.full(2, 3, "f"), np.full(2, -5, "f")
    session.step({"w_grad": first})
    first[:] = -4
    session.step({"w_grad": first})
    session.step({"w_grad": second})
    first[:] = [2, 0]
    session.step({"w_grad": first})
    np.testing.assert_allclose(session.state["w"], [-1 + 1 + 1 - 1, -1 + 1 + 1 - 0])
    with pytest.raises(ValueError, match="'w_grad' is missing"):
        session.step({})


def test_everything_is_overwritten_in_place():
    graph = digits_graph(centered=True, loss_scale=8.0, weight_decay=0.1)
    proven = in_place.overwritable(graph.model, graph.carried)
    assert proven == {value.input for value in graph.carried}
    session = graphopt.Session(graph)
    memory = {name: value.data_ptr() for name, value in session._values.items()}
    for feeds in batches(3):
        session.step(feeds)
    assert {name: value.data_ptr() for name, value in session._values.items()} == memory


def test_taking_turns_gives_the_same_state(monkeypatch):
    in_place_session = graphopt.Session(digits_graph())
    monkeypatch.setattr(_runtime, "keeps_order", lambda _runtime: False)
    taking_turns = graphopt.Session(digits_graph())
    assert len(taking_turns._next) == len(taking_turns.graph.carried)
    for feeds in batches(5):
        in_place_session.step(feeds)
        taking_turns.step(feeds)
    assert_same_state(in_place_session.state, taking_turns.state)


def test_runtime_keeps_the_order():
    assert _runtime.keeps_order(onnxruntime)


def test_state_is_a_copy():
    session = graphopt.Session(digits_graph())
    before = session.state
    kept = {name: array.copy() for name, array in before.items()}
    session.step(next(batches(1)))
    assert_same_state(before, kept)
    before["conv1.bias"][:] = 7
    assert not np.any(session.state["conv1.bias"] == 7)


def test_outputs_that_are_asked_for():
    session, other = (graphopt.Session(digits_graph()) for _ in range(2))
    for batch in batches(3):
        everything = other.step(batch)
        assert list(session.step(batch, outputs=["updated", "loss"])) == ["updated", "loss"]
        assert everything["loss"].shape == session.step(batch, outputs=("loss",))["loss"].shape
        assert session.step(batch, outputs=[]) == {}
    session.wait()
    assert session.state["global_step"] == 9


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (["losses"], ValueError, "outputs: got 'losses', expected some of logits, loss, updated"),
        ("loss", TypeError, r"outputs: got 'loss', expected a list such as \['loss'\]"),
    ],
)
def test_outputs_that_there_are_not(outputs, error, message):
    session = graphopt.Session(digits_graph())
    with pytest.raises(error, match=message):
        session.step(next(batches(1)), outputs=outputs)
    assert session.state["global_step"] == 0


def test_feeds_that_the_runtime_holds():
    session, other = (graphopt.Session(digits_graph()) for _ in range(2))
    for batch in batches(2):
        values = {n: onnxruntime.OrtValue.ortvalue_from_numpy(a) for n, a in batch.items()}
        for _ in range(2):
            assert session.step(values)["loss"] == other.step(batch)["loss"]
    assert_same_state(session.state, other.state)
    wrong = {**values, "x": onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((2, 3), np.float32))}
    with pytest.raises(ValueError, match=r"feed 'x': got shape \[2, 3\]"):
        session.step(wrong)
    wrong["x"] = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((2, 1, 8, 8)))
    with pytest.raises(TypeError, match=r"feed 'x': got tensor\(double\), expected float32"):
        session.step(wrong)


def test_what_is_computed_elsewhere_is_brought_home(monkeypatch):
    """As a GPU's runtime does with what it puts on the CPU: the bound memory is not written."""
    session, other = (graphopt.Session(digits_graph()) for _ in range(2))
    binding = session._binding

    class Binding:
        def __getattr__(self, name):
            return getattr(binding, name)

        def get_outputs(self):
            outputs = binding.get_outputs()
            self.moved = onnxruntime.OrtValue.ortvalue_from_numpy(outputs[0].numpy() + 1)
            return [self.moved, *outputs[1:]]

    monkeypatch.setattr(session, "_binding", Binding())
    monkeypatch.setattr(session._io, "is_new", True)
    (batch,) = batches(1)
    session.step(batch)
    other.step(batch)
    first = session.graph.carried[0].views[0].name
    np.testing.assert_array_equal(session.state[first], other.state[first] + 1)


def test_capturing_needs_the_kernels_and_their_layout(monkeypatch):
    given = {"enable_cuda_graph": "1"}
    monkeypatch.setattr("graphopt._running_graph.captures", lambda _provider: True)
    with pytest.raises(ValueError, match="enable_cuda_graph needs the fused kernels and a graph"):
        graphopt.Session(digits_graph())
    assert _runtime_session.captures(("CUDAExecutionProvider", given))
    assert not _runtime_session.captures(("CUDAExecutionProvider", {"enable_cuda_graph": 0}))
    assert not _runtime_session.captures("CUDAExecutionProvider")
    assert _runtime_session.without_capture(
        ("CUDAExecutionProvider", given | {"device_id": 1})
    ) == (
        "CUDAExecutionProvider",
        {"device_id": 1},
    )


def test_outputs_are_copies():
    session = graphopt.Session(digits_graph())
    first, second = (session.step(feeds) for feeds in batches(2))
    assert float(first["loss"]) != float(second["loss"])
    assert list(first) == ["logits", "loss", "updated"]
    assert first["updated"].dtype == bool
    assert first["updated"].shape == ()
    assert first["updated"]


@pytest.mark.quick
def test_starting_values():
    model = digits_cnn.build()
    start = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    own = {"conv1.bias": np.full(16, 3, np.float32)}
    session = graphopt.Session(digits_graph(), parameters=own)
    own["conv1.bias"][:] = 9  # the session has its own copy
    for name, value in (start | {"conv1.bias": np.full(16, 3, np.float32)}).items():
        assert np.array_equal(session.state[name], value)
        assert np.all(session.state[f"mean_square.{name}"] == 1)
        assert np.all(session.state[f"moment.{name}"] == 0)
        assert session.state[f"moment.{name}"].shape == value.shape
    assert session.state["global_step"] == 0
    assert session.state["global_step"].dtype == np.int64


# --- errors -----------------------------------------------------------------------------------

GOOD = next(batches(1))
BAD_FEEDS = {
    "missing": ({"x": GOOD["x"]}, ValueError, "'labels' is missing"),
    "extra": (GOOD | {"y": GOOD["x"]}, ValueError, "'y' is not a feed"),
    "misspelt": ({"X": GOOD["x"], "labels": GOOD["labels"]}, ValueError, "'x' is missing, 'X' is"),
    "not a dict": ([GOOD["x"], GOOD["labels"]], TypeError, "expected a dict"),
    "float64": (GOOD | {"x": GOOD["x"].astype("d")}, TypeError, "'x': got dtype float64"),
    "int32 labels": (GOOD | {"labels": GOOD["labels"].astype("i")}, TypeError, "expected int64"),
    "rank": (GOOD | {"x": GOOD["x"][:, 0]}, ValueError, r"expected \['batch', 1, 8, 8\]"),
    "size": (GOOD | {"x": GOOD["x"][..., :4]}, ValueError, r"got shape \[32, 1, 8, 4\]"),
    "batch sizes": (GOOD | {"labels": GOOD["labels"][:3]}, ValueError, "batch=32 as in feed 'x'"),
    "empty batch": ({k: v[:0] for k, v in GOOD.items()}, ValueError, "no elements"),
    "label too high": (GOOD | {"labels": GOOD["labels"] + 10}, ValueError, "classes 0 to 9"),
    "negative label": (GOOD | {"labels": -1 - GOOD["labels"]}, ValueError, "classes 0 to 9"),
}


@pytest.mark.parametrize(("feeds", "error", "message"), BAD_FEEDS.values(), ids=BAD_FEEDS)
def test_bad_feeds_change_nothing(feeds, error, message):
    session = graphopt.Session(digits_graph())
    session.step(GOOD)
    before = session.state
    with pytest.raises(error, match=message):
        session.step(feeds)
    assert_same_state(before, session.state)
    session.step(GOOD)


EMBEDDING = """<ir_version: 8, opset_import: ["" : 17]>
m (int64[N] x, float[5] other) => (float[N,3] y, float z) <float[7,3] w, float[5] b> {
    y = Gather(w, x)
    s = Mul(other, b)
    z = ReduceSum<keepdims = 0>(s)
}"""


def test_a_step_that_fails_in_the_runtime_changes_nothing():
    """The index is found out of range while another branch has its gradient already."""
    model = onnx.parser.parse_model(EMBEDDING.replace("<float[7,3] w, float[5] b>", ""))
    rng = np.random.default_rng(0)
    for name, shape in {"w": (7, 3), "b": (5,)}.items():
        array = rng.normal(size=shape).astype("f")
        model.graph.initializer.append(numpy_helper.from_array(array, name))

    def loss(op, y, z):
        return op.Add(op.ReduceMean(op.Mul(y, y), keepdims=0), z)

    optimizer = graphopt.RMSProp(graphopt.parameters(model), momentum=0.9)
    session = graphopt.Session(graphopt.training_graph(model, loss, optimizer))
    feeds = {"x": np.array([1, 2]), "other": np.ones(5, "f")}
    session.step(feeds)
    before = session.state
    with pytest.raises(RuntimeError, match="the state is as it was"):
        session.step(feeds | {"x": np.array([1, 99])})
    assert_same_state(before, session.state)
    session.step(feeds)


BAD_STARTS = {
    "unknown": ({"conv9.bias": np.zeros(16, "f")}, ValueError, "'conv9.bias' is not trained"),
    "state": ({"global_step": np.array(5)}, ValueError, "'global_step' is not trained"),
    "shape": ({"conv1.bias": np.zeros(17, "f")}, ValueError, r"got shape \[17\], expected \[16\]"),
    "dtype": ({"conv1.bias": np.zeros(16)}, TypeError, "got dtype float64, expected float32"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("values", "error", "message"), BAD_STARTS.values(), ids=BAD_STARTS)
def test_bad_starting_values(values, error, message):
    with pytest.raises(error, match=message):
        graphopt.Session(digits_graph(), parameters=values)


def test_an_update_graph_needs_starting_values():
    graph = graphopt.update_graph(graphopt.RMSProp([graphopt.Parameter("w", (3,))]))
    with pytest.raises(ValueError, match="no value for 'w'"):
        graphopt.Session(graph)


def test_a_session_keeps_no_initial_values(tmp_path):
    """Its graph is the one that was given in all else, and that one keeps its own."""
    graph = digits_graph()
    size, first = graph.model.ByteSize(), graph.carried[0].initial.copy()
    graph.save(tmp_path / "train.onnx")
    start = {name: v for name, v in graphopt.Session(graph).state.items() if "." in name}
    start = {n: v for n, v in start.items() if not n.startswith(("mean_square.", "moment."))}
    weights = sum(array.nbytes for array in start.values())
    for source in (graph, tmp_path / "train.onnx"):
        session = graphopt.Session(source)
        light = session.graph
        assert not any(isinstance(value.initial, np.ndarray) for value in light.carried)
        assert light.model.ByteSize() <= size - weights
        assert light.carried == graph.carried
        assert light.layout == graph.layout
        assert light.model.metadata_props == graph.model.metadata_props
        assert light.model.opset_import == graph.model.opset_import
        assert light.model.functions == graph.model.functions
        assert light.model.producer_name == "graphopt"
        session.export(tmp_path / "model.onnx")
        with pytest.raises(ValueError, match="nor the graph of a session holds any, give them"):
            graphopt.Session(light)
        again = graphopt.Session(light, parameters=start)
        assert_same_state(again.state, session.state)
    assert np.array_equal(graph.carried[0].initial, first)
    assert graph.model.ByteSize() == size


def test_no_memory_is_planned_or_reused_unless_the_options_say_so(monkeypatch):
    taken = []
    made = onnxruntime.InferenceSession

    def remembering(model, options, **settings):
        taken.append((options.enable_mem_pattern, options.enable_mem_reuse))
        return made(model, options, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", remembering)
    graph = digits_graph()
    graphopt.Session(graph)
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = True
    graphopt.Session(graph, session_options=options)
    assert taken[-2:] == [(False, False), (True, True)]


def test_graph_must_be_one():
    with pytest.raises(TypeError, match="expected a TrainingGraph"):
        graphopt.Session(42)
    with pytest.raises(ValueError, match="not a training graph"):
        graphopt.Session(digits_cnn.build())


def test_providers():
    session = graphopt.Session(digits_graph(), providers=["CPUExecutionProvider"])
    assert "CPUExecutionProvider" in repr(session)
    with pytest.raises(ValueError, match="'CUDAExecutionProvider' is not available"):
        graphopt.Session(digits_graph(), providers=["CUDAExecutionProvider"])


# --- checkpoints and export -------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("settings", [{}, {"centered": True}, {"momentum": 0.0}], ids=str)
def test_a_resumed_run_continues_bit_for_bit(tmp_path, settings):
    graph = digits_graph(**settings)
    graph.save(tmp_path / "train.onnx")
    whole = graphopt.Session(graph)
    *first, last_but_one, last = batches(6)
    for feeds in first:
        whole.step(feeds)
    whole.save_checkpoint(tmp_path / "checkpoint.safetensors")
    resumed = graphopt.Session(tmp_path / "train.onnx")
    resumed.step(last)  # leaves traces that loading must wipe out
    resumed.load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert_same_state(whole.state, resumed.state)
    for feeds in (last_but_one, last):
        one, other = whole.step(feeds), resumed.step(feeds)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert_same_state(whole.state, resumed.state)


def test_a_checkpoint_is_loaded_in_its_place(tmp_path):
    """Where a captured graph reads the state; nothing is bound anew."""
    session = graphopt.Session(digits_graph())
    first, *others = batches(3)
    session.step(first)
    session.save_checkpoint(tmp_path / "one.safetensors")
    kept = session.state
    places = {name: value.data_ptr() for name, value in session._values.items()}
    for batch in others:
        session.step(batch)
    session.load_checkpoint(tmp_path / "one.safetensors")
    assert_same_state(session.state, kept)
    assert {name: value.data_ptr() for name, value in session._values.items()} == places


def test_a_checkpoint_belongs_to_its_graph(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    graphopt.Session(digits_graph(momentum=0.0)).save_checkpoint(path)
    session = graphopt.Session(digits_graph())
    session.step(GOOD)
    before = session.state
    with pytest.raises(ValueError, match=r"it lacks 'moment\.conv1\.weight'"):
        session.load_checkpoint(path)
    assert_same_state(before, session.state)


def safetensors_file(dtype, shape, size, version="1"):
    """A checkpoint with one tensor, whatever it is."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    metadata = {"format": "graphopt", "version": version}
    text = json.dumps({"__metadata__": metadata, "w": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


NO_CHECKPOINTS = {
    "empty": (b"", "not a readable checkpoint"),
    "text": (b"hello", "not a readable checkpoint"),
    "zeros": (b"\x00" * 100, "not a readable checkpoint"),
    "missing": (None, "there is no file"),
    "float8": (safetensors_file("F8_E4M3", [2], 2), "its tensor 'w' is not one that NumPy"),
    "a shape beyond NumPy": (safetensors_file("F32", [0, 2**63], 0), "its tensor 'w' is not one"),
    "65 dimensions": (safetensors_file("F32", [1] * 65, 4), "its tensor 'w' is not one"),
    "another version": (safetensors_file("F32", [1], 4, "3"), "has version '3', expected '2'"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("content", "message"), NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_loading_what_is_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "checkpoint.safetensors"
    if content is not None:
        path.write_bytes(content)
    session = graphopt.Session(digits_graph())
    before = session.state
    error = FileNotFoundError if content is None else ValueError
    with pytest.raises(error, match=message) as caught:
        session.load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert_same_state(before, session.state)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    session = graphopt.Session(digits_graph())
    session.save_checkpoint(path)
    old = path.read_bytes()
    session.step(GOOD)

    def fail(*_args, **_options):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("graphopt.checkpoint.file.checksum", fail)
        with pytest.raises(OSError, match="no space left"):
            session.save_checkpoint(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        session.save_checkpoint(tmp_path / "missing" / "checkpoint.safetensors")


def test_export_is_the_forward_model_with_the_trained_parameters(tmp_path):
    digits_graph().save(tmp_path / "train.onnx")
    session = graphopt.Session(tmp_path / "train.onnx")  # the file alone must do
    for feeds in batches(5):
        session.step(feeds)
    session.export(tmp_path / "trained.onnx")
    exported, original = onnx.load(tmp_path / "trained.onnx"), digits_cnn.build()
    assert exported.graph.node == original.graph.node
    assert exported.graph.input == original.graph.input
    assert exported.graph.output == original.graph.output
    assert exported.opset_import == original.opset_import
    state = session.state
    for tensor in exported.graph.initializer:
        assert np.array_equal(numpy_helper.to_array(tensor), state[tensor.name])
    plain = onnxruntime.InferenceSession(tmp_path / "trained.onnx")
    (logits,) = plain.run(None, {"x": GOOD["x"]})
    np.testing.assert_allclose(session.step(GOOD)["logits"], logits, atol=1e-5)


def test_an_update_alone_has_no_forward_model(tmp_path):
    graph = graphopt.update_graph(graphopt.RMSProp([graphopt.Parameter("w", (3,))]))
    session = graphopt.Session(graph, parameters={"w": np.zeros(3, "f")})
    with pytest.raises(ValueError, match="update alone"):
        session.export(tmp_path / "trained.onnx")
    assert not list(tmp_path.iterdir())


def test_values_to_start_from_are_let_go_one_by_one(tmp_path):
    """Of 8 MiB of parameters and as many mean squares, the file's values are not held beside."""
    nodes = "".join(f"h{i + 1} = MatMul (h{i}, w{i})\n" for i in range(8))
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        network (float[N,512] h0) => (float[N,512] h8) {{ {nodes} }}"""
    )
    for index in range(8):
        array = np.full((512, 512), 1 / 512, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, f"w{index}"))
    path = tmp_path / "train.onnx"
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    graphopt.training_graph(model, "mse", optimizer, layout="separate").save(path)
    graphopt.Session(path)  # imports, and what is cached
    tracemalloc.start()
    try:
        session = graphopt.Session(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert float(session.state["w7"].sum()) == 512
    assert peak < 1.2 * 16 * 2**20


# --- threads ----------------------------------------------------------------------------------


def test_locking_serialises_steps_and_reads_of_the_state():
    """Four threads step, two read: no step is lost, and no state is half of one step."""
    optimizer = graphopt.RMSProp(
        [graphopt.Parameter(name, (50_000,)) for name in "abc"],
        learning_rate=1.0,
        decay=0.0,
        use_locking=True,
    )
    start = {name: np.zeros(50_000, "f") for name in "abc"}
    session = graphopt.Session(graphopt.update_graph(optimizer), parameters=start)
    gradient = {f"{name}_grad": np.ones(50_000, "f") for name in "abc"}
    torn, done = [], threading.Event()

    def read():
        while not done.is_set():
            state = session.state
            step = int(state["global_step"])
            torn.extend(name for name in "abc" if np.any(state[name] != -step))

    def step():
        for _ in range(25):
            session.step(gradient)

    readers = [threading.Thread(target=read) for _ in range(2)]
    steppers = [threading.Thread(target=step) for _ in range(4)]
    for thread in readers + steppers:
        thread.start()
    for thread in steppers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not torn
    assert session.state["global_step"] == 100
    assert np.all(session.state["a"] == -100)


def test_without_locking_a_second_thread_is_refused():
    session = graphopt.Session(digits_graph())
    with session._exclusively():
        for use in (lambda: session.step(GOOD), lambda: session.state):
            with pytest.raises(RuntimeError, match="use_locking=True"):
                use()
    session.step(GOOD)


def test_session_options(tmp_path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = graphopt.Session(digits_graph(), session_options=options)
    session.step(*batches(1))
    session._session.end_profiling()
    (profile,) = tmp_path.iterdir()
    assert "backward/dense1/Gemm" in profile.read_text()


def test_session_options_of_the_wrong_type():
    with pytest.raises(TypeError, match="session_options: got dict"):
        graphopt.Session(digits_graph(), session_options={"threads": 2})


QUANTIZED = """<ir_version: 8, opset_import: ["": 17]> m (float[4096,8] x) => (float[4096,4] y)
<float sx = {0.02}, uint8 zx = {128}, float sw = {0.01}, int8 zw = {0},
 float sy = {0.05}, uint8 zy = {128}>
{
    xq = QuantizeLinear(x, sx, zx) xd = DequantizeLinear(xq, sx, zx)
    wq = QuantizeLinear(w, sw, zw) wd = DequantizeLinear(wq, sw, zw)
    h = MatMul(xd, wd) hq = QuantizeLinear(h, sy, zy) hd = DequantizeLinear(hq, sy, zy)
    y = Mul(hd, v)
}"""


def test_quantized_operators_are_computed_as_they_are_written():
    """In integers, some results would be another by one step of the scale."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(scale=0.3, size=(8, 4)), "v": np.ones(4)}
    model = onnx.parser.parse_model(QUANTIZED)
    model.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
    )
    optimizer = graphopt.RMSProp(graphopt.parameters(model).matching("v"), learning_rate=1e-9)
    graph = graphopt.training_graph(model, "mse", optimizer)
    feeds = {
        "x": rng.normal(size=(4096, 8)).astype(np.float32),
        "labels": np.zeros((4096, 4), np.float32),
    }
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    want = graphopt.Session(graph, session_options=plain).step(feeds)
    got = graphopt.Session(graph).step(feeds)
    np.testing.assert_allclose(got["y"], want["y"], rtol=1e-6)
    np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-6)


def test_text():
    """Strings are fed and reported; a step reads what is in the array then."""
    forward = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 2]>
        m (string[N] city, float[N,3] x) => (float[N,3] y, string[N] who) {
            row = ai.onnx.ml.LabelEncoder<keys_strings = ["Ulm", "Köln"], values_int64s = [0, 1],
                default_int64 = 2>(city)
            e = Gather(w, row) y = Mul(x, e) i = ArgMax<axis = 1, keepdims = 0>(y)
            who = ai.onnx.ml.LabelEncoder<keys_int64s = [0, 1, 2],
                values_strings = ["a", "b", "c"]>(i)
        }"""
    )
    w = np.eye(3, dtype=np.float32) + 1
    forward.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    opt = graphopt.RMSProp(graphopt.parameters(forward), learning_rate=1e-30)
    graph = graphopt.training_graph(forward, "mse", opt, loss_output="y")
    session = graphopt.Session(graph)
    rest = {"x": np.ones((3, 3), np.float32), "labels": np.zeros((3, 3), np.float32)}
    names = np.array(["Köln", "Rom", "Ulm"], dtype=object)
    for text in (names, names.astype(str), names.tolist(), names):
        outputs = session.step({"city": text, **rest})
        np.testing.assert_array_equal(outputs["y"], w[[1, 2, 0]])
        assert outputs["who"].tolist() == ["b", "c", "a"]
    names[:] = "Ulm"
    np.testing.assert_array_equal(session.step({"city": names, **rest})["y"], w[[0, 0, 0]])
    with pytest.raises(TypeError, match=r"^feed 'city': got None among text, expected strings"):
        session.step({"city": np.array(["Ulm", None, "Rom"], dtype=object), **rest})
    with pytest.raises(TypeError, match=r"^feed 'city': got dtype int64.*\.astype\(str\)$"):
        session.step({"city": np.arange(3), **rest})
