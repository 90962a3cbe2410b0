"""Scan: its gradient is a Scan from the other end.

What a round gave is reported for the backward pass, save what costs little to compute again. What
weights of matrix products get is summed by one product of the rows of all rounds, behind the Scan.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.operators._kept_rows import can_be_reported, rows_to_keep
from graphopt.operators._rounds import Rounds, answer, prune
from graphopt.operators.backward import Backward
from graphopt.operators.record import NoGradient, operator
from graphopt.operators.recurrent_functions import gradients_of_cell, has_kernel


@operator("Scan")
def scan(b: Backward) -> Iterator[ir.Value | NoGradient]:
    """A Scan of the same rows from the other end; it carries the gradients of the states.

    Of a weight W with y = a Wᵀ in each round, the gradient is the sum of dyᵀ a over all rounds: one
    product of all rows of dy and all of a.
    """
    return gradients_of_cell(b) if has_kernel(b) else _Scan(b).gradients()


@dataclass(frozen=True)
class _Lists:
    """The axis of the rows of each list, and whether the last row comes first."""

    axes: list[int]
    ways: list[int]

    @classmethod
    def of(cls, node: ir.Node, kind: str, count: int) -> "_Lists":
        """Of those that a node gets or gives."""
        axes, ways = (
            list(node.attributes.get_ints(f"scan_{kind}_{name}", ()) or [0] * count)
            for name in ("axes", "directions")
        )
        return cls(axes, ways)


@dataclass(frozen=True)
class _Read:
    """A list of which the rounds of the backward pass get a row, and how."""

    values: ir.Value | None
    row: ir.Value
    axis: int
    way: int


@dataclass(frozen=True)
class _Product:
    """A product aᵀ b of a round times a number, of which the sum over the rounds is asked for."""

    a: ir.Value
    b: ir.Value
    alpha: float


class _Scan:
    """A Scan, and what the one of the backward pass is made of.

    Attributes:
        way: Whether the last row comes first in what is reported: as in the lists that it gets.
        lists: The lists outside of values in the copy, with their rows in that way.
    """

    def __init__(self, b: Backward) -> None:
        self.b, self.op, self.node = b, b.op, b.node
        count = b.node.attributes.get_int("num_scan_inputs", 0)
        self.n = n = len(b.node.inputs) - count
        self.gets = _Lists.of(b.node, "input", count)
        self.rounds = Rounds(b, first=0, states=n, inputs=0, outputs=0, count=self._count())
        self.given = len(self.rounds.body.outputs) - n - len(self.rounds.drawn)
        self.gives = _Lists.of(b.node, "output", self.given)
        self.way = self.gets.ways[0] if len({*self.gets.ways}) == 1 else 0
        self.lists: dict[ir.Value, ir.Value] = {}
        self._reported: dict[ir.Value, ir.Value] = {}

    def _count(self) -> int | None:
        rows = self.node.inputs[self.n]
        size = None if rows is None or rows.shape is None else rows.shape[self.gets.axes[0]]
        return size if isinstance(size, int) else None

    def gradients(self) -> Iterator[ir.Value | NoGradient]:
        """The gradients of what the Scan reads."""
        b, op, rounds, n = self.b, self.op, self.rounds, self.n
        with op.inside(rounds.copy):
            rows = {i: self._row(rounds.body.outputs[n + i]) for i in rounds.reported}
            drawn = [self._row(one.value) for one in rounds.drawn]
            found = rounds.differentiate(drawn, rows)
            products = {v: p for v in rounds.captured if (p := _products(rounds, v, found.get(v)))}
            summed = [v for v in rounds.captured if v in found and v not in products]
            sums = [rounds.input(f"{value.name}/sum", value) for value in summed]
            results = [
                *(rounds.gradient(found, rounds.state_in[i]) for i in rounds.carried),
                *(op.Add(s, found[value]) for s, value in zip(sums, summed, strict=True)),
                *(rounds.gradient(found, rounds.scanned[i]) for i in rounds.rows),
            ]
        read = [
            _Read(b.gradient(n + i), row, self.gives.axes[i], 1 - self.gives.ways[i])
            for i, row in rows.items()
        ]
        read += map(self._read, rounds.drawn_lists, drawn)
        operands = dict.fromkeys(v for p in products.values() for one in p for v in (one.a, one.b))
        self._find_lists(rows)
        read += self._keep(results, operands)
        carried = len(rounds.carried) + len(sums)
        given, emitted = self._given(results[carried:], operands)
        rounds.leave([*rounds.d_states, *sums], [*results, *emitted])
        starts = [b.gradient(i) for i in rounds.carried]
        zeros = [b.zeros_like(value) for value in summed]
        outputs = self._append([*starts, *zeros], read, len(results) + len(emitted))
        self.lists |= {value: outputs[carried + place] for value, place in given.items()}
        keys: list[int | ir.Value] = [*rounds.carried, *summed, *(n + i for i in rounds.rows)]
        answers = dict(zip(keys, outputs, strict=False))
        answers |= {value: self._sum(terms, value) for value, terms in products.items()}
        yield from answer(b, answers)

    def _row(self, like: ir.Value) -> ir.Value:
        """A row that a round of the backward pass gets."""
        return self.rounds.input(f"{like.name}/row", like)

    def _read(self, values: ir.Value, row: ir.Value) -> _Read:
        """Of a list that the Scan has reported."""
        return _Read(values, row, 0, 1 - self.way)

    def _report(self, value: ir.Value) -> ir.Value:
        """The list of a value of the body."""
        if value not in self._reported:
            self._reported[value] = self.rounds.report(value)
        return self._reported[value]

    def _find_lists(self, rows: Mapping[int, ir.Value]) -> None:
        """Know the lists that the backward pass gets anyway."""
        rounds, straight = self.rounds, (0, self.way)
        for i, row in enumerate(rounds.scanned):
            values = self.node.inputs[self.n + i]
            if (self.gets.axes[i], self.gets.ways[i]) == straight and values is not None:
                self.lists[row] = values
        for i, row in rows.items():
            if (self.gives.axes[i], self.gives.ways[i]) == straight:
                self.lists[row] = self.b.gradient(self.n + i)

    def _keep(self, results: list[ir.Value], operands: Iterable[ir.Value]) -> list[_Read]:
        """Report what the backward pass reads, and let it read that.

        Args:
            results: What the rounds give; what is reported is replaced in it.
            operands: Those of products that are computed behind the Scan.
        """
        rounds, read = self.rounds, []
        rounds.copy.outputs[:] = []
        prune(rounds.copy, *results, *operands)
        for value in rows_to_keep(rounds, results):
            row = self._row(value)
            self.lists[value] = self._report(rounds.original[value])
            read.append(self._read(self.lists[value], row))
            ir.convenience.replace_all_uses_with(value, row)
            results[:] = [row if result is value else result for result in results]
        for before, value in zip(rounds.state_in, rounds.body.inputs, strict=False):
            if before in operands:
                self.lists[before] = self._report(value)
        for value in operands:
            if can_be_reported(rounds, value) and value not in self.lists:
                self.lists[value] = self._report(rounds.original[value])
        return read

    def _given(
        self, d_rows: Sequence[ir.Value], operands: Iterable[ir.Value]
    ) -> tuple[dict[ir.Value, int], list[ir.Value]]:
        """Of which operands the rounds give a row, the how manieth; and what they give for that.

        Args:
            d_rows: The gradients of rows, which they give first.
            operands: What is looked for, unless there is a list of it.
        """
        given = {
            value: place
            for place, (i, value) in enumerate(zip(self.rounds.rows, d_rows, strict=True))
            if (self.gets.axes[i], self.gets.ways[i]) == (0, self.way)
        }
        emitted = [value for value in operands if value not in self.lists and value not in given]
        places = {value: len(d_rows) + place for place, value in enumerate(emitted)}
        return given | places, emitted

    def _append(
        self, starts: Sequence[ir.Value], read: list[_Read], count: int
    ) -> Sequence[ir.Value]:
        """Append the Scan of the backward pass, and let the other one give what it reads."""
        node, rounds, n = self.node, self.rounds, self.n
        read += [
            self._read(self._report(value), before)
            for before, value in zip(rounds.state_in, rounds.body.inputs, strict=False)
            if before.uses()
        ]
        read += [
            _Read(node.inputs[n + i], row, self.gets.axes[i], 1 - self.gets.ways[i])
            for i, row in enumerate(rounds.scanned)
            if row.uses()
        ]
        read = read or [_Read(node.inputs[n], rounds.scanned[0], self.gets.axes[0], 0)]
        more = len(node.outputs) - n - self.given
        for name, known, new in (
            ("axes", self.gives.axes, 0),
            ("directions", self.gives.ways, self.way),
        ):
            attribute = ir.AttrInt64s(f"scan_output_{name}", known + [new] * more)
            node.attributes[attribute.name] = attribute
        rounds.copy.inputs.extend(one.row for one in read)
        emitted = count - len(starts) - len(rounds.rows)
        return self.op.node(
            "Scan",
            [*starts, *(one.values for one in read)],
            outputs=count,
            body=rounds.copy,
            num_scan_inputs=len(read),
            scan_input_axes=[one.axis for one in read],
            scan_input_directions=[one.way for one in read],
            scan_output_axes=[*(self.gets.axes[i] for i in rounds.rows), *[0] * emitted] or None,
            scan_output_directions=[
                *(1 - self.gets.ways[i] for i in rounds.rows),
                *[1 - self.way] * emitted,
            ]
            or None,
        )

    def _sum(self, terms: Sequence[_Product], value: ir.Value) -> ir.Value:
        """The sum of products over all rounds."""
        op, total = self.op, None
        for term in terms:
            a, b = (op.Flatten(self.lists[v], axis=2) for v in (term.a, term.b))
            product = op.Gemm(a, b, transA=1, alpha=term.alpha)
            product.type, product.shape = value.type, value.shape
            total = product if total is None else op.Add(total, product)
        assert total is not None
        return total


def _products(rounds: Rounds, value: ir.Value, gradient: ir.Value | None) -> list[_Product] | None:
    """The products of which a gradient in a round is the sum; None if it is something else."""
    node = None if gradient is None else gradient.producer()
    if node is None or node.domain or node.graph is not rounds.copy:
        return None
    if value.shape is None or len(value.shape) != 2:
        return None
    first, second = [*node.inputs, None][:2]
    if node.op_type == "Add":
        parts = [_products(rounds, value, part) for part in (first, second)]
        return None if None in parts else [one for part in parts for one in part or ()]
    if node.op_type == "Transpose":
        products = _products(rounds, value, first)
        return products and [_Product(one.b, one.a, one.alpha) for one in products]
    if first is None or second is None:
        return None
    if node.op_type == "Gemm" and len(node.inputs) == 2:
        attributes = node.attributes
        if attributes.get_int("transA", 0) and not attributes.get_int("transB", 0):
            return [_Product(first, second, attributes.get_float("alpha", 1.0))]
    if node.op_type == "MatMul" and (left := _transposed(first)) is not None:
        return [_Product(left, second, 1.0)]
    return None


def _transposed(value: ir.Value) -> ir.Value | None:
    """The matrix that a value is the transpose of."""
    node = value.producer()
    if node is None or node.op_type != "Transpose" or node.domain:
        return None
    return node.inputs[0] if list(node.attributes.get_ints("perm", ())) == [1, 0] else None
