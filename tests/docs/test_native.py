"""The guides to other languages: what is in Python runs, and the API that they name is there."""

import re

import pytest

from tests.helpers.documents import blocks, broken_links, check_snippets
from tests.helpers.folders import DOCS, ROOT

pytestmark = pytest.mark.any_runtime

GUIDE = DOCS / "native.md"
TEXT = GUIDE.read_text(encoding="utf-8")
TRAINER = (ROOT / "graphopt" / "examples" / "cpp" / "trainer.hpp").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*no checksums")
def test_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_snippets(TEXT, GUIDE.name, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("train.onnx", "train.start.safetensors", "trained.onnx")
    ]


def test_the_trainer_has_what_the_guide_calls():
    first, _ = blocks("cpp", TEXT)
    called = set(re.findall(r"trainer\.(\w+)\(", first))
    assert called == {"step", "save", "restore"}
    assert all(re.search(rf"\b{name}\(", TRAINER) for name in called)


@pytest.mark.parametrize("name", ["native", "android", "ios"])
def test_links(name):
    assert broken_links(DOCS / f"{name}.md") == []
