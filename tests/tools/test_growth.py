"""Cost along an axis is measured point by point; a curve that bends upwards is told."""

import json

import pytest

from tools.bench import growth

pytestmark = pytest.mark.any_runtime


@pytest.mark.parametrize("axis", growth.AXES)
def test_a_point_of_each_axis(axis, tmp_path):
    measured = growth.point(axis, 20, tmp_path)
    assert measured.keys() == growth.MEASURES.keys()
    assert min(measured["build_s"], measured["load_s"], measured["step_ms"]) > 0
    assert measured["peak_mib"] >= 0


def test_the_steepest_part():
    sizes = [1, 10, 100]
    assert growth.steepest(sizes, [2, 20, 200], 1) == pytest.approx(1)
    assert growth.steepest(sizes, [2, 4, 400], 1) == pytest.approx(2)
    assert growth.steepest(sizes, [0.1, 10, 50], 1) == pytest.approx(0.69897)  # the first is small
    assert growth.steepest(sizes, [0.1, 0.2, 50], 1) == 0


def test_the_table_and_the_picture(tmp_path):
    one = dict.fromkeys(growth.MEASURES, 200.0)
    found = {"layers": {10: one, 1000: dict.fromkeys(one, 2000000.0)}}
    lines = growth.table(json.loads(json.dumps(found), object_hook=_with_numbers))
    assert lines[0] == "| layers | build_s | load_s | step_ms | peak_mib |"
    assert lines[2] == "| 10 | 200 | 200 | 200 | 200 |"
    assert lines[-1] == "| steepest | 2.00 | 2.00 | 2.00 | 2.00 |"
    growth.save(found, tmp_path)
    assert lines[0] in (tmp_path / "growth.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "growth.json").read_text(encoding="utf-8")).keys() == {"layers"}
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


def _with_numbers(found):
    return {int(key) if key.isdigit() else key: value for key, value in found.items()}
