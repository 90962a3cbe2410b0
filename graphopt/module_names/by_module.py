"""The modules of a network: the names by which its nodes fold into parts of parts."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from graphopt.graphs import operands
from graphopt.module_names.by_layer import layer_names
from graphopt.stage import UPDATE_PREFIX, Stage

Path = tuple[str, ...]
"""The names of a module and of those around it, the outermost first."""

BUCKETS = "buckets, taken apart"
"""The module of the nodes that make parameters of buckets."""

_SHARED = "shared"  # the module of the nodes of the update that work for several buckets
_NAMESPACE = "namespace"  # where PyTorch's exporter notes what a node is made of
_FORWARD = ("forward", "loss")


def modules(
    graph: ir.Graph,
    stages: Sequence[Stage],
    parameters: Collection[str],
    groups: Mapping[str, int | None],
) -> list[Path]:
    """The module of each node.

    In the forward pass it is what PyTorch's exporter has noted, or the scopes in the name of the
    node, or those in the names of the parameters that it reads. A node without any is in the
    innermost module that has both the one before and the one behind it. In the backward pass a node
    is in the module of the forward node whose gradient it computes; in the update, in its bucket,
    and that in its group.

    Args:
        graph: The graph, in which nodes stand after what they read.
        stages: The stage of each node.
        parameters: Names of the trained parameters.
        groups: The index of the group of each bucket.
    """
    nodes = list(graph)
    layers = layer_names(nodes, stages, set(parameters))
    own = _own_modules(nodes, stages, layers, set(parameters), set(groups))
    found = _inherited(nodes, own)
    of_layer: dict[str, Path] = {}
    forward: dict[Path, set[str]] = {}
    for stage, layer, path in zip(stages, layers, found, strict=True):
        if stage in _FORWARD and path[:1] != (BUCKETS,):
            of_layer.setdefault(layer, path)
            forward.setdefault(path, set()).add(layer)
    sizes = Counter(
        layer for stage, layer in zip(stages, layers, strict=True) if stage == "backward"
    )
    for at, (stage, layer) in enumerate(zip(stages, layers, strict=True)):
        if stage == "backward":
            path = of_layer.get(layer, _scopes(layer))
            alone = len(forward.get(path, ())) < 2 and path
            found[at] = path if alone or sizes[layer] == 1 else (*path, layer.rpartition("/")[2])
        elif stage == "update":
            found[at] = _of_update(layer, groups)
    return found


def _own_modules(
    nodes: Sequence[ir.Node],
    stages: Sequence[Stage],
    layers: Sequence[str],
    parameters: Collection[str],
    buckets: Collection[str],
) -> list[Path | None]:
    """What nodes of the forward pass say themselves; None for the others."""
    noted = any(_NAMESPACE in node.metadata_props for node in nodes)
    found: list[Path | None] = []
    for node, stage, layer in zip(nodes, stages, layers, strict=True):
        path: Path | None = None
        if stage not in _FORWARD:
            pass
        elif layer in buckets or str(node.name).startswith(UPDATE_PREFIX):
            path = (BUCKETS, layer)
        elif _NAMESPACE in node.metadata_props:
            path = _noted(node.metadata_props[_NAMESPACE])
        elif "/" in str(node.name).strip("/") and (not noted or stage == "loss"):
            path = _scopes(str(node.name).rpartition("/")[0])
        else:
            read = (str(value.name) for value in operands(node) if value.name in parameters)
            path = next((_parts(name)[:-1] for name in read), None) or None
        found.append(path)
    return found


def _noted(namespace: str) -> Path:
    """The innermost module of what PyTorch's exporter has noted: names and types of all."""
    entries = [entry.partition(": ")[0].strip() for entry in namespace.split("/")[:-1]]
    return _parts(entries[-1]) if entries else ()


def _scopes(scope: str) -> Path:
    """Scopes as PyTorch's older exporter writes them: each may begin with the name of the last."""
    path: list[str] = []
    for entry in filter(None, scope.split("/")):
        parts = _parts(entry)
        path += parts[1:] if path and len(parts) > 1 and parts[0] == path[-1] else parts
    return tuple(path)


def _parts(name: str) -> Path:
    return tuple(filter(None, name.replace("/", ".").split(".")))


def _inherited(nodes: Sequence[ir.Node], own: Sequence[Path | None]) -> list[Path]:
    """The modules of all: of a node without one, what those around it have in common."""
    before: dict[ir.Value, Path] = {}
    behind: dict[ir.Value, Path] = {}
    above: list[Path | None] = []
    for node, path in zip(nodes, own, strict=True):
        read = (before[value] for value in operands(node) if value in before)
        above.append(next(read, None) if path is None else path)
        if (known := above[-1]) is not None and known[:1] != (BUCKETS,):
            before |= dict.fromkeys(node.outputs, known)
    found: list[Path] = []
    for node, path, first in zip(reversed(nodes), reversed(own), reversed(above), strict=True):
        after = next((behind[value] for value in node.outputs if value in behind), None)
        module = _common(first, after) if path is None else path
        passed = after if path is None and after is not None else module
        if passed[:1] != (BUCKETS,):
            behind |= dict.fromkeys(operands(node), passed)
        found.append(module)
    return found[::-1]


def _common(one: Path | None, other: Path | None) -> Path:
    if one is None or other is None:
        return (one or other or ())[:-1]
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return one[:shared]


def _of_update(layer: str, groups: Mapping[str, int | None]) -> Path:
    if layer == "update":
        return (_SHARED,)
    if layer not in groups:
        return (layer,)
    group = groups[layer]
    return (layer,) if group is None else (f"group {group}", layer)
