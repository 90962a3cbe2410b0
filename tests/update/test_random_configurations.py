"""Random configurations against the float64 reference: groups, rates, masks, options, shapes."""

import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st

import graphopt
from graphopt import schedules
from graphopt.reference import ReferenceRMSProp

STEPS = 5
# Float32 against float64, of the largest value of an array (see `Scales`). An operation rounds by
# 6e-8, and 1 - decay, a difference of float32 numbers, by 3e-6 for a decay up to 0.99. Two things
# magnify that, and both are bounded: the variance s - a*a may be a small difference, but over 5
# steps with a decay >= 0.5 is not below s/32; and so may a gradient be after weight decay or
# centralization, but then the denominator is at least 0.03 (see `epsilons`).
TOLERANCE = 5e-6
HALF = 2**-11  # rounding to float16, relative


def uniform(low, high):
    return st.floats(low, high, allow_nan=False)


NOW_AND_THEN = st.sampled_from([False, False, False, True])
MOSTLY = st.sampled_from([True, True, True, False])
RATES = uniform(1e-3, 0.5)
COUNTS = st.integers(1, 2 * STEPS)
WARM_UPS = st.builds(schedules.WarmUpLR, RATES, COUNTS)
COSINES = st.builds(schedules.CosineDecayLR, st.sampled_from([0.0, 1e-4]), RATES, COUNTS)
SCHEDULES = st.one_of(
    WARM_UPS,
    COSINES,
    st.builds(schedules.ExponentialDecayLR, RATES, uniform(0.3, 1.0), COUNTS, st.booleans()),
    st.builds(schedules.NaturalExpDecayLR, RATES, uniform(0.01, 0.5), COUNTS, st.booleans()),
    st.builds(schedules.InverseDecayLR, RATES, uniform(0.01, 2.0), COUNTS, st.booleans()),
    st.builds(
        schedules.MultiStepLR,
        RATES,
        uniform(0.01, 2.0),
        st.lists(COUNTS, min_size=1, max_size=3, unique=True).map(sorted),
    ),
    st.builds(
        schedules.PolynomialDecayLR,
        RATES,
        st.sampled_from([0.0, 1e-3]),
        COUNTS,
        st.sampled_from([0.5, 1.0, 2.0]),
        st.booleans(),
    ),
    st.builds(
        schedules.SequentialLR,
        st.tuples(WARM_UPS, COSINES),
        st.tuples(st.integers(1, STEPS)),
    ),
)
LISTS = st.lists(RATES | st.just(0.0), min_size=STEPS, max_size=STEPS)
LEARNING_RATES = st.one_of(RATES, st.sampled_from([0, 1]), LISTS, LISTS.map(np.array), SCHEDULES)
WEIGHT_DECAYS = st.one_of(st.sampled_from([0, 0.0]), uniform(1e-4, 0.5), SCHEDULES)
SHAPES = st.one_of(
    st.sampled_from([(), (1,), (1, 1)]),
    st.tuples(st.integers(2, 7)),
    st.lists(st.integers(1, 4), min_size=2, max_size=5).map(tuple),
)


@st.composite
def parameters(draw):
    """One to eight parameters; now and then one or two of them are float16."""
    names = draw(st.lists(st.sampled_from(["w", "beta", "conv.weight"]), min_size=1, max_size=8))
    some = st.sets(st.integers(0, len(names) - 1), min_size=1, max_size=2)
    halves = draw(some) if draw(NOW_AND_THEN) else ()
    op_types = st.sampled_from(["Conv", "ConvTranspose", "Gemm", None])
    return [
        graphopt.Parameter(
            f"{name}{index}",
            draw(SHAPES),
            "float16" if index in halves else "float32",
            draw(op_types),
        )
        for index, name in enumerate(names)
    ]


@st.composite
def groups_of(draw, params):
    """The parameters in one to four groups, of which none is empty."""
    most = min(4, len(params))
    count = draw(st.integers(min(2, most), most) if draw(MOSTLY) else st.just(1))
    places = [*range(count), *(draw(st.integers(0, count - 1)) for _ in params[count:])]
    optional = {
        "lr": LEARNING_RATES,
        "weight_decay": WEIGHT_DECAYS,
        "grad_centralization": MOSTLY,
    }
    return [
        {"params": [p for p, place in zip(params, places, strict=True) if place == index]}
        | draw(st.fixed_dictionaries({}, optional=optional))
        for index in range(count)
    ]


def epsilons(inside_root, small_differences):
    """What keeps the denominator above 0.03 where it has to be."""
    if not small_differences:
        return st.sampled_from([1e-10, 1e-7, 1e-3, 1.0])
    return uniform(1e-3, 1.0) if inside_root else uniform(0.03, 1.0)


@st.composite
def optimizers(draw):
    params = draw(parameters())
    momentum = draw(st.just(0.0) | uniform(0.1, 0.95))
    options = {
        "learning_rate": draw(LEARNING_RATES),
        "decay": draw(uniform(0.5, 0.99)),
        "momentum": momentum,
        "centered": draw(st.booleans()),
        "loss_scale": draw(st.sampled_from([1.0, 0.5, 3.0, 1024])),
        "weight_decay": draw(WEIGHT_DECAYS),
        "epsilon_inside_root": draw(st.booleans()),
        "initial_mean_square": draw(st.sampled_from([1.0, 0.0, 0.5, 1])),
        "learning_rate_inside_moment": draw(st.booleans()),
        "decoupled_weight_decay": draw(st.booleans()),
        "nesterov": momentum > 0 and draw(st.booleans()),
    }
    groups = draw(groups_of(params)) if draw(MOSTLY) else []
    small_differences = any(
        options["centered"]
        or options["weight_decay"]
        or group.get("weight_decay")
        or group.get("grad_centralization")
        for group in [{}, *groups]
    )
    options["epsilon"] = draw(epsilons(options["epsilon_inside_root"], small_differences))
    order = [p for group in groups for p in group["params"]] or params
    if groups and draw(st.booleans()):
        order = draw(st.permutations(order))
        groups.insert(draw(st.integers(0, len(groups))), {"order_params": order})
    optimizer = graphopt.RMSProp(groups or params, **options)
    assert optimizer.params == tuple(order)
    return optimizer


@st.composite
def configurations(draw):
    """An optimizer; what is fed as mask at each step, or None for a graph without; a seed."""
    optimizer = draw(optimizers())
    count = len(optimizer.groups)
    mask = st.none() | st.lists(st.booleans(), min_size=count, max_size=count)
    masks = draw(st.lists(mask, min_size=STEPS, max_size=STEPS)) if draw(MOSTLY) else None
    return optimizer, masks, draw(st.integers(0, 2**32 - 1))


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
    max_examples=100,
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
