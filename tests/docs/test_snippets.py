"""Every snippet and command of the README, and every example of a docstring, runs."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import tomllib
from dataclasses import fields
from xml.etree import ElementTree as ET

import mypy.api
import numpy as np
import onnx
import pytest

import graphopt
import models
from graphopt.examples import digits, digits_cnn
from tests.helpers.command_line import succeed
from tests.helpers.documents import blocks, broken_links, check_snippets, printed, run
from tests.helpers.environments import OTHER_PYTHON, needs_other_runtime
from tests.helpers.floors import FLOORS
from tests.helpers.folders import DOCS, ROOT
from tools import hazard_table
from tools.site import package_page

pytestmark = pytest.mark.any_runtime

README = (ROOT / "README.md").read_text(encoding="utf-8")
INSPECTION = (DOCS / "inspection.md").read_text(encoding="utf-8")
ON_DEVICE = (DOCS / "on_device.md").read_text(encoding="utf-8")
FIRST_STEPS = (DOCS / "first_steps.md").read_text(encoding="utf-8")
TRAINING = (DOCS / "training.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.quick
def test_snippets_run_and_print_what_their_comments_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(blocks("python", README)) == 1
    check_snippets(README, "README.md", capsys)


@pytest.mark.exhaustive
def test_snippets_are_typed(tmp_path):
    """For those who check their own programs strictly."""
    programs = [tmp_path / "readme.py", tmp_path / "training.py"]
    for program, text in zip(programs, (README, TRAINING), strict=True):
        program.write_text("\n".join(blocks("python", text)), encoding="utf-8")
    cache = ROOT / ".cache" / "mypy"
    said, _, status = mypy.api.run(["--strict", f"--cache-dir={cache}", *map(str, programs)])
    assert status == 0, said


def test_commands_are_there():
    """Those of graphopt run in the tests of what they do; here it is their names."""
    lines = [line for block in blocks("console", README) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines]
    assert [command[:2] for command in commands] == [
        *(["pip", "install"], ["graphopt", "demo"], ["make", "demo"], ["make", "test"])
    ]
    for command in commands:
        if command[0] == "make":
            subprocess.run([*command, "--dry-run"], cwd=ROOT, check=True, capture_output=True)
        elif command[0] == "graphopt":
            succeed(*command[1:], "--help")


def test_commands_of_the_first_steps_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(digits_cnn.build(), tmp_path / "model.onnx")
    np.savez("digits.npz", **{k: v[:96] for k, v in digits.load().train._asdict().items()})
    install, demo, block = blocks("console", FIRST_STEPS)
    assert [install, demo] == ["pip install 'graphopt[runtime]'\n", "graphopt demo\n"]
    commands = list(map(shlex.split, block.splitlines()))
    assert len(commands) == 4
    run(commands)
    assert (tmp_path / "trained.onnx").is_file()


def test_the_first_page_begins_as_the_readme():
    (block,) = blocks("console", (DOCS / "index.md").read_text(encoding="utf-8"))
    assert block == blocks("console", README)[0]


def test_extras_exist():
    for page in (README, FIRST_STEPS):
        named = {
            name
            for names in re.findall(r"graphopt\[([\w,-]+)\]", page)
            for name in names.split(",")
        }
        assert named
        assert named <= set(PROJECT["optional-dependencies"])


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 80


@pytest.mark.exhaustive
@needs_other_runtime
def test_guide_to_devices(tmp_path):
    """On the runtime that has the training API: the first snippets as if there were no PyTorch."""
    snippets = blocks("python", ON_DEVICE)
    assert len(snippets) == 5
    data = [line for line in snippets[1].splitlines() if line.startswith(("import numpy", "x, "))]
    without = "\n".join(["import sys; sys.modules['torch'] = None", *snippets[:2]])
    programs = {"without": without, "with": "\n".join([snippets[0], *data, *snippets[2:]])}
    for name, program in programs.items():
        folder = tmp_path / name
        folder.mkdir()
        result = subprocess.run(
            [OTHER_PYTHON, "-c", program],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        assert result.stdout.splitlines() == re.findall(r"^# (\[.*)$", program, re.MULTILINE)
        assert (folder / "device" / "trained.onnx").is_file()


def test_guide_to_inspection(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = digits_cnn.build()
    rates = {"train": 0.002, "other": 0.1}
    for name, rate in rates.items():
        opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=rate, momentum=0.9)
        graph = graphopt.training_graph(model, loss="cross_entropy", optimizer=opt)
        graph.save(f"{name}.onnx")
        state = "checkpoint" if name == "train" else name
        graphopt.Session(graph).save_checkpoint(f"{state}.safetensors")
    snippets = blocks("python", INSPECTION)
    assert len(snippets) == 3
    namespace = {}
    for snippet in snippets:
        exec(compile(snippet, "inspection.md", "exec"), namespace)
        assert capsys.readouterr().out.splitlines() == printed(snippet)
    (block,) = blocks("console", INSPECTION)
    commands = [shlex.split(line.partition(" # ")[0]) for line in block.splitlines()]
    assert len(commands) == 12
    run(commands)


def test_the_guide_to_inspection_has_all_hazards_and_keys():
    assert hazard_table.table() in INSPECTION
    keys = {field.name for field in fields(graphopt.inspection.Inspection)} - {"contents"}
    documented = set(re.findall(r"`([a-z]+)`", "".join(re.findall(
        r"^\| (`[a-z`, ]+) \| [^|]*\|$", INSPECTION, re.MULTILINE))))  # fmt: skip
    assert keys <= documented


PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md")]


@pytest.mark.quick
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_pages_link_to_exists(page):
    assert broken_links(page) == []


def test_the_page_of_the_package_stands_alone():
    """It is read where no file of the repository is beside it."""
    assert PROJECT["readme"] == "docs/package.md"
    page = package_page.PAGE.read_text(encoding="utf-8")
    assert page == package_page.text(), "python -m tools.site.package_page"
    assert "](" not in page
    assert blocks("python", page) == blocks("python", README)


def test_the_rooms_of_the_architecture_stand_on_their_floors():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `([\w.]+)` \| .+ \|$", page, re.MULTILINE)
    floors = [(str(n), room) for n, rooms in enumerate(FLOORS, 1) for room in rooms]
    assert rows == [(number, room or "graphopt") for number, room in floors]


def test_the_drawing_of_the_architecture_is_one():
    drawing = ET.parse(DOCS / "architecture.svg").getroot()
    words = " ".join(drawing.itertext())
    rooms = set(re.findall(r"(\w+)/", words))
    assert {"operators", "on_device", "profiling", "opening", "verification"} <= rooms
    package = ROOT / "graphopt"
    folders = {
        path.name for folder in (package, package / "inspection") for path in folder.iterdir()
    }
    assert rooms <= folders


def test_what_contributors_are_told_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = blocks("console", text)
    for line in block.splitlines():
        command = shlex.split(line, comments=True)
        subprocess.run([*command, "--dry-run"], cwd=ROOT, check=True, capture_output=True)
    paths = re.findall(r"`((?:graphopt|tests|docs)/[\w./]*)`", text)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
    names = re.findall(r"`(?:(\w+)\.)?(\w+)`", text)
    sources = [file for folder in ("graphopt", "tests") for file in (ROOT / folder).rglob("*.py")]
    known = set(re.findall(r"\w+", "".join(file.read_text(encoding="utf-8") for file in sources)))
    assert {name for pair in names for name in pair if name} <= known
    assert (
        text.count("## How to add") == len(re.findall(r"^Done.* by the commit `", text, re.M)) == 5
    )


def test_licence_and_hooks_are_what_the_project_says():
    assert PROJECT["license"] == "Apache-2.0"
    (file,) = PROJECT["license-files"]
    assert "Apache License\n                           Version 2.0" in (ROOT / file).read_text()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    programs = re.findall(r"entry: \.venv/bin/(\w+)", hooks)
    checks = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    assert programs == re.findall(r"\$\(BIN\)/(\w+)", checks)


MODULES = sorted(
    module.name
    for package in (graphopt, models)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith(("__main__", "._kernels"))  # a library without Python in it
    and module.name != "graphopt.federated.flower"  # tests/federated runs them, beside Flower
)


@pytest.mark.quick
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    module = importlib.import_module(name)
    public = {key: getattr(graphopt, key) for key in graphopt.__all__} | {"np": np}
    finder = doctest.DocTestFinder(recurse=True)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in finder.find(module, name, globs={**public, **vars(module)}):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
