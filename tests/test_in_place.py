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
    "sizes are read whenever": "y = Neg(x) k = Shape(w) n = Sub(w, g) w_next = Reshape(n, k)",
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
    "only a view of what is written waits": (
        "y = MatMul(x, w) n = Sub(w, g) k = Shape(y) w_next = Reshape(n, k)"
    ),
    "a view of a view waits": (
        "y = MatMul(x, w) n = Sub(w, g) v = Identity(n) k = Shape(y) w_next = Reshape(v, k)"
    ),
    "common source is no wait": "a = Relu(x) y = MatMul(a, w) d = Mul(a, g) w_next = Sub(w, d)",
    "writer is not elementwise": "y = Neg(x) w_next = MatMul(w, g)",
    "writer multiplies with itself": "y = Neg(x) w_next = MatMul(w, w)",
    "writer is a softmax": "y = Neg(x) w_next = Softmax(w)",
    "writer transposes": "y = Neg(x) w_next = Transpose(w)",
    "writer goes over the elements several times": "y = Neg(x) w_next = Gelu(w)",
    "writer adds up several": "y = Neg(x) w_next = Sum(w, g, w)",
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


def scan(body, operands="w, g", results="w_next", given="", made="float[2] n", settings=""):
    """A Scan over the rows r, q of two operands, after any states."""
    rows = f"{given}float[2] r, float[2] q"
    return (
        f"{results} = Scan <num_scan_inputs = 2, {settings} "
        f"body = row ({rows}) => ({made}) {{ {body} }}> ({operands})"
    )


STATE = {
    "given": "float[2] k, ",
    "made": "float[2] k2, float[2] n",
    "operands": "k0, w, g",
    "results": "f, w_next",
}
K0 = "y = Neg(x) k0 = Constant <value = float[2] {0, 0}> () "
INNER = """n = Scan <num_scan_inputs = 2, body = element (float e, float h) => (float m)
        { m = Sub(e, h) }> (r, q)"""
