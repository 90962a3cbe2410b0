"""An inspection as one HTML file, which a browser shows without a network and without a server.

The file holds all facts as JSON, in the script element ``facts``, and a script that shows them.
Names come from files that nobody vouches for: they stand in the JSON only, where no character of
them can end the element, and the script puts them into the page as text. The content security
policy allows that one script and that one style sheet, by their hashes, and nothing else.
"""

# ruff: noqa: RUF001  # formulas have minus signs and Greek letters

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import islice
from typing import Any

import onnx

from graphopt.inspection import words
from graphopt.inspection.facts import Inspection, OptimizerFacts, ParameterFacts, Schedule

_READERS = 6
_LONGEST_NODE = 400
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}

Line = tuple[str, str]
"""A line of a formula, and what it is."""


def page(inspection: Inspection, model: onnx.ModelProto | None = None) -> str:
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
    style, script = _file("style.css"), _file("script.js")
    parts = {
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "facts": _json(_payload(inspection, model)),
    }
    return _PLACE.sub(lambda place: parts[place[1]], _file("template.html"))


def update_lines(optimizer: OptimizerFacts, parameter: ParameterFacts) -> list[Line]:
    """The update of one parameter, with its numbers; a letter stands for one that is not known.

    Returns:
        Lines such as ``("m ← 0.9 · m + 0.1 · g / √(s + 1e-10)", "moment, starts at 0")``. Of an
        optimizer other than RMSProp its general formula, and then the numbers.
    """
    if optimizer.name == "RMSProp":
        return list(_rmsprop(optimizer, parameter))
    numbers = {
        "learning rate": words.schedule(parameter.learning_rate),
        "weight decay": words.schedule(parameter.weight_decay),
    } | {words.shown(name): words.number(value) for name, value in optimizer.others.items()}
    return [
        *((line, "") for line in optimizer.formula),
        *((f"{name} = {value}", "") for name, value in numbers.items()),
    ]


def _rmsprop(optimizer: OptimizerFacts, parameter: ParameterFacts) -> Iterator[Line]:
    rate, decay = _factor(parameter.learning_rate, "η"), _factor(parameter.weight_decay, "λ")
    if rate == "η":
        yield f"η ← {words.schedule(parameter.learning_rate)}", "learning rate of the step"
    if decay == "λ":
        yield f"λ ← {words.schedule(parameter.weight_decay)}", "weight decay of the step"
    yield from _prepared(optimizer, parameter, rate, decay)
    yield from _averages(optimizer)
    yield from _moved(optimizer, rate)
    if optimizer.group_mask and parameter.group is not None:
        yield f"only where group_mask[{parameter.group}] is true", "group mask"


def _prepared(
    optimizer: OptimizerFacts, parameter: ParameterFacts, rate: str, decay: str
) -> Iterator[Line]:
    """What happens to the gradient before it is averaged."""
    scale = _factor(optimizer.loss_scale, "loss_scale")
    if decay != "0" and optimizer.decoupled_weight_decay:
        yield f"w ← w − {rate} · {decay} · w", "decoupled weight decay"
    elif decay != "0":
        scaled = "" if scale == "1" else f" · {scale}"
        yield f"g ← g + {decay}{scaled} · w", "weight decay"
    if parameter.grad_centralization:
        yield "g ← g − mean(g)", "centralization: mean over all axes but the first"
    if scale != "1":
        yield f"g ← g / {scale}", "loss scale"


def _averages(optimizer: OptimizerFacts) -> Iterator[Line]:
    rho = _factor(optimizer.decay, "ρ")
    new = "(1 − ρ)" if optimizer.decay is None else words.number(1 - optimizer.decay)
    start = optimizer.initial_mean_square
    starts = "" if start is None else f", starts at {words.number(start)}"
    yield f"s ← {rho} · s + {new} · g²", f"mean square{starts}"
    if optimizer.centered:
        yield f"a ← {rho} · a + {new} · g", "mean gradient, starts at 0"


def _moved(optimizer: OptimizerFacts, rate: str) -> Iterator[Line]:
    """The moment and the step."""
    epsilon, beta = _factor(optimizer.epsilon, "ε"), _factor(optimizer.momentum, "β")
    variance = "s − a²" if optimizer.centered else "s"
    radicand = f"{variance} + {epsilon}"
    root = f"√({radicand})"
    if optimizer.epsilon_inside_root is False:
        radicand = variance
        root = f"(√({variance}) + {epsilon})" if optimizer.centered else f"(√s + {epsilon})"
    moves = "step"
    if optimizer.centered and optimizer.guarded is not False:
        moves = f"where {radicand} > 0"
    if beta == "0":
        yield f"w ← w − {rate} · g / {root}", moves
        return
    outside = optimizer.learning_rate_inside_moment is False
    step = f"g / {root}" if outside else f"{rate} · g / {root}"
    ahead = "m"
    if optimizer.nesterov:
        yield f"u ← {step}", ""
        step, ahead = "u", f"({beta} · m + u)"
    yield f"m ← {beta} · m + {step}", "moment, starts at 0"
    yield f"w ← w − {f'{rate} · ' if outside else ''}{ahead}", moves


def _factor(schedule: Schedule, letter: str) -> str:
    """A number as text, or the letter that stands for what is none."""
    return letter if schedule is None or isinstance(schedule, Mapping) else words.number(schedule)


def _payload(inspection: Inspection, model: onnx.ModelProto | None) -> dict[str, Any]:
    """The facts, and beside them what the script shows of each parameter."""
    facts = inspection.to_dict()
    for name, value in facts.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            facts[name] = _columns(value)
    rules, rule_of = _rules(inspection)
    payload = {
        "facts": facts,
        "groups": [
            [words.schedule(group.learning_rate), words.schedule(group.weight_decay)]
            for group in inspection.groups
        ],
        "rules": rules,
        "rule": rule_of,
    }
    if model is not None:
        payload["nodes"] = _neighbours(inspection.parameters, model.graph.node)
    return payload


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
            "made": _node(maker) if p.gradient and (maker := makers[p.gradient]) else None,
            "read": [_node(node) for node in readers[p.name]],
        }
        for p in parameters
    ]


def _node(node: onnx.NodeProto) -> str:
    """A node in one line, without its attributes, which may be large."""
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    text = f"{_names(node.output)} = {operator}({_names(node.input)})"
    return text if len(text) <= _LONGEST_NODE else f"{text[:_LONGEST_NODE]}…"


def _names(names: Sequence[str]) -> str:
    few = [name[:_LONGEST_NODE] for name in islice(names, 16)]
    return ", ".join([*few, "…"] if len(names) > len(few) else few)


def _json(value: object) -> str:
    """JSON in ASCII, of which no character means anything in HTML."""
    return json.dumps(words.finite(value), allow_nan=False, separators=(",", ":")).translate(
        _ESCAPES
    )


def _file(name: str) -> str:
    folder = resources.files("graphopt.inspection.show.page")
    return (folder / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
