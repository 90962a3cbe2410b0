"""Variants of the update, with operands for them."""

import numpy as np

from graphopt.update import core

ATTRIBUTES = {"decay": 0.9, "epsilon": 1e-3, "momentum": 0.8, "loss_scale": 3.0, "clip_value": 0.4}
SCALARS = {
    "lr": np.array(0.07, np.float32),
    "f": np.array(0.6, np.float32),
    "k": np.array(0.03, np.float32),
    "on": np.array(True),
}
# Each way through a kernel: with and without each preparation, each state, and the mask.
TYPICAL = [
    core.Variant(),
    core.Variant(centered=True, weight_decay="DecoupledWeightDecay", chunked=True),
    core.Variant(momentum="Momentum", weight_decay="WeightDecay", unscale=True),
    core.Variant(weight_decay="WeightDecay", scale=True, clip_value=True),
    core.Variant(
        centered=True,
        momentum="Nesterov",
        epsilon_outside=True,
        rate_outside=True,
        weight_decay="DecoupledWeightDecay",
        unscale=True,
        mask=True,
    ),
]
