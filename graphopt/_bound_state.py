"""The state of a session in the memory of the runtime, which is that of a whole step at any time.

Python raises KeyboardInterrupt between any two of its instructions. So nothing is said twice: the
number of steps stands in the state alone; whether a step is done is seen where it has written that
number; and what is being loaded is kept until all of it is in its place.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from graphopt import mapped_values
from graphopt._step_io import StepIO
from graphopt.carried import Array, Carried, joined, parts
from graphopt.states import GLOBAL_STEP

_NO_STEP = np.array(-1, np.int64)
"""The number of steps where none is written yet."""


class _Position(NamedTuple):
    """Where the state is, so that it changes in one assignment.

    Attributes:
        turn: Which of two values is the state, of those that take turns.
        at_work: A step has begun, and nobody has looked whether it is done.
    """

    turn: int = 0
    at_work: bool = False


class BoundState:
    """The carried values, bound to the inputs and outputs of a session of the runtime.

    Args:
        carried: The values.
        in_place: The inputs whose new value may overwrite the old one; the others take turns.
        ort_value: Makes a value of the runtime of the name of an input and an array.
        rebinds: Bind all values in each step, because the runtime may have copied them.

    Attributes:
        values: What holds each, by input.
        next: What else holds those that take turns.
    """

    def __init__(
        self,
        carried: Sequence[Carried],
        in_place: Collection[str],
        ort_value: Callable[[str, np.ndarray], Any],
        *,
        rebinds: bool = False,
    ) -> None:
        """Nothing is bound yet."""
        self._carried, self._ort_value, self._rebinds = carried, ort_value, rebinds
        self._in_place = set(in_place)
        self._counter = next((value for value in carried if value.input == GLOBAL_STEP.name), None)
        if self._counter and len(self._in_place) < len(carried):
            self._in_place.discard(self._counter.input)  # it tells whether a step is done
        self.values: dict[str, Any] = {}
        self.next: dict[str, Any] = {}
        self._position, self._turn_bound = _Position(), 0
        self._loading: list[tuple[Carried, Array]] = []
        # What the runtime computes elsewhere than where it is bound, by its place in the binding.
        self._elsewhere: list[int] = []

    @property
    def step(self) -> int:
        """The number of steps that have been taken."""
        return 0 if self._counter is None else int(self.held(self._counter).numpy())

    def place(self, value: Carried, array: np.ndarray, binding: Any) -> None:
        """Put a value into the runtime's memory and bind it to its input and output."""
        self.values[value.input] = self._ort_value(value.input, array)
        if value.input not in self._in_place:
            self.next[value.input] = self._ort_value(value.input, array)
        self._bind(value, binding)

    def bind(self, binding: Any) -> None:
        """Bind all values to another session."""
        for value in self._carried:
            self._bind(value, binding)

    def held(self, value: Carried) -> Any:
        """What holds a value now."""
        turns = self.next if self._position.turn else self.values
        return turns.get(value.input, self.values[value.input])

    def begin(self, binding: Any) -> None:
        """Bind what takes turns for the next step, and say that it is at work."""
        turn = self._position.turn
        if self._turn_bound != turn or self._rebinds:
            self._turn_bound = -1  # neither, until all are bound
            for value in self._carried:
                if value.input in self.next or self._rebinds:
                    self._bind(value, binding)
            self._turn_bound = turn
        if self._counter and self._counter.input in self.next:
            self._new(self._counter).update_inplace(_NO_STEP)
        self._position = _Position(turn, at_work=True)

    def settle(self, io: StepIO, binding: Any) -> None:
        """End what was interrupted: a step that has run is done, what is loaded is loaded whole."""
        if self._loading:
            io.wait()
            for value, array in self._loading:
                self.held(value).update_inplace(array)
                mapped_values.give_back(array)
            self._loading = []
        turn, at_work = self._position
        if at_work:
            self._bring_home(io, binding)
            if self._counter and self._counter.input in self.next:
                turn ^= int(self._new(self._counter).numpy()) != _NO_STEP
            self._position = _Position(turn)

    def load(self, fitting: dict[str, np.ndarray]) -> None:
        """Make a state of arrays, which are used up, and of what there is; `settle` writes it.

        Only this needs memory. The values stay where they are: a captured graph knows no other
        place.
        """
        loading = []
        for value in self._carried:
            names = [view.name for view in value.views]
            if not fitting.keys().isdisjoint(names):
                now = dict(self.parts(value)) if not fitting.keys() >= set(names) else {}
                found = {
                    name: fitting.pop(name) if name in fitting else now[name] for name in names
                }
                array = joined(value, found)
                # What is in a file stays there, and needs no memory.
                is_in_file = mapped_values.is_in_file(array)
                loading.append((value, array if is_in_file else np.array(array, order="C")))
        mapped_values.check_unchanged(array for _, array in loading)
        self._loading = loading

    def keep(self) -> None:
        """Let the next `settle` bring back the state of now."""
        self._loading = [(value, np.array(self.held(value).numpy())) for value in self._carried]

    def parts(self, value: Carried) -> list[tuple[str, Array]]:
        """The named parts of a value, which share its memory where it is that of the CPU."""
        return [(view.name, part) for view, part in parts(value, self.held(value).numpy())]

    def _bind(self, value: Carried, binding: Any) -> None:
        binding.bind_ortvalue_input(value.input, self.held(value))
        binding.bind_ortvalue_output(value.output, self._new(value))

    def _new(self, value: Carried) -> Any:
        """What holds the new value after a step."""
        turns = self.values if self._position.turn else self.next
        return turns.get(value.input, self.values[value.input])

    def _bring_home(self, io: StepIO, binding: Any) -> None:
        """Copy to its place what the runtime has put elsewhere: on a GPU, what the CPU computed."""
        if io.is_new:
            outputs = zip(self._carried, binding.get_outputs(), strict=False)
            self._elsewhere = [
                index
                for index, (value, got) in enumerate(outputs)
                if got.data_ptr() != self._new(value).data_ptr() and 0 not in value.shape
            ]
        if self._elsewhere:
            io.wait()
            outputs = binding.get_outputs()
            for index in self._elsewhere:
                self._new(self._carried[index]).update_inplace(outputs[index].numpy())
