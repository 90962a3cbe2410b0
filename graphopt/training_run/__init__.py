"""What `graphopt train` does: goes through samples, saves, stops when told, and goes on."""

from graphopt.training_run.drawing import check_plot, draw
from graphopt.training_run.history import LOSS, VALIDATION, History
from graphopt.training_run.log import Log, log_format
from graphopt.training_run.plan import Plan
from graphopt.training_run.rates import rate_of, scalars
from graphopt.training_run.run import Run, Watcher
from graphopt.training_run.signals import Stop, stopping
from graphopt.training_run.target import Target, target_at

__all__ = [
    "LOSS",
    "VALIDATION",
    "History",
    "Log",
    "Plan",
    "Run",
    "Stop",
    "Target",
    "Watcher",
    "check_plot",
    "draw",
    "log_format",
    "rate_of",
    "scalars",
    "stopping",
    "target_at",
]
