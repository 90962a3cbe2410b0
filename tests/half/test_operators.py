"""The lists of what is computed in half precision."""

from collections import Counter

import onnx
import pytest

from graphopt.half.operators import OPERATORS, In, computed
from graphopt.operators import OPERATORS as RECORDS

pytestmark = pytest.mark.any_runtime


def test_each_operator_stands_in_one_list():
    counts = Counter(name for several in OPERATORS for name in several.names)
    assert {name for name, count in counts.items() if count > 1} == set()


def test_names_are_those_of_operators():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert {name for several in OPERATORS for name in several.names} <= known


def test_what_nobody_has_looked_at_is_float32():
    """An operator that gets a record is float32 until it is put into a list."""
    listed = {name for several in OPERATORS for name in several.names}
    for name in RECORDS.keys() - listed:
        assert computed(name) is In.FLOAT32
    assert computed("MatMul", "com.microsoft") is In.FLOAT32
