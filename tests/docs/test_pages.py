"""The pages whose snippets need nothing but an empty folder: each runs, one after the other."""

import warnings

import pytest

from tests.helpers.documents import blocks, check_snippets
from tests.helpers.folders import DOCS

pytestmark = pytest.mark.any_runtime

HERE = [
    "first_steps",
    "gpu",
    "layout",
    "speed",
    "training",
    "tutorial_colleague",
    "tutorial_device",
    "tutorial_export",
    "without_graphopt",
]
ELSEWHERE = {  # the pages that have a test of their own
    "checkpoints": "test_checkpoints",
    "distributed": "test_distributed",
    "federated": "test_federated",
    "inspection": "test_snippets",
    "metadata": "test_metadata",
    "native": "test_native",
    "on_device": "test_snippets",
    "operators": "test_operators",
    "other_frameworks": "test_other_frameworks",
    "precision": "test_precision",
    "providers": "test_providers",
    "pytorch": "test_pytorch",
    "stability": "test_stability",
}


@pytest.mark.parametrize("name", HERE)
def test_snippets_run_and_print_what_their_comments_say(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of its own doings
        check_snippets((DOCS / f"{name}.md").read_text(encoding="utf-8"), name, capsys)


def test_each_page_with_snippets_has_a_test():
    pages = {str(page.relative_to(DOCS).with_suffix("")): page for page in DOCS.rglob("*.md")}
    with_snippets = {
        name for name, page in pages.items() if blocks("python", page.read_text(encoding="utf-8"))
    }
    assert sorted(with_snippets - {"package"}) == sorted([*HERE, *ELSEWHERE])  # it is the README
    for name, test in ELSEWHERE.items():
        text = (DOCS.parent / "tests" / "docs" / f"{test}.py").read_text(encoding="utf-8")
        assert f"{name}.md" in text, name
