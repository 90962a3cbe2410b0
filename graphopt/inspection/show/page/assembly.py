"""A page as one HTML file, which a browser shows without a network and without a server.

The file holds all facts as JSON, in the script element ``facts``, and a script that shows them.
Names come from files that nobody vouches for: they stand in the JSON only, where no character of
them can end the element, and the script puts them into the page as text. The content security
policy allows that one script and that one style sheet, by their hashes, and nothing else. Both are
put together from the files in ``script/`` and ``style/``.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources

from graphopt.inspection import words

_STYLE = (
    "base", "bar", "sections", "hazards", "groups", "table", "graph", "memory", "requirements",
    "checkpoint", "media",
)  # fmt: skip
_FIRST = ("data", "elements", "words", "head", "chips", "search", "table")
_LAST = ("navigation",)
_GRAPH = ("tree", "layout", "metrics", "way", "details", "drawing", "outline", "picture", "view")
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


@dataclass(frozen=True)
class Kind:
    """A kind of page.

    Attributes:
        sections: The titles of its sections, by their ids.
        script: The parts of its script, beside those that all have; the last one shows all.
        search: What stands in the empty search box.
        help: What a screen reader says of it.
        graph: Whether it has a drawing of a graph.
    """

    sections: Mapping[str, str]
    script: tuple[str, ...]
    search: str
    help: str
    graph: bool = False


def assembled(kind: Kind, facts: object) -> str:
    """The page of a kind that shows these facts."""
    parts_of_script = (*_FIRST, *(_GRAPH if kind.graph else ()), *kind.script, *_LAST)
    style, script = _joined("style", _STYLE, "css"), _joined("script", parts_of_script, "js")
    sections = (
        f'  <section id="{name}"><h2>{title}</h2></section>'
        for name, title in kind.sections.items()
    )
    parts = {
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "search": kind.search,
        "help": kind.help,
        "sections": "\n".join(sections),
        "facts": _json(facts),
    }
    return _PLACE.sub(lambda place: parts[place[1]], _file("template.html"))


def _json(value: object) -> str:
    """JSON in ASCII, of which no character means anything in HTML."""
    return json.dumps(words.for_json(value), allow_nan=False, separators=(",", ":")).translate(
        _ESCAPES
    )


def _joined(folder: str, parts: Iterable[str], suffix: str) -> str:
    return "\n".join(_file(f"{folder}/{part}.{suffix}") for part in parts)


def _file(name: str) -> str:
    folder = resources.files("graphopt.inspection.show.page")
    return folder.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
