"""What a step is fed and what it reports, bound to the memory of the execution provider."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import _runtime
from graphopt._runtime_session import captures
from graphopt.feeds import shape_of


def step_io(runtime: Any, session: Any, binding: Any, reported: Sequence[str]) -> "StepIO":
    """For a session of the runtime, whose first provider has the memory.

    Args:
        runtime: ONNX Runtime.
        session: Its session.
        binding: The session's binding, to which all that is carried is bound already.
        reported: The names of the outputs that are not carried.
    """
    kind = CudaIO if session.get_providers()[0] == _runtime.CUDA else StepIO
    return kind(runtime, session, binding, reported)


class StepIO:
    """On the CPU, and on devices that the runtime itself copies to.

    Attributes:
        is_new: The last run was the first on a device with feeds of these shapes.
        rebinds: It is not known where inputs are read. Binding a value copies it to there, so that
            all have to be bound in each run.
    """

    is_new = False
    rebinds = False

    def __init__(self, runtime: Any, session: Any, binding: Any, reported: Sequence[str]) -> None:
        """Bind nothing yet."""
        self._runtime, self._session, self._binding = runtime, session, binding
        self._reported = list(reported)
        self._bound: dict[str, Any] = {}
        self._known: dict[str, np.ndarray] = {}  # of the dtypes and shapes of outputs
        # To other devices, binding copies: what the array holds later would not be seen.
        self._shares_feeds = session.get_providers() == [_runtime.CPU]

    def reserve(self, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Memory for outputs, of the shapes that they had the last time.

        Raises:
            MemoryError: There is not enough.
        """
        known = self._known
        return {name: np.empty_like(known[name], subok=False) for name in outputs if name in known}

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> None:
        """Run the graph once.

        Args:
            feeds: Arrays, or values of the runtime.
            outputs: The names of those that will be read.
        """
        del outputs
        for name, value in feeds.items():
            self._feed(name, value)
        for name in self._reported:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)

    def read(
        self, outputs: Sequence[str], reserved: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Copies of outputs of the last run.

        Args:
            outputs: Their names.
            reserved: Memory for them, which is used where it fits.

        Raises:
            MemoryError: There is not enough.
        """
        values = self._values() if outputs else {}
        return {name: self._copied(name, values[name], reserved.get(name)) for name in outputs}

    def values(self) -> dict[str, Any]:
        """The outputs of the last run by name, where they are."""
        return self._values()

    def _copied(self, name: str, value: Any, reserved: np.ndarray | None) -> np.ndarray:
        array = value.numpy()
        if reserved is None or (reserved.shape, reserved.dtype) != (array.shape, array.dtype):
            reserved = np.array(array)
            # As large as this, but of one element.
            self._known[name] = np.broadcast_to(np.empty((), array.dtype), array.shape)
            return reserved
        np.copyto(reserved, array)
        return reserved

    def place_of(self, name: str) -> tuple[str, int]:
        """Where an input is to be: the kind of device, and its number."""
        del name
        return "cpu", 0

    def wait(self) -> None:
        """Return when the state can be read and written."""

    def take_outputs(self, other: "StepIO") -> None:
        """Write outputs where another one wrote them, to feeds of the same shapes."""
        del other

    def _feed(self, name: str, value: Any) -> None:
        if _is_text(value):
            value = _runtime.of_text(self._runtime, value)
        if isinstance(value, np.ndarray):
            if self._bound.get(name) is value and self._shares_feeds:
                return
            self._binding.bind_cpu_input(name, value)
        elif self._bound.get(name) is not value:
            self._binding.bind_ortvalue_input(name, value)
        self._bound[name] = value

    def _values(self) -> dict[str, Any]:
        # A binding lists outputs in the order in which they were first bound: these are last.
        values = self._binding.get_outputs()[-len(self._reported) :] if self._reported else []
        return dict(zip(self._reported, values, strict=True))


class CudaIO(StepIO):
    """On CUDA: arrays are copied to the same memory each time, and outputs stay where they are.

    A run from which nothing is read returns before the GPU is done. While the feeds have the same
    shapes, all addresses stay, so that the runtime can capture the graph and launch it at once.
    """

    def __init__(self, runtime: Any, session: Any, binding: Any, reported: Sequence[str]) -> None:
        """Bind nothing yet."""
        super().__init__(runtime, session, binding, reported)
        options = session.get_provider_options()[_runtime.CUDA]
        self._device = int(options.get("device_id", 0))
        self._captured = captures((_runtime.CUDA, options))
        places = _places_of_inputs(session)
        self.rebinds = places is None
        self._places = places or {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._outputs: dict[str, Any] = {}
        self._fed: Mapping[str, Any] | None = None  # the last feeds
        self._copies_feeds = True  # some of the last
        self._is_at_work = False
        self._without_waiting = runtime.RunOptions()
        self._without_waiting.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> None:
        """Run the graph once; it waits for the GPU if outputs will be read."""
        is_fed = feeds is self._fed and not self._copies_feeds
        shapes = self._shapes if is_fed else {n: shape_of(v) for n, v in feeds.items()}
        changed = not self._outputs or shapes != self._shapes
        if changed and self._captured and self._shapes:
            raise ValueError(
                f"feeds: got shapes {shapes}, but the CUDA graph has been captured for "
                f"{self._shapes}; feed these, or leave enable_cuda_graph out"
            )
        if not is_fed:
            self.wait()  # what is overwritten may still be read
            for name, value in feeds.items():
                self._feed(name, value)
            self._copies_feeds = any(map(self._copies, feeds, feeds.values()))
            self._fed = feeds
        if changed:
            for name in self._reported:
                self._binding.bind_output(name, "cuda", self._device)
        waits = bool(outputs) or changed
        self.is_new = changed
        self._is_at_work = not waits
        self._session.run_with_iobinding(self._binding, None if waits else self._without_waiting)
        if changed:
            self._keep(shapes, super()._values())

    def place_of(self, name: str) -> tuple[str, int]:
        """The GPU, unless the nodes that read it run on the CPU."""
        return self._places.get(name, ("cuda", self._device))

    def _values(self) -> dict[str, Any]:
        return self._outputs

    def wait(self) -> None:
        """Return when the state can be read and written."""
        if self._is_at_work:
            self._binding.synchronize_outputs()
            self._is_at_work = False

    def take_outputs(self, other: StepIO) -> None:
        """Write outputs where another one wrote them, to feeds of the same shapes."""
        assert isinstance(other, CudaIO)
        self._keep(other._shapes, other._outputs)  # noqa: SLF001 - its own kind

    def _keep(self, shapes: dict[str, tuple[int, ...]], outputs: dict[str, Any]) -> None:
        self._shapes, self._outputs = shapes, outputs
        for name, value in outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def _feed(self, name: str, value: Any) -> None:
        if _is_text(value) or not isinstance(value, np.ndarray):
            if self._copies(name, value):
                self._bound.pop(name, None)  # the runtime has a copy of what it was
            super()._feed(name, value)
            return
        bound = self._bound.get(name)
        if isinstance(bound, _Copied) and bound.shape == value.shape:
            bound.value.update_inplace(value)
            if self.rebinds:
                self._binding.bind_ortvalue_input(name, bound.value)
            return
        own = np.array(value, order="C")  # on the CPU, a value of the runtime may share its memory
        copied = self._runtime.OrtValue.ortvalue_from_numpy(own, *self.place_of(name))
        self._binding.bind_ortvalue_input(name, copied)
        self._bound[name] = _Copied(copied, value.shape)

    def _copies(self, name: str, value: Any) -> bool:
        """Whether the runtime reads a copy of what is fed, which is made when it is bound."""
        if self.rebinds or isinstance(value, np.ndarray):
            return True
        return bool(value.device_name() != self.place_of(name)[0])


def _places_of_inputs(session: Any) -> dict[str, tuple[str, int]] | None:
    """Where the nodes that read each input run; None if the runtime is too old to tell."""
    if not hasattr(session, "get_input_memory_infos"):
        return None
    infos = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return {
        value.name: ("cuda", info.device_id) if info.name == "Cuda" else ("cpu", 0)
        for value, info in infos
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object


class _Copied:
    """A value of the device that holds the last array of a feed."""

    def __init__(self, value: Any, shape: tuple[int, ...]) -> None:
        self.value, self.shape = value, shape
