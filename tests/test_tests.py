"""The tests themselves: one module for each file, and a quick test in each folder."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import mark_what_is_alike
from tests.helpers.environments import needs_training_package
from tests.helpers.folders import ROOT


def test_no_file_is_imported_twice():
    files = [getattr(module, "__file__", None) for module in set(sys.modules.values())]
    here = Counter(file for file in files if file and Path(file).is_relative_to(ROOT / "tests"))
    assert [file for file, count in here.items() if count > 1] == []


def test_every_folder_is_a_package():
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_what_tests_share_stands_among_the_helpers():
    shared = r"^ *(?:from|import) tests\.(?:\w+\.)*test_"
    files = [*(ROOT / "tests").rglob("*.py")]
    assert [file for file in files if re.search(shared, file.read_text("utf-8"), re.M)] == []


def test_every_folder_has_a_quick_test():
    files = [*(ROOT / "tests").rglob("test_*.py")]
    quick = {file.parent for file in files if "@pytest.mark.quick\n" in file.read_text("utf-8")}
    assert {file.parent for file in files} - quick == set()


class Item:
    """What pytest collects, as far as marks go."""

    def __init__(self, nodeid, *marks):
        self.nodeid, self.marks = nodeid, [mark.mark for mark in marks]

    def iter_markers(self):
        return iter(self.marks)

    def get_closest_marker(self, name):
        return next((mark for mark in self.marks if mark.name == name), None)

    def add_marker(self, name):
        self.marks.append(getattr(pytest.mark, name).mark)


def test_a_third_of_many_cases_runs_on_the_other_runtime():
    cases = [Item(f"a.py::many[{case}]") for case in range(7)]
    once = [Item(f"a.py::many[once {case}]", pytest.mark.any_runtime) for case in range(9)]
    few = [Item(f"a.py::few[{case}]") for case in range(6)]
    alone = [Item(f"a.py::alone[{case}]", needs_training_package) for case in range(9)]
    mark_what_is_alike([*once, *cases, *few, *alone])
    rare = [item.get_closest_marker("exhaustive") is not None for item in cases]
    assert rare == [False, True, True, False, True, True, False]
    assert not any(item.get_closest_marker("exhaustive") for item in [*once, *few, *alone])
