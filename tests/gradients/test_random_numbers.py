"""Random numbers follow from a seed and the step: the bits of NumPy's, and random ones."""

import numpy as np
import onnx
import onnx.parser
import pytest
import scipy  # whose statistics are imported where they are needed: they take a second
from onnx import numpy_helper

from graphopt import (
    DynamicLossScale,
    Parameter,
    RMSProp,
    Session,
    inspect,
    parameters,
    training_graph,
    update_graph,
    verify,
)
from tests.helpers import random_numbers as numpys
from tests.helpers.environments import needs_training_package

ON = "on = Constant <value = bool {1}> ()"
LOSS = "f = Cast <to = 1> (z) p = Mul (f, w) y = ReduceMean <keepdims = 0> (p)"


def model(body, z="float[N, 20]", x="float[N, 20]", opset=17):
    """A model of ONNX text, whose loss is ``y``, and whose parameter is ``w``."""
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> m ({x} x) => (float y, {z} z) '
        f"{{ {body} {LOSS} }}"
    )
    made.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.float32), "w"))
    return made


def graph_of(made, optimizer=None, **options):
    made_of = optimizer or RMSProp(parameters(made), learning_rate=0.1)
    return training_graph(made, "y", made_of, **options)


def drawn(made, x, steps=1, **options):
    """The output ``z`` of the last step, and that of the one before, bit for bit the same twice."""
    values = []
    for _ in range(2):
        session = Session(graph_of(made, **options))
        values.append([session.step({"x": x})["z"] for _ in range(steps)])
    np.testing.assert_array_equal(values[0], values[1])
    return values[0][-1]


def dropout(ratio):
    return f"{ON} r = Constant <value = float {{{ratio}}}> () z = Dropout (x, r, on)"


@pytest.mark.quick
@pytest.mark.parametrize("rows", [1, 51, 52, 150])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.0])
def test_dropout_has_the_bits_of_numpy(rows, ratio):
    x = np.ones((rows, 20), np.float32)
    z = drawn(model(dropout(ratio)), x, seed=7, steps=2)
    kept = numpys.kept(numpys.keys(1, 7, 1)[0], ratio, (rows, 20))
    np.testing.assert_array_equal(z, kept * np.float32(1 / (1 - ratio)))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("float16", (3, 4)),
        ("double", (3, 4)),
        ("float", ()),
        ("float", (2000,)),
        ("float", (2,) * 5),
    ],
)
def test_of_all_dtypes_and_shapes(kind, shape):
    sizes = f"{kind}[{','.join(map(str, shape))}]" if shape else kind
    dtype = {"float": np.float32, "double": np.float64}.get(kind, np.float16)
    body = (
        dropout(0.25).replace("r,", "c,")
        + f" c = Cast <to = {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}> (r)"
    )
    z = drawn(model(body, z=sizes, x=sizes), np.ones(shape, dtype))
    kept = numpys.kept(numpys.keys(1, 0, 0)[0], 0.25, shape)
    assert z.dtype == dtype
    np.testing.assert_allclose(z, kept / 0.75, rtol=np.finfo(dtype).eps)


def test_nodes_steps_and_seeds_have_other_numbers():
    made = model(
        f"{ON} a = Dropout (x, , on) b = Dropout (x, , on) z = Concat <axis = 1> (a, b)",
        "float[N, 40]",
    )
    x = np.ones((500, 20), np.float32)
    found = np.stack([drawn(made, x, steps=1 + s, seed=seed) for seed in (0, 1) for s in (0, 1)])
    signs = np.concatenate([found[:, :, :20], found[:, :, 20:]]).reshape(8, -1) - 1
    correlation = signs @ signs.T / signs.shape[1]
    assert np.abs(correlation[np.triu_indices(8, 1)]).max() < 4.5 / np.sqrt(signs.shape[1])


