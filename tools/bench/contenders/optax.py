"""optax, compiled by JAX."""

from functools import partial
from typing import Any

import numpy as np

from tools.bench.cases import DECAY, EPSILON, Group, UpdateCase, Variant
from tools.bench.contenders.contender import Run


def update(case: UpdateCase, _threads: int) -> Run:
    """``optax.rmsprop`` under ``jit``; it may overwrite parameters and state.

    JAX runs as many threads as the process has cores.
    """
    import jax
    import optax

    optimizer = _optimizer(case)
    gradients = [jax.numpy.array(array) for array in case.gradients()]
    parameters = [jax.numpy.array(array) for array in case.parameters()]
    held: dict[str, Any] = {"parameters": parameters, "state": optimizer.init(parameters)}

    @partial(jax.jit, donate_argnums=(0, 1))
    def updated(parameters: Any, state: Any, gradients: Any) -> Any:
        changes, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, changes), state

    def step() -> None:
        held["parameters"], held["state"] = jax.block_until_ready(
            updated(held["parameters"], held["state"], gradients)
        )

    return Run(step, lambda: [np.array(array) for array in held["parameters"]])


def _optimizer(case: UpdateCase) -> Any:
    import optax

    if len(case.groups) == 1:
        return _of_group(case.groups[0], case.variant)
    labels = {index: number for number, g in enumerate(case.groups) for index in g.indices}
    return optax.multi_transform(
        {number: _of_group(group, case.variant) for number, group in enumerate(case.groups)},
        [labels[index] for index in range(len(case.shapes))],
    )


def _of_group(group: Group, variant: Variant) -> Any:
    import optax

    rmsprop = optax.rmsprop(
        group.learning_rate,
        decay=DECAY,
        eps=EPSILON,
        initial_scale=1.0,
        centered=variant.centered,
        momentum=variant.momentum or None,
    )
    if group.weight_decay == 0:
        return rmsprop
    return optax.chain(optax.add_decayed_weights(group.weight_decay), rmsprop)
