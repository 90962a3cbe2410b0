"""The tests themselves: one module for each file, and a quick test in each folder."""

import re
import sys
from collections import Counter
from pathlib import Path

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
