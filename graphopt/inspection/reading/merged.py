"""One view of the optimizer, from what the metadata says and what the nodes compute."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from graphopt.average import ParameterAverage
from graphopt.inspection.facts import GroupFacts, OptimizerFacts, ParameterFacts, Source
from graphopt.inspection.reading import rates
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.metadata import Described
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.reading.trained import Trained, norm_sets

_TOLERANCE = 1e-6  # numbers of the metadata are decimals, those of nodes float32
# What nodes do not say, or not always.
_ONLY_METADATA = {"source", "use_locking", "steps", "formula", "others", "guarded"}
_OR_NONE = {"clip_norm", "clip_value", "average"}  # None says that there is none


@dataclass(frozen=True)
class Merged:
    """What is known of the optimizer.

    Attributes:
        optimizer: The optimizer; None if there is none.
        groups: Its groups.
        parameters: Its parameters, in its order.
        differences: Where the metadata says something else than the nodes.
        not_updated: Parameters of the metadata that nothing updates.
        in_no_group: Parameters that are updated, and that the metadata does not know.
        buckets: The input that holds each parameter, as the metadata says.
    """

    optimizer: OptimizerFacts | None
    groups: tuple[GroupFacts, ...] = ()
    parameters: tuple[ParameterFacts, ...] = ()
    differences: tuple[str, ...] = ()
    not_updated: tuple[str, ...] = ()
    in_no_group: tuple[str, ...] = ()
    buckets: Mapping[str, str] = field(default_factory=dict)


def merged(
    described: Described | None, recovered: Recovered | None, steps: int | None = None
) -> Merged:
    """What both say, if they agree; what the nodes compute, where they do not.

    Args:
        described: What the metadata says.
        recovered: What the nodes say.
        steps: For how many steps the learning rates are shown; None for as many as matter.
    """
    if recovered is None:
        return _of_metadata(described)
    if described is None:
        return Merged(
            recovered.optimizer, recovered.groups, tuple(t.facts for t in recovered.trained)
        )
    optimizer, differences = _optimizer(described, recovered)
    if not recovered.trained:  # the nodes know no parameters: they get them as sequences
        groups = described.groups
        return Merged(optimizer, groups, described.parameters, tuple(differences))
    nodes = {trained.facts.name: trained for trained in recovered.trained}
    known = {parameter.name for parameter in described.parameters}
    parameters: list[ParameterFacts] = []
    for parameter in described.parameters:
        trained = nodes.get(parameter.name)
        if trained is None:
            parameters.append(parameter)
            continue
        both, different = _parameter(parameter, trained)
        parameters.append(both)
        differences += different
    extra = [trained for name, trained in nodes.items() if name not in known]
    parameters += [replace(trained.facts, group=None) for trained in extra]
    grouped = {name for group in described.groups for name in group.parameters}
    return Merged(
        optimizer,
        tuple(_with_curve(group, nodes, recovered.step, steps) for group in described.groups),
        tuple(parameters),
        tuple(differences),
        tuple(p.name for p in described.parameters if p.name not in nodes),
        tuple(parameter.name for parameter in parameters if parameter.name not in grouped),
        _buckets(described),
    )


def _buckets(described: Described) -> dict[str, str]:
    return {name: bucket.name for bucket in described.buckets for name in bucket.parameters}


def _of_metadata(described: Described | None) -> Merged:
    if described is None:
        return Merged(None)
    names = tuple(parameter.name for parameter in described.parameters)
    return Merged(
        described.optimizer,
        described.groups,
        described.parameters,
        not_updated=names,
        buckets=_buckets(described),
    )


def _optimizer(described: Described, recovered: Recovered) -> tuple[OptimizerFacts, list[str]]:
    """Both, and where they differ."""
    metadata, nodes = described.optimizer, recovered.optimizer
    said = vars(metadata)
    differences = []
    taken: dict[str, object] = {}
    for entry in fields(OptimizerFacts):
        computed, told = getattr(nodes, entry.name), said[entry.name]
        unknown = computed is None and not (entry.name in _OR_NONE and recovered.trained)
        if entry.name in _ONLY_METADATA or unknown or _same(told, computed):
            continue
        if entry.name in ("decoupled_weight_decay", "group_mask") and not computed:
            continue  # a graph without weight decay does not say how it would be
        if entry.name == "learning_rate_inside_moment" and not metadata.momentum:
            continue
        if entry.name == "clip_norm_per" and _are_norms_of(described, recovered):
            continue
        differences.append(f"{entry.name} is {told} in the metadata and {computed} in the nodes")
        taken[entry.name] = computed
    source: Source = "graph" if differences else "metadata and graph"
    both = replace(metadata, source=source, guarded=nodes.guarded, others=nodes.others)
    return replace(both, **taken), differences  # type: ignore[arg-type]


def _are_norms_of(described: Described, recovered: Recovered) -> bool:
    """Whether the norms in the nodes are over what the metadata says.

    One norm of all gradients is also that of a group, where there is only one.
    """
    per, known = described.optimizer.clip_norm_per, {t.facts.name for t in recovered.trained}
    sets = {
        "all": [known],
        "group": [known.intersection(group.parameters) for group in described.groups],
        "parameter": [{name} for name in known],
    }
    found = norm_sets(recovered.trained)
    return found == {frozenset(names) for names in sets.get(per or "", ()) if names}


def _parameter(metadata: ParameterFacts, trained: Trained) -> tuple[ParameterFacts, list[str]]:
    nodes = trained.facts
    both = replace(metadata, gradient=nodes.gradient, bucket=nodes.bucket)
    taken: dict[str, object] = {}
    for key in ("shape", "dtype", "learning_rate", "weight_decay", "grad_centralization", "states"):
        if not _same(getattr(metadata, key), getattr(nodes, key)):
            taken[key] = getattr(nodes, key)
    differences = [
        f"{key} of '{metadata.name}' is {getattr(metadata, key)} in the metadata "
        f"and {value} in the nodes"
        for key, value in taken.items()
    ]
    if taken:
        both = replace(both, **taken, bytes=nodes.bytes, state_bytes=nodes.state_bytes)  # type: ignore[arg-type]
    return both, differences


def _same(metadata: object, nodes: object) -> bool:
    """Whether two facts are the same, as far as nodes can say it."""
    if isinstance(metadata, bool) or isinstance(nodes, bool):
        return metadata is nodes
    if isinstance(metadata, ParameterAverage) and isinstance(nodes, ParameterAverage):
        return _same(asdict(metadata), asdict(nodes))
    if isinstance(metadata, int | float) and isinstance(nodes, int | float):
        return abs(metadata - nodes) <= _TOLERANCE * max(abs(metadata), abs(nodes), 1e-38)
    if isinstance(metadata, Mapping) and isinstance(nodes, Mapping):
        return _same_schedule(metadata, nodes)
    if isinstance(metadata, list | tuple) and isinstance(nodes, list | tuple):
        pairs = zip(metadata, nodes, strict=False)
        return len(metadata) == len(nodes) and all(_same(a, b) for a, b in pairs)
    return metadata == nodes or _is_expression(nodes)


def _same_schedule(metadata: Mapping[str, object], nodes: Mapping[str, object]) -> bool:
    if _is_expression(nodes):
        return True
    if metadata.get("schedule") != nodes.get("schedule"):
        # One that users write may compute what one of ours computes.
        return metadata.get("schedule") not in rates.RECOGNISED | {"DynamicLossScale"}
    return all(_same(metadata[key], nodes[key]) for key in metadata.keys() & nodes.keys())


def _is_expression(nodes: object) -> bool:
    return isinstance(nodes, Mapping) and nodes.get("schedule") == "expression"


def _with_curve(
    group: GroupFacts, nodes: Mapping[str, Trained], step: Value | None, steps: int | None
) -> GroupFacts:
    """A group with its learning rate at some steps."""
    for name in group.parameters:
        trained = nodes.get(name)
        if trained is not None and trained.rate is not None:
            return replace(group, curve=rates.curve(trained.rate, step, steps))
    return group
