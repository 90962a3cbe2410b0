"""Runs the half of a training graph that computes gradients, in one piece or several."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

from graphopt import _runtime
from graphopt._step_io import StepIO, step_io
from graphopt.distributed._pieces import Piece, pieces
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
        count: In how many pieces they are computed, see `pieces`.

    Attributes:
        inputs: What it is fed, a list of `Feed`: the batch, and a loss scale that is fed.
        fed: Their names.
        reads: The inputs that the state is bound to.
        reports: The outputs that are not flat gradients, by name.
        flat: The flat outputs by name: parts of the memory.
        count: In how many pieces they are computed.
        messages: The same memory, in few parts, those of each piece.
    """

    def __init__(
        self,
        half: GradientGraph,
        held: Sequence[str],
        message: int,
        opened: Callable[[TrainingGraph], Any],
        count: int = 1,
    ) -> None:
        """See the class."""
        made = pieces(half, count)
        self.count = len(made)
        names = {*held, half.share}
        self.inputs = [
            feed_of(value) for value in half.model.graph.input if value.name not in names
        ]
        self.fed = [feed.name for feed in self.inputs]
        self.reads = [value.name for value in half.model.graph.input if value.name in held]
        groups = [piece.flat for piece in made]
        self.flat, self.messages = _memory(half, message, groups)
        self._half, self._feeds = half, Feeds(self.inputs, {})
        outputs = (v for v in half.model.graph.output if v.name not in half.flat)
        self.reports = {value.name: feed_of(value) for value in outputs}
        self._parts = [
            _Part(
                *(piece, opened(TrainingGraph(piece.model, ())), self.flat, parts),
                is_whole=len(made) == 1,
            )
            for piece, parts in zip(made, self.messages, strict=True)
        ]

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
        ready: Callable[..., object],
    ) -> dict[str, np.ndarray]:
        """Compute the gradients, times the share; returns what is wanted of what is reported.

        ``ready`` is called with the messages of each piece, when they will not change any more.
        """
        fed = {**values, **state, self._half.share: np.array(share, self._half.dtype)}
        reported: dict[str, np.ndarray] = {}
        for part in self._parts:
            made, passed = part.run(fed, wanted)
            ready(*part.messages)
            reported |= made
            fed |= passed
        return reported

    def clear(self) -> None:
        """The gradients of a rank that has no examples."""
        for message in chain(*self.messages):
            message.fill(0)


class _Part:
    """A session of a piece.

    Where there are several, each run has a binding of its own, so that nothing that passes from one
    to the next stays in memory after the step.
    """

    def __init__(
        self,
        piece: Piece,
        session: Any,
        flat: Mapping[str, np.ndarray],
        messages: Sequence[np.ndarray],
        *,
        is_whole: bool,
    ) -> None:
        self.messages, self._piece, self._session = messages, piece, session
        self._flat = {name: flat[name] for name in piece.flat}
        self._reads = [value.name for value in piece.model.graph.input]
        self._io = self._bound() if is_whole else None

    def run(
        self, fed: Mapping[str, Any], wanted: Collection[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Run it: what is wanted of its reports, and what it passes on."""
        io = self._io or self._bound()
        names = [name for name in self._piece.reports if name in wanted]
        reserved = io.reserve(names)
        io.run({name: fed[name] for name in self._reads}, names)
        values = io.values() if self._piece.passed else {}
        return io.read(names, reserved), {name: values[name] for name in self._piece.passed}

    def _bound(self) -> StepIO:
        binding = self._session.io_binding()
        for name, array in self._flat.items():
            place = ("cpu", 0, array.dtype, list(array.shape), array.ctypes.data)
            binding.bind_output(name, *place)
        reported = [*self._piece.reports, *self._piece.passed]
        return step_io(_runtime.onnxruntime(), self._session, binding, reported)


def _memory(
    half: GradientGraph, message: int, groups: Sequence[Sequence[str]]
) -> tuple[dict[str, np.ndarray], list[list[np.ndarray]]]:
    """Memory for the flat outputs one after another; of each group, in parts of so many bytes."""
    item = np.dtype(half.dtype).itemsize
    step = _ALIGNMENT // item
    places: dict[str, tuple[int, int]] = {}
    cuts, end = [], 0
    for group in groups:
        ends = [end]
        for name in group:
            places[name] = end, half.flat[name]
            end += -(-half.flat[name] // step) * step
            if (end - ends[-1]) * item >= message:
                ends.append(end)
        if ends[-1] < end:
            ends.append(end)
        cuts.append(ends)
    raw = np.zeros(end + step, half.dtype)
    begin = (-raw.ctypes.data % _ALIGNMENT) // item
    memory = raw[begin : begin + end]
    flat = {name: memory[places[name][0] :][: places[name][1]] for name in half.flat}
    return flat, [[memory[a:b] for a, b in pairwise(ends)] for ends in cuts]
