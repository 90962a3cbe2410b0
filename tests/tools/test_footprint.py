"""What steps hold and take is measured network by network, and stands beside other results."""

import io
import json
import sys

import numpy as np
import onnx
import onnx.parser
import pytest

from tools.bench import footprint, footprint_networks, footprint_roles, report, sized

pytestmark = pytest.mark.any_runtime


def measured(network, *_):
    if network == "broken":
        raise RuntimeError("'build' failed, see above")
    own = {"file": 10, "state": 20, "build_peak": 45, "build_ms": 300}
    return footprint.Footprint(
        network,
        {"graphopt": own},
        {
            "graphopt": {"load_peak": 30, "load_ms": 200, "held": 25, "peak": 50},
            "pytorch": {"peak": 40},
        },
        {"graphopt": [6, 6, 5, 9], "pytorch": [8, 8, 8, 8]},
        {"pytorch compile": "'torch' failed, see above"},
    )


def run(monkeypatch, *arguments):
    monkeypatch.setattr(footprint, "footprint", measured)
    monkeypatch.setattr(sys, "argv", ["footprint", *map(str, arguments)])
    return footprint.main()


def test_one_that_fails_does_not_lose_the_others(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "first", "broken", "last", "--output", tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*["first"] * 3, "broken", *["last"] * 3]
    assert "build 300 ms 1.50 x  load 200 ms 1.00 x" in lines[0]
    assert "left out: 'torch' failed" in lines[2]
    records = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [(r["case"], r["contender"]) for r in records] == [
        (f"step/{network}", who) for network in ("first", "last") for who in ("graphopt", "pytorch")
    ]
    own, other = records[:2]
    assert (own["ratio"], own["memory_ratio"], own["peak_mib"]) == (1, 1, 50)
    assert (other["ratio"], other["memory_ratio"], other["peak_mib"]) == (0.75, 1.25, 40)
    assert (own["build_ms"], own["load_ratio"], own["held_mib"]) == (300, 1, 25)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| step/first | 6.0 ms, 50 MiB | 8.0 ms, 40 MiB (0.75, 1.25) | 300 ms, 1.50 |" in text
    assert "Over pytorch: time 0.75 in the median, at most 0.75 (step/first); memory 1.25" in text


def test_other_results_stay_and_older_ones_of_the_same_network_do_not(monkeypatch, tmp_path):
    old = {"case": "step/mlp", "contender": "graphopt", "median_ms": 1.0}
    stale = {"case": "step/first", "contender": "keras", "peak_mib": 1.0}
    (tmp_path / "results.json").write_text(json.dumps([old, stale]), encoding="utf-8")
    (tmp_path / "results.md").write_text("# Measurements\n\n## Update\n", encoding="utf-8")
    for _ in range(2):
        run(monkeypatch, "first", "--output", tmp_path)
    records = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert records[0] == old
    assert [r["contender"] for r in records[1:]] == ["graphopt", "pytorch"]
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text.startswith("# Measurements\n\n## Update\n")
    assert text.count("## Networks of real sizes") == 1
    report.Report().save(tmp_path)  # of the other command: what it measures is replaced
    records = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [r["case"] for r in records] == ["step/first"] * 2
    assert "| step/first |" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_no_results():
    assert sized.with_section("# Measurements\n", []) == "# Measurements\n"


def test_all_networks_are_there():
    assert set(footprint.NETWORKS) == set(footprint_networks.NETWORKS)
    assert {role for _, role, _ in footprint.CONTENDERS.values()} < set(footprint_roles.ROLES)


def test_a_process_that_fails_is_named():
    with pytest.raises(RuntimeError, match="'build' failed"):
        footprint.parsed("", "'build'")


def test_a_network_is_built_and_trained(tmp_path, capsys, monkeypatch):
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        net (float[4,3] x) => (float[4,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}> {
        y = MatMul(x, w) }""")
    onnx.save(model, tmp_path / "forward.onnx")
    np.savez(tmp_path / "batch.npz", x=np.ones((4, 3), np.float32), labels=np.arange(4) % 2)
    footprint_roles.build("", tmp_path, "low")
    built = json.loads(capsys.readouterr().out)
    assert built["state"] == pytest.approx(2 * 6 * 4 / 2**20, rel=0.5)  # and a step counter
    monkeypatch.setattr(sys, "stdin", io.StringIO("3\n1\n"))
    footprint_roles.run_graphopt("", tmp_path, "low")
    taken, *turns = map(json.loads, capsys.readouterr().out.splitlines())
    assert taken.keys() == {"load_peak", "held", "load_ms", "peak", "step"}
    assert [len(turn) for turn in turns] == [3, 1]
