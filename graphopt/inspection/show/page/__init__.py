"""An inspection as one HTML file, which a browser shows without a network and without a server.

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
from collections.abc import Iterable
from importlib import resources

import onnx_ir as ir

from graphopt.inspection import words
from graphopt.inspection.facts import Inspection
from graphopt.inspection.show.page.page_facts import payload

# The parts in their order; "data" reads the facts, and "show" calls all the others.
_SCRIPT = (
    "data", "elements", "words", "search", "table", "overview", "hazards", "optimizer", "chart",
    "groups", "parameters", "lane", "graph", "memory", "state", "interface", "stages",
    "requirements", "show",
)  # fmt: skip
_STYLE = (
    "base", "bar", "sections", "hazards", "groups", "table", "graph", "memory", "requirements",
    "media",
)  # fmt: skip
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def page(inspection: Inspection, model: ir.Model | None = None) -> str:
    """The inspection as an HTML page: one file, which loads nothing.

    Args:
        inspection: The facts.
        model: The model that was inspected; with it, the page also shows which nodes read each
            parameter and which node makes its gradient.

    Returns:
        The HTML, to be written as UTF-8. The same facts give the same text. Numbers that are not
        finite, which JSON does not have, stand in it as "NaN", "Infinity" and "-Infinity".

    Example:
        >>> html = page(graphopt.inspect("train.onnx"))  # doctest: +SKIP
        >>> Path("train.html").write_text(html, encoding="utf-8")  # doctest: +SKIP
    """
    style, script = _joined("style", _STYLE, "css"), _joined("script", _SCRIPT, "js")
    parts = {
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "facts": _json(payload(inspection, model)),
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
