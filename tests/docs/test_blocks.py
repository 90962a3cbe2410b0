"""All blocks of code on all pages, and for each the test that runs it: no block is forgotten."""

import ast
import re
from collections import Counter

import pytest

from tests.helpers.folders import DOCS, JAVASCRIPT, ROOT

pytestmark = pytest.mark.any_runtime

PAGES = {
    str(page.relative_to(ROOT)): page
    for page in [
        *(*ROOT.glob("*.md"), *DOCS.rglob("*.md")),
        *(JAVASCRIPT.parent.rglob("*.md")),
    ]
}
PRINTED = "test_snippets_run_and_print_what_their_comments_say"
SNIPPETS = f"test_snippets.py::{PRINTED}"
ANY = f"test_pages.py::{PRINTED}"
COMMANDS = "test_snippets.py::test_commands_are_there"
NAVIGATION = "test_site.py::test_each_page_is_in_the_navigation_once"
PYTORCH = (  # three, two and one of them
    "test_pytorch.py::test_forward_pass, test_gradients_of_pytorch, test_convolutions_of_pytorch"
)
NOT_RUN = "not run: there is no toolchain for it where the tests run"
TEXT = "text: not code"
SAME = "test_snippets.py::test_the_page_of_the_package_stands_alone"

# How many blocks of a language a page has, and what runs them. A number that has changed asks:
# does that test run the new block too?
BLOCKS = {
    "CONTRIBUTING.md": {"console": (1, "test_snippets.py::test_what_contributors_are_told_exists")},
    "README.md": {"": (1, TEXT), "console": (2, COMMANDS), "python": (1, SNIPPETS)},
    "docs/android.md": {"kotlin": (2, NOT_RUN)},
    "docs/checkpoints.md": {
        "console": (2, "test_console.py::test_checkpoints"),
        "python": (4, f"test_checkpoints.py::{PRINTED}"),
    },
    "docs/command_line.md": {
        "console": (3, "test_command_line.py::test_commands_run"),
        "toml": (1, "test_command_line.py::test_commands_run"),
    },
    "docs/distributed.md": {
        "console": (2, "test_distributed.py::test_commands_and_snippets_run"),
        "python": (1, "test_distributed.py::test_commands_and_snippets_run"),
    },
    "docs/federated.md": {
        "console": (1, "test_federated.py::test_commands"),
        "python": (2, "../federated/test_guide.py::test_the_snippets_train"),
    },
    "docs/first_steps.md": {
        "console": (3, "test_snippets.py::test_commands_of_the_first_steps_run"),
        "python": (3, ANY),
    },
    "docs/gpu.md": {"python": (2, ANY)},
    "docs/index.md": {
        "": (1, TEXT),
        "console": (1, "test_snippets.py::test_the_first_page_begins_as_the_readme"),
        "{toctree}": (6, NAVIGATION),
    },
    "docs/inspection.md": {
        "console": (1, "test_snippets.py::test_guide_to_inspection"),
        "python": (3, "test_snippets.py::test_guide_to_inspection"),
    },
    "docs/ios.md": {"objc": (1, NOT_RUN), "ruby": (1, NOT_RUN)},
    "docs/javascript.md": {
        "": (1, TEXT),
        "console": (2, "test_console.py::test_javascript"),
        "js": (2, "test_console.py::test_javascript_of_ones_own"),
    },
    "docs/layout.md": {"python": (2, ANY)},
    "docs/metadata.md": {"python": (1, f"test_metadata.py::{PRINTED}")},
    "docs/native.md": {
        "cpp": (2, "test_native.py::test_the_trainer_has_what_the_guide_calls"),
        "csharp": (2, NOT_RUN),
        "java": (2, NOT_RUN),
        "kotlin": (1, NOT_RUN),
        "python": (2, "test_native.py::test_snippets_run"),
    },
    "docs/on_device.md": {"python": (5, "test_snippets.py::test_guide_to_devices")},
    "docs/operators.md": {
        "python": (2, "test_operators.py::test_the_snippets_run_and_print_what_their_comments_say")
    },
    "docs/other_frameworks.md": {
        "python": (4, "test_other_frameworks.py::test_documented_snippets")
    },
    "docs/package.md": {"": (1, TEXT), "console": (2, SAME), "python": (1, SAME)},
    "docs/precision.md": {"python": (2, f"test_precision.py::{PRINTED}")},
    "docs/providers.md": {
        "console": (1, "test_console.py::test_providers"),
        "python": (1, f"test_providers.py::{PRINTED}"),
    },
    "docs/pytorch.md": {"python": (6, PYTORCH)},
    **{
        f"docs/reference/{name}.md": {"{eval-rst}": (1, "test_reference.py::test_names")}
        for name in (
            *("building", "devices", "distributed", "examples", "federated", "inspection"),
            *("optimizer", "schedules", "torch", "training"),
        )
    },
    "docs/reference/index.md": {"{toctree}": (1, NAVIGATION)},
    "docs/speed.md": {"console": (1, "test_console.py::test_speed"), "python": (1, ANY)},
    "docs/stability.md": {
        "console": (1, "test_console.py::test_stability"),
        "python": (9, f"test_stability.py::{PRINTED}"),
    },
    "docs/training.md": {"": (1, TEXT), "python": (9, ANY)},
    "docs/tutorial_colleague.md": {
        "console": (4, "test_console.py::test_tutorial_of_a_colleague"),
        "python": (4, ANY),
    },
    "docs/tutorial_device.md": {"python": (4, ANY)},
    "docs/tutorial_export.md": {"python": (6, ANY)},
    "docs/without_graphopt.md": {"python": (3, ANY)},
    "graphopt/examples/cpp/README.md": {
        "console": (1, "test_console.py::test_cpp"),
        "python": (1, "test_console.py::test_cpp"),
        "sh": (1, "test_console.py::test_cpp"),
    },
    "graphopt/examples/javascript/README.md": {"console": (1, "test_console.py::test_javascript")},
}


def found(text):
    """The language of each block, also of those in lists."""
    languages, inside = [], False
    for language in re.findall(r"^ *```(\S*)$", text, re.MULTILINE):
        if not inside:
            languages.append(language)
        inside = not inside
    assert not inside, "a block without an end"
    return Counter(languages)


def test_each_block_has_a_test():
    assert {
        page: found(path.read_text("utf-8"))
        for page, path in PAGES.items()
        if "```" in path.read_text("utf-8")
    } == {
        page: {language: count for language, (count, _) in languages.items()}
        for page, languages in BLOCKS.items()
    }


TESTS = [
    pytest.param(page, test, id=f"{page}-{language}")
    for page, languages in BLOCKS.items()
    for language, (_, test) in languages.items()
]


@pytest.mark.parametrize(("page", "test"), TESTS)
def test_what_runs_it_is_there_or_the_page_says_that_nothing_does(page, test):
    text = PAGES[page].read_text("utf-8")
    if test is TEXT:
        return
    if test is NOT_RUN:
        assert re.search(r"not\s+run\b|Nothing here was run", text)
        return
    file, _, names = test.partition("::")
    source = (ROOT / "tests" / "docs" / file).read_text("utf-8")
    functions = {
        node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)
    }
    assert set(names.split(", ")) <= functions
    # It names the page, or takes all of a folder.
    assert re.search(rf"\b{PAGES[page].stem}\b|\br?glob\(", source)
