"""Runs a training graph, and owns its state between the steps."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from graphopt import _checks, checkpoint
from graphopt._files import PathLike, about as about_file
from graphopt._running_graph import RunningGraph
from graphopt._slips import no_attribute, says_what_is_meant
from graphopt._start import Start
from graphopt.carried import averaged
from graphopt.checkpoint import LoadReport
from graphopt.feeds import Feeds, check_fed
from graphopt.fingerprint import Fingerprint, of_model
from graphopt.finite import check_finite
from graphopt.graph import TrainingGraph, as_training_graph, check_state
from graphopt.inference import inference_model
from graphopt.large_models import save_model
from graphopt.limits import asked_for_by
from graphopt.on_device import read_stored
from graphopt.soundness.errors import about, naming
from graphopt.start_values import by_names
from graphopt.states import first_averages

# What other frameworks call what a session does.
_MEANT = {
    **dict.fromkeys(("run", "fit", "train_step", "train_on_batch"), "step runs a training step"),
    **dict.fromkeys(("train", "eval"), "export writes a model for inference, step trains"),
    **dict.fromkeys(("save", "save_state"), "save_checkpoint writes the state, export the model"),
    **dict.fromkeys(("load", "load_state_dict", "restore"), "load_checkpoint and load_state do it"),
    **dict.fromkeys(("state_dict", "parameters", "get_weights"), "its state has all values"),
}


class Session(RunningGraph):
    """Trains: one call of `step` runs the graph once.

    The state stays in ONNX Runtime's memory, on the device of the execution provider. A new value
    overwrites the old one where that is proven safe, otherwise the two take turns. A step that
    fails leaves the state as it was, and one that is interrupted, by Ctrl-C for example, is done
    or not: the state is always that of a whole step.

    Args:
        graph: A `TrainingGraph`, an ``onnx.ModelProto`` of one, or the path of one.
        parameters: Values to start from, by name; the others start from the model's own.
        providers: Execution providers in order of preference, as ONNX Runtime takes them, for
            example ``["CUDAExecutionProvider", "CPUExecutionProvider"]``; the CPU by default.
        session_options: An ``onnxruntime.SessionOptions`` of your own, for example with a number
            of threads or with profiling switched on. Where kernels are used, they are registered
            with it, once; a later session of the same options may still do without them. Without
            options, quantized operators are computed as they are written, and not in integers
            (the entry ``session.disable_quant_qdq``), no memory is planned ahead
            (``enable_mem_pattern`` is off) and none kept for a later result
            (``enable_mem_reuse`` is off): a step takes much less memory so.
        max_skips: How many steps may be skipped in a row, where the optimizer skips steps that
            overflow (``skip_on_overflow``): with that many, `step` raises FloatingPointError. On a
            GPU, each step then waits for its count. None: any number.
        kernels: Use the fused CPU kernels where they are installed; False runs the ONNX function
            bodies.
        deterministic: Compute the same bits whatever the number of cores, with one thread of the
            CPU. Without it, runs are the same bits with the same number of threads. Neither holds
            for random numbers without a seed, other versions of the runtime, or CPUs with other
            instructions.

    Attributes:
        inputs: What a step must be given, a list of `Feed`.
        graph: The `TrainingGraph`, without the values that parameters and running statistics
            start from: once they are placed, the session keeps none. `state` has today's.
        kernels: The names of the graph's functions that run as kernels, a sorted tuple; empty
            where their bodies run: without a compiler at installation, or with any provider but
            the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: ONNX Runtime is not installed.
        TypeError: ``graph`` is none of these, a parameter has the wrong dtype, or ``kernels``
            or ``deterministic`` is not a bool.
        ValueError: The file is not a training graph; a parameter is unknown, missing or of the
            wrong shape; a provider is not available; the installed ONNX Runtime cannot run the
            graph; there is no memory for its state.

    Threads: a graph that was built with ``use_locking=True`` may be used from several threads;
    steps and reads of the state then run one after the other. Without it, use from a second
    thread while the first is at work raises RuntimeError. A session works in the process that
    made it: in one that was forked from it, use raises RuntimeError too.

    Example:
        >>> session = Session("train.onnx")  # doctest: +SKIP
        >>> session.step({"x": x, "labels": labels})["loss"]  # doctest: +SKIP
        array(2.3025851, dtype=float32)
    """

    @says_what_is_meant
    def __init__(
        self,
        graph: TrainingGraph | onnx.ModelProto | PathLike,
        parameters: Mapping[str, Any] | None = None,
        providers: Sequence[Any] | None = None,
        *,
        session_options: Any = None,
        kernels: bool = True,
        max_skips: int | None = None,
        deterministic: bool = False,
    ) -> None:
        """See the class."""
        _checks.boolean("kernels", kernels)
        _checks.boolean("deterministic", deterministic)
        given = as_training_graph(graph)
        check_state(given)
        with naming(given):
            start = Start(given.carried, parameters)
        lean = given.without_initial_values()
        del given  # with the values that it starts from
        super().__init__(
            lean,
            start,
            providers,
            session_options,
            kernels=kernels,
            deterministic=deterministic,
            max_skips=max_skips,
        )
        self._class_labels, self._rates = lean.class_labels, lean.fed_rates
        self._fed_scale = lean.fed_loss_scale
        defaults = {
            feed.name: np.ones([dim for dim in feed.shape or () if isinstance(dim, int)], np.bool_)
            for feed in self.inputs
            if feed.name == "group_mask" and lean.group_mask
        }
        self._feeds = Feeds(self.inputs, defaults)
        self._fingerprint: Fingerprint | None = None

    def step(
        self, feeds: Mapping[str, Any], *, outputs: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one training step.

        Args:
            feeds: An array for each of `inputs`, by name, of its shape and dtype; or an
                ``onnxruntime.OrtValue``, which may be on the device already, and whose
                values are not looked at, be it labels, a learning rate or a loss scale; call `wait`
                before you write to one that a step may still read.
                ``group_mask`` may be left out: all groups are updated then.
            outputs: The names of the outputs to return; all by default. On a GPU each is a copy
                that waits for the step, and with none a step returns before it has run.

        Returns:
            Every output of the graph that is not state, by name: ``loss``, ``updated`` and the
            outputs of the forward model; or those of ``outputs``.

        Raises:
            ValueError: A feed is missing, unknown, of the wrong shape or empty, a label is not a
                class, a learning rate is NaN, infinite or below zero, a loss scale is not above
                zero, or there is no such output.
            FloatingPointError: As many steps in a row were skipped as ``max_skips`` allows.
            TypeError: A feed has the wrong dtype.
            RuntimeError: There is no learning rate for this step; the runtime failed, for example
                on an index out of range; or another thread is using the session, or a process that
                was forked (see the class). The state is as it was.
            MemoryError: There is no memory for the outputs. The state is as it was, or, where
                their sizes were not known before, the message says that the step is done.

        Example:
            >>> graph = update_graph(RMSProp([Parameter("w", ())], learning_rate=1.0, decay=0.0))
            >>> session = Session(graph, parameters={"w": np.float32(5)})
            >>> session.step({"w_grad": np.float32(2)})
            {'updated': array(True)}
            >>> session.state["w"]
            array(4., dtype=float32)
        """
        values = self._feeds.checked(feeds)
        labels, rates = self._class_labels, self._rates
        check_fed(values, labels=labels, rates=rates, scale=self._fed_scale)
        names = self._checked_outputs(outputs, self._reported)
        return self._take_step(values, names)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything that is carried from step to step, as NumPy arrays.

        Parameters and running statistics under their own names and in their own shapes,
        ``mean_square.<p>``, ``mean_grad.<p>``, ``moment.<p>`` (float32, shaped like the parameter)
        and ``global_step`` (int64 scalar), however the graph lays them out.
        """
        with self.borrowed() as state:
            return {name: part.copy() for name, part in state.items()}

    @contextmanager
    def borrowed(self) -> Iterator[dict[str, np.ndarray]]:
        """What `state` gives, but not copied where it is in the memory of the CPU.

        Until the end of the ``with``, nothing may write to it, and no step runs.
        """
        with self._exclusively():
            self._settle()
            self._io.wait()
            yield {
                name: part
                for value in self.graph.carried
                for name, part in self._state.parts(value)
            }

    @property
    def global_step(self) -> int:
        """The number of updates, as the state has it."""
        with self._exclusively():
            self._settle()
            self._io.wait()
            return self._step

    def wait(self) -> None:
        """Return when all steps are done: on a GPU, one that returned may still be running.

        Reading outputs or the state waits too.
        """
        with self._exclusively():
            self._settle()
            self._io.wait()

    @property
    def writes(self) -> bool:
        """Whether it writes files; of several processes that train together, one does."""
        return True

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What checkpoints say of the graph: its model, its loss and its hyperparameters."""
        return self._graph_itself().entry

    def check(self) -> None:
        """Look for numbers in the state that are NaN or infinite: training is lost with them.

        `save_checkpoint` and `export` do it; between them, do it every so many steps. It takes as
        long as reading the state.

        Raises:
            FloatingPointError: There are some.
        """
        with self.borrowed() as state:
            check_finite(state)

    def save_checkpoint(
        self, path: PathLike, *, note: Mapping[str, Any] | None = None, force: bool = False
    ) -> None:
        """Write the state to a safetensors file, atomically.

        Args:
            path: Of the file.
            note: What is to be noted in it, as JSON has it.
            force: Write also a state with NaN or infinite numbers; no session loads it, but
                `inspect` shows it.

        Raises:
            FloatingPointError: The state has NaN or infinite numbers.
            FileNotFoundError: The folder does not exist.
            ValueError: It is a file that the graph was read from.
        """
        _checks.boolean("force", force)
        self.graph.check_output(path)
        with about_file(path), self.borrowed() as state:
            entry = self.fingerprint
            if not force:
                check_finite(state)
            checkpoint.save(path, state, entry, note)

    def load_checkpoint(self, path: PathLike, *, strict: bool = True) -> LoadReport:
        """Continue from a checkpoint, bit for bit; if it does not fit, nothing changes.

        It may also be one of on-device training, with files of `export_on_device`; a folder of
        `Checkpoints`, of which the newest is taken; or a file like that of `TrainingGraph.save`
        with ``start``, which a program in another language has written. That one, and those of an
        older graphopt, have no checksums, of which a warning tells.

        Args:
            path: Of the file.
            strict: Refuse a checkpoint of another model, loss or optimizer. False loads the
                values whose name, shape and dtype fit, and keeps the others.

        Returns:
            What was loaded, and what is different.

        Raises:
            FileNotFoundError: There is no such file.
            TypeError: ``strict`` is not a bool.
            ValueError: It is not a checkpoint; it is damaged, or has values that no training
                leaves behind, such as NaN; it asks for more memory than there is; or it is one of
                another graph.
        """
        _checks.boolean("strict", strict)
        stored = read_stored(path, leaving=True)
        state = by_names(stored.state, self.graph.carried)
        differences = self._graph_itself().differences(stored.graph)
        expected = self._expected()
        if strict:
            problems = differences + checkpoint.misfits(state, expected)
            whose = "does not belong to this graph"
            checkpoint.refuse(path, whose, problems, checkpoint.OtherGraphError)
        fitting, report = checkpoint.fitting(state, expected, differences)
        del stored, state
        with asked_for_by(path):
            self._take(fitting, report.kept)
        return report

    def load_state(self, state: Mapping[str, np.ndarray]) -> LoadReport:
        """Continue with values of one's own; if one does not fit, nothing changes.

        Args:
            state: Arrays by their names in `state`. What is not among them stays as it is, but for
                the average of what is among them, which starts there: one of other numbers would
                be wrong for long.

        Returns:
            What was loaded, and what was kept.

        Raises:
            ValueError: A name is unknown, an array has another shape or dtype, or values that no
                training leaves behind, such as NaN.

        Example:
            >>> graph = update_graph(RMSProp([Parameter("w", ())]))
            >>> session = Session(graph, parameters={"w": np.float32(5)})
            >>> session.load_state({"w": np.array(3, np.float32)}).kept
            ('mean_square.w', 'global_step')
        """
        arrays = {name: np.asarray(array) for name, array in state.items()}
        expected = self._expected()
        kept = tuple(name for name in expected if name not in arrays)
        checkpoint.check_given(arrays, expected)
        loaded = tuple(arrays)
        self._take(arrays, kept)
        return LoadReport(loaded, kept)

    def _expected(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each value of the state."""
        return {v.name: (v.shape, c.dtype) for c in self.graph.carried for v in c.views}

    def _take(self, fitting: dict[str, np.ndarray], kept: Collection[str]) -> None:
        """Make a state of arrays, which are used up, and of what is kept."""
        fitting |= first_averages(fitting, kept)
        with self._exclusively():
            self._settle()
            self._io.wait()
            self._state.load(fitting)
            self._settle()

    def export(
        self,
        path: PathLike,
        *,
        training: bool = False,
        average: bool = False,
        force: bool = False,
    ) -> None:
        """Write the forward model with the trained parameters and running statistics, atomically.

        Args:
            path: Of the file.
            training: Write it in the mode in which it was given. By default it is written for
                inference: batch normalization uses its running statistics, and nothing is dropped.
            average: Write the averages of the parameters instead, and of the running statistics
                where the optimizer averages them.
            force: Write also a model with NaN or infinite numbers.

        Raises:
            FloatingPointError: The state has NaN or infinite numbers.
            FileNotFoundError: The folder does not exist.
            TypeError: ``training`` or ``average`` is not a bool.
            ValueError: The graph is an update alone, or carries no average; or the model draws a
                random mask that is no Dropout, so that what it is for inference is not known; or
                the file is one that the graph was read from.
        """
        _checks.boolean("training", training)
        self.graph.check_output(path)
        _checks.boolean("average", average)
        _checks.boolean("force", force)
        with about_file(path), self.borrowed() as state:
            if not force:
                check_finite(state)
            values = averaged(self.graph.carried, state) if average else state
            model = self.graph.lean_forward(values)
            save_model(model if training else inference_model(model), path)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say which method is meant by one of another framework."""
            meant = _MEANT.get(name)
            if meant is None:
                raise no_attribute("Session", name, dir(type(self)))
            raise AttributeError(f"Session has no attribute '{name}'; {meant}")

    def __repr__(self) -> str:
        """The graph, the provider and the kernels."""
        used = f", kernels={list(self.kernels)}" if self.kernels else ""
        return f"Session({self.graph!r}, providers={self._session.get_providers()}{used})"

    def _graph_itself(self) -> Fingerprint:
        if self._fingerprint is None:
            with about(self.graph):
                self._fingerprint = of_model(self.graph.lean, self.graph.carried)
        return self._fingerprint
