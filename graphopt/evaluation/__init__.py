"""How good a model is on samples: its loss, and metrics."""

from graphopt.evaluation.evaluator import Evaluator, LossOf, evaluator_of, feed_named, values_of
from graphopt.evaluation.metrics import METRICS, metric_of

__all__ = [
    "METRICS",
    "Evaluator",
    "LossOf",
    "evaluator_of",
    "feed_named",
    "metric_of",
    "values_of",
]
