"""What a training graph is, in a few lines: by this a checkpoint knows whose it is.

The forward model, the loss, the hyperparameters and what each parameter is updated by; not the
values that training starts from, and nothing of how the graph computes it, so that graphs of any
layout, provider and memory have the same.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import onnx

from graphopt._records import plain
from graphopt.carried import Carried
from graphopt.manifest import Manifest, OptimizerEntry, ParameterEntry, stripped
from graphopt.model_digest import Node, digests

_NO_HYPERPARAMETERS = {"name", "use_locking", "group_mask", "steps"}
_NO_RULES = {"name", "shape", "dtype", "op_type", "group"}
_SHORT = 4  # bytes of the digest of a node
_MOST = 5  # differences that are told


@dataclass(frozen=True)
class Fingerprint:
    """That of a graph.

    Attributes:
        entry: What a checkpoint has of it, as JSON has it.
        nodes: The nodes of the forward model, to name one that is different.
    """

    entry: Mapping[str, Any]
    nodes: tuple[Node, ...] = ()

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        forward: onnx.ModelProto | None,
        trained: frozenset[str],
        stored: Mapping[str, onnx.TensorProto],
    ) -> "Fingerprint":
        """That of what a manifest says.

        Args:
            manifest: Of the optimizer, the parameters and the loss.
            forward: The forward model, where there is one.
            trained: The names of its initializers whose values training moves.
            stored: Tensors by name, for those that the forward model lacks.
        """
        entry: dict[str, Any] = {}
        nodes: tuple[Node, ...] = ()
        if forward is not None:
            digest, nodes = digests(forward, trained, stored)
            short = b"".join(node.digest[:_SHORT] for node in nodes)
            entry["model"] = {
                "digest": digest.hex(),
                "operators": dict(Counter(node.op_type for node in nodes)),
                "nodes": base64.b64encode(short).decode(),
            }
        if manifest.loss is not None:
            entry["loss"] = plain(manifest.loss)
        if manifest.optimizer is not None:
            said = plain(manifest.optimizer)
            entry["optimizer"] = {k: v for k, v in said.items() if k not in _NO_HYPERPARAMETERS}
        if manifest.parameters is not None:
            entry["rules"] = _rules(manifest.parameters)
        return cls(entry, nodes)

    def differences(self, other: Any) -> list[str]:
        """What is different in a checkpoint, whose entry may be anything; what it lacks is not."""
        if not isinstance(other, dict):
            return []
        found: list[str] = []
        for part, compare in _COMPARISONS.items():
            ours, theirs = self.entry.get(part), other.get(part)
            if ours is not None and theirs is not None and ours != theirs:
                try:
                    found += compare(self, theirs)
                except (AttributeError, KeyError, TypeError, ValueError):
                    found.append(f"its description of the {part} is not understood")
        return found

    def _model(self, theirs: Any) -> Iterator[str]:
        ours = self.entry["model"]
        if ours["digest"] == theirs["digest"]:
            return
        counts = Counter(ours["operators"])
        others = Counter(theirs["operators"])
        kinds = [
            f"{others[kind]} {kind} in it, but {counts[kind]} in the graph"
            for kind in sorted(counts.keys() | others.keys())
            if counts[kind] != others[kind]
        ]
        short = base64.b64decode(theirs["nodes"])
        first = next(
            (
                f"; the first that is different is {node.op_type} '{node.name}'"
                for index, node in enumerate(self.nodes)
                if node.digest[:_SHORT] != short[index * _SHORT : (index + 1) * _SHORT]
            ),
            "",
        )
        yield f"its model is another one: {shortened(kinds) or 'nodes are different'}{first}"

    def _loss(self, theirs: Any) -> Iterator[str]:
        ours = self.entry["loss"]
        yield from _differing("the loss's ", ours, theirs, ours.keys() & theirs.keys())

    def _optimizer(self, theirs: Any) -> Iterator[str]:
        ours = self.entry["optimizer"]
        defaults = {f.name: f.default for f in fields(OptimizerEntry) if f.default is not MISSING}
        keys = [key for key in ours if key in theirs or key in defaults]
        yield from _differing("", ours, defaults | theirs, keys)

    def _rule(self, theirs: Any) -> Iterator[str]:
        ours, others = _by_parameter(self.entry["rules"]), _by_parameter(theirs)
        names: dict[tuple[str, str, str], list[str]] = {}
        for parameter in ours.keys() & others.keys():
            one, other = ours[parameter], others[parameter]
            for key in one.keys() & other.keys():
                if not _same(one[key], other[key]):
                    difference = key, json.dumps(other[key]), json.dumps(one[key])
                    names.setdefault(difference, []).append(parameter)
        for (key, before, now), parameters in sorted(names.items()):
            more = f" and {len(parameters) - 1} more" if len(parameters) > 1 else ""
            where = f"{key} of '{min(parameters)}'{more}"
            yield f"{where} is {before} in it, but {now} in the graph"


_COMPARISONS = {
    "model": Fingerprint._model,  # noqa: SLF001 - of this class
    "loss": Fingerprint._loss,  # noqa: SLF001
    "optimizer": Fingerprint._optimizer,  # noqa: SLF001
    "rules": Fingerprint._rule,  # noqa: SLF001
}


def of_model(model: onnx.ModelProto, carried: tuple[Carried, ...]) -> Fingerprint:
    """The fingerprint of the model of a training graph."""
    manifest = Manifest.read(model, "optimizer", "parameters", "loss", "forward")
    forward = None if manifest.forward is None else stripped(manifest.forward)
    trained = frozenset(view.name for value in carried for view in value.views)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    return Fingerprint.of(manifest, forward, trained, stored)


def shortened(problems: list[str]) -> str:
    """The first of several problems, in one line."""
    more = f"; and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
    return "; ".join(problems[:_MOST]) + more


def _rules(parameters: tuple[ParameterEntry, ...]) -> list[dict[str, Any]]:
    """What parameters are updated by, each rule with the names of its parameters."""
    names: dict[str, list[str]] = {}
    for parameter in parameters:
        rule = {key: v for key, v in plain(parameter).items() if key not in _NO_RULES}
        names.setdefault(json.dumps(rule), []).append(parameter.name)
    return [json.loads(rule) | {"parameters": sorted(those)} for rule, those in names.items()]


def _by_parameter(rules: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in rule.items() if key != "parameters"}
        for rule in rules
        for name in rule["parameters"]
    }


def _same(one: Any, other: Any) -> bool:
    """Whether two rules are; those of an older graphopt do not say what is in a list."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return bool(one == other)
    lacking = {"digest"} - (one.keys() & other.keys())
    return {k: v for k, v in one.items() if k not in lacking} == {
        k: v for k, v in other.items() if k not in lacking
    }


def _differing(whose: str, ours: Any, theirs: Any, keys: Any) -> Iterator[str]:
    for key in sorted(keys):
        if ours[key] != theirs[key]:
            before, now = json.dumps(theirs[key]), json.dumps(ours[key])
            yield f"{whose}{key} is {before} in it, but {now} in the graph"
