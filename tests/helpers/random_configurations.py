"""Random configurations: groups, rates, masks, options, shapes."""

import numpy as np
from hypothesis import strategies as st

import graphopt
from graphopt import schedules

STEPS = 5


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
