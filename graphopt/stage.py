"""The stages of a training step, and what the names of their nodes begin with."""

from typing import Literal, get_args

Stage = Literal["forward", "loss", "backward", "update"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""In the order of a step: what several stages need belongs to the first."""

BACKWARD_PREFIX = "backward/"
"""Then comes the forward node whose gradient a node computes."""
AGAIN_PREFIX = f"{BACKWARD_PREFIX}again/"
"""Nodes that let what is computed again wait for the backward pass."""
UPDATE_PREFIX = "update/"
"""Then comes the bucket, where a node updates one."""
