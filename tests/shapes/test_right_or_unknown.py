"""What runtimes compute is not taken for something else: what is not certain is unknown."""

import onnx_ir as ir
import pytest

from graphopt.shapes.engine import infer
from graphopt.shapes.in_place import infer_shapes
from graphopt.shapes.values import FLOAT, INT64

pytestmark = pytest.mark.any_runtime

HEADER = '<ir_version: 9, opset_import: ["": 21, "d": 1, "com.microsoft": 1]>'
SHAPES = {
    "Slice to the end, backwards": "(float[4] x) => (float[] y) <int64[1] a = {2}, int64[1] b = "
    "{9223372036854775807}, int64[1] c = {0}, int64[1] d = {-1}> { y = Slice(x, a, b, c, d) }",
    "Slice to before the front": "(float[4] x) => (float[] y) <int64[1] a = {2}, int64[1] b = "
    "{-9223372036854775808}, int64[1] c = {0}, int64[1] d = {-1}> { y = Slice(x, a, b, c, d) }",
    "Squeeze of no axes": "(float[1,3] x) => (float[] y) <int64[0] a = {}> { y = Squeeze(x, a) }",
    "MaxPool that pads and dilates": "(float[1,1,4] x) => (float[] y) "
    '{ y = MaxPool<kernel_shape=[3], dilations=[3], strides=[2], auto_pad="SAME_UPPER">(x) }',
    "Pool that does not fit": "(float[1,2,4,1] x) => (float[] y) "
    "{ y = AveragePool<kernel_shape=[3,4], strides=[4,2], ceil_mode=1>(x) }",
    "ConvTranspose whose windows leave gaps": "(float[1,1,4] x, float[1,1,1] w) => (float[] y) "
    '{ y = ConvTranspose<strides=[2], auto_pad="SAME_UPPER">(x, w) }',
    "Resize, rounded": "(float[10] x) => (float[] y) <float[1] s = {1.4}> { y = Resize(x, , s) }",
    "Resize that keeps the ratio": "(float[10,5] x) => (float[] y) <int64[2] s = {1,6}> { y = "
    'Resize<axes=[-2,-1], keep_aspect_ratio_policy="not_larger">(x, , , s) }',
    "Resize in a ratio": "(float[10,5] x) => (float[] y) <int64[2] s = {7,9}> { y = "
    'Resize<axes=[0,1], keep_aspect_ratio_policy="not_larger">(x, , , s) }',
    "Range of fractions": "() => (float[] y) <float a = {0}, float b = {0.9}, float d = {0.3}>"
    " { y = Range(a, b, d) }",
    "Range of whole numbers": "() => (float[] y) <float a = {0}, float b = {5}, float d = {2}>"
    " { y = Range(a, b, d) }",
    "Einsum that may broadcast": "(float[N,2] x, float[M,2] b) => (float[] y) "
    '{ y = Einsum<equation="ij,ij->i">(x, b) }',
    "Einsum with a size": "(float[N,2] x, float[3,2] b) => (float[] y) "
    '{ y = Einsum<equation="ij,ij->i">(x, b) }',
    "FusedMatMul": "(float[2,3,4] x, float[3,4,5] b) => (float[] y) "
    "{ y = com.microsoft.FusedMatMul<transBatchA=1>(x, b) }",
    "Loop that may stop": "(float[2] x, bool c) => (float s, float[] y) <int64 n = {5}> { s, y = "
    "Loop<body: graph = g (int64 i, bool d, float[2] a) => (bool e, float[2] t, float[2] u) "
    "{ k = Constant<value_int=1>() e = Less(i, k) t = Relu(a) u = Neg(a) }>(n, , x) }",
    "Loop that may not begin": "(float[2] x, bool c) => (float s, float[] y) <int64 n = {5}> "
    "{ s, y = Loop<body: graph = g (int64 i, bool d, float a) => (bool e, float[2] t, float[2] u)"
    " { e = Identity(d) t = Relu(a) u = Neg(a) }>(n, c, x) }",
    "Loop to its end": "(float[2] x, bool c) => (float s, float[] y) <int64 n = {5}> { s, y = "
    "Loop<body: graph = g (int64 i, bool d, float[2] a) => (bool e, float[2] t, float[2] u) "
    "{ e = Identity(d) t = Relu(a) u = Neg(a) }>(n, , x) }",
    "Loop without a round": "(float[1,3] x, int64 n) => (float[] y) { y = Loop<body: graph = g "
    "(int64 i, bool d, float[P,3] a) => (bool e, float[Q,3] t) "
    "{ e = Identity(d) t = Concat<axis=0>(x, x) }>(n, , x) }",
    "Loop whose states follow": "(float[1,3] x, int64 n) => (float p, float q, float[] y) "
    "{ p, q, y = Loop<body: graph = g (int64 i, bool d, float[P,3] a, float[Q,3] b, float[R,3] c) "
    "=> (bool e, float[S,3] t, float[T,3] u, float[U,3] v) { e = Identity(d) "
    "t = Concat<axis=0>(a, a) u = Identity(a) v = Relu(b) }>(n, , x, x, x) }",
}  # fmt: skip
EXPECTED = {
    "Slice to the end, backwards": (None,),
    "Slice to before the front": (3,),
    "Squeeze of no axes": None,
    "MaxPool that pads and dilates": (1, 1, None),
    "Pool that does not fit": None,
    "ConvTranspose whose windows leave gaps": (1, 1, None),
    "Resize, rounded": (14,),
    "Resize that keeps the ratio": None,
    "Resize in a ratio": (7, 4),
    "Range of fractions": (None,),
    "Range of whole numbers": (3,),
    "Einsum that may broadcast": (None,),
    "Einsum with a size": (3,),
    "FusedMatMul": None,
    "Loop that may stop": (None, 2),
    "Loop that may not begin": (None, 2),
    "Loop to its end": (5, 2),
    "Loop without a round": (None, 3),
    "Loop whose states follow": (None, 3),
}


