"""The benchmark measures what it says; how fast anything is, no test asserts."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import graphopt
from graphopt.reference import ReferenceRMSProp
from tests.helpers.folders import ROOT
from tools.bench import __main__ as command, cases, check, contenders, features, measure, report
from tools.bench.contenders import copy as copying, pytorch

pytestmark = pytest.mark.any_runtime
SHAPES = [(3, 4), (5,), (2, 3, 3, 3), (300, 300), (7,), ()]


@pytest.fixture
def _here(monkeypatch):
    """Everyone runs in the environment of the tests, and not for long."""
    monkeypatch.setattr(measure, "_WARM_UP_MS", 1.0)
    monkeypatch.setattr(measure, "_ROUND_MS", 1.0)
    here = {
        name: replace(contender, environment=sys.prefix)
        for name, contender in contenders.CONTENDERS.items()
    }
    monkeypatch.setattr(measure, "CONTENDERS", here)


def invoke(*arguments):
    return CliRunner().invoke(command.app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.mark.usefixtures("_here")
def test_results(tmp_path):
    folder = tmp_path / "bench"
    arguments = ["--cases", "step/mlp", "--threads", 1, "--rounds", 2, "--output", folder]
    done = invoke(*arguments, "--contenders", "pytorch", "--contenders", "graphopt")
    assert done.exit_code == 0
    first, second = json.loads((folder / "results.json").read_text())
    assert first.keys() == {"case", "contender", "median_ms", "spread_ms", "threads", "ratio"}
    assert (first["case"], first["contender"], first["threads"]) == ("step/mlp", "graphopt", 1)
    assert first["ratio"] == 1
    assert second["contender"] == "pytorch"
    assert second["ratio"] == pytest.approx(first["median_ms"] / second["median_ms"], rel=0.01)
    assert "step/mlp" in done.stdout
    assert "| step/mlp | 1 |" in (folder / "results.md").read_text()
    assert not (folder / "update.png").exists()


@pytest.mark.exhaustive
@pytest.mark.usefixtures("_here")
def test_an_update_is_checked_measured_and_drawn(tmp_path):
    arguments = ["--cases", "update/tiny/momentum", "--threads", 1, "--rounds", 2]
    arguments += ["--contenders", "graphopt", "--contenders", "pytorch foreach"]
    done = invoke(*arguments, "--output", tmp_path)
    assert done.exit_code == 0
    records = json.loads((tmp_path / "results.json").read_text())
    assert [record["contender"] for record in records] == ["graphopt", "pytorch foreach"]
    assert (tmp_path / "update.png").read_bytes().startswith(b"\x89PNG")
    assert "pytorch foreach: torch " in (tmp_path / "results.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "results.json",
        "results.md",
        "update.png",
    ]


@pytest.mark.usefixtures("_here")
def test_a_contender_that_fails_is_named():
    with pytest.raises(RuntimeError, match="graphopt in step/nothing failed"):
        measure.measure("step/nothing", ["graphopt"], 1, root=ROOT, rounds=2)


@pytest.mark.exhaustive
def test_a_contender_without_its_environment_is_left_out(monkeypatch, tmp_path):
    here = dict(contenders.CONTENDERS)
    here["graphopt"] = replace(here["graphopt"], environment=sys.prefix)
    here["optax"] = replace(here["optax"], environment=str(tmp_path / "missing"))
    monkeypatch.setattr(measure, "CONTENDERS", here)
    case = "update/tiny/plain"
    measured = measure.measure(case, ["graphopt", "optax"], 1, root=ROOT, rounds=2)
    assert [record.contender for record in measured.records] == ["graphopt"]
    assert "missing; 'make bench' makes it" in measured.left_out["optax"]
    whole = report.Report()
    whole.add(measured)
    whole.save(tmp_path)
    assert "- optax: left out, there is no" in (tmp_path / "results.md").read_text()


def test_a_contender_that_lacks_something_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(copying, "_BUILD", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(contenders.UnavailableError, match="no C compiler"):
        copying.update(cases.UpdateCase(SHAPES, cases.Variant()), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "update/nothing/*"], "no case matches"),
        (["--contenders", "nobody"], "expected some of"),
        (["--threads", 4096], "the cores of this machine"),
        (["--cases", "step/mlp", "--contenders", "copy"], "none of the contenders"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, tmp_path):
    done = invoke(*arguments, "--output", tmp_path)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_cases():
    assert cases.matching(["step/resnet", "update/*/plain"]) == [
        "update/efficientnet_b0/plain",
        "update/one_tensor/plain",
        "update/tiny/plain",
        "step/resnet",
    ]
    sizes = {
        name: (len(shapes), sum(int(np.prod(shape)) for shape in shapes))
        for name, shapes in cases.SETS.items()
    }
    assert sizes == {
        "efficientnet_b0": (213, 5_199_812),
        "one_tensor": (1, 24 * 1024 * 1024),
        "tiny": (2000, 128_000),
    }


def reference(case, steps):
    """The parameters after some steps, by the reference implementation, in float64."""
    every = [graphopt.Parameter(f"p{i}", shape) for i, shape in enumerate(case.shapes)]
    optimizer = graphopt.RMSProp(
        [
            {
                "params": [every[i] for i in group.indices],
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in case.groups
        ],
        decay=0.9,
        momentum=case.variant.momentum,
        epsilon=1e-10,
        centered=case.variant.centered,
    )
    names = [parameter.name for parameter in every]
    oracle = ReferenceRMSProp(optimizer, dict(zip(names, case.parameters(), strict=True)))
    for _ in range(steps):
        oracle.step(dict(zip(names, case.gradients(), strict=True)))
    return [oracle.state[name] for name in names]


@pytest.mark.quick
@pytest.mark.parametrize("variant", cases.VARIANTS)
@pytest.mark.parametrize(
    "contender", ["graphopt", "graphopt without kernels", "pytorch", "pytorch foreach"]
)
def test_contenders_compute_the_same(contender, variant):
    case = cases.UpdateCase(SHAPES, cases.VARIANTS[variant])
    run = contenders.CONTENDERS[contender].update(case, 1)
    for got, start in zip(run.parameters(), case.parameters(), strict=True):
        np.testing.assert_array_equal(got, start)
    for steps in (1, 2, 3):
        run.step()
        for got, wanted in zip(run.parameters(), reference(case, steps), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("variant", cases.VARIANTS)
def test_the_check_expects_what_the_reference_computes(variant):
    case = cases.UpdateCase(SHAPES, cases.VARIANTS[variant])
    moved = check.sample(reference(case, check.STEPS)) - check.sample(case.parameters())
    np.testing.assert_allclose(check.expected_moves(case), moved, rtol=1e-6, atol=1e-12)


def test_the_check_finds_a_difference(monkeypatch):
    case = cases.UpdateCase(SHAPES, cases.VARIANTS["decay_groups"])
    moves = check.expected_moves(case)
    assert check.disagreement((moves * (1 + 1e-5)).tolist(), moves) is None
    assert "were sampled" in str(check.disagreement(moves[1:], moves))
    assert "relative error nan" in str(check.disagreement(moves * np.nan, moves))
    monkeypatch.setattr(cases, "WEIGHT_DECAY", 0.0)
    assert "moved otherwise" in str(check.disagreement(check.expected_moves(case), moves))


@pytest.mark.exhaustive
@pytest.mark.usefixtures("_here")
def test_a_contender_that_computes_something_else_fails(monkeypatch):
    monkeypatch.setattr(check, "DECAY", 0.8)
    with pytest.raises(RuntimeError, match="pytorch in update/tiny/plain: after 3 steps"):
        measure.measure("update/tiny/plain", ["pytorch"], 1, root=ROOT, rounds=2)


@pytest.mark.skipif(shutil.which("cc") is None, reason="NOT RUN: there is no C compiler")
@pytest.mark.parametrize(("variant", "written"), [("plain", 2), ("momentum", 3), ("centered", 3)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_copy_moves_everything_once(variant, written, threads):
    case = cases.UpdateCase(SHAPES, cases.VARIANTS[variant])
    read, *moved = copying.update(case, threads).step()
    assert read.size == sum(int(np.prod(shape)) for shape in SHAPES)
    assert len(moved) == written
    for array in (read, *moved):
        np.testing.assert_array_equal(array, 1 if array is read else 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_training_step_of_pytorch(compiled, monkeypatch):
    import torch

    monkeypatch.setattr(torch, "compile", lambda function: function)  # which takes long
    run = pytorch.step("mlp", 1, compiled=compiled)
    first = run.step()
    for _ in range(20):
        last = run.step()
    assert last < first


def test_peers_import_without_graphopt():
    code = "import sys, tools.bench.contenders, tools.bench.check\n"
    code += "print({'graphopt', 'typer', 'models', 'onnx', 'torch'} & set(sys.modules))"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert output == "set()\n"


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", [False, True])
def test_cost_of_each_option(step, monkeypatch, capsys):
    monkeypatch.setattr(features, "_TURN", 0.0)
    monkeypatch.setitem(features.SETS, features._SET, [(3, 4), (5,)])
    monkeypatch.setattr("sys.argv", ["features", "--rounds", "1", *(["--step"] if step else [])])
    features.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    options = [*features.OPTIONS, *(features.STEP_OPTIONS if step else ())]
    assert [line["option"] for line in lines] == options
    assert all(line["ratio"] > 0 for line in lines)
