"""What is updated together: parameters are put into buckets, and a bucket is one update node.

ONNX Runtime works operator by operator, so what counts is that the tensors between the operators
of an update stay in the processor's cache, that there are few of them, and that nothing is copied.
Small parameters are therefore carried as one flat tensor, as are their gradients and each kind of
their states; a large one has a bucket to itself. For caches, a bucket is cut into chunks, which are
the rows of a matrix. (One row costs nothing, and lets ONNX Runtime load many buckets much faster,
because the nodes of its update then are in a subgraph.)

On CUDA, a kernel updates many tensors wherever they are. Nothing is concatenated, then: the
parameters keep their tensors, and one node updates all that have the same rule.
"""

import math
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

from graphopt import _checks
from graphopt.parameter import Parameter
from graphopt.rmsprop import Rule

LayoutName = Literal["auto", "chunks", "buckets", "separate", "foreach"]

_FOR_PROVIDER: dict[str, LayoutName] = {
    "CPUExecutionProvider": "chunks",
    "CUDAExecutionProvider": "foreach",
    "WebGpuExecutionProvider": "separate",  # its shaders read and write few tensors each
}
# A larger parameter has a bucket to itself: its gradient is worth more than one copy of it.
_LARGE = 64 * 1024
# Elements of a bucket of several parameters. ONNX Runtime splits an operator between threads above
# 64 Ki elements; at this size the tensors of an operator still are in a cache of 512 KiB a core.
_MAX_ELEMENTS = 128 * 1024
# Parameters of a bucket. ONNX Runtime 1.19 takes time quadratic in the number of nodes that are
# ready at once; this bounds it, so that loading stays linear in the number of parameters.
_MAX_PARAMETERS = 64
# Elements of a chunk. Larger than a bucket, because fewer and longer operators wait less often for
# their threads: measured, 128 Ki are as fast at their best, but slower in the median.
_CHUNK = 256 * 1024


@dataclass(frozen=True)
class Bucket:
    """Parameters of one dtype and one rule, updated by one node.

    Attributes:
        name: For the names of what it carries; that of its parameter, if there is one only.
        parameters: In the order in which they are concatenated.
        rule: How they are updated.
        rows: The number of chunks; None if it is not updated chunk by chunk.
        separate: The parameter is carried in its own shape.
    """

    name: str
    parameters: tuple[Parameter, ...]
    rule: Rule
    rows: int | None = None
    separate: bool = False

    def __iter__(self) -> Iterator[Parameter]:
        """The parameters."""
        return iter(self.parameters)

    @property
    def size(self) -> int:
        """The number of elements."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in which it is updated, and its states are carried."""
        return (self.size,) if self.rows is None else (self.rows, self.size // self.rows)

    @property
    def dtype(self) -> str:
        """The dtype of the parameters; states are float32."""
        return self.parameters[0].dtype

    def offsets(self) -> Iterator[tuple[Parameter, int]]:
        """Each parameter with the place where it begins, in elements."""
        offset = 0
        for parameter in self.parameters:
            yield parameter, offset
            offset += parameter.size


@dataclass(frozen=True)
class Layout:
    """What is updated together.

    Attributes:
        name: Which layout it is; never "auto".
        buckets: In the order in which they are updated.
    """

    name: str
    buckets: tuple[Bucket, ...]


def check_layout(layout: str) -> None:
    """Refuse what is not the name of a layout.

    Raises:
        TypeError: It is not a string.
        ValueError: It is another one.
    """
    _checks.one_of("layout", layout, get_args(LayoutName))


def plan(
    rules: Iterable[tuple[Parameter, Rule]],
    layout: str,
    provider: str,
    stored: Collection[str] = (),
) -> Layout:
    """Put parameters into buckets, in the order in which they come.

    Args:
        rules: The parameters, each with how it is updated.
        layout: "chunks": small parameters in buckets, each bucket in chunks; "buckets": each in
            one piece; "separate": a bucket for each parameter, which keeps its shape; "foreach":
            the same, and one node updates all buckets with the same rule; "auto": chunks for the
            CPU, whose caches they fit, foreach for CUDA, otherwise buckets.
        provider: The execution provider on which the update shall be fast.
        stored: Parameters that have a value in the model. They are not mixed with others, because
            a graph declares what it starts from one carried tensor at a time.
    """
    if layout == "auto":
        layout = _FOR_PROVIDER.get(provider, "buckets")
    rules = list(rules)
    if layout in ("separate", "foreach"):
        alone = (Bucket(p.name, (p,), rule, separate=True) for p, rule in rules)
        return Layout(layout, tuple(alone))
    members = _members(rules, stored)
    names = {parameter.name for parameter, _ in rules}
    buckets = []
    for index, (rule, parameters) in enumerate(members):
        name = parameters[0].name if len(parameters) == 1 else f"bucket{index}"
        while len(parameters) > 1 and name in names:
            name += "_"
        bucket = Bucket(name, tuple(parameters), rule)
        if layout == "chunks":
            bucket = replace(bucket, rows=_rows(bucket.size, _CHUNK))
        buckets.append(bucket)
    return Layout(layout, tuple(buckets))


def _members(
    rules: Iterable[tuple[Parameter, Rule]], stored: Collection[str]
) -> list[tuple[Rule, list[Parameter]]]:
    finished: list[tuple[Rule, list[Parameter]]] = []
    room: dict[Hashable, int] = {}
    filling: dict[Hashable, list[Parameter]] = {}
    for parameter, rule in rules:
        key = (rule, parameter.dtype, parameter.name in stored)
        if parameter.size > _LARGE:
            finished.append((rule, [parameter]))
            continue
        if parameter.size > room.get(key, 0) or len(filling[key]) == _MAX_PARAMETERS:
            room[key], filling[key] = _MAX_ELEMENTS, []
            finished.append((rule, filling[key]))
        room[key] -= parameter.size
        filling[key].append(parameter)
    return finished


@cache
def _rows(size: int, chunk: int) -> int:
    """The number of equal chunks of about this size; 1 where none divides it."""
    if size <= 2 * chunk:
        return 1
    small = (rows for rows in range(1, math.isqrt(size) + 1) if size % rows == 0)
    divisors = {part for rows in small for part in (rows, size // rows)}
    fitting = [rows for rows in divisors if chunk // 2 <= size // rows <= 2 * chunk]
    return min(fitting, key=lambda rows: abs(math.log(size / rows / chunk)), default=1)
