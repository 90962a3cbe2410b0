"""Parameters, and finding them in a forward model."""

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import graphopt
from graphopt import Parameter

pytestmark = pytest.mark.any_runtime

LAYERS = """<ir_version: 8, opset_import: ["": 17]>
net (float[N,3,8,8] x, int64[M] ids) => (float[N,K] y, float[M,2] e)
{
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, conv_weight, conv_bias)
  n = BatchNormalization (c, scale, shift, mean, var)
  u = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (n, up_weight, up_bias)
  f = Reshape (u, shape)
  g = Gemm (f, gemm_weight, gemm_bias)
  m = MatMul (g, mm_weight)
  y = Add (m, mm_bias)
  e = Gather (table, ids)
}"""
EXPECTED = [  # not in the order in which the nodes read them
    Parameter("table", (9, 2), "float32", "Gather"),
    Parameter("conv_weight", (4, 3, 3, 3), "float32", "Conv"),
    Parameter("conv_bias", (4,), "float32", None),
    Parameter("scale", (4,), "float32", "BatchNormalization"),
    Parameter("shift", (4,), "float32", None),
    Parameter("up_weight", (4, 2, 2, 2), "float32", "ConvTranspose"),
    Parameter("up_bias", (2,), "float32", None),
    Parameter("mm_weight", (6, 1), "float32", "MatMul"),
    Parameter("mm_bias", (), "float32", None),
    Parameter("gemm_weight", (512, 6), "float32", "Gemm"),
    Parameter("gemm_bias", (6,), "float32", None),
    Parameter("unused", (2,), "float16", None),
]


def layers():
    model = parser.parse_model(LAYERS)
    arrays = {p.name: np.zeros(p.shape, p.dtype) for p in EXPECTED}
    arrays["shape"] = np.array([0, -1], np.int64)
    arrays |= {name: np.ones(4, np.float32) for name in ("mean", "var")}
    order = ["shape", *[p.name for p in EXPECTED[:3]], "var", "mean"]
    for name in [*order, *[p.name for p in EXPECTED[3:]]]:
        model.graph.initializer.append(numpy_helper.from_array(arrays[name], name))
    return model


def as_path(model, folder):
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


FORMS = {
    "path": as_path,
    "text": lambda model, folder: str(as_path(model, folder)),
    "proto": lambda model, _: model,
    "ir": lambda model, _: onnx_ir.from_proto(model),
}


@pytest.mark.quick
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_parameters(form, tmp_path):
    """Graph order, dtypes and operators; no statistics, no integers."""
    assert graphopt.parameters(form(layers(), tmp_path)) == EXPECTED


@pytest.mark.parametrize("form", ["proto", "ir"])
def test_model_is_left_as_it_is(form, tmp_path):
    model = layers()
    before = model.SerializeToString()
    given = FORMS[form](model, tmp_path)
    graphopt.parameters(given)
    after = onnx_ir.to_proto(given) if form == "ir" else given
    assert after.graph.initializer == onnx.load_from_string(before).graph.initializer
    assert [node.op_type for node in after.graph.node] == [
        node.op_type for node in model.graph.node
    ]


def model_of(array, nodes="y = Identity(x)"):
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> net (float[2] x) => (float[2] y) {{ {nodes} }}'
    )
    if array is not None:
        model.graph.initializer.append(numpy_helper.from_array(array, "w"))
    return model


@pytest.mark.parametrize(
    ("dtype", "found"),
    [("float32", True), ("float16", True), ("float64", True), ("int32", False), ("bool", False)],
)
def test_dtypes(dtype, found):
    model = model_of(np.ones(2, dtype))
    if found:
        assert graphopt.parameters(model) == [Parameter("w", (2,), dtype)]
    else:
        with pytest.raises(ValueError, match="no floating-point initializer"):
            graphopt.parameters(model)


def test_bfloat16():
    model = model_of(None)
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1, 2]))
    (parameter,) = graphopt.parameters(model)
    assert parameter == Parameter("w", (2,), "bfloat16")


