"""Functions that a graph has of its own."""

import onnx_ir as ir
import pytest

from graphopt.builder import GraphBuilder
from graphopt.local_functions import call_body, local_functions, take_bodies

pytestmark = pytest.mark.any_runtime


def start():
    x = ir.val("x", ir.DataType.FLOAT, ir.Shape([2]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 17})
    return GraphBuilder(graph), x


def test_a_body_is_made_once_for_all_that_it_depends_on():
    op, x = start()
    made = []

    def call(factor):
        def body(op, x):
            made.append(factor)
            return op.Mul(x, factor)

        (y,) = call_body(op, "Multiply", [x], body, factor)
        return y.producer().op_type

    names = [call(2.0), call(3.0), call(2.0)]
    assert names == ["Multiply1", "Multiply2", "Multiply1"]
    assert made == [2.0, 3.0]
    assert [function.name for function in local_functions(op.graph)] == ["Multiply1", "Multiply2"]


def test_equal_bodies_that_depend_on_other_things_are_one_function():
    op, x = start()
    names = set()
    for of in ("one", "other"):
        (y,) = call_body(op, "Twice", [x], lambda op, x: op.Add(x, x), of)
        names.add(y.producer().op_type)
    assert names == {"Twice1"}


def test_bodies_that_were_taken_are_made_again():
    op, x = start()
    for _ in range(2):
        call_body(op, "Twice", [x], lambda op, x: op.Add(x, x), None)
        assert list(take_bodies(op.graph)) == ["Twice1"]
        assert not list(local_functions(op.graph))
