"""Random configurations against the float64 reference: groups, rates, masks, options, shapes."""

import numpy as np
from hypothesis import HealthCheck, given, settings

import graphopt
from graphopt.reference import ReferenceRMSProp
from tests.helpers.random_configurations import STEPS, configurations

# Float32 against float64, of the largest value of an array (see `Scales`). An operation rounds by
# 6e-8, and 1 - decay, a difference of float32 numbers, by 3e-6 for a decay up to 0.99. Two things
# magnify that, and both are bounded: the variance s - a*a may be a small difference, but over 5
# steps with a decay >= 0.5 is not below s/32; and so may a gradient be after weight decay or
# centralization, but then the denominator is at least 0.03 (see `epsilons`).
TOLERANCE = 5e-6
HALF = 2**-11  # rounding to float16, relative


class Data:
    """Initial values between 0.5 and 1.5 on either side of zero; normal gradients, some zero."""

    def __init__(self, optimizer, seed):
        self.rng, self.optimizer = np.random.default_rng(seed), optimizer

    def initial(self):
        draw = self.rng.uniform
        return {
            p.name: np.asarray(draw(0.5, 1.5, p.shape) * self.rng.choice([-1, 1], p.shape), p.dtype)
            for p in self.optimizer.params
        }

    def gradients(self):
        scale = self.optimizer.loss_scale
        return {
            p.name: np.asarray(
                self.rng.standard_normal(p.shape) * (self.rng.random(p.shape) > 0.1) * scale,
                p.dtype,
            )
            for p in self.optimizer.params
        }


class Scales(dict):
    """What an error of an array is relative to: the largest value that it has had.

    Weights and gradients are about 1; an array that happens to be smaller in all its elements has
    the errors of what it was computed from.
    """

    def __init__(self, optimizer):
        rates = [
            rule.learning_rate.value(step) for rule in optimizer.rules for step in range(STEPS)
        ]
        self.moment = max(rates) if optimizer.learning_rate_inside_moment else 1.0

    def of(self, name, array):
        least = self.moment if name.startswith("moment.") else 1.0
        self[name] = max(self.get(name, least), np.abs(array).max())
        return self[name]


@settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(configurations())
def test_random_configuration(configuration):
    optimizer, masks, seed = configuration
    data, scales = Data(optimizer, seed), Scales(optimizer)
    initial = data.initial()
    halves = [p.name for p in optimizer.params if p.dtype == "float16"]
    graph = graphopt.update_graph(optimizer, group_mask=masks is not None)
    session, reference = graphopt.Session(graph, initial), ReferenceRMSProp(optimizer, initial)
    for step in range(STEPS):
        gradients, enabled = data.gradients(), masks and masks[step]
        feeds = {f"{name}_grad": gradient for name, gradient in gradients.items()}
        if enabled is not None:
            feeds["group_mask"] = np.array(enabled)
        before = session.state
        reference.state |= {name: np.float64(before[name]) for name in halves}  # as rounded
        assert session.step(feeds)["updated"]
        reference.step(gradients, enabled)
        after = session.state
        assert after["global_step"] == reference.state["global_step"] == step + 1
        for parameter, rule in zip(optimizer.params, optimizer.rules, strict=True):
            name = parameter.name
            for key in (name, *(f"{kind}.{name}" for kind in optimizer.states)):
                assert after[key].shape == parameter.shape
                assert after[key].dtype == (parameter.dtype if key == name else "float32")
                if enabled is not None and not enabled[rule.group]:
                    assert after[key].tobytes() == before[key].tobytes(), f"{key} at step {step}"
                expected = reference.state[key]
                allowed = TOLERANCE * scales.of(key, expected)
                if key in halves:
                    allowed = allowed + HALF * np.abs(expected)
                error = np.abs(after[key] - expected)
                assert (error <= allowed).all(), f"{key} at step {step}: {error.max():.1e}"
