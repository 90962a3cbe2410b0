"""Proof that a carried output may overwrite the input that it feeds at the next step.

ONNX Runtime runs nodes in any order that respects their inputs. An output may share the memory of
an input if every node that reads the input is bound to run before the node that writes the output,
that is, if the writer depends on each reader. A reader may also be the writer itself where it
works element by element. An input that is reported as an output is read after the run.
"""

from collections.abc import Iterable, Mapping

import onnx
from onnx import inliner

from graphopt._nodes import captured, reads
from graphopt._subgraphs import subgraphs
from graphopt.carried import Carried
from graphopt.operators import Moves, of

ACCUMULATOR = "InPlaceAccumulatorV2"
"""The operator that writes over its first input, in ONNX Runtime's training packages."""


def overwritable(model: onnx.ModelProto, carried: Iterable[Carried]) -> set[str]:
    """The inputs of carried values that their outputs may overwrite, whatever the order of nodes.

    Args:
        model: The training graph.
        carried: What it carries.

    Returns:
        The names of the inputs for which this is proven.
    """
    graph = _without_functions(model).graph
    return _proven(graph, {value.input: value.output for value in carried})


def early_writes(model: onnx.ModelProto) -> list[str]:
    """The inputs that nodes of a graph write over, perhaps before all that read them have run.

    Args:
        model: A graph with nodes ``InPlaceAccumulatorV2``, also in branches. What it reports is
            copied when it is computed, so that it must be so before the write, as any reader.

    Returns:
        The names of the inputs for which the order is not proven.
    """
    graph = _without_functions(model).graph
    written = _written(graph.node)
    reported = {value.name for value in graph.output} & written.keys()
    return sorted((written.keys() - _proven(graph, written, copied=True)) | reported)


def _written(nodes: Iterable[onnx.NodeProto]) -> dict[str, str]:
    """What nodes write over, each with an output of the node that does."""
    written = {}
    for node in nodes:
        if node.op_type == ACCUMULATOR:
            written[node.input[0]] = node.output[0]
        elif node.op_type == "If":
            for branch in subgraphs(node):
                written.update(dict.fromkeys(_written(branch.node), node.output[0]))
    return written


def _proven(graph: onnx.GraphProto, pairs: Mapping[str, str], *, copied: bool = False) -> set[str]:
    """The inputs that the outputs of these pairs may overwrite."""
    nodes = list(graph.node)
    writer: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        writer.update(dict.fromkeys(node.output, index))
        for name in reads(node):
            readers.setdefault(name, []).append(index)

    reported = {value.name for value in graph.output} - set(pairs.values())
    names_of = {name: _names_of(name, nodes, readers) for name in pairs}
    read_by = {
        name: {index for alias in names for index in readers.get(alias, ())}
        for name, names in names_of.items()
    }
    bit = {node: 1 << k for k, node in enumerate(sorted(set().union(*read_by.values(), ())))}
    depends_on = _dependencies(nodes, writer, bit)
    proven = set()
    for name, output in pairs.items():
        last = writer.get(output)
        if last is None or (names_of[name] & reported and not copied):
            continue
        if all(
            depends_on[last] & bit[node]
            or (node == last and _in_step(nodes[node], names_of[name], output))
            for node in read_by[name]
        ):
            proven.add(name)
    return proven


def _in_step(node: onnx.NodeProto, names: set[str], output: str) -> bool:
    """Whether a node writes an element of the output after it has read that of the input."""
    if of(node).is_elementwise:
        return True
    if node.op_type == ACCUMULATOR:
        return node.input[0] in names
    if node.op_type == "If":
        # Only one of the branches runs, and only a write within it is one in step.
        written = [(branch, _written(branch.node)) for branch in subgraphs(node)]
        writing = [(branch, pairs) for branch, pairs in written if not names.isdisjoint(pairs)]
        return bool(writing) and all(
            names & _proven(branch, pairs, copied=True) for branch, pairs in writing
        )
    attributes = _attributes(node)
    if node.op_type != "Scan" or any(name.startswith("scan_") for name in attributes):
        return False
    if not {"body", "num_scan_inputs"} <= attributes.keys():
        return False
    # Row by row, if the body reads nothing but the row that it overwrites.
    states = len(node.input) - attributes["num_scan_inputs"].i
    places = [place for place, name in enumerate(node.input) if name in names]
    to = list(node.output).index(output)
    if len(places) != 1 or places[0] < states or to < states or captured(node) & names:
        return False
    body = attributes["body"].g
    if places[0] >= len(body.input) or to >= len(body.output):
        return False
    row = body.input[places[0]].name
    return row in _proven(body, {row: body.output[to].name})


def _without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes alone, with functions written out and without the values of initializers."""
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    bare.graph.initializer.extend(
        onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0])
        for tensor in model.graph.initializer
    )
    try:
        return inliner.inline_local_functions(bare)
    except RuntimeError as error:
        raise ValueError(f"the functions of the model cannot be written out: {error}") from None


def _attributes(node: onnx.NodeProto) -> dict[str, onnx.AttributeProto]:
    return {attribute.name: attribute for attribute in node.attribute}


def _names_of(name: str, nodes: list[onnx.NodeProto], readers: dict[str, list[int]]) -> set[str]:
    """The values that may be the memory of this one, itself among them."""
    names: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            for index in readers.get(name, ()):
                if _views(nodes[index], name):
                    waiting += nodes[index].output
    return names


def _views(node: onnx.NodeProto, name: str) -> bool:
    """Whether the output of a node may be the memory of this value; an index or shape never is."""
    return of(node).moves < Moves.NOT and node.input[0] == name


def _dependencies(
    nodes: list[onnx.NodeProto], writer: dict[str, int], bit: dict[int, int]
) -> list[int]:
    """For each node, which of the nodes with a bit must run before it, as a sum of their bits."""
    known: list[int] = []
    for node in nodes:  # ONNX lists them in topological order
        before = 0
        for name in reads(node):
            source = writer.get(name)
            if source is not None:
                before |= known[source] | bit.get(source, 0)
        known.append(before)
    return known