def unnamed(shape):
    if shape is None:
        return None
    return tuple(
        size if isinstance(size, int) or not size.value.startswith("unk__") else None
        for size in shape
    )


@pytest.mark.quick
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    model = ir.from_onnx_text(f"{HEADER} g {SHAPES[name]}")
    expected = EXPECTED[name]
    assert infer(model, {}).of("y").shape == expected
    infer_shapes(model)
    found = unnamed(model.graph[-1].outputs[-1].shape)
    # Of ONNX, no more than the number of dimensions is taken.
    assert found == expected or (expected is None and set(found or ()) <= {None})


NUMBERS = {
    "int32 overflows": ("<int32[2] a = {2147483647,3}, int32 b = {1}>", "Add(a, b)", (None, 4)),
    "int64 overflows": ("<int64[1] a = {9223372036854775807}, int64 b = {1}>", "Add(a, b)", None),
    "-7 / 2": ("<int64[2] a = {-7,7}, int64[1] b = {2}>", "Div(a, b)", (-3, 3)),
    "7 / -2": ("<int64[2] a = {-7,7}, int64[1] b = {-2}>", "Div(a, b)", (3, -3)),
    "0.7 x 10": ("<float[1] a = {0.7}, float[1] b = {10}>", "Mul(a, b)", (7.0,)),
    "A sum of fractions": ("<float[2] a = {0.5,0.5}>", "ReduceSum(a)", None),
    "A sum that is rounded": ("<int64[2] a = {9007199254740993,2}>", "ReduceSum(a)", None),
    "A product": ("<int64[2] a = {3,-2}>", "ReduceProd(a)", (-6,)),
    "To bool": ("<int64[3] a = {0,3,-1}>", "Cast<to=9>(a)", (0, 1, 1)),
    "A fraction to bool": ("<float[2] a = {0,0.5}>", "Cast<to=9>(a)", (0, 1)),
    "To int32": ("<int64[2] a = {4294967296,-5}>", "Cast<to=6>(a)", (None, -5)),
    "From a fraction": ("<float[2] a = {-2.5,2.5}>", "Cast<to=7>(a)", (-2, 2)),
    "To float": ("<int64[2] a = {16777217,9007199254740993}>", "Cast<to=1>(a)", (16777216.0, None)),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name):
    constants, value, expected = NUMBERS[name]
    model = ir.from_onnx_text(f"{HEADER} g (float x) => (float[] y) {constants} {{ y = {value} }}")
    assert infer(model, {}).of("y").numbers == expected