PROVEN_SCANS = {
    "writer is the only reader of the row": "y = Neg(x) " + scan("n = Sub(r, q)"),
    "row twice": "y = Neg(x) " + scan("n = Mul(r, r)"),
    "writer in the body waits": "y = Neg(x) " + scan("a = Softmax(r) n = Sub(r, a)"),
    "row seen as a view": "y = Neg(x) " + scan("v = Identity(r) a = Softmax(v) n = Sub(v, a)"),
    "other rows first": "y = Neg(x) "
    + scan("n = Sub(q, r)", operands="g, w").replace(
        "float[2] r, float[2] q", "float[2] q, float[2] r"
    ),
    "view of the value": "y = Neg(x) v = Reshape(w, shape) "
    + scan("n = Sub(r, q)", operands="v, g"),
    "result seen as another shape": "y = Neg(x) "
    + scan("n = Sub(r, q)", results="u")
    + " w_next = Reshape(u, shape)",
    "captured value that is another": "y = Neg(x) " + scan("n = Where(c, r, q)"),
    "scan waits for the reader": "y = MatMul(x, w) " + scan("n = Sub(r, q)", operands="w, y"),
    "scan waits by a captured value": "z = MatMul(x, w) y = ReduceSum(z) "
    + scan("d = Mul(q, y) n = Sub(r, d)"),
    "another result that the writer waits for": scan(
        "a = Softmax(r) n = Sub(r, a)",
        results="w_next, y",
        made="float[2] n, float[2] a",
    ),
    "state beside it": K0 + scan("k2 = Add(k, q) n = Sub(r, k2)", **STATE),
    "scan in the scan": "y = Neg(x) " + scan(INNER),
    "not read in the body": "y = Neg(x) " + scan("n = Exp(q)"),
}
REFUSED_SCANS = {
    "body reads the row too": scan(
        "n = Sub(r, q) a = Softmax(r)", results="w_next, y", made="float[2] n, float[2] a"
    ),
    "body reads a view of the row too": scan(
        "v = Identity(r) n = Sub(r, q) a = Softmax(v)",
        results="w_next, y",
        made="float[2] n, float[2] a",
    ),
    "reader of the row waits for the writer": scan(
        "n = Sub(r, q) a = Add(n, r)", results="w_next, y", made="float[2] n, float[2] a"
    ),
    "writer is not elementwise": "y = Neg(x) " + scan("n = Softmax(r)"),
    "row is a result": scan("n = Sub(r, q)", results="w_next, y", made="float[2] n, float[2] r"),
    "view of the row is a result": scan(
        "v = Identity(r) n = Sub(r, q)", results="w_next, y", made="float[2] n, float[2] v"
    ),
    "row passes through": "y = Neg(x) " + scan("a = Exp(q)", made="float[2] r"),
    "value twice": "y = Neg(x) " + scan("n = Sub(r, q)", operands="w, w"),
    "view of the value beside it": "y = Neg(x) v = Reshape(w, shape) "
    + scan("n = Sub(r, q)", operands="w, v"),
    "two views of the value": "y = Neg(x) u = Identity(w) v = Identity(w) "
    + scan("n = Sub(r, q)", operands="u, v"),
    "body captures the value": "y = Neg(x) " + scan("a = ReduceSum(w) n = Sub(r, a)"),
    "body captures a view": "y = Neg(x) v = Identity(w) " + scan("a = ReduceSum(v) n = Sub(r, a)"),
    "a subgraph of the body captures the value": "y = Neg(x) "
    + scan(
        "a = If (c) <then_branch = yes () => (float[2] p) { z = MatMul(x, w) p = ReduceMax(z) }, "
        "else_branch = no () => (float[2] o) { o = Identity(q) }> n = Sub(r, a)"
    ),
    "a subgraph of the body reads the row": scan(
        "a = If (c) <then_branch = yes () => (float[2] p) { p = Softmax(r) }, "
        "else_branch = no () => (float[2] o) { o = Identity(q) }> n = Sub(r, q)",
        results="w_next, y",
        made="float[2] n, float[2] a",
    ),
    "reader outside is independent": "y = MatMul(x, w) " + scan("n = Sub(r, q)"),
    "reader outside waits for the scan": scan("n = Sub(r, q)") + " y = MatMul(w_next, w)",
    "state reads the row": K0 + scan("k2 = Add(k, r) n = Sub(r, q)", **STATE),
    "value is the state": "y = Neg(x) "
    + scan(
        "k2 = Sub(k, q) n = Identity(r)",
        **STATE | {"operands": "w, x, g", "results": "w_next, f", "given": "float[2,2] k, "},
    ),
    "value is the state, its new value a row": "y = Neg(x) "
    + scan("k2 = Identity(x) n = Add(k, r)", **STATE | {"operands": "w, x, g"}),
    "new value is the state": K0
    + scan("k2 = Sub(r, q) n = Neg(k)", **STATE | {"results": "w_next, f"}),
    "result of another place": scan(
        "a = Softmax(r) n = Exp(q)", results="y, w_next", made="float[2] a, float[2] n"
    ),
    "order of the rows is given": "y = Neg(x) "
    + scan("n = Sub(r, q)", settings="scan_input_directions = [1, 0],"),
    "order of the results is given": "y = Neg(x) "
    + scan("n = Sub(r, q)", settings="scan_output_directions = [1],"),
    "axis of the rows is given": "y = Neg(x) "
    + scan("n = Sub(r, q)", settings="scan_input_axes = [1, 0],"),
    "axis of the results is given": "y = Neg(x) "
    + scan("n = Sub(r, q)", settings="scan_output_axes = [1],"),
    "scan in the scan reads the row": "y = Neg(x) " + scan(INNER.replace("(r, q)", "(r, r)")),
    "loop": "y = Neg(x) two = Constant <value = int64 {2}> () "
    "k0 = Constant <value = float[2] {0, 0}> () "
    "f, w_next = Loop (two, c, k0) <body = step (int64 i, bool t, float[2] k) "
    "=> (bool t2, float[2] k2, float[2] n) "
    "{ t2 = Identity(t) k2 = Identity(k) r = Gather(w, i) n = Sub(r, k) }>",
}


@pytest.mark.parametrize("body", PROVEN_SCANS.values(), ids=PROVEN_SCANS.keys())
def test_scan_proven(body):
    assert proven(body) == {"w"}


@pytest.mark.parametrize("body", REFUSED_SCANS.values(), ids=REFUSED_SCANS.keys())
def test_scan_refused(body):
    assert proven(body) == set()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("t = Add(q, q) n = Sub(r, t)", {"w", "s"}),
        ("t = Add(q, q) n = Sub(r, q)", {"w"}),  # the row of s is read beside its writer
        ("n = Sub(r, q) t = Add(q, n)", {"w", "s"}),
        ("n = Sub(r, q) t = Add(q, r)", set()),  # each writer reads the other's row
    ],
)
def test_two_values_of_a_scan(body, expected):
    made = "float[2] n, float[2] t"
    text = "y = Neg(x) " + scan(body, "w, s", "w_next, s_next", made=made)
    assert proven(text, ("w", "s")) == expected


def test_values_that_change_places_in_a_scan():
    """The new row of each is written to the other."""
    made = "float[2] n, float[2] t"
    text = "y = Neg(x) " + scan("n = Relu(r) t = Relu(q)", "w, s", "s_next, w_next", made=made)
    assert proven(text, ("w", "s")) == set()


@pytest.mark.quick
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
