"""What a training run is fed: its samples, what is fed beside them, and what validates it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import graphopt
from graphopt._outputs import Named
from graphopt.command_line.data_options import check_not_read, constants_of
from graphopt.evaluation import Evaluator, evaluator_of
from graphopt.feeds import Feed
from graphopt.graph import TrainingGraph
from graphopt.samples import SampleOptions, Samples, fixed_size, open_samples
from graphopt.training_run import Run


@dataclass
class TrainingInputs:
    """What a run is fed.

    Attributes:
        feeds: What the graph takes.
        data: Where the samples are.
        samples: Them.
        constants: What each step is fed beside them.
        validation: Where the samples for validation are.
        options: What is said about samples.
        held_out: The samples for validation, once they are opened.
    """

    feeds: Sequence[Feed]
    data: str
    samples: Samples
    constants: dict[str, np.ndarray]
    validation: str | None
    options: SampleOptions
    held_out: Samples | None = None

    @classmethod
    def of(
        cls,
        graph: TrainingGraph,
        data: str,
        validation: str | None,
        options: SampleOptions,
        constant: Sequence[str] | None,
    ) -> "TrainingInputs":
        """What the options say."""
        feeds = graph.inputs
        constants = constants_of(constant, feeds)
        left = [f for f in feeds if f.name not in constants and f.name != "group_mask"]
        samples = open_samples(data, left, options)
        return cls(feeds, data, samples, constants, validation, options)

    def sampled(self) -> list[Feed]:
        """The feeds that there are samples of."""
        return self.samples.among(self.feeds)

    def evaluator(
        self, graph: TrainingGraph, session: graphopt.Session, metrics: Sequence[str] | None
    ) -> Evaluator | None:
        """What evaluates the samples for validation, if there are any."""
        if self.validation is None:
            if metrics:
                raise ValueError("--metric: needs --validation DATA")
            return None
        with session.borrowed() as state:
            evaluator = evaluator_of(graph, state, metrics or None)
        columns = {f.name for f in evaluator.feeds}
        known = {f: name for f, name in self.options.columns.items() if f in columns}
        options = SampleOptions(known, self.options.pictures)
        self.held_out = open_samples(self.validation, evaluator.feeds, options)
        self._check_classes(self.held_out)
        return evaluator

    def _check_classes(self, held_out: Samples) -> None:
        """Refuse validation data whose numbers stand for other classes."""
        ours, theirs = self.samples.classes, held_out.classes
        if ours is None or theirs is None or list(ours) == list(theirs):
            return
        for name, lists in (
            ("has no class", (ours, theirs)),
            ("alone has a class", (theirs, ours)),
        ):
            if other := [n for n in lists[0] if n not in lists[1]]:
                raise ValueError(
                    f"--validation: '{self.validation}' {name} '{other[0]}', so that its numbers "
                    f"of classes are not those of '{self.data}'; give both the same "
                    "folders, of which some may be empty"
                )
        raise ValueError(f"--validation: '{self.validation}' has its classes in another order")

    def validate_in(self, run: Run, evaluator: Evaluator | None, size: int) -> int:
        """Let a run look at the samples for validation after each epoch.

        Returns:
            How many of them are left out.
        """
        if evaluator is None or self.held_out is None:
            return 0
        samples = self.held_out
        size = fixed_size(samples.among(evaluator.feeds)) or size

        def validate() -> dict[str, float]:
            with run.session.borrowed() as state:
                return evaluator.evaluate(state, samples, size)

        run.validate = validate
        run.validated = {"validation data": samples.digest()}
        return len(samples) - evaluator.evaluated(samples, size)

    def steps_of_epoch(self, session: graphopt.Session, size: int) -> tuple[int, int]:
        """How many steps go through all samples once, and how many samples they leave out."""
        count = len(self.samples)
        steps, rest = divmod(count, size)
        if rest and fixed_size(self.sampled()) is None:
            return steps + 1, 0
        if steps == 0:
            file = next(iter(session.graph.files), "the graph")
            raise ValueError(
                f"'{self.data}' has {count} samples, and '{file}' takes {size} at a time"
            )
        return steps, rest

    def check_not_read(self, outputs: Sequence[Named]) -> None:
        """Refuse to write over data."""
        check_not_read(outputs, [("--data", self.data, self.samples)])