def test_a_fed_ratio_and_a_fed_mode():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        m (float[N, 20] x, float r, bool on) => (float y, float[N, 20] z) {
        z = Dropout (x, r, on) a = Mul (x, w) y = ReduceMean <keepdims = 0> (a) }"""
    made = onnx.parser.parse_model(text)
    made.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.float32), "w"))
    session = Session(graph_of(made))
    feeds = {"x": np.ones((9, 20), np.float32), "r": np.float32(0.75), "on": np.bool_(True)}
    kept = numpys.kept(numpys.keys(1, 0, 0)[0], 0.75, (9, 20))
    np.testing.assert_array_equal(session.step(feeds)["z"], kept * np.float32(4))
    z = session.step(feeds | {"on": np.bool_(False)})["z"]
    np.testing.assert_array_equal(z, feeds["x"])


def uniforms(count, shape, seed=0, step=0):
    keys = numpys.keys(2 * count, seed, step)
    return [numpys.uniform(keys[2 * i], keys[2 * i + 1], shape) for i in range(count)]


SHAPE = (40, 20)
UNIFORM = [
    ("u = RandomUniformLike <high = 3.0, low = -1.0> (x) z = Identity (u)", "float[N, 20]"),
    (
        "z = RandomUniform <shape = [40, 20], high = 3.0, low = -1.0, seed = 5.0> ()",
        "float[40, 20]",
    ),
    ("z = RandomUniformLike <high = 3.0, low = -1.0, dtype = 11> (x)", "double[N, 20]"),
]


@pytest.mark.parametrize(("body", "z"), UNIFORM)
def test_uniform_numbers(body, z):
    (expected,) = uniforms(1, SHAPE)
    found = drawn(model(body, z), np.ones(SHAPE, np.float32))
    np.testing.assert_array_equal(found, (expected * 4 - 1).astype(np.float32))


def test_normal_numbers():
    u, v = uniforms(2, SHAPE)
    expected = 3 + 2 * np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)
    for body in (
        "z = RandomNormalLike <mean = 3.0, scale = 2.0> (x)",
        "z = RandomNormal <mean = 3.0, scale = 2.0, shape = [40, 20]> ()",
    ):
        found = drawn(model(body), np.ones(SHAPE, np.float32))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert scipy.stats.kstest((expected.ravel() - 3) / 2, "norm").pvalue > 0.01


def test_bernoulli():
    p = np.linspace(0, 1, 800, dtype=np.float32).reshape(SHAPE)
    found = drawn(model("z = Bernoulli <dtype = 7> (x)", "int64[N, 20]"), p)
    np.testing.assert_array_equal(found, uniforms(1, SHAPE)[0] < p)


def test_multinomial():
    scores = np.log(np.array([[0.5, 0.0, 0.2, 0.3], [0.0, 0.0, 0.0, 1.0]], np.float32) + 1e-30)
    body = "z = Multinomial <sample_size = 3000, dtype = 7> (x)"
    found = drawn(model(body, "int64[N, 3000]", "float[N, 4]"), scores)
    counts = np.bincount(found[0], minlength=4)
    assert counts[1] == 0
    assert (found[1] == 3).all()
    assert scipy.stats.chisquare(counts[[0, 2, 3]], [1500, 600, 900]).pvalue > 0.01


def test_in_loops_each_round_has_others():
    # The number of rounds is fed, so that it stays a loop.
    body = """t = Size (s) on = Constant <value = bool {1}> ()
        z = Loop <body = b (int64 i, bool c) => (bool d, float[M, 20] o) {
            d = Identity (c) o = Dropout (x, , on) }> (t, on)"""
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> m (float[N, 20] x, float[K] s) => '
        f"(float y, float[K, N, 20] z) {{ {body} {LOSS} }}"
    )
    made.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.float32), "w"))
    session = Session(graph_of(made))
    z = session.step({"x": np.ones((5, 20), np.float32), "s": np.ones(3, np.float32)})["z"]
    key = numpys.keys(1, 0, 0)[0]
    expected = [numpys.kept(key, 0.5, (5, 20), loops=[i]) for i in range(3)]
    np.testing.assert_array_equal(z, 2 * np.array(expected, np.float32))


def test_in_scans_each_round_has_others():
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> m (float[N, 20] x) => (float y, float[N, 20] z) {'
        "z = Scan <num_scan_inputs = 1, body = b (float[20] r) => (float[20] o) {"
        f" {ON} m = Mul (r, v) o = Dropout (m, , on) }}> (x) {LOSS} }}"
    )
    for name, shape in (("w", (1, 1)), ("v", (20,))):
        made.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    graph = graph_of(made, RMSProp(parameters(made), learning_rate=0.0), gradient_outputs=True)
    found = Session(graph).step({"x": np.ones((30, 20), np.float32)})
    key = numpys.keys(1, 0, 0)[0]
    expected = np.stack([numpys.kept(key, 0.5, (20,), loops=[i]) for i in range(30)])
    np.testing.assert_array_equal(found["z"], 2 * expected.astype(np.float32))
    np.testing.assert_allclose(found["v_grad"], 2 * expected.sum(0) / 600, rtol=1e-6)


# One output more keeps the gradient of what is not dropped.
NET = "h = MatMul (x, v) " + dropout(0.3).replace("(x,", "(h,")


def net():
    made = model(NET)
    square = np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32)
    made.graph.initializer.append(numpy_helper.from_array(square, "v"))
    return made


@pytest.mark.parametrize("memory", ["fast", "balanced", "low"])
@pytest.mark.parametrize("layout", ["buckets", "separate", "foreach"])
def test_the_gradient_has_the_mask_of_the_forward_pass(layout, memory):
    made = net()
    opt = RMSProp(parameters(made), learning_rate=0.0)
    session = Session(graph_of(made, opt, gradient_outputs=True, layout=layout, memory=memory))
    x = np.random.default_rng(1).standard_normal((33, 20)).astype(np.float32)
    for step in range(2):
        kept = numpys.kept(numpys.keys(1, 0, step)[0], 0.3, (33, 20)) / 0.7
        expected = x.T.astype(np.float64) @ (kept / kept.size)
        np.testing.assert_allclose(session.step({"x": x})["v_grad"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_in_half_precision(precision):
    made = net()
    opt = RMSProp(parameters(made), learning_rate=0.0)
    graph = graph_of(made, opt, gradient_outputs=True, precision=precision)
    x = np.random.default_rng(1).standard_normal((33, 20)).astype(np.float32)
    kept = numpys.kept(numpys.keys(1, 0, 0)[0], 0.3, (33, 20)) / 0.7
    found = Session(graph).step({"x": x})
    np.testing.assert_array_equal(found["z"] != 0, kept != 0)
    expected = x.T.astype(np.float64) @ (kept / kept.size)
    np.testing.assert_allclose(found["v_grad"], expected, rtol=0.05, atol=2e-3)


def test_skipped_steps_and_those_that_are_added_up_have_others():
    made = net()
    opt = RMSProp(parameters(made), learning_rate=0.1, loss_scale=DynamicLossScale())
    session = Session(graph_of(made, opt, accumulation=2))
    x = np.ones((5, 20), np.float32)
    seen = [session.step({"x": x * np.float32(np.nan if bad else 1)}) for bad in (0, 1, 0, 0)]
    masks = [numpys.kept(numpys.keys(1, 0, step)[0], 0.3, (5, 20)) for step in range(4)]
    assert [int(step["updated"]) for step in seen] == [0, 0, 1, 0]
    for step in (0, 2, 3):
        np.testing.assert_array_equal(seen[step]["z"] != 0, masks[step])
    assert session.state["random_step"] == 4
    assert session.state["skipped_steps"] == 1


def test_a_seed_is_state_and_goes_on_with_a_checkpoint(tmp_path):
    made, x = net(), np.ones((5, 20), np.float32)
    first = Session(graph_of(made, seed=3))
    first.step({"x": x})
    first.save_checkpoint(tmp_path / "c.safetensors")
    other = Session(graph_of(made, seed=4))
    other.load_checkpoint(tmp_path / "c.safetensors")
    assert (other.state["random_seed"], other.state["random_step"]) == (3, 1)
    for name, value in first.step({"x": x}).items():
        np.testing.assert_array_equal(other.step({"x": x})[name] if name == "z" else value, value)


def test_without_a_seed_the_runtime_draws():
    graph = graph_of(net(), seed=None)
    assert {"random_seed", "random_step"}.isdisjoint(Session(graph).state)
    assert any(node.op_type == "Dropout" for node in graph.model.graph.node)


def test_without_random_numbers_there_is_no_seed():
    assert "random_seed" not in Session(graph_of(model("z = Identity (x)"))).state


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**31, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_bad_seeds(seed, error):
    with pytest.raises(error, match=r"^seed: got"):
        graph_of(net(), seed=seed)


def test_inspection_and_verify_know_it():
    graph = graph_of(net())
    inspected = inspect(graph.model)
    assert {state.input: state.kind for state in inspected.state}["random_step"] == "counter"
    assert {state.input: state.kind for state in inspected.state}["random_seed"] == "seed"
    assert inspected.hazards == ()
    assert inspected.frozen == ()
    assert verify(graph.model).verified


def test_a_step_that_is_not_counted_is_found():
    graph = graph_of(net())
    (node,) = (n for n in graph.model.graph.node if "random_step.next" in n.output)
    node.op_type = "Add"  # minus one
    assert not verify(graph.model).verified


@pytest.mark.any_runtime
def test_masks_are_random():
    """Means, sums, pairs of places, steps and nodes, and patterns of eight."""
    share, steps, size = 0.3, 8, 100 * 1024
    found = np.stack(
        [numpys.kept(key, share, (size,)) for s in range(steps) for key in numpys.keys(2, 0, s)]
    )
    unit = (found - (1 - share)) / np.sqrt(share * (1 - share))
    assert abs(unit.mean()) < 4.5 / np.sqrt(unit.size)
    for window in (8, 64, 1024):
        sums = unit.reshape(-1, window).sum(1)
        assert abs(sums.var() / window - 1) < 4.5 * np.sqrt(2 / sums.size)
    for lag in (*range(1, 10), 32, 1023, 1024, 1025):
        assert abs((unit[:, lag:] * unit[:, :-lag]).mean()) < 4.5 / np.sqrt(unit.size)
    pairs = (unit @ unit.T / size)[np.triu_indices(len(unit), 1)]
    assert np.abs(pairs).max() < 4.5 / np.sqrt(size)
    rows = unit.reshape(-1, 1024)
    columns = (rows.T @ rows / len(rows))[np.triu_indices(1024, 1)]
    assert abs(columns.std() * np.sqrt(len(rows)) - 1) < 0.01
    ones = np.array([number.bit_count() for number in range(256)])
    expected = (1 - share) ** ones * share ** (8 - ones)
    for eights in (found.reshape(-1, 8), found.reshape(2, 8, -1).transpose(0, 2, 1).reshape(-1, 8)):
        counts = np.bincount(eights @ (1 << np.arange(8)), minlength=256)
        assert scipy.stats.chisquare(counts, expected * len(eights)).pvalue > 1e-4


@pytest.mark.any_runtime
def test_uniform_numbers_are_uniform():
    u = uniforms(1, (500_000,), seed=1)[0]
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3
    for numbers in (u * 2048 % 1, np.floor(u * 2048) / 2048):
        assert (
            scipy.stats.chisquare(np.bincount((numbers * 2048).astype(int), minlength=2048)).pvalue
            > 1e-4
        )


def test_an_update_alone_draws_nothing():
    graph = update_graph(RMSProp(parameters(net())))
    assert "random_seed" not in [value.name for value in graph.model.graph.input]


@needs_training_package
def test_with_gradients_of_the_runtime():
    graph = graph_of(net(), portable=False)
    session = Session(graph, kernels=False)
    for step in range(2):
        kept = numpys.kept(numpys.keys(1, 0, step)[0], 0.3, (5, 20))
        np.testing.assert_array_equal(
            session.step({"x": np.ones((5, 20), np.float32)})["z"] != 0, kept
        )


def test_with_gradients_that_a_model_has_and_in_functions():
    made = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        m (float[N, 20] x) => (float y, float[N, 20] z, float[1, 1] g) {
            z = own.Drop (x) p = Mul (z, w) y = ReduceMean <keepdims = 0> (p)
            g = ReduceMean <keepdims = 1> (z) }
        <domain: "own", opset_import: ["" : 17]> Drop (a) => (b) {
            on = Constant <value = bool {1}> () r = Constant <value = float {0.3}> ()
            b = Dropout (a, r, on) }""")
    made.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.float32), "w"))
    optimizer = RMSProp([Parameter("w", (1, 1))], learning_rate=0.1)
    session = Session(training_graph(made, "y", optimizer, gradients={"w": "g"}))
    kept = numpys.kept(numpys.keys(1, 0, 0)[0], 0.3, (5, 20))
    np.testing.assert_array_equal(session.step({"x": np.ones((5, 20), np.float32)})["z"] != 0, kept)
    assert session.state["random_step"] == 1


