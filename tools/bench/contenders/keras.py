"""Keras on JAX."""

import os
from functools import partial
from typing import Any

import numpy as np

from tools.bench.cases import DECAY, EPSILON, Group, UpdateCase, Variant
from tools.bench.contenders.contender import Run


def update(case: UpdateCase, _threads: int) -> Run:
    """``keras.optimizers.RMSprop`` under ``jit``, an optimizer a group; it may overwrite its state.

    JAX runs as many threads as the process has cores.
    """
    os.environ["KERAS_BACKEND"] = "jax"
    import jax

    every, gradients = case.parameters(), case.gradients()
    parts = [
        _Part([every[i] for i in g.indices], [gradients[i] for i in g.indices], g, case.variant)
        for g in case.groups
    ]
    fixed = [part.gradients for part in parts]
    held: dict[str, Any] = {
        "parameters": [part.parameters for part in parts],
        "states": [part.state for part in parts],
    }

    @partial(jax.jit, donate_argnums=(0, 1))
    def updated(parameters: Any, states: Any, gradients: Any) -> Any:
        new = [
            part.optimizer.stateless_apply(state, g, p)
            for part, p, state, g in zip(parts, parameters, states, gradients, strict=True)
        ]
        return [p for p, _ in new], [state for _, state in new]

    def step() -> None:
        held["parameters"], held["states"] = jax.block_until_ready(
            updated(held["parameters"], held["states"], fixed)
        )

    def current() -> list[np.ndarray]:
        for group, arrays in zip(case.groups, held["parameters"], strict=True):
            for index, array in zip(group.indices, arrays, strict=True):
                every[index] = np.array(array)
        return every

    return Run(step, current)


class _Part:
    """A group: its optimizer, its parameters and gradients, and its state before the first step."""

    def __init__(
        self,
        parameters: list[np.ndarray],
        gradients: list[np.ndarray],
        group: Group,
        variant: Variant,
    ) -> None:
        import jax
        import keras

        self.optimizer = keras.optimizers.RMSprop(
            group.learning_rate,
            rho=DECAY,
            momentum=variant.momentum,
            epsilon=EPSILON,
            centered=variant.centered,
            weight_decay=group.weight_decay or None,
        )
        self.optimizer.build([keras.Variable(array) for array in parameters])
        self.parameters = [jax.numpy.array(array) for array in parameters]
        self.gradients = [jax.numpy.array(array) for array in gradients]
        # Its mean squares, which it calls velocities, start at zeros by default.
        self.state = [
            jax.numpy.ones_like(variable.value)
            if "velocity" in variable.path
            else jax.numpy.array(variable.value)
            for variable in self.optimizer.variables
        ]
