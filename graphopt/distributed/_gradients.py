"""Runs the half of a training graph that computes gradients."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from graphopt import _runtime
from graphopt._step_io import step_io
from graphopt.distributed._split import GradientGraph
from graphopt.feeds import Feeds, check_fed, feed_of, shape_of
from graphopt.graph import TrainingGraph

_ALIGNMENT = 64  # bytes, of what the runtime writes


class Gradients:
    """A session of the half, whose gradients are written to one piece of memory.

    Args:
        half: What it runs.
        held: The inputs that the state is bound to; all other ones are fed.
        message: How many bytes of gradients are sent at once.
        opened: Makes a session of the runtime.

    Attributes:
        inputs: What it is fed, a list of `Feed`: the batch, and a loss scale that is fed.
        fed: Their names.
        reads: The inputs that the state is bound to.
        reports: The outputs that are not flat gradients, by name.
        flat: The flat outputs by name: parts of the memory.
        messages: The same memory, in few pieces.
    """

    def __init__(
        self,
        half: GradientGraph,
        held: Sequence[str],
        message: int,
        opened: Callable[[TrainingGraph], Any],
    ) -> None:
        """See the class."""
        graph = TrainingGraph(half.model, ())
        names = {*held, half.share}
        self.inputs = [
            feed_of(value) for value in half.model.graph.input if value.name not in names
        ]
        self.fed = [feed.name for feed in self.inputs]
        self.reads = [value.name for value in half.model.graph.input if value.name in held]
        self.flat, self.messages = _memory(half, message)
        self._half, self._feeds = half, Feeds(self.inputs, {})
        outputs = (v for v in half.model.graph.output if v.name not in half.flat)
        self.reports = {value.name: feed_of(value) for value in outputs}
        session = opened(graph)
        binding = session.io_binding()
        for name, array in self.flat.items():
            place = ("cpu", 0, array.dtype, list(array.shape), array.ctypes.data)
            binding.bind_output(name, *place)
        runtime = _runtime.onnxruntime()
        self._io = step_io(runtime, session, binding, list(self.reports))

    def checked(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A batch as arrays.

        Raises:
            TypeError: A feed has the wrong dtype.
            ValueError: One is missing, unknown or of the wrong shape, or a label is no class.
        """
        values = self._feeds.checked(batch)
        check_fed(values, labels=self._half.class_labels)
        return values

    def examples(self, values: Mapping[str, Any], small: Collection[str]) -> int:
        """How many a batch has: the first size of its first input that has one.

        Args:
            values: The batch.
            small: Inputs that have no axis of examples.
        """
        shapes = (shape_of(values[name]) for name in self.fed if name not in small)
        return next((shape[0] for shape in shapes if shape), 1)

    def run(
        self,
        values: Mapping[str, Any],
        state: Mapping[str, Any],
        share: float,
        wanted: Collection[str],
    ) -> dict[str, np.ndarray]:
        """Compute the gradients, times the share; returns what is wanted of what is reported."""
        fed = {**values, **state, self._half.share: np.array(share, self._half.dtype)}
        names = [name for name in self.reports if name in wanted]
        reserved = self._io.reserve(names)
        self._io.run(fed, names)
        return self._io.read(names, reserved)

    def clear(self) -> None:
        """The gradients of a rank that has no examples."""
        for message in self.messages:
            message.fill(0)


def _memory(half: GradientGraph, message: int) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Memory for the flat outputs one after another, and in pieces of about so many bytes."""
    item = np.dtype(half.dtype).itemsize
    step = _ALIGNMENT // item
    places, ends, end = {}, [0], 0
    for name, size in half.flat.items():
        places[name] = end, size
        end += -(-size // step) * step
        if (end - ends[-1]) * item >= message:
            ends.append(end)
    if ends[-1] < end:
        ends.append(end)
    raw = np.zeros(end + step, half.dtype)
    begin = (-raw.ctypes.data % _ALIGNMENT) // item
    memory = raw[begin : begin + end]
    flat = {name: memory[at : at + size] for name, (at, size) in places.items()}
    return flat, [memory[a:b] for a, b in pairwise(ends)]
