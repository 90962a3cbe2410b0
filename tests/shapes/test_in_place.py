"""Shapes written into a graph: what ONNX's own inference knows, and more."""

import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from graphopt.graphs import without_functions
from graphopt.shapes.in_place import infer_shapes
from models.zoo import ZOO
from tests.helpers.odd_models import FORWARD
from tests.helpers.zoo import zoo_graph

pytestmark = pytest.mark.any_runtime

UNKNOWN = "unk__"


def bare(model):
    """A model that declares its inputs alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.functions[:], copy.graph.value_info[:]
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    return copy


def of_onnx(model):
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        info.name: (info.type.tensor_type.elem_type, dims_of(ir.from_proto(info).shape))
        for info in (*inferred.value_info, *inferred.output)
        if info.type.HasField("tensor_type")
    }


def of_ours(model):
    in_memory = ir.from_proto(model)
    infer_shapes(in_memory)
    return {
        value.name: (value.dtype, dims_of(value.shape))
        for node in in_memory.graph
        for value in node.outputs
    }


def dims_of(shape):
    return None if shape is None else [d if isinstance(d, int) else d.value for d in shape]


def is_unknown(dim):
    return dim is None or (isinstance(dim, str) and dim.startswith(UNKNOWN))


def check(model):
    """Whatever ONNX knows is known; sizes that it recognises as one are one."""
    found, one = of_ours(model), {}
    for name, (dtype, expected) in of_onnx(model).items():
        assert dtype in (0, found[name][0]), name
        if expected is None:
            continue
        assert len(found[name][1]) == len(expected), name
        for got, size in zip(found[name][1], expected, strict=True):
            if not is_unknown(size):
                assert got == size, name
            elif size is not None:
                assert one.setdefault(size, got) == got, name
    assert not any(dim is None for _, shape in found.values() for dim in shape or ())


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("name", ZOO)
def test_networks(name, batch):
    forward = ZOO[name].build(batch=batch)
    check(bare(forward))
    check(bare(without_functions(zoo_graph(name, batch).model)))


@pytest.mark.parametrize("name", FORWARD)
def test_odd_models(name):
    check(bare(FORWARD[name][0]))


HEADER = '<ir_version: 8, opset_import: ["": 21]>'
OPERATORS = {
    "Add": "(float[N,1,3] x, float[4,1] b) => (float y) { y = Add(x, b) }",
    "Add of two symbols": "(float[N,3] x, float[M,3] b) => (float y) { y = Add(x, b) }",
    "Add of unnamed": "(float[?,3] x, float[?,3] b) => (float y) { r = Relu(x) y = Add(r, b) }",
    "AffineGrid": "(float[N,2,3] x) => (float y) <int64[4] s = {2,3,5,4}> { y = AffineGrid(x, s) }",
    "ArgMax": "(float[N,3] x) => (int64 y) { y = ArgMax<axis=1, keepdims=0>(x) }",
    "BatchNormalization": "(float[N,3,M] x, float[3] s) => (float y) "
    "{ y = BatchNormalization(x, s, s, s, s) }",
    "CastLike": "(float[N,3] x, int64 b) => (int64 y) { y = CastLike(x, b) }",
    "Col2Im": "(float[N,12,M] x) => (float y) <int64[2] s = {4,6}, int64[2] k = {2,3}> "
    "{ y = Col2Im(x, s, k) }",
    "Compress": "(float[N,3] x, bool[3] c) => (float y) { y = Compress<axis=1>(x, c) }",
    "Concat": "(float[N,3] x, float[N,4] b) => (float y) { y = Concat<axis=1>(x, b) }",
    "Concat of symbols": "(float[N,3] x, float[N,3] b) => (float y) { y = Concat<axis=0>(x, b) }",
    "ConstantOfShape": "(float[N,3] x) => (float y) "
    "{ n = Shape<end=1>(x) m = Constant<value_ints=[32]>() s = Concat<axis=0>(n, m) "
    "y = ConstantOfShape(s) }",
    "Conv": "(float[N,4,9,W] x, float[6,4,3,3] w) => (float y) { y = Conv(x, w) }",
    "ConvTranspose": "(float[N,4,5,W] x, float[4,3,3,2] w) => (float y) "
    "{ y = ConvTranspose(x, w) }",
    "DeformConv": "(float[N,4,9,W] x, float[6,2,3,3] w, float[N,18,7,T] o) => (float y) "
    "{ y = DeformConv<group=2>(x, w, o) }",
    "DepthToSpace": "(float[N,8,2,W] x) => (float y) { y = DepthToSpace<blocksize=2>(x) }",
    "DequantizeLinear": "(int8[N,3] x, float s) => (float y) { y = DequantizeLinear(x, s) }",
    "Einsum": '(float[N,3,4] x, float[N,4,5] b) => (float y) '
    '{ y = Einsum<equation="bij,bjk->bik">(x, b) }',
    "Einsum with an ellipsis": '(float[2,N,3,4] x, float[N,4,5] b) => (float y) '
    '{ y = Einsum<equation="...ij,...jk->...ik">(x, b) }',
    "Expand": "(float[N,1] x) => (float y) <int64[2] s = {1,4}> { y = Expand(x, s) }",
    "Flatten": "(float[N,3,4] x) => (float y) { y = Flatten(x) }",
    "Flatten of a symbol": "(float[N,3,4] x) => (float y) { y = Flatten<axis=2>(x) }",
    "Gather": "(float[5,N] x, int64[M] i) => (float y) { y = Gather<axis=0>(x, i) }",
    "GatherND": "(float[5,3,N] x, int64[M,2] i) => (float y) { y = GatherND(x, i) }",
    "Gemm": "(float[N,2] x, float[5,2] b) => (float y) { y = Gemm<transB=1>(x, b) }",
    "GlobalAveragePool": "(float[N,3,H,W] x) => (float y) { y = GlobalAveragePool(x) }",
    "GridSample": "(float[N,3,5,4] x, float[N,2,W,2] g) => (float y) { y = GridSample(x, g) }",
    "GRU": "(float[T,N,3] x, float[1,12,3] w, float[1,12,4] r) => (float y, float h) "
    "{ y, h = GRU<hidden_size=4>(x, w, r) }",
    "If": "(bool c, float[N,3] x) => (float y) { y = If<then_branch: graph = a () => (float[] p) "
    "{ p = Relu(x) }, else_branch: graph = b () => (float[] q) { q = Neg(x) }>(c) }",
    "LayerNormalization": "(float[N,3,4] x, float[4] s) => (float y, float m) "
    "{ y, m = LayerNormalization(x, s) }",
    "Loop": "(float[N,3] x, int64 n, bool c) => (float y, float z) { y, z = Loop<body: graph = g "
    "(int64 i, bool d, float[] s) => (bool e, float[] t, float[] u) "
    "{ e = Identity(d) t = Relu(s) u = Identity(t) }>(n, c, x) }",
    "Loop that grows": "(float[1,3] x, int64 n, bool c) => (float y) { y = Loop<body: graph = g "
    "(int64 i, bool d, float[] s) => (bool e, float[] t) "
    "{ e = Identity(d) t = Concat<axis=0>(s, s) }>(n, c, x) }",
    "MatMul": "(float[N,1,2,3] x, float[4,3,6] b) => (float y) { y = MatMul(x, b) }",
    "MaxPool": "(float[N,3,9,8] x) => (float y) { y = MaxPool<kernel_shape=[3,2]>(x) }",
    "MaxRoiPool": "(float[N,3,9,8] x, float[M,5] r) => (float y) "
    "{ y = MaxRoiPool<pooled_shape=[4,5]>(x, r) }",
    "MaxUnpool": "(float[N,3,2,4] x, int64[N,3,2,4] i) => (float y) "
    "{ y = MaxUnpool<kernel_shape=[3,2], strides=[2,1], pads=[0,0,1,0]>(x, i) }",
    "NonZero": "(float[N,3] x) => (int64 y) { y = NonZero(x) }",
    "OneHot": "(int64[N,3] x, float[2] v) => (float y) <int64 d = {7}> { y = OneHot(x, d, v) }",
    "Pad": "(float[N,3] x) => (float y) <int64[4] p = {0,1,0,3}> { y = Pad(x, p) }",
    "Range": "(int64 n) => (int64 y) <int64 a = {0}, int64 d = {2}> { y = Range(a, n, d) }",
    "Range to an open size": "(float[N,3] x) => (int64 y) <int64 a = {0}, int64 d = {1}> "
    "{ s = Shape<start=0, end=1>(x) n = Squeeze(s) y = Range(a, n, d) }",
    "ReduceSum": "(float[N,3,4] x) => (float y) <int64[1] a = {-1}> { y = ReduceSum(x, a) }",
    "Reshape": "(float[N,3,4] x) => (float y) <int64[2] s = {0,-1}> { y = Reshape(x, s) }",
    "Reshape by a symbol": "(float[N,3] x, float[N,3] b) => (float y) { s = Shape(b) "
    "y = Reshape(x, s) }",
    "Reshape to unknown": "(float[N,3] x) => (float y) <int64[2] s = {-1,6}> "
    "{ r = Reshape(x, s) y = Mul(r, r) }",
    "Reshape by an input": "(float[N,3] x, int64[2] s) => (float y) { y = Reshape(x, s) }",
    "Resize": "(float[N,2,5,4] x) => (float y) <float[4] s = {1,1,2.5,2}> { y = Resize(x, , s) }",
    "RoiAlign": "(float[N,3,9,8] x, float[M,4] r, int64[M] i) => (float y) "
    "{ y = RoiAlign<output_width=5>(x, r, i) }",
    "Scan": "(float[N] s, float[T,N] x) => (float y, float z) { y, z = Scan<num_scan_inputs=1, "
    "body: graph = g (float[] a, float[] b) => (float[] c, float[] d) "
    "{ c = Add(a, b) d = Neg(c) }>(s, x) }",
    "SequenceAt": "(float[N,3] x, float[N,3] b, int64 i) => (float y) "
    "{ s = SequenceConstruct(x, b) y = SequenceAt(s, i) }",
    "Slice": "(float[9,N] x) => (float y) <int64[1] a = {-20}, int64[1] b = {-99}, "
    "int64[1] c = {0}, int64[1] d = {-1}> { y = Slice(x, a, b, c, d) }",
    "SoftmaxCrossEntropyLoss": "(float[N,3] x, int64[N] t) => (float y, float z) "
    "{ y, z = SoftmaxCrossEntropyLoss(x, t) }",
    "Split": "(float[N,7] x) => (float y, float z) { y, z = Split<axis=1, num_outputs=2>(x) }",
    "Squeeze": "(float[N,1,3] x) => (float y) <int64[1] a = {1}> { y = Squeeze(x, a) }",
    "Tile": "(float[N,3] x) => (float y) <int64[2] r = {1,2}> { y = Tile(x, r) }",
    "TopK": "(float[N,5] x) => (float y, int64 z) <int64[1] k = {3}> { y, z = TopK(x, k) }",
    "Transpose": "(float[N,3,4] x) => (float y) { y = Transpose(x) }",
    "Unique": "(float[N,3] x) => (float y) { y = Unique<axis=1>(x) }",
    "Unsqueeze": "(float[N,3] x) => (float y) <int64[1] a = {-1}> { y = Unsqueeze(x, a) }",
    "Where": "(bool[N,3] c, float[N,1] x, float b) => (float y) { y = Where(c, x, b) }",
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name):
    model = bare(parser.parse_model(f"{HEADER} g {OPERATORS[name]}"))
    check(model)
    sizes = {"N": 6, "M": 2, "T": 5, "H": 8, "W": 7, "K": 3}
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = sizes[dim.dim_param or "K"]
    check(model)


def test_what_follows_from_the_inputs_is_right_whatever_is_declared():
    model = ir.from_onnx_text(
        f"{HEADER} g (float[N,3] x, int64[2] s) => (float[9,9] z) "
        "<float[7,7] y, float[N,5] r> { y = Relu(x) r = Reshape(x, s) z = Neg(y) }"
    )
    infer_shapes(model)
    assert [dims_of(node.outputs[0].shape) for node in model.graph] == [
        ["N", 3], ["N", 5], ["N", 3],
    ]  # fmt: skip
    infer_shapes(model, symbols=False)
    assert dims_of(model.graph[1].outputs[0].shape) == ["unk__0", 5]


def test_a_declared_symbol_is_better_than_a_name_that_nobody_gave():
    model = ir.from_onnx_text(
        f"{HEADER} g (float[?,3] x) => (float[K,3] z) <float[M,3] y> "
        "{ r = Relu(x) y = Neg(r) z = Add(y, y) }"
    )
    infer_shapes(model)
    shapes = [dims_of(node.outputs[0].shape) for node in model.graph]
    assert shapes == [["unk__0", 3], ["M", 3], ["M", 3]]


def test_a_domain_that_is_not_imported():
    model = ir.from_onnx_text(f"{HEADER} g (float[N] x) => (float y) {{ y = d.Foo(x) }}")
    with pytest.raises(ValueError, match=r"the model contradicts itself: .* 'd', which it does"):
        infer_shapes(model)
