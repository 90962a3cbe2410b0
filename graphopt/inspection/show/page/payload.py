"""What the script of the page shows: the facts, and beside them what they mean in words."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx

from graphopt.inspection import words
from graphopt.inspection.facts import Inspection, ParameterFacts
from graphopt.inspection.show.formula import Line, update_lines
from graphopt.inspection.structure.nodes_of import text

_READERS = 6


def payload(inspection: Inspection, model: onnx.ModelProto | None) -> dict[str, Any]:
    """The facts, and beside them what the script shows of each parameter."""
    facts = inspection.to_dict()
    for name, value in facts.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            facts[name] = _columns(value)
    rules, rule_of = _rules(inspection)
    found = {
        "facts": facts,
        "groups": [
            [words.schedule(group.learning_rate), words.schedule(group.weight_decay)]
            for group in inspection.groups
        ],
        "rules": rules,
        "rule": rule_of,
    }
    if model is not None:
        found["nodes"] = _neighbours(inspection.parameters, model.graph.node)
    return found


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Dicts of the same keys, with the keys written once: half the size where there are 1,000."""
    keys = list(rows[0])
    return {"keys": keys, "rows": [[row[key] for key in keys] for row in rows]}


def _rules(inspection: Inspection) -> tuple[list[dict[str, Any]], list[int]]:
    """The different updates in words, and which of them each parameter has."""
    found: dict[str, int] = {}
    rules: list[dict[str, Any]] = []
    indices = []
    for parameter in inspection.parameters:
        lines: list[Line] = []
        if inspection.optimizer is not None:
            lines = update_lines(inspection.optimizer, parameter)
        rule = {
            "learning_rate": words.schedule(parameter.learning_rate),
            "weight_decay": words.schedule(parameter.weight_decay),
            "lines": lines,
        }
        index = found.setdefault(json.dumps(rule), len(rules))
        if index == len(rules):
            rules.append(rule)
        indices.append(index)
    return rules, indices


def _neighbours(
    parameters: Iterable[ParameterFacts], nodes: Iterable[onnx.NodeProto]
) -> list[dict[str, Any]]:
    """For each parameter the node that makes its gradient, and the first nodes that read it."""
    readers: dict[str, list[onnx.NodeProto]] = {p.name: [] for p in parameters}
    makers: dict[str, onnx.NodeProto | None] = {p.gradient: None for p in parameters if p.gradient}
    for node in nodes:
        for name in dict.fromkeys(node.input):
            if name in readers and len(readers[name]) < _READERS:
                readers[name].append(node)
        makers |= dict.fromkeys((name for name in node.output if name in makers), node)
    return [
        {
            "made": text(maker, short=True)
            if p.gradient and (maker := makers[p.gradient])
            else None,
            "read": [text(node, short=True) for node in readers[p.name]],
        }
        for p in parameters
    ]
