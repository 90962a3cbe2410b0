"""A training graph that runs: a session of the runtime, with the state that is bound to it."""

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import _runtime, in_place
from graphopt._bound_state import BoundState
from graphopt._memory import give_back_memory, give_back_models
from graphopt._runtime_session import captures, runtime_session, without_capture
from graphopt._skips import Skips
from graphopt._start import Start
from graphopt._step_io import step_io
from graphopt.feeds import sizes_of
from graphopt.graph import TrainingGraph
from graphopt.mapped_values import give_back
from graphopt.soundness.errors import about, taking_memory
from graphopt.states import SKIPPED_STEPS


class RunningGraph:
    """What a session has of the runtime: its session, and the state that is bound to it.

    Args:
        graph: What runs, without the values that it starts from.
        start: Those.
        providers: Execution providers in order of preference.
        session_options: An ``onnxruntime.SessionOptions``, or None.
        kernels: Use the kernels where they are installed.
        deterministic: Compute the same bits whatever the number of cores.
        max_skips: How many steps may be skipped in a row; None: any number.

    Attributes:
        graph: As given.
        inputs: What a step must be given.
        kernels: The functions that run as kernels.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        start: Start,
        providers: Sequence[Any] | None,
        session_options: Any,
        *,
        kernels: bool,
        deterministic: bool,
        max_skips: int | None,
    ) -> None:
        """Place the state where the graph reads it."""
        self.graph = graph
        self._runtime = _runtime.onnxruntime()
        self._providers = _runtime.checked_providers(providers)
        self._options, self._with_kernels = session_options, kernels
        self._deterministic = deterministic
        self._steps = graph.steps
        self._skips = Skips(max_skips, graph.carried)
        self.inputs = graph.inputs
        carried_outputs = {value.output for value in graph.carried}
        outputs = graph.lean.graph.output
        self._reported = [v.name for v in outputs if v.name not in carried_outputs]
        self._in_place: set[str] = set()
        if _runtime.keeps_order(self._runtime):
            with about(graph):
                self._in_place = in_place.overwritable(graph.lean, graph.carried)
        give_back_models(sum(value.bytes for value in graph.carried))
        # A CUDA graph is captured at the first step, when all sizes are known.
        self._captures = any(map(captures, self._providers))
        self._open([without_capture(provider) for provider in self._providers])
        self._state = BoundState(
            graph.carried, self._in_place, self._ort_value, rebinds=self._io.rebinds
        )
        self._values, self._next = self._state.values, self._state.next
        with taking_memory(graph):
            for value in graph.carried:
                self._state.place(value, start.of(value), self._binding)
        give_back_memory()
        self._check_captures()
        self._lock, self._process = threading.Lock(), os.getpid()
        self._blocking = graph.use_locking

    def _take_step(self, values: Mapping[str, Any], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Run the graph once; returns copies of these outputs."""
        with self._exclusively():
            self._settle()
            self._check_steps()
            reserved = self._io.reserve(names)
            skipped = self._skipped() if self._skips.are_limited else 0
            try:
                if self._captures:
                    self._capture(values)
                self._state.begin(self._binding)
                self._io.run(values, names)
                self._settle()
            except ValueError:
                raise
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's have no common base
                raise RuntimeError(f"the step failed, the state is as it was: {error}") from None
            if self._skips.are_limited:
                self._skips.see(skipped, self._skipped())
            try:
                return self._io.read(names, reserved)
            except MemoryError as error:
                raise MemoryError(
                    "the step is done, and only its outputs are lost: there is no memory for a "
                    f"copy of them: {error}"
                ) from None

    def _checked_outputs(
        self, outputs: Collection[str] | None, known: Sequence[str]
    ) -> Sequence[str]:
        """The names of what is returned of a step: all that are known, where none were given."""
        if outputs is None:
            return known
        if isinstance(outputs, str):
            raise TypeError(f"outputs: got '{outputs}', expected a list such as ['{outputs}']")
        unknown = [name for name in outputs if name not in known]
        if unknown:
            raise ValueError(f"outputs: got '{unknown[0]}', expected some of {', '.join(known)}")
        return list(outputs)

    def _exclusively(self) -> threading.Lock:
        """The lock, which ``with`` takes and gives back whatever comes between."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"this session belongs to process {self._process}, from which this one was forked "
                "without its threads; make a session in the process that uses it"
            )
        if not self._blocking and self._lock.locked():
            raise RuntimeError(
                "another thread is using this session; build the optimizer with use_locking=True "
                "to share a session between threads"
            )
        return self._lock

    @property
    def _step(self) -> int:
        """The number of steps that have been taken, as the state has it."""
        return self._state.step

    def _skipped(self) -> int:
        return int(self._values[SKIPPED_STEPS.name].numpy())

    def _settle(self) -> None:
        self._state.settle(self._io, self._binding)

    def _check_steps(self) -> None:
        if self._steps is not None and self._step >= self._steps:
            raise RuntimeError(
                f"step {self._step}: the learning rate has values for steps 0 to "
                f"{self._steps - 1} only; nothing was updated"
            )

    def _open(self, providers: Sequence[Any], sizes: Mapping[str, int] | None = None) -> None:
        """Create the runtime's session, for these sizes of symbolic dimensions."""
        self._session, self.kernels = runtime_session(
            *(self.graph, providers, self._options),
            kernels=self._with_kernels,
            deterministic=self._deterministic,
            sizes=sizes or {},
        )
        self._binding = self._session.io_binding()
        self._io = step_io(self._runtime, self._session, self._binding, self._reported)

    def _check_captures(self) -> None:
        """Refuse to capture a graph that waits on the CPU, or whose state changes its place."""
        if self._captures and not any(name.startswith("Ready") for name in self.kernels):
            raise ValueError(
                "providers: enable_cuda_graph needs the fused kernels and a graph whose layout is "
                f"'foreach', got kernels {list(self.kernels)} and layout "
                f"'{self.graph.layout['name']}'; build the graph with "
                "provider='CUDAExecutionProvider', or leave it out"
            )
        if self._captures and self._next:
            raise ValueError(
                f"providers: enable_cuda_graph needs state that stays in its place, but "
                f"'{next(iter(self._next))}' cannot be overwritten; leave it out"
            )

    def _capture(self, values: Mapping[str, Any]) -> None:
        """Let the runtime capture the graph, which runs it more often, and put the state back."""
        self._state.keep()
        self._io.run(values, self._reported)  # to find out what its outputs need
        before = self._io
        self._open(self._providers, sizes_of(self.inputs, values))
        self._io.take_outputs(before)
        self._state.bind(self._binding)
        self._io.run(values, self._reported)
        self._settle()
        self._captures = False

    def _ort_value(self, name: str, array: np.ndarray) -> Any:
        """A value of the runtime for an input, where the input is read."""
        # On the CPU the OrtValue may share the array's memory, which must then be its own.
        own = np.array(array, order="C")
        give_back(array)
        return self._runtime.OrtValue.ortvalue_from_numpy(own, *self._io.place_of(name))