def test_the_condition_of_a_symbol_is_unknown():
    model = ir.from_onnx_text(
        f"{HEADER} g (float[N] x) => (int64 y) <int64[1] a = {{2}}, int64[1] b = {{3}}> "
        "{ n = Shape(x) c = Cast<to=9>(n) w = Where(c, a, b) y = ConstantOfShape(w) }"
    )
    infer_shapes(model)
    assert unnamed(model.graph[-1].outputs[0].shape) == (None,)


def test_random_numbers_of_another_dtype():
    model = ir.from_onnx_text(
        f"{HEADER} g (float[3] x) => (double y, float z) "
        "{ y = RandomUniformLike<dtype=11>(x) z = Bernoulli(x) }"
    )
    found = infer(model, {})
    assert (found.of("y").dtype, found.of("z").dtype) == (ir.DataType.DOUBLE, FLOAT)


FUNCTIONS = """
<domain: "d", opset_import: ["": 21]> places (a) => (r) { r = NonZero(a) }
<domain: "d", opset_import: ["": 21]> one <axis> (a) => (r) { r = Unique<axis: int = @axis>(a) }
<domain: "d", opset_import: ["": 21, "ai.onnx.ml": 3]> other (a) => (r)
{ r = ai.onnx.ml.Binarizer(a) }
"""


def test_functions():
    model = ir.from_onnx_text(
        f"{HEADER} g (float[N] x, float[N] v, float[2,3] w) => (int64 a, int64 b, float c, float d)"
        " { a = d.places(x) b = d.places(v) c = d.one<axis=1>(w) d = d.other(x) }" + FUNCTIONS
    )
    infer_shapes(model)
    a, b, c, _ = (node.outputs[0] for node in model.graph)
    assert a.dtype == b.dtype == INT64
    assert a.shape[1] != b.shape[1]  # two calls find different numbers of places
    assert c.shape[0] == 2
    assert unnamed(c.shape)[1] is None


def test_names_that_bodies_use_are_not_given_again():
    model = ir.from_onnx_text(
        f"{HEADER} g (float[3,2] x, bool c) => (int64 y, int64 z) {{ z = NonZero(x) y = If<"
        "then_branch: graph = a () => (int64[2,unk__0] p) { n = Neg(x) p = NonZero(n) }, "
        "else_branch: graph = b () => (int64[2,unk__0] q) { q = NonZero(x) }>(c) }"
    )
    infer_shapes(model)
    z, y = (node.outputs[0].shape[1] for node in model.graph)
    assert z != y


@pytest.mark.parametrize(
    ("start", "step", "size"), [(0, 1, "N"), (1, 1, None), (0, 2, None), (0, -1, None)]
)
def test_a_range_to_an_open_size(start, step, size):
    model = ir.from_onnx_text(
        f"""{HEADER} m (float[N,3] x) => (int64[] y)
            <int64 a = {{{start}}}, int64 d = {{{step}}}> {{
            s = Shape<start=0, end=1>(x) n = Squeeze(s) y = Range(a, n, d) }}"""
    )
    infer_shapes(model, symbols=False)
    (found,) = model.graph.outputs[0].shape
    assert (str(found) == "N") == (size == "N")
    assert not isinstance(found, int)