def test_what_it_is_like_stays_where_the_model_gives_a_part_of_it():
    """A static shape is all that is read of it, so that nothing reads the other part."""
    made = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[3, 2] x) => (float[3, 2] y, float[2, 2] b) <float[2] w = {1, 1}> {
            parts = Constant <value = int64[2] {1, 2}> ()
            a, b = Split <axis = 0> (x, parts)
            q = RandomNormalLike (a)
            z = Mul (x, w)
            y = Add (z, q)
        }""")
    opt = RMSProp(parameters(made), learning_rate=0.1)
    graph = training_graph(made, "mse", opt, loss_output="y")
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    outputs = Session(graph).step({"x": x, "labels": np.zeros((3, 2), np.float32)})
    np.testing.assert_array_equal(outputs["b"], x[1:])


@pytest.mark.parametrize(
    ("ratio", "is_known"), [(0.0, True), (-0.1, False), (1.0, False), (1.5, False)]
)
def test_a_ratio_that_is_fed_and_out_of_range_is_no_loss(ratio, is_known):
    made = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        m (float[N, 4] x, float r) => (float y) <float[4] w = {{1, 1, 1, 1}}> {{
            {ON} z = Mul (x, w) d = Dropout (z, r, on) y = ReduceMean <keepdims = 0> (d) }}""")
    outputs = Session(graph_of(made)).step(
        {"x": np.ones((2, 4), np.float32), "r": np.float32(ratio)}
    )
    assert np.isfinite(outputs["loss"]) == is_known
