"""A session of which each step is taken by several processes, each with a part of the batch."""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from graphopt import _checks, _runtime
from graphopt._files import PathLike
from graphopt._runtime_session import runtime_session
from graphopt._slips import says_what_is_meant
from graphopt.distributed._gradients import Gradients
from graphopt.distributed._ranks import AllReduce, attempt, ranks_of
from graphopt.distributed._split import split
from graphopt.feeds import check_fed
from graphopt.graph import TrainingGraph, as_training_graph
from graphopt.random_numbers import SEEDS
from graphopt.session import Session
from graphopt.states import RANDOM_SEED

MESSAGE = 2**24
"""Bytes of gradients that are sent at once; larger parameters are sent alone."""

_SEED_STEP = 1_103_515_249  # between the seeds of ranks, odd: all are different
_MOST = 5  # names in a message

LOSS = "loss"
"""The output with the mean loss."""


class DataParallel(Session):
    """Trains with several processes, the ranks: each computes gradients of its own examples.

    Rank r has n_r examples in a step, and a loss l_r that is their mean. All update with the
    gradients of L, summed over all ranks::

        L ← (Σ n_r · l_r) / (Σ n_r)

    the mean over all of them, as one session with the whole batch would, but for rounding. Whether
    a step is skipped, what the loss scale becomes, by how much gradients are clipped and when
    there is an update follows from these sums and from the state, and so is the same everywhere:
    all ranks have the same state bit for bit. Batch normalization normalizes by each rank's own
    batch; its running statistics move by the mean of those. Random numbers of Dropout are others on
    each rank. A learning rate, loss scale, ``group_mask`` or ``update`` that is fed is that of
    rank 0.

    It is a `Session`, with these differences. The state is that of rank 0 when it is made. `step`
    is called on all ranks. `save_checkpoint` and `export` write on rank 0 alone, and do nothing on
    the others; checkpoints are those of a `Session`, for any number of ranks. After
    `load_checkpoint` or `load_state` on rank 0, all ranks call `broadcast`.

    Args:
        graph: A training graph, as `Session` takes it: the same on all ranks.
        all_reduce: `graphopt.distributed.mpi`, `graphopt.distributed.torch_distributed`, or any
            function that gets a list of contiguous 1-D arrays (float32, float64 or int64) and
            writes to each the sum over all ranks, the same bits on each.
        parameters: See `Session`; those of rank 0 count.
        providers: See `Session`.
        rank: Which rank this is, from 0, where ``all_reduce`` has no attribute ``rank``.
        size: How many there are, where it has no attribute ``size``.
        compare_every: After so many steps, and after anything was loaded, ranks compare digests of
            their states; None: never.
        message: Bytes of gradients that are sent at once.
        pieces: In how many pieces the gradients are computed: those of one are added up while the
            next is computed, which wins where the link is slow. On CPUs, and by engines that have
            the attribute ``overlaps``, and it is true: gloo. Otherwise, one.
        session_options: See `Session`. By default, ranks on one machine share its cores.
        kernels: See `Session`.
        max_skips: See `Session`.
        deterministic: See `Session`.

    Attributes:
        rank: Which rank this is.
        size: How many there are.
        ranks: What they tell each other; all call its methods.

    Raises:
        RuntimeError: Another rank has another graph, or other settings.
        TypeError: ``all_reduce`` is no function.
        ValueError: As `Session`; ``all_reduce`` does not add up; an older graphopt built the graph,
            or it is an update alone.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }''')
        >>> graph = training_graph(model, "mse", RMSProp(parameters(model), learning_rate=0.01))
        >>> session = DataParallel(graph, lambda arrays: None, rank=0, size=1)
        >>> x, labels = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
        >>> session.step({"x": x, "labels": labels})["loss"]
        array(4., dtype=float32)
    """

    @says_what_is_meant
    def __init__(
        self,
        graph: TrainingGraph | onnx.ModelProto | PathLike,
        all_reduce: AllReduce,
        parameters: Mapping[str, Any] | None = None,
        providers: Sequence[Any] | None = None,
        *,
        rank: int | None = None,
        size: int | None = None,
        compare_every: int | None = 100,
        message: int = MESSAGE,
        pieces: int = 1,
        session_options: Any = None,
        kernels: bool = True,
        max_skips: int | None = None,
        deterministic: bool = False,
    ) -> None:
        """See the class."""
        if compare_every is not None:
            _checks.steps("compare_every", compare_every)
        _checks.steps("message", message)
        _checks.steps("pieces", pieces)
        self.ranks = ranks_of(all_reduce, rank, size)
        self.rank, self.size = self.ranks.rank, self.ranks.size
        half = split(as_training_graph(graph))

        def options() -> Any:
            """One's own, or a share of the cores, where ranks are on one machine."""
            local = getattr(all_reduce, "local_size", 1)
            if session_options is not None or deterministic or local == 1:
                return session_options
            made = _runtime.session_options(_runtime.onnxruntime())
            made.intra_op_num_threads = max(1, (os.cpu_count() or 1) // local)
            return made

        super().__init__(
            half.update,
            parameters,
            providers,
            session_options=options(),
            kernels=kernels,
            max_skips=max_skips,
            deterministic=deterministic,
        )
        held = [value.input for value in self.graph.carried]
        self._gradients = Gradients(
            half,
            held,
            message,
            lambda graph: runtime_session(
                *(graph, self._providers, options()),
                kernels=kernels,
                deterministic=deterministic,
            )[0],
            pieces if self._providers == [_runtime.CPU] and self.ranks.overlaps else 1,
        )
        # What the update is fed beside the gradients: small, of fixed shapes, and that of rank 0.
        small = [feed for feed in self.inputs if feed.name not in half.flat]
        self._fed = {feed.name: feed for feed in small}
        self._fed_size = sum(
            math.prod(size for size in feed.shape or () if isinstance(size, int)) for feed in small
        )
        self.inputs = [
            *(feed for feed in self._gradients.inputs if feed.name not in self._fed),
            *small,
        ]
        self._compare_every, self._taken, self._is_new = compare_every, 0, False
        self.ranks.check()
        self._check_graph(compare_every, message, pieces)
        self.broadcast()

    @property
    def writes(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    @property
    def fed(self) -> Collection[str]:
        """The inputs of the update, such as rates, of which those of rank 0 count."""
        return self._fed.keys()

    @property
    def gradients(self) -> Mapping[str, np.ndarray]:
        """The gradients of the last step, flat, by the names of buckets: the mean over all ranks.

        They are the memory that the next step writes to.
        """
        return self._gradients.flat

    def step(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Collection[str] | None = None,
        examples: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Run one training step, which all ranks do.

        Args:
            feeds: As in `Session.step`, this rank's part of the batch. A rank without examples
                gives no inputs of the forward model, and gets none of its outputs.
            outputs: The names of the outputs to return; all by default.
            examples: How many the loss is the mean of; by default the first size of the first
                input. Give it where some are ignored, so that a rank with many of them counts less.

        Returns:
            ``loss``, the mean over all examples; ``updated`` and ``gradient_norm``, the same on all
            ranks; and the outputs of the forward model and gradients that are reported, of this
            rank's examples, without a sum over ranks.

        Raises:
            RuntimeError: Another rank failed, or has ended; the ranks' states are different; or as
                in `Session.step`. Unless it says so, the state is as it was.
            ValueError: As in `Session.step`.
        """
        names = self._checked_outputs(outputs, [*self._gradients.reports, *self._reported])
        prepared, error = attempt(lambda: self._prepared(feeds, examples))
        batch, fed, count = prepared or ({}, {}, 0)
        fed, share = self._agree(fed, count, error)
        sums = self.ranks.sums(overlapped=self._gradients.count > 1)
        own, error = attempt(lambda: self._compute(batch, fed, share, names, sums.begin))
        for messages in self._gradients.messages[sums.begun :]:
            sums.begin(*messages)  # what is not there counts for nothing: the step fails on all
        reported = own or {}
        loss = float(reported[LOSS]) * share if LOSS in reported else 0.0
        tail = np.array([loss, error is not None], np.float64)
        sums.begin(tail)
        sums.end()
        if tail[1]:
            self.ranks.fail(error)
        done = super().step(
            {**self._gradients.flat, **{n: fed[n] for n in self._fed}},
            outputs=[name for name in self._reported if name in names],
        )
        self._taken += 1
        if LOSS in self._gradients.reports:
            reported[LOSS] = np.array(tail[0], self._gradients.reports[LOSS].dtype)
        self._compare_if_due()
        made = {**reported, **done}
        return {name: made[name] for name in names if name in made}

    def broadcast(self) -> None:
        """Take the state of rank 0; all ranks call it.

        Example:
            >>> if session.rank == 0:  # doctest: +SKIP
            ...     session.load_checkpoint("state.safetensors")
            >>> session.broadcast()  # doctest: +SKIP
        """
        if self.size > 1:
            state = self.state
            for value in self.graph.carried:
                for view in value.views:
                    data = self.ranks.from_first(state[view.name].tobytes())
                    state[view.name] = np.frombuffer(data, value.dtype).reshape(view.shape)
            if self.rank:
                self._take(state, ())
        self._is_new = False

    def compare(self) -> None:
        """Compare the states of all ranks; all call it.

        Raises:
            RuntimeError: One is different from that of rank 0; the message says which, and where.
        """
        digests = self._digests()
        own = np.array(list(digests.values()), np.int64)
        every = self.ranks.from_all(np.array([zlib.crc32(own.tobytes())], np.int64))
        if (every == every[0]).all():
            return
        table = self.ranks.from_all(own)
        wrong = [rank for rank in range(self.size) if (table[rank] != table[0]).any()]
        differs = (table != table[0]).any(axis=0)
        names = [name for name, is_other in zip(digests, differs, strict=True) if is_other]
        more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
        raise RuntimeError(
            f"after {self._taken} steps, the state of rank {', '.join(map(str, wrong))} differs "
            f"from that of rank 0 in {', '.join(map(repr, names[:_MOST]))}{more}: give all ranks "
            "the same versions, call broadcast() after loading, and go on from the last checkpoint"
        )

    def save_checkpoint(
        self, path: PathLike, *, note: Mapping[str, Any] | None = None, force: bool = False
    ) -> None:
        """Write the state on rank 0; see `Session.save_checkpoint`."""
        if self.writes:
            super().save_checkpoint(path, note=note, force=force)

    def export(self, path: PathLike, **settings: bool) -> None:
        """Write the forward model on rank 0; see `Session.export`."""
        if self.writes:
            super().export(path, **settings)

    def _prepared(
        self, feeds: Mapping[str, Any], examples: int | None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray], int]:
        """The batch, what the update is fed, and the number of examples."""
        if not isinstance(feeds, Mapping):
            raise TypeError(f"feeds: got {type(feeds).__name__}, expected a dict of arrays by name")
        if examples is not None:
            _checks.steps("examples", examples)
        given = {name: array for name, array in feeds.items() if name in self._fed}
        fed = self._feeds.checked({**self._gradients.flat, **given})
        small = {name: np.asarray(fed[name]) for name in self._fed}
        check_fed(small, rates=self._rates, scale=self._fed_scale)
        both = {name: small[name] for name in self._gradients.fed if name in small}
        rest = {name: array for name, array in feeds.items() if name not in given}
        if not rest and not examples and self.size > 1:
            return {}, small, 0
        batch = self._gradients.checked({**rest, **both})
        return batch, small, examples or self._gradients.examples(batch, self._fed)

    def _agree(
        self, fed: Mapping[str, np.ndarray], examples: int, error: Exception | None
    ) -> tuple[dict[str, np.ndarray], float]:
        """What rank 0 feeds the update, and this rank's share of the examples."""
        mine = [fed[name].astype(np.float64).ravel() for name in self._fed if fed]
        empty = np.zeros(self._fed_size)
        own = np.concatenate(mine) if mine and self.rank == 0 else empty
        head = np.array([examples, error is not None, self._is_new, *own], np.float64)
        self.ranks.add(head)
        total, failed, is_new, *values = head
        if failed:
            self.ranks.fail(error)
        if not total:
            raise ValueError("feeds: no rank has examples for this step")
        if is_new:
            self._is_new = False
            self.compare()
        agreed, at = {}, 0
        for name, array in fed.items():
            part = np.array(values[at : at + array.size])
            agreed[name], at = part.reshape(array.shape).astype(array.dtype), at + array.size
        return agreed, examples / total

    def _compute(
        self,
        batch: Mapping[str, Any],
        fed: Mapping[str, np.ndarray],
        share: float,
        names: Collection[str],
        ready: Callable[..., object],
    ) -> dict[str, np.ndarray]:
        """This rank's gradients, in their memory; returns what is reported."""
        if not batch:
            self._gradients.clear()
            return {}
        with self._exclusively():
            self._settle()
            self._io.wait()
            held = {
                value.input: self._state.held(value)
                for value in self.graph.carried
                if value.input in self._gradients.reads
            }
        if RANDOM_SEED.name in held:
            seed = int(held[RANDOM_SEED.name].numpy()) + self.rank * _SEED_STEP
            held[RANDOM_SEED.name] = np.array(seed % SEEDS, np.int64)
        both = {name: fed[name] for name in self._gradients.fed if name in fed}
        return self._gradients.run({**batch, **both}, held, share, {LOSS, *names}, ready)

    def _digests(self) -> dict[str, int]:
        """The CRC-32 of each value of the state, by its name."""
        with self.borrowed() as state:
            return {
                name: zlib.crc32(array.reshape(-1).view(np.uint8).data)
                for name, array in state.items()
            }

    def _compare_if_due(self) -> None:
        every = self._compare_every
        if every is not None and self._taken % every == 0 and self.size > 1:
            self.compare()

    def _take(self, fitting: dict[str, np.ndarray], kept: Collection[str]) -> None:
        super()._take(fitting, kept)
        self._is_new = True

    def _check_graph(self, *settings: object) -> None:
        """Refuse to train another graph than rank 0, or to talk otherwise to the ranks.

        Raises:
            RuntimeError: Some rank does.
        """
        said = json.dumps([self.fingerprint, list(self._gradients.flat), list(self._fed), settings])
        table = self.ranks.from_all(np.frombuffer(hashlib.sha256(said.encode()).digest(), np.int64))
        wrong = [rank for rank in range(self.size) if (table[rank] != table[0]).any()]
        if wrong:
            raise RuntimeError(
                f"rank {', '.join(map(str, wrong))} has another training graph than rank 0, or "
                "another compare_every, message or pieces: give all the same"
            )
