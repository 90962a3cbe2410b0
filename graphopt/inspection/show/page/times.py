"""Measured times of the nodes of a graph, out of a profile."""

import json
from collections import defaultdict
from pathlib import Path

import onnx_ir as ir

from graphopt.module_names import name_of


def node_times(file: Path, graph: ir.Graph) -> dict[str, float]:
    """The milliseconds of a step for each node of a graph that ran, by its name.

    What ONNX Runtime has joined counts for the node whose result it makes.

    Args:
        file: What ``graphopt profile --json`` has written.
        graph: The graph that was measured.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no profile, or one of another graph.
    """
    try:
        profile = json.loads(file.read_text(encoding="utf-8"))
        rows = [(str(row["name"]), float(row["milliseconds"])) for row in profile["nodes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{file}' is no profile: {error}; write one with graphopt profile --json"
        ) from None
    known = {name_of(node) for node in graph}
    times: defaultdict[str, float] = defaultdict(float)
    for name, milliseconds in rows:
        if name in known:
            times[name] += milliseconds
    if not times:
        raise ValueError(
            f"'{file}' is a profile of another graph: none of its {len(rows)} nodes is in this one"
        )
    return dict(times)
