"""A configuration file with all keys, as it is printed."""

import textwrap
from collections.abc import Iterator

from graphopt.configuration.schema import SECTIONS, Key, Section

_WIDTH = 96
_HEAD = (
    "What a training graph shall be, graphopt build model.onnx --config FILE -o train.onnx, and "
    "how it is trained, graphopt train train.onnx --config FILE. Every key may be left out, but "
    "for graph.loss. A line that begins with #key = is switched off: it excludes another one, or "
    "needs something that is not always there."
)
_REST = "The other group has all others."


def example() -> str:
    """A complete file in TOML, with comments; it is one that `read_configuration` reads."""
    lines = [*_comment(_HEAD)]
    for section in SECTIONS.values():
        head = f"[[{section.name}]]" if section.repeated else f"[{section.name}]"
        lines += ["", *_comment(section.says), head]
        for key in section.keys:
            lines += _key(key)
        if section.repeated:
            lines += ["", *_comment(_REST), head, "rest = true"]
    return "\n".join(lines) + "\n"


def _key(key: Key) -> Iterator[str]:
    yield from _comment(key.says)
    for line in f"{key.name} = {key.example}".splitlines():
        yield line if key.active else f"#{line}"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def table(section: Section) -> str:
    """The keys of a section as a table in Markdown.

    Example:
        >>> print(table(SECTIONS["parameters"]).splitlines()[2])
        | `freeze` | `["conv1.*"]` | Patterns of those that stay as they are. |
    """
    rows = ["| key | for example | |", "|---|---|---|"]
    for key in section.keys:
        written = " ".join(key.example.split())
        rows.append(f"| `{key.name}` | `{written}` | {key.says} |")
    return "\n".join(rows)
