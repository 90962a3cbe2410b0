"""Cases of ONNX's backend tests; all of them are run by `python -m tools.backend_sweep`."""

import onnx
import pytest

from graphopt.operators import record
from tools.backend_oracle import FINE, RIGHT, WRONG
from tools.backend_reviewed import REVIEWED
from tools.backend_sweep import collect, judge, reviewed, sweep

pytestmark = pytest.mark.any_runtime

# Some of which every case is right, or has been looked at.
SAMPLE = ("Det", "DequantizeLinear", "Mod", "ScatterND", "STFT")
REFUSED = [key for key in REVIEWED if key[0] in ("AveragePool", "DynamicQuantizeLinear", "MaxPool")]


def test_a_sample_is_right():
    verdicts = list(sweep(collect(*SAMPLE)))
    assert {verdict.operator for verdict in verdicts} == set(SAMPLE)
    assert [v for v in verdicts if v.kind not in FINE and reviewed(v) is None] == []
    assert sum(verdict.kind == RIGHT for verdict in verdicts) > 20


@pytest.mark.parametrize(("operator", "part"), REFUSED)
def test_what_was_reviewed_is_still_so(operator, part):
    case = next(case for case in collect(operator) if part in case.name)
    (verdict,) = judge(case)
    assert verdict.kind not in FINE
    assert reviewed(verdict) == REVIEWED[operator, part]


def test_operators_that_were_reviewed_exist():
    for operator in {operator for operator, _ in REVIEWED} - {""}:
        domain, _, name = operator.rpartition("::")
        assert onnx.defs.has(name, domain=domain), operator


def test_a_gradient_that_is_wrong_is_found(monkeypatch):
    right = record.of("Det")
    wrong = record.replace(right, gradient=lambda b: b.op.Mul(right.gradient(b), 1.001))
    monkeypatch.setitem(record.OPERATORS, "Det", wrong)
    assert {verdict.kind for verdict in sweep(collect("Det"))} == {WRONG}