@pytest.mark.parametrize(
    ("nodes", "op_type"),
    [
        ("y = MatMul(x, w)", "MatMul"),
        ("y = MatMul(w, x)", "MatMul"),
        ("y = Add(x, w)", None),
        ("y = PRelu(x, w)", "PRelu"),
        ("y = LayerNormalization(x, w)", "LayerNormalization"),
        ("y = LayerNormalization(x, x, w)", None),
        ("y = Gemm(x, x, w)", None),
        ("a = Add(x, w) y = MatMul(a, w)", "MatMul"),
        ("y = other.MatMul(x, w)", None),
    ],
)
def test_op_type(nodes, op_type):
    model = model_of(np.ones((2, 2), np.float32), nodes)
    assert graphopt.parameters(model)[0].op_type == op_type


NOT_ONNX = {
    "empty": b"",
    "text": b"this is not a model\n" * 20,
    "random": np.random.default_rng(1).bytes(500),
    "zeros": bytes(100),
    "zip": b"PK\x03\x04" + bytes(60),
    "truncated": layers().SerializeToString()[:400],
    "truncated late": layers().SerializeToString()[:-5],
}


@pytest.mark.parametrize("content", NOT_ONNX.values(), ids=NOT_ONNX.keys())
def test_not_onnx(content, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.onnx' is not an ONNX model") as caught:
        graphopt.parameters(path)
    assert type(caught.value) is ValueError


def test_missing_external_data(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(layers(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    assert graphopt.parameters(path) == EXPECTED
    (tmp_path / "net.bin").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"net\.bin"):
        graphopt.parameters(path)


def test_no_float_initializer():
    with pytest.raises(ValueError, match="no floating-point initializer"):
        graphopt.parameters(model_of(None))


@pytest.mark.parametrize("form", [str, lambda path: path], ids=["text", "path"])
def test_missing_file(form, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.onnx"):
        graphopt.parameters(form(tmp_path / "nothing.onnx"))


def test_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        graphopt.parameters(tmp_path)


@pytest.mark.parametrize(
    "wrong", [None, 3, [], b"model", np.ones(2)], ids=lambda value: type(value).__name__
)
def test_wrong_type(wrong):
    with pytest.raises(TypeError, match=f"model: got {type(wrong).__name__}"):
        graphopt.parameters(wrong)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (("w", (3, 5)), ("w", (3, 5), "float32", None, 15)),
        (("w", ()), ("w", (), "float32", None, 1)),
        (("w", [2, 0], "float16"), ("w", (2, 0), "float16", None, 0)),
        (("w", np.array([2, 3]), np.float32), ("w", (2, 3), "float32", None, 6)),
        (("w", (np.int64(4),), np.dtype("float64"), "Gemm"), ("w", (4,), "float64", "Gemm", 4)),
        (("w", range(1, 4), "<f4"), ("w", (1, 2, 3), "float32", None, 6)),
    ],
    ids=["plain", "scalar", "list", "array", "NumPy numbers", "range"],
)
def test_parameter(arguments, kept):
    p = Parameter(*arguments)
    assert (p.name, p.shape, p.dtype, p.op_type, p.size) == kept
    assert all(type(dim) is int for dim in p.shape)
    assert hash(p) == hash(Parameter(*arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, (2,)), TypeError, "name: got 3"),
        ((None, (2,)), TypeError, "name: got None"),
        (("", (2,)), ValueError, "name: got an empty string"),
        (("w", 3), TypeError, "shape of parameter 'w': got 3"),
        (("w", None), TypeError, "shape of parameter 'w': got None"),
        (("w", "ab"), TypeError, "shape of parameter 'w': got 'ab'"),
        (("w", (2.0,)), TypeError, r"shape of parameter 'w': got \(2.0,\)"),
        (("w", (True,)), TypeError, r"shape of parameter 'w': got \(True,\)"),
        (("w", ("N", 2)), TypeError, r"shape of parameter 'w': got \('N', 2\)"),
        (("w", (2, -1)), ValueError, r"shape of parameter 'w': got \(2, -1\)"),
        (("w", (2,), "float31"), TypeError, "dtype of parameter 'w': got 'float31'"),
        (("w", (2,), None), TypeError, "dtype of parameter 'w': got None"),
        (("w", (2,), "float32", 3), TypeError, "op_type of parameter 'w': got 3"),
    ],
)
def test_parameter_errors(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Parameter(*arguments)


def test_parameter_is_immutable():
    with pytest.raises(AttributeError):
        Parameter("w", (2,)).name = "v"
