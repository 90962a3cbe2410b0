"""What the page of two graphs shows: the changes in words, and both graphs."""

from typing import Any

from graphopt.inspection.comparison.differences import Difference
from graphopt.inspection.facts import Inspection
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.show.difference_tables import fact_text
from graphopt.inspection.show.page.graph_rows import graph_data

Side = tuple[Inspection, Reading]


def difference_data(difference: Difference, before: Side, after: Side) -> dict[str, Any]:
    """The changes as rows of text, and of each graph its nodes and which of them differ.

    Args:
        difference: How they differ.
        before: The first, with its model.
        after: The second.
    """
    return {
        "changes": _rows(difference),
        "same": difference.same,
        "sides": [
            _side(difference, before, "before"),
            _side(difference, after, "after"),
        ],
    }


def _rows(difference: Difference) -> list[list[str]]:
    """The changes as text, and all names; what several have in common is one row."""
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for change in difference.changes:
        texts = fact_text(change.before), fact_text(change.after)
        alike.setdefault((change.part, change.what, *texts), []).append(change.where)
    return [
        [part, _names(names), what, before, after, " ".join(names)]
        for (part, what, before, after), names in alike.items()
    ]


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def _side(difference: Difference, side: Side, which: str) -> dict[str, Any]:
    inspection, reading = side
    graph = graph_data(reading, inspection)
    return {
        "name": inspection.model.name,
        "kind": inspection.model.kind,
        "nodes": inspection.model.nodes,
        "bytes": inspection.model.bytes,
        "parameters": [
            {"name": p.name, "gradient": p.gradient, "bucket": p.bucket}
            for p in inspection.parameters
        ],
        "graph": graph,
        "marks": _marks(difference, graph, which),
    }


def _marks(difference: Difference, graph: dict[str, Any], which: str) -> dict[str, str]:
    """The nodes that only this graph has, and those that differ or read what differs."""
    readers: dict[str, list[str]] = {}
    for row in graph["nodes"]:
        for place in row[4]:
            if place >= 0:
                readers.setdefault(graph["values"][place][0], []).append(row[0])
    marks: dict[str, str] = {}
    for change in difference.changes:
        if change.part == "values":
            for name in readers.get(change.where, ()):
                marks.setdefault(name, "changed")
        elif change.part == "nodes" and change.what != "there":
            marks[change.where] = "changed"
        elif change.part == "nodes" and getattr(change, which):
            marks[change.where] = "added"
    return marks
