"""Inspections and comparisons as pages for the browser: one file each, which loads nothing."""

from collections.abc import Mapping
from typing import Any

from graphopt.inspection.checkpoints import CheckpointDifference, CheckpointInspection
from graphopt.inspection.comparison.differences import Difference
from graphopt.inspection.facts import Inspection
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.show.page.assembly import Kind, assembled
from graphopt.inspection.show.page.both_graphs import difference_data
from graphopt.inspection.show.page.graph_rows import graph_data
from graphopt.inspection.show.page.page_facts import payload
from graphopt.module_names import name_of

_INSPECTION = Kind(
    {
        "hazards": "Hazards",
        "optimizer": "Optimizer",
        "groups": "Groups",
        "parameters": "Parameters",
        "graph": "Graph",
        "memory": "Memory",
        "state": "State",
        "interface": "Inputs and outputs",
        "stages": "Stages",
        "requirements": "Requirements",
    },
    (
        "facts", "overview", "hazards", "optimizer", "chart", "groups", "parameters", "graph",
        "memory", "state", "interface", "stages", "requirements", "show",
    ),
    "Search: name  group:1  op:Conv",
    "Parts of a name; group: and a number, op: and an operator, bucket: and a name. All must fit. "
    "Enter goes to the first node that is found.",
    graph=True,
)  # fmt: skip
_DIFFERENCE = Kind(
    {"changes": "Changes", "graph": "Both graphs"},
    ("difference",),
    "Search: name  op:Conv",
    "Parts of a name; op: and an operator, bucket: and a name. All must fit. "
    "Enter goes to the first node that is found.",
    graph=True,
)
_CHECKPOINT = Kind(
    {
        "hazards": "Problems",
        "modules": "Modules",
        "parameters": "Parameters",
        "states": "States",
        "others": "Other tensors",
        "steps": "Step sizes",
    },
    ("hazards", "histogram", "modules", "checkpoint"),
    "Search: parts of a name",
    "Parts of a name, which all must fit.",
)
_CHECKPOINT_DIFFERENCE = Kind(
    {
        "modules": "Modules",
        "changes": "Tensors that differ",
        "unfit": "Tensors that do not fit",
        "same": "The same",
    },
    ("modules", "checkpoint_difference"),
    "Search: parts of a name",
    "Parts of a name, which all must fit.",
)


def page(
    inspection: Inspection,
    reading: Reading | None = None,
    times: Mapping[str, float] | None = None,
) -> str:
    """The inspection as an HTML page: one file, which loads nothing.

    Args:
        inspection: The facts.
        reading: The model that was inspected; with it, the page also draws its graph, and shows
            which nodes read each parameter and which node makes its gradient.
        times: Milliseconds of a step for each node, by its name; the drawing can be coloured by
            them.

    Returns:
        The HTML, to be written as UTF-8. The same facts give the same text. Numbers that are not
        finite, which JSON does not have, stand in it as "NaN", "Infinity" and "-Infinity".

    Example:
        >>> html = page(graphopt.inspect("train.onnx"))  # doctest: +SKIP
        >>> Path("train.html").write_text(html, encoding="utf-8")  # doctest: +SKIP
    """
    graph = None if reading is None else reading.file.model.graph
    facts = payload(inspection, graph)
    if reading is not None and graph is not None:
        facts["graph"] = graph_data(reading, inspection)
        if times is not None:
            facts["times"] = [times.get(name_of(node)) for node in graph]
    return assembled(_INSPECTION, facts)


def difference_page(
    difference: Difference,
    before: tuple[Inspection, Reading],
    after: tuple[Inspection, Reading],
) -> str:
    """How two graphs differ, and both beside each other with the nodes marked that differ.

    Args:
        difference: How they differ.
        before: The first.
        after: The second.
    """
    return assembled(_DIFFERENCE, difference_data(difference, before, after))


def checkpoint_page(inspection: CheckpointInspection) -> str:
    """What a checkpoint holds, tensor by tensor."""
    return assembled(_CHECKPOINT, _plain(inspection.to_dict()))


def checkpoint_difference_page(difference: CheckpointDifference) -> str:
    """How two checkpoints differ, tensor by tensor."""
    return assembled(_CHECKPOINT_DIFFERENCE, _plain(difference.to_dict()))


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return {"facts": facts}
