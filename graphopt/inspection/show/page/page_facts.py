"""What the script of the page shows: the facts, and beside them what they mean in words."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import onnx_ir as ir

from graphopt import _words
from graphopt.inspection import words
from graphopt.inspection.facts import Inspection, OptimizerFacts, ParameterFacts
from graphopt.inspection.show.formula import Line, update_lines
from graphopt.inspection.structure.nodes_of import text

_READERS = 6


def payload(inspection: Inspection, graph: ir.Graph | None) -> dict[str, Any]:
    """The facts, and beside them what the script shows of each parameter."""
    facts = inspection.to_dict()
    del facts["layers"]  # the nodes of the graph have their modules
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
    if inspection.optimizer is not None:
        found["optimizer"] = _hyperparameters(inspection.optimizer)
    if graph is not None:
        found["nodes"] = _neighbours(inspection.parameters, graph)
    return found


def _hyperparameters(optimizer: OptimizerFacts) -> dict[str, str]:
    """In words what is no number, or says little without another."""
    found = {}
    if optimizer.loss_scale is not None:
        found["loss_scale"] = words.loss_scale(optimizer.loss_scale)
    if optimizer.average is not None:
        found["average"] = words.average(optimizer.average)
    if optimizer.accumulation is not None:
        found["accumulation"] = words.accumulation(optimizer.accumulation)
    if optimizer.clip_norm is not None:
        limit = _words.number(optimizer.clip_norm)
        found["clip_norm"] = f"{limit}, of {words.norms(optimizer.clip_norm_per)}"
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


def _neighbours(parameters: Iterable[ParameterFacts], graph: ir.Graph) -> list[dict[str, Any]]:
    """For each parameter the node that makes its gradient, and the first nodes that read it."""
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    found = []
    for parameter in parameters:
        made, read = values.get(parameter.gradient or ""), values.get(parameter.name)
        maker = None if made is None else made.producer()
        readers = () if read is None else (n for n in read.consumers() if n.graph is graph)
        found.append(
            {
                "made": None if maker is None else text(maker, short=True),
                "read": [text(node, short=True) for node in islice(readers, _READERS)],
            }
        )
    return found
