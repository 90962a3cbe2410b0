"""The gradients that a training graph computes, read through its optimizer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import graphopt

Values = dict[str, np.ndarray]
_MEAN = "mean_grad."


def probe(parameters: graphopt.Parameters) -> graphopt.RMSProp:
    """An optimizer that moves nothing; without decay, its mean of the gradients is the last one."""
    return graphopt.RMSProp(parameters, learning_rate=1e-30, decay=0.0, centered=True)


def gradients(session: graphopt.Session, feeds: Mapping[str, Any]) -> tuple[Values, Values]:
    """What a step of such a graph gives, and the gradients in it, by the names of parameters."""
    outputs = session.step(feeds)
    state = session.state.items()
    found = {n.removeprefix(_MEAN): array for n, array in state if n.startswith(_MEAN)}
    return dict(outputs), found
