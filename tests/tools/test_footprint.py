"""What steps hold is measured case by case."""

import json
import sys

import pytest

from tools.bench import footprint

pytestmark = pytest.mark.any_runtime


def test_one_that_fails_does_not_lose_the_others(monkeypatch, tmp_path, capsys):
    def measured(network, *_):
        if network == "broken":
            raise RuntimeError("'build' failed, see above")
        return footprint.Footprint(network, 10, 20, 45, 30, 25, 50, 40, 6, 8)

    monkeypatch.setattr(footprint, "footprint", measured)
    path = tmp_path / "footprint.json"
    arguments = ["first", "broken", "last", "--rounds", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["footprint", *arguments])
    assert footprint.main() == 1
    first, broken, last = capsys.readouterr().out.splitlines()
    assert first.startswith("first ")
    assert "memory  1.25 " in first
    assert "build  1.50 load  1.00 " in last
    assert broken.endswith("'build' failed, see above")
    records = json.loads(path.read_text(encoding="utf-8"))
    assert [(r["case"], r["contender"]) for r in records] == [
        (f"step/{network}", who) for network in ("first", "last") for who in ("graphopt", "pytorch")
    ]
    own, other = records[:2]
    assert (own["ratio"], own["memory_ratio"], own["peak_mib"]) == (1, 1, 50)
    assert (other["ratio"], other["memory_ratio"], other["peak_mib"]) == (0.75, 1.25, 40)


def test_a_process_that_fails_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="'build' failed"):
        footprint._parsed("", ["build", "mlp", str(tmp_path)])
