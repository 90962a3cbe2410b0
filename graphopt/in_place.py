"""Proof that a carried output may overwrite the input that it feeds at the next step.

ONNX Runtime runs nodes in any order that respects their inputs. An output may share the memory of
an input if every node that reads the input is bound to run before the node that writes the output,
that is, if the writer depends on each reader. Where the output is a view, the writer is what
computes the memory that it shows. A reader may also be the writer itself where it works element by
element, and what reads sizes alone is none. An input that is reported as an output is read after
the run.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from graphopt.carried import Carried
from graphopt.forward import to_ir
from graphopt.graphs import captured, functions, subgraphs
from graphopt.operators import Moves, of

ACCUMULATOR = "InPlaceAccumulatorV2"
"""The operator that writes over its first input, in ONNX Runtime's training packages."""

_READ_NO_ELEMENT = ("Shape", "Size")


def overwritable(model: onnx.ModelProto | ir.Model, carried: Iterable[Carried]) -> set[str]:
    """The inputs of carried values that their outputs may overwrite, whatever the order of nodes.

    Args:
        model: The training graph.
        carried: What it carries.

    Returns:
        The names of the inputs for which this is proven.
    """
    steps = _of_model(model)
    values = steps.by_name()
    pairs = {value.input: value.output for value in carried}
    proven = _proven(steps, {values[before]: values[after] for before, after in pairs.items()})
    return {name for name in pairs if values[name] in proven}


def early_writes(model: onnx.ModelProto | ir.Model) -> list[str]:
    """The inputs that nodes of a graph write over, perhaps before all that read them have run.

    Args:
        model: A graph with nodes ``InPlaceAccumulatorV2``, also in branches. What it reports is
            copied when it is computed, so that it must be so before the write, as any reader.

    Returns:
        The names of the inputs for which the order is not proven.
    """
    steps = _of_model(model)
    written = _written(steps)
    early = written.keys() - _proven(steps, written, copied=True) | steps.reported & written.keys()
    return sorted(name for name, value in steps.by_name().items() if value in early)


def _of_model(model: onnx.ModelProto | ir.Model) -> "_Steps":
    read = model if isinstance(model, ir.Model) else to_ir(model)
    return _Steps(read.graph, functions(read))


@dataclass(slots=True)
class _Step:
    """A node, where it runs; values are numbers.

    Attributes:
        node: The node.
        inputs: What it reads.
        outputs: What it computes.
        captured: What the graphs in it read of those around them.
    """

    node: ir.Node
    inputs: list[int | None]
    outputs: list[int]
    captured: dict[ir.Value, int]

    def reads(self) -> set[int]:
        """All that it reads."""
        found = {value for value in self.inputs if value is not None}
        return found.union(self.captured.values()) if self.captured else found


_Numbers = dict[ir.Value, int]


class _Steps:
    """The nodes of a graph in their order, with functions written out.

    Attributes:
        all: The nodes.
        reported: The outputs of the graph.
    """

    def __init__(self, graph: ir.Graph, functions: Mapping[tuple[str, str], ir.Function]) -> None:
        self._graph = graph
        self._functions = functions
        self._numbers: _Numbers = {}
        self._last = 0
        self.all = list(self._written_out(graph, self._numbers))
        self.reported = {self.number(value) for value in graph.outputs}

    def number(self, value: ir.Value) -> int:
        """The number of a value of the graph, or of one around it."""
        return self._number(value, self._numbers)

    def by_name(self) -> dict[str, int]:
        """The numbers of all values of the graph."""
        values = (*self._graph.inputs, *self._graph.outputs, *self._numbers)
        return {str(v.name): self.number(v) for v in values if v.graph in (self._graph, None)}

    def within(self, step: _Step) -> Iterator["_Steps"]:
        """The nodes of each graph in a node."""
        for graph in subgraphs(step.node):
            yield _Steps(graph, self._functions)

    def _written_out(self, nodes: Iterable[ir.Node], numbers: _Numbers) -> Iterator[_Step]:
        number = self._number
        for node in nodes:
            inputs = [None if v is None else number(v, numbers) for v in node.inputs]
            function = self._functions.get((node.domain, node.op_type))
            if function is None:
                outputs = [number(value, numbers) for value in node.outputs]
                around = {value: number(value, numbers) for value in captured(node)}
                yield _Step(node, inputs, outputs, around)
                continue
            given = zip(function.inputs, inputs, strict=False)
            inner = {formal: value for formal, value in given if value is not None}
            yield from self._written_out(function, inner)
            for value, made in zip(node.outputs, function.outputs, strict=False):
                numbers[value] = self._number(made, inner)

    def _number(self, value: ir.Value, numbers: _Numbers) -> int:
        """The number of a value of a graph, or of one call of a function."""
        found = numbers.get(value)
        if found is None:
            self._last = numbers[value] = found = self._last + 1
        return found


