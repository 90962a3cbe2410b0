"""The records of operators, against what ONNX itself says of these."""

import dataclasses
import inspect

import onnx
import onnx_ir as ir
import pytest

from graphopt.operators import (
    ALL,
    OPERATORS,
    ZERO,
    Moves,
    NoGradient,
    Operator,
    name_of,
    of,
    record,
)

pytestmark = pytest.mark.any_runtime

# ONNX Runtime has these in ONNX's own domain, where its optimizer puts them.
OF_THE_RUNTIME = {"AveragePoolGrad", "MaxPoolGrad", "SimplifiedLayerNormalization"}
STANDARD = [operator for name, operator in OPERATORS.items()
            if "::" not in name and name not in OF_THE_RUNTIME]  # fmt: skip
BY_NAME = {operator.name: operator for operator in STANDARD}
VARIADIC = onnx.defs.OpSchema.FormalParameterOption.Variadic


def schema(operator):
    return onnx.defs.get_schema(operator.name)


def each(table):
    return pytest.mark.parametrize("operator", table, ids=[operator.name for operator in table])


def inputs_of(operator):
    """The inputs that a record names, by the field."""
    return {
        "broadcasts": [] if operator.broadcasts is ALL else operator.broadcasts,
        "steep": [] if callable(operator.steep) else operator.steep,
        "weights": operator.weights,
        "settings": operator.settings,
        "bias": [] if operator.bias is None else [operator.bias],
    }


def test_all_names_are_those_of_operators():
    known = {found.name for found in onnx.defs.get_all_schemas()}
    assert set(BY_NAME) <= known
    domains = {name.partition("::")[0] for name in OPERATORS if "::" in name}
    assert domains == {"ai.onnx.ml", "com.microsoft"}
    of_ml = {name.partition("::")[2] for name in OPERATORS if name.startswith("ai.onnx.ml::")}
    assert all(onnx.defs.has(name, domain="ai.onnx.ml") for name in of_ml)
    assert all(name == operator.name for name, operator in OPERATORS.items())


def test_an_operator_is_recorded_once():
    with pytest.raises(AssertionError, match="Sin"):
        record.operator("Sin")


def test_many_operators_have_a_gradient():
    assert sum(callable(operator.gradient) for operator in STANDARD) > 100
    assert not any(callable(o.gradient) for n, o in OPERATORS.items() if n not in BY_NAME)


@each(STANDARD)
def test_inputs_are_those_of_the_operator(operator):
    formal = schema(operator).inputs
    is_variadic = any(one.option == VARIADIC for one in formal)
    for fact, indices in inputs_of(operator).items():
        assert is_variadic or all(0 <= index < len(formal) for index in indices), fact
    assert operator.elements is None or 0 <= operator.elements < max(len(formal), 1)
    assert not set(operator.weights) & {*operator.settings, operator.bias}


@each([operator for operator in STANDARD if operator.broadcasts is ALL])
def test_what_is_broadcast_is_documented_so(operator):
    assert "broadcasting" in schema(operator).doc
    assert len(schema(operator).inputs) > 1 or schema(operator).inputs[0].option == VARIADIC


@each([o for o in STANDARD if o.broadcasts is ALL and not o.is_boolean])
def test_what_works_on_elements_keeps_the_dtype(operator):
    found = schema(operator)
    data = found.inputs[1 if operator.name == "Where" else 0]
    assert found.outputs[0].type_str == data.type_str
    assert len(found.outputs) == 1


def test_what_may_lie_where_its_input_does_is_told_one_by_one():
    written = {name for name, operator in OPERATORS.items() if operator.writes_in_step}
    assert written == {"Add", "Div", "Max", "Min", "Mul", "Sub", "Where"}


def test_what_is_true_or_false_is_of_that_dtype():
    boolean = {
        found.name
        for found in map(schema, STANDARD)
        if found.outputs[0].type_str == "tensor(bool)"
        or any(c.type_param_str == found.outputs[0].type_str
               and list(c.allowed_type_strs) == ["tensor(bool)"] for c in found.type_constraints)
    }  # fmt: skip
    assert {operator.name for operator in STANDARD if operator.is_boolean} == boolean


@each([operator for operator in STANDARD if operator.moves < Moves.NOT])
def test_what_moves_elements_has_the_dtype_of_the_first_input(operator):
    found = schema(operator)
    same = found.outputs[0].type_str == found.inputs[0].type_str
    assert same == (operator.moves is not Moves.PRECISION)


@each([operator for operator in STANDARD if operator.is_commutative])
def test_operands_that_may_change_places_have_one_type(operator):
    assert len({formal.type_str for formal in schema(operator).inputs}) == 1


@each([operator for operator in OPERATORS.values() if operator.moves < Moves.AT_TIMES])
def test_what_moves_elements_computes_nothing(operator):
    assert operator.flops == 0
    assert operator.shape is not None


def test_what_has_a_gradient_has_a_shape_and_operations():
    trained = [operator for operator in STANDARD if operator.is_known and operator.gradient != ZERO]
    # What is known of these follows from the graphs in them.
    trained = [operator for operator in trained if operator.name not in ("If", "Loop", "Scan")]
    assert {operator.name for operator in trained if operator.flops is None} == set()
    # The elements that it takes say how many there are.
    assert {operator.name for operator in trained if operator.shape is None} == {"Compress"}


def test_fields_of_the_runtime_name_operators_of_onnx():
    fused = {operator.fused for operator in OPERATORS.values()} - {None}
    assert fused <= BY_NAME.keys()
    assert all(of(n.fused).weights == n.weights for n in OPERATORS.values() if n.fused)


def test_a_record_is_found_by_name_and_node():
    proto = onnx.helper.make_node("Conv", ["x", "w"], ["y"], domain="ai.onnx")
    other = ir.node("FusedConv", [], domain="com.microsoft")
    assert of(proto) is of("Conv") is OPERATORS["Conv"]
    assert of(other) is OPERATORS["com.microsoft::FusedConv"]
    assert name_of(other) == "com.microsoft::FusedConv"
    assert of("com.example::Conv") == Operator("")


def test_fields_are_described():
    described = inspect.getdoc(Operator)
    assert all(f"{field.name}:" in described for field in dataclasses.fields(Operator))
    assert {reason.name for reason in NoGradient} == {"ZERO", "ELSEWHERE", "BY_CONVENTION"}
