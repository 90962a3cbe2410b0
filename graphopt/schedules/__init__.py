"""Learning rates and weight decays that depend on the step, computed inside the graph.

Six schedules and seven list-making functions with the semantics of MindSpore, one schedule of
PyTorch, what composes them, and the base class for one's own. Steps count from 0.
"""

from graphopt.schedules._compose import FromCaller, OnnxSchedule, SequentialLR
from graphopt.schedules._decays import (
    CosineDecayLR,
    ExponentialDecayLR,
    InverseDecayLR,
    NaturalExpDecayLR,
    PolynomialDecayLR,
    WarmUpLR,
)
from graphopt.schedules._lists import (
    cosine_decay_lr,
    exponential_decay_lr,
    inverse_decay_lr,
    natural_exp_decay_lr,
    piecewise_constant_lr,
    polynomial_decay_lr,
    warmup_lr,
)
from graphopt.schedules._multi_step import MultiStepLR
from graphopt.schedules.base import LearningRateSchedule

__all__ = [
    "CosineDecayLR",
    "ExponentialDecayLR",
    "FromCaller",
    "InverseDecayLR",
    "LearningRateSchedule",
    "MultiStepLR",
    "NaturalExpDecayLR",
    "OnnxSchedule",
    "PolynomialDecayLR",
    "SequentialLR",
    "WarmUpLR",
    "cosine_decay_lr",
    "exponential_decay_lr",
    "inverse_decay_lr",
    "natural_exp_decay_lr",
    "piecewise_constant_lr",
    "polynomial_decay_lr",
    "warmup_lr",
]
