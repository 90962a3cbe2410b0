"""A profile as tables on a terminal."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from graphopt._tables import table
from graphopt.profiling.results import (
    PASSES,
    BucketTime,
    GroupTime,
    NodeTime,
    OperatorTime,
    Profile,
    StageTime,
)

_Part = StageTime | BucketTime | GroupTime | NodeTime | OperatorTime


def profile_tables(
    title: str, profile: Profile, rows: int = 10, depth: int | None = None
) -> Iterator[RenderableType]:
    """A profile, to be printed one after the other by a ``rich.console.Console``.

    Args:
        title: What was profiled.
        profile: The profile.
        rows: How many modules, buckets, operators and nodes to show, the most expensive first.
        depth: How many names of modules are told apart; as many as the rows allow by default.
    """
    kernels = "fused kernels" if profile.kernels else "no fused kernels"
    yield Text(
        f"{title}: {profile.milliseconds:.3f} ms, a typical step; "
        f"{profile.graph_nodes:,} nodes, of which the runtime makes those that run\n"
        f"median of {profile.steps} whole steps: {profile.unprofiled_milliseconds:.3f} ms; "
        f"{profile.median_milliseconds:.3f} ms under the profiler, "
        "which makes small nodes look slower\n"
        f"onnxruntime {profile.onnxruntime}, {', '.join(profile.providers)}, {kernels}\n"
    )
    yield _stage_table(profile)
    yield (
        "runtime: between the nodes; python: around the run; shares are of the step without the "
        f"profiler's own work, {_profiler(profile):.3f} ms\n"
    )
    if any(module.name for module in profile.modules):
        yield _module_table(profile, rows, depth)
    yield _bucket_table(profile, rows)
    if len(profile.groups) > 1:
        yield _group_table(profile)
    yield from _node_tables(profile, rows)


def _stage_table(profile: Profile) -> Table:
    parts = [stage for stage in profile.stages if stage.name != "profiler"]
    stages = [stage for stage in parts if stage.name != "other" or stage.nodes]
    rows = [[stage.name, str(stage.nodes or ""), *_time(stage)] for stage in stages]
    nodes = sum(stage.nodes for stage in stages)
    total = ["step", str(nodes), f"{profile.milliseconds:.3f}", "100.0%"]
    return table("A step", ["", ">nodes run", ">ms", ">share"], rows, total)


def _profiler(profile: Profile) -> float:
    return sum(stage.milliseconds for stage in profile.stages if stage.name == "profiler")


def _module_table(profile: Profile, top: int, depth: int | None) -> Table:
    """The modules, told apart down to a depth; the most expensive, where more than fit."""
    nodes = [node for node in profile.nodes if node.stage in PASSES]
    if depth is None:
        deepest = max(node.module.count(".") for node in nodes) + 1
        fits = (d for d in range(deepest, 1, -1) if len(_by_module(nodes, d)) <= top)
        depth = next(fits, 1)
    found = _by_module(nodes, depth)
    kept = set(sorted(found, key=lambda name: -_taken(found[name]))[:top])
    rows = [
        [name or "in no module", *_passes(found[name])]
        for name in (module.name for module in profile.modules)
        if name in kept
    ]
    if rest := [node for name in found.keys() - kept for node in found[name]]:
        rows.append([f"{len(found) - len(kept)} more", *_passes(rest)])
    columns = ["module", ">nodes", ">forward", ">backward", ">ms", ">share"]
    return table("Modules", columns, rows, ["both passes", *_passes(nodes)])


def _by_module(nodes: Sequence[NodeTime], depth: int) -> dict[str, list[NodeTime]]:
    found: defaultdict[str, list[NodeTime]] = defaultdict(list)
    for node in nodes:
        found[".".join(node.module.split(".")[:depth])].append(node)
    return found


def _passes(nodes: Sequence[NodeTime]) -> list[str]:
    """How many nodes, and their time in the forward and in the backward pass, and in both."""
    each = [_taken([node for node in nodes if node.stage == name]) for name in PASSES]
    return [str(len(nodes)), *(f"{taken:.3f}" for taken in each), *_time(*nodes)]


def _taken(nodes: Sequence[NodeTime]) -> float:
    return sum(node.milliseconds for node in nodes)


def _bucket_table(profile: Profile, top: int) -> Table:
    buckets = sorted(profile.buckets, key=lambda bucket: -bucket.milliseconds)
    rows = [
        [
            bucket.name,
            bucket.function + (" (kernel)" if bucket.kernel else ""),
            f"{len(bucket.parameters)}: {', '.join(bucket.parameters[:2])}"
            + (", ..." if len(bucket.parameters) > 2 else ""),
            f"{bucket.elements:,}",
            *_time(bucket),
            _rate(bucket),
        ]
        for bucket in buckets[:top]
    ]
    if rest := buckets[top:]:
        elements = sum(bucket.elements for bucket in rest)
        rows.append([f"{len(rest)} more", "", "", f"{elements:,}", *_time(*rest), ""])
    rows.append(["shared", "", "", "", *_time(profile.shared), ""])
    total = ["update", "", "", "", *_time(*buckets, profile.shared), ""]
    columns = ["bucket", "function", "parameters", ">elements", ">ms", ">share", ">GB/s"]
    return table("Update", columns, rows, total)


def _group_table(profile: Profile) -> Table:
    rows = [
        [
            str(group.index),
            str(len(group.buckets)),
            str(group.parameters),
            f"{group.elements:,}",
            *_time(group),
            _rate(group),
        ]
        for group in profile.groups
    ]
    columns = [">group", ">buckets", ">parameters", ">elements", ">ms", ">share", ">GB/s"]
    return table("Update by group", columns, rows)


def _node_tables(profile: Profile, top: int) -> Iterator[Table]:
    """The most expensive operators and nodes of the forward and the backward pass."""
    operators = [operator for operator in profile.operators if operator.stage in PASSES]
    if not operators:
        return
    yield table(
        "Operators",
        ["operator", "stage", ">nodes", ">ms", ">share"],
        [[o.op_type, o.stage, str(o.nodes), *_time(o)] for o in operators[:top]],
    )
    nodes = [node for node in profile.nodes if node.stage in PASSES]
    yield table(
        "Nodes",
        ["node", "operator", "stage", "gradient of", ">ms", ">share"],
        [[n.name, n.op_type, n.stage, n.forward_node or "", *_time(n)] for n in nodes[:top]],
    )


def _time(*parts: _Part) -> list[str]:
    """The milliseconds and the share of the parts together."""
    taken = sum(part.milliseconds for part in parts)
    return [f"{taken:.3f}", f"{sum(part.share for part in parts):.1%}"]


def _rate(part: BucketTime | GroupTime) -> str:
    rate = part.gigabytes_per_second
    return "" if rate is None else f"{rate:.1f}"