def _written(steps: _Steps) -> dict[int, int]:
    """What nodes write over, each with an output of the node that does."""
    written = {}
    for step in steps.all:
        if step.node.op_type == ACCUMULATOR and step.inputs[0] is not None:
            written[step.inputs[0]] = step.outputs[0]
        elif step.node.op_type == "If":
            for branch in steps.within(step):
                inside = _written(branch)
                written |= {
                    number: step.outputs[0]
                    for value, number in step.captured.items()
                    if branch.number(value) in inside
                }
    return written


def _proven(steps: _Steps, pairs: Mapping[int, int], *, copied: bool = False) -> set[int]:
    """The inputs that the outputs of these pairs may overwrite."""
    writer: dict[int, int] = {}
    source: dict[int, int] = {}  # of a value that may be a view of another
    readers: dict[int, list[int]] = {}
    reads = [step.reads() for step in steps.all]
    for index, step in enumerate(steps.all):
        for value in step.outputs:
            writer[value] = index
        if of(step.node).moves < Moves.NOT and step.inputs and step.inputs[0] is not None:
            source.update(dict.fromkeys(step.outputs, step.inputs[0]))
        if step.node.op_type in _READ_NO_ELEMENT:
            continue
        for value in reads[index]:
            readers.setdefault(value, []).append(index)

    reported = steps.reported - set(pairs.values())
    memory_of = {value: _memory_of(value, steps, readers) for value in pairs}
    read_by = {
        value: {index for alias in aliases for index in readers.get(alias, ())}
        for value, aliases in memory_of.items()
    }
    bit = {index: 1 << k for k, index in enumerate(sorted(set().union(*read_by.values(), ())))}
    depends_on = _dependencies(reads, writer, bit)
    proven = set()
    for value, output in pairs.items():
        # The runtime may let what a view is of be written to the output's memory already.
        computed = output
        while source.get(computed) in writer:
            computed = source[computed]
        last = writer.get(computed)
        if last is None or (memory_of[value] & reported and not copied):
            continue
        if all(
            depends_on[last] & bit[index]
            or (index == last and _in_step(steps, steps.all[index], memory_of[value], computed))
            for index in read_by[value]
        ):
            proven.add(value)
    return proven


def _in_step(steps: _Steps, step: _Step, memory: set[int], output: int) -> bool:
    """Whether a node writes an element of the output after it has read that of the input."""
    node = step.node
    if of(node).writes_in_step:
        return True
    if node.op_type == ACCUMULATOR:
        return step.inputs[0] in memory
    if node.op_type == "If":
        # Only one of the branches runs, and only a write within it is one in step.
        read = [value for value, number in step.captured.items() if number in memory]
        branches = [(branch, _written(branch)) for branch in steps.within(step)]
        writing = [
            own & _proven(branch, written, copied=True)
            for branch, written in branches
            for own in [{branch.number(value) for value in read}]
            if own & written.keys()
        ]
        return bool(writing) and all(writing)
    if node.op_type != "Scan" or any(name.startswith("scan_") for name in node.attributes):
        return False
    # Row by row, if the body reads nothing but the row that it overwrites.
    scanned, bodies = node.attributes.get("num_scan_inputs"), list(steps.within(step))
    places = [place for place, value in enumerate(step.inputs) if value in memory]
    if scanned is None or scanned.is_ref() or len(bodies) != 1 or len(places) != 1:
        return False
    states, place, to = len(step.inputs) - scanned.value, places[0], step.outputs.index(output)
    if place < states or to < states or not memory.isdisjoint(step.captured.values()):
        return False
    (body,) = subgraphs(node)
    if place >= len(body.inputs) or to >= len(body.outputs):
        return False
    (inner,) = bodies
    row = inner.number(body.inputs[place])
    return row in _proven(inner, {row: inner.number(body.outputs[to])})


def _memory_of(value: int, steps: _Steps, readers: Mapping[int, list[int]]) -> set[int]:
    """The values that may be the memory of this one, itself among them."""
    found: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value not in found:
            found.add(value)
            for index in readers.get(value, ()):
                step = steps.all[index]
                # An index or shape is never a view.
                if of(step.node).moves < Moves.NOT and step.inputs[0] == value:
                    waiting += step.outputs
    return found


def _dependencies(
    reads: Iterable[set[int]], writer: Mapping[int, int], bit: Mapping[int, int]
) -> list[int]:
    """For each node, which of the nodes with a bit must run before it, as a sum of their bits."""
    known: list[int] = []
    for values in reads:  # ONNX lists the nodes in topological order
        before = 0
        for value in values:
            source = writer.get(value)
            if source is not None:
                before |= known[source] | bit.get(source, 0)
        known.append(before)
    return known
