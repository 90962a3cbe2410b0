"""What is updated together: parameters are put into buckets, and a bucket is one update node.

A bucket's gradients are concatenated into one flat tensor, and so is each kind of state. Many
small parameters so become few nodes, whose temporaries stay in the processor's cache. A large
parameter is a bucket of its own, which costs no copy.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from graphopt.parameters import Parameter
from graphopt.rmsprop import Rule

# Elements of a bucket of several parameters: the float32 temporaries stay in a 2 MiB L2 cache.
_MAX_ELEMENTS = 64 * 1024
# Parameters of a bucket. ONNX Runtime 1.19 takes time quadratic in the number of nodes that are
# ready at once; this bounds it, so that loading stays linear in the number of parameters.
_MAX_PARAMETERS = 64


@dataclass(frozen=True)
class Bucket:
    """Parameters of one dtype and one rule, updated by one node.

    Attributes:
        name: For the names of its states.
        parameters: In the order in which they are concatenated.
        rule: How they are updated.
    """

    name: str
    parameters: tuple[Parameter, ...]
    rule: Rule

    def __iter__(self) -> Iterator[Parameter]:
        """The parameters."""
        return iter(self.parameters)

    @property
    def size(self) -> int:
        """The number of elements."""
        return sum(parameter.size for parameter in self.parameters)

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


def plan(rules: Iterable[tuple[Parameter, Rule]]) -> list[Bucket]:
    """Put parameters into buckets, in the order in which they come."""
    finished: list[tuple[Rule, list[Parameter]]] = []
    room: dict[tuple[Rule, str], int] = {}
    filling: dict[tuple[Rule, str], list[Parameter]] = {}
    for parameter, rule in rules:
        key = (rule, parameter.dtype)
        if parameter.size > _MAX_ELEMENTS:
            finished.append((rule, [parameter]))
            continue
        if parameter.size > room.get(key, 0) or len(filling[key]) == _MAX_PARAMETERS:
            room[key], filling[key] = _MAX_ELEMENTS, []
            finished.append((rule, filling[key]))
        room[key] -= parameter.size
        filling[key].append(parameter)
    names = {parameter.name for _, members in finished for parameter in members}
    buckets = []
    for index, (rule, members) in enumerate(finished):
        name = members[0].name if len(members) == 1 else f"bucket{index}"
        while len(members) > 1 and name in names:
            name += "_"
        buckets.append(Bucket(name, tuple(members), rule))
    return buckets
