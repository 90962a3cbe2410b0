"""Which inputs are proven to be overwritable by the output that feeds them next."""

import pytest
from onnx import parser

from graphopt.carried import Carried, View
from graphopt.in_place import overwritable

HEADER = '<ir_version: 8, opset_import: ["": 17, "local": 1]>'
SIGNATURE = "float[2,2] w, float[2,2] x, float[2,2] g, float[2,2] s, bool c, int64[2] shape"


def proven(body, names=("w",), outputs="y", functions=""):
    """Which of the carried values, ``NAME`` from ``NAME_next``, may be overwritten."""
    results = [f"float[2,2] {name}_next" for name in names]
    results += [f"float[M,K] {name}" for name in outputs.split()]
    graph = f"net ({SIGNATURE}) => ({', '.join(results)}) {{ {body} }}"
    model = parser.parse_model(f"{HEADER} {graph} {functions}")
    carried = [
        Carried(name, f"{name}_next", (2, 2), "float32", (View(name, (2, 2)),)) for name in names
    ]
    return overwritable(model, carried)


IF = """If (c) <then_branch = yes () => (float[2,2] a) { a = MatMul(x, w) },
                else_branch = no () => (float[2,2] b) { b = Identity(x) }>"""
NESTED_IF = f"""If (c) <then_branch = outer () => (float[2,2] o) {{ o = {IF} }},
                        else_branch = neither () => (float[2,2] n) {{ n = Identity(x) }}>"""
IF_GIVES_W = """If (c) <then_branch = yes () => (float[2,2] w) { },
                        else_branch = no () => (float[2,2] b) { b = Identity(x) }>"""

PROVEN = {
    "only reader is the writer": "y = Neg(x) w_next = Sub(w, g)",
    "as second operand": "y = Neg(x) w_next = Add(g, w)",
    "operand twice": "y = Neg(x) w_next = Mul(w, w)",
    "writer waits for the reader": "y = MatMul(x, w) d = Mul(y, g) w_next = Sub(w, d)",
    "two readers, one wait each": (
        "y = MatMul(x, w) z = MatMul(w, x) d = Sub(y, z) w_next = Sub(w, d)"
    ),
    "through a chain": "y = MatMul(x, w) a = Relu(y) b = Exp(a) d = Mul(g, b) w_next = Sub(w, d)",
    "not read at all": "y = Neg(x) w_next = Relu(g)",
    "writer waits, and does not read": "y = MatMul(x, w) w_next = MatMul(g, y)",
    "view whose reader is waited for": "v = Reshape(w, shape) y = MatMul(x, v) w_next = Sub(w, y)",
    "view of a view": "u = Reshape(w, shape) v = Identity(u) y = MatMul(x, v) w_next = Sub(w, y)",
    "view that is updated": "y = Neg(x) v = Reshape(w, shape) w_next = Sub(v, g)",
    "result seen as another shape": (
        "y = Neg(x) v = Reshape(w, shape) n = Sub(v, g) w_next = Reshape(n, shape)"
    ),
    "subgraph that is waited for": f"y = {IF} w_next = Sub(w, y)",
    "nested subgraph that is waited for": f"y = {NESTED_IF} w_next = Sub(w, y)",
    "wait by way of a shape": (
        "y = MatMul(x, w) k = Size(y) m = Min(k, shape) r = Reshape(g, m) w_next = Sub(w, r)"
    ),
}
REFUSED = {
    "independent reader": "y = MatMul(x, w) w_next = Sub(w, g)",
    "independent reader, later in the file": "w_next = Sub(w, g) y = MatMul(x, w)",
    "reader that waits for the writer": "w_next = Sub(w, g) y = MatMul(w_next, w)",
    "one of two readers": "y = MatMul(x, w) z = MatMul(w, x) w_next = Sub(w, z)",
    "elementwise, but independent": "y = Add(x, w) w_next = Sub(w, g)",
    "common source is no wait": "a = Relu(x) y = MatMul(a, w) d = Mul(a, g) w_next = Sub(w, d)",
    "writer is not elementwise": "y = Neg(x) w_next = MatMul(w, g)",
    "writer multiplies with itself": "y = Neg(x) w_next = MatMul(w, w)",
    "writer is a softmax": "y = Neg(x) w_next = Softmax(w)",
    "writer transposes": "y = Neg(x) w_next = Transpose(w)",
    "reader of a view of a view": (
        "u = Reshape(w, shape) v = Identity(u) y = MatMul(x, v) w_next = Sub(w, g)"
    ),
    "waits for the view, not for its reader": (
        "v = Reshape(w, shape) y = MatMul(x, v) d = Mul(v, g) w_next = Sub(w, d)"
    ),
    "view of another size, reader by shape": ("f = Flatten(w) y = MatMul(x, f) w_next = Sub(f, g)"),
    "writer reads a view, not elementwise": (
        "y = Neg(x) v = Reshape(w, shape) w_next = MatMul(v, g)"
    ),
    "subgraph reads it": f"y = {IF} w_next = Sub(w, g)",
    "nested subgraph reads it": f"y = {NESTED_IF} w_next = Sub(w, g)",
    "subgraph reads a view": (
        "v = Identity(w) y = " + IF.replace("MatMul(x, w)", "MatMul(x, v)") + " w_next = Sub(w, g)"
    ),
    "writer has a subgraph that reads it": f"y = Neg(x) w_next = {IF}",
    "loop body reads it": (
        "one = Constant <value = int64 {1}> () "
        "y = Loop (one, c, x) <body = step (int64 i, bool k, float[2,2] q) "
        "=> (bool k2, float[2,2] r) { k2 = Identity(k) r = MatMul(q, w) }> w_next = Sub(w, g)"
    ),
}


