"""What a contender is."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tools.bench.cases import UpdateCase, is_update, update_case


@dataclass(frozen=True)
class Run:
    """A case that is ready.

    Attributes:
        step: What is measured.
        parameters: The present values of the case's tensors, in their order; None where the
            contender computes no update that could be compared.
    """

    step: Callable[[], object]
    parameters: Callable[[], list[np.ndarray]] | None = None


class UnavailableError(Exception):
    """This machine lacks what the contender needs; the message says what."""


@dataclass(frozen=True)
class Contender:
    """Something that can run cases.

    Attributes:
        environment: The virtual environment that has what it needs.
        update: Gets ready for an update with a number of threads; None: it has none.
        step: Gets ready for a training step of a network of the zoo; None: it has none.
        packages: The packages whose versions matter.
        note: What it is, where the name does not say it.
        departures: Variants whose update it computes otherwise, and how.
    """

    environment: str
    update: Callable[[UpdateCase, int], Run] | None = None
    step: Callable[[str, int], Run] | None = None
    packages: tuple[str, ...] = ()
    note: str = ""
    departures: dict[str, str] = field(default_factory=dict)

    def takes(self, case: str) -> bool:
        """Whether it can run cases of this kind."""
        return (self.update if is_update(case) else self.step) is not None

    def prepare(self, case: str, threads: int) -> Run:
        """Get ready for a case.

        Raises:
            UnavailableError: This machine lacks something.
        """
        if is_update(case):
            assert self.update is not None
            return self.update(update_case(case), threads)
        assert self.step is not None
        return self.step(case.removeprefix("step/"), threads)
