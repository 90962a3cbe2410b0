"""The steps that are measured, without ONNX Runtime's profiler and with it."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphopt import _runtime
from graphopt.graph import TrainingGraph
from graphopt.session import Session

RUN = "model_run"  # what the profiler calls a step

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """What the profiler has written.

    Attributes:
        graph: The graph that was given to the runtime; every node of it has a name.
        nodes: The nodes that it made of it, in topological order.
        kernels: The functions that are kernels.
        events: The profiler's events.
        milliseconds: How long each measured step took; they were the last.
    """

    graph: TrainingGraph
    nodes: Sequence[ir.Node]
    kernels: tuple[str, ...]
    events: Sequence[Event]
    milliseconds: Sequence[float]


@dataclass(frozen=True)
class Run:
    """Steps of a graph, all on one batch.

    Attributes:
        graph: The graph.
        feeds: The batch.
        steps: How many steps to measure.
        warm_up: How many to run before.
        threads: ONNX Runtime's threads; None: its choice.
        settings: Other arguments of `Session`.
    """

    graph: TrainingGraph
    feeds: Mapping[str, Any]
    steps: int
    warm_up: int
    threads: int | None
    settings: Mapping[str, Any]

    def unprofiled(self) -> list[float]:
        """How many milliseconds each step takes."""
        return self._timed(Session(self.graph, session_options=self._options(), **self.settings))

    def profiled(self) -> Record:
        """Take the steps under the profiler.

        Raises:
            RuntimeError: The profiler did not write all steps.
        """
        graph = _with_names(self.graph)
        with tempfile.TemporaryDirectory(prefix="graphopt-profile-") as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            with _runtime.written_to(folder, "the profile"):
                session = _ProfiledSession(graph, session_options=options, **self.settings)
            taken = self._timed(session)
            with _runtime.written_to(folder, "the profile"):
                events = json.loads(session.written_profile().read_text(encoding="utf-8"))
                optimized = ir.load(options.optimized_model_filepath)
        written = sum(event["name"] == RUN for event in events)
        if written != self.warm_up + self.steps:
            raise RuntimeError(
                f"the profiler of onnxruntime wrote {written} of {self.warm_up + self.steps} "
                "steps: it keeps a million events; ask for fewer steps"
            )
        return Record(graph, list(optimized.graph), session.kernels, events, taken)

    def _options(self) -> Any:
        options = _runtime.session_options(_runtime.onnxruntime())
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        return options

    def _timed(self, session: Session) -> list[float]:
        """The milliseconds of each step after the warm-up."""
        taken = []
        for _ in range(self.warm_up + self.steps):
            start = time.perf_counter()
            session.step(self.feeds)
            taken.append((time.perf_counter() - start) * 1e3)
        return taken[self.warm_up :]


class _ProfiledSession(Session):
    """A session of options with which the runtime's profiler is switched on."""

    def written_profile(self) -> Path:
        """End the profile; returns its file."""
        return Path(self._session.end_profiling())


def _with_names(graph: TrainingGraph) -> TrainingGraph:
    """The same graph, in which every node has a name, by which the profile may tell it."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for node in model.graph.node:
        node.name = node.name or next(filter(None, node.output), "")
    for function in model.functions:
        for index, node in enumerate(function.node):
            node.name = node.name or f"{node.op_type}_{index}"
    return TrainingGraph(model)