@pytest.mark.parametrize("body", PROVEN.values(), ids=PROVEN.keys())
def test_proven(body):
    assert proven(body) == {"w"}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_refused(body):
    assert proven(body) == set()


@pytest.mark.parametrize(
    "view",
    [
        "Reshape(w, shape)",
        "Transpose(w)",
        "Identity(w)",
        "Flatten(w)",
        "Cast <to = 1> (w)",
        "Unsqueeze(w, axes)",
        "Squeeze(w)",
        "Expand(w, shape)",
        "Slice(w, shape, shape)",
        "Gather(w, shape)",
        "Dropout(w)",
    ],
)
def test_reader_of_a_view(view):
    """A view may be the memory of what it views, so its readers count."""
    start = f"axes = Constant <value_ints = [0]> () v = {view} y = MatMul(x, v)"
    assert proven(f"{start} d = Relu(v) e = Mul(d, g) w_next = Sub(w, e)") == set()
    assert proven(f"{start} d = Mul(y, g) w_next = Sub(w, d)") == {"w"}


def test_several_values():
    """Each is judged by itself."""
    body = "y = MatMul(x, w) d = Mul(s, y) s_next = Add(s, d) w_next = Sub(w, g)"
    assert proven(body, ("w", "s")) == {"s"}
    assert proven(body.replace("Sub(w, g)", "Sub(w, s_next)"), ("w", "s")) == {"w", "s"}


def test_crossing_values():
    """Each writer reads the old value of the other: one of the two would come too late."""
    assert proven("y = Neg(x) w_next = Add(s, g) s_next = Sub(w, g)", ("w", "s")) == set()


def test_one_way_values():
    assert proven("y = Neg(x) w_next = Add(w, s) s_next = Relu(w_next)", ("w", "s")) == {"w", "s"}


def test_functions_are_looked_into():
    function = """<domain: "local", opset_import: ["": 17]>
        Update (w, g) => (n, q) {{ q = MatMul(w, g)  n = {} }}"""
    body = "w_next, y = local.Update(w, g)"
    assert proven(body, functions=function.format("Sub(w, g)")) == set()
    assert proven(body, functions=function.format("Sub(w, q)")) == {"w"}


def test_subgraph_that_gives_the_value_itself():
    """It reads it, although no node of it does."""
    assert proven(f"y = {IF_GIVES_W} w_next = Sub(w, g)") == set()


def test_names_inside_a_subgraph_are_its_own():
    """An inner value is not the outer one that has its name, here a later one."""
    inner = IF.replace("{ a = MatMul(x, w) }", "{ d = MatMul(x, w) a = Neg(d) }")
    assert proven(f"y = {inner} d = Mul(g, y) w_next = Sub(w, d)") == {"w"}
    assert proven(f"y = {inner} d = Mul(g, x) w_next = Sub(w, d)") == set()


def test_output_that_no_node_writes():
    """Nothing is proven of a value that passes through."""
    model = parser.parse_model(
        f"{HEADER} net (float[2] w, float[2] x) => (float[2] y) {{ y = Neg(x) }}"
    )
    carried = [Carried("w", "x", (2,), "float32", (View("w", (2,)),))]
    assert overwritable(model, carried) == set()


def test_nothing_carried():
    assert proven("y = Neg(x)", names=()) == set()
