"""A small network, and optimizers of all kinds, that several ranks train."""

from functools import cache

import numpy as np
import onnx.parser
from onnx import numpy_helper

import graphopt
from graphopt import DynamicLossScale, ParameterAverage, schedules

STEPS = 50
EXAMPLES = 9  # no number of ranks but one divides it


@cache
def network():
    """Three layers without anything that looks at the whole batch."""
    made = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 6] x) => (float[N, 3] y) {
        h = Gemm (x, w, b) t = Tanh (h) m = MatMul (t, u) s = Sigmoid (m) y = Gemm (s, v, c) }""")
    rng = np.random.default_rng(0)
    shapes = {"w": (6, 8), "b": (8,), "u": (8, 8), "v": (8, 3), "c": (3,)}
    for name, shape in shapes.items():
        array = 0.5 * rng.standard_normal(shape).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


def graph_of(rate=1e-3, *, groups=False, options=None, **settings):
    params = graphopt.parameters(network())
    if groups:
        (w, b, u, v, c) = params
        params = [
            {"params": [w, b], "lr": 2e-3, "weight_decay": 1e-2},
            {"params": [u, v], "grad_centralization": True},
            {"params": [c]},
        ]
    optimizer = graphopt.RMSProp(params, rate, epsilon=1e-3, initial_mean_square=0.0, **settings)
    return graphopt.training_graph(network(), "mse", optimizer, **(options or {}))


def feeds_of(step, *, bad=()):
    rng = np.random.default_rng(step)
    x = rng.standard_normal((EXAMPLES, 6)).astype(np.float32)
    if step in bad:
        x[0, 0] = np.inf  # of rank 0 alone
    return {"x": x, "labels": rng.standard_normal((EXAMPLES, 3)).astype(np.float32)}


def part(feeds, rank, size, alike=("group_mask", "learning_rate", "scale", "update")):
    bounds = [EXAMPLES * r // size for r in (rank, rank + 1)]
    return {n: a if n in alike else a[slice(*bounds)] for n, a in feeds.items()}


CASES = {
    "plain": ({}, {}),
    "centered": ({"momentum": 0.9, "centered": True, "average": ParameterAverage(0.9)}, {}),
    "groups": ({"groups": True, "momentum": 0.5}, {}),
    "mask": (
        {"groups": True, "options": {"group_mask": True}},
        {"group_mask": lambda step: np.array([True, step % 3 != 1, step % 2 == 0])},
    ),
    "schedule": ({"rate": schedules.ExponentialDecayLR(2e-3, 0.9, 10)}, {}),
    "fed rate": (
        {"rate": schedules.FromCaller()},
        {"learning_rate": lambda step: np.float32(1e-3 / (1 + step))},
    ),
    "overflow": ({"loss_scale": DynamicLossScale(2.0**20, growth_interval=5)}, {}),
    "fed scale": (
        {"loss_scale": schedules.FromCaller("scale"), "skip_on_overflow": True},
        {"scale": lambda step: np.float32(2.0 ** (step % 5))},
    ),
    "clipped": ({"clip_norm": 0.1, "loss_scale": 128.0}, {}),
    "clipped by group": ({"groups": True, "clip_norm": 0.05, "clip_norm_per": "group"}, {}),
    "clipped by parameter": ({"clip_norm": 0.02, "clip_norm_per": "parameter"}, {}),
    "accumulated": (
        {"options": {"accumulation": 3}, "clip_norm": 0.1, "skip_on_overflow": True},
        {},
    ),
    "separate": ({"momentum": 0.9, "options": {"layout": "separate"}}, {}),
    "foreach": ({"momentum": 0.9, "groups": True, "options": {"layout": "foreach"}}, {}),
}
BAD = {"overflow": (3, 11, 12, 30), "accumulated": (4, 5), "fed scale": (7,)}


def feeds_for(case, step):
    fed = CASES[case][1]
    return feeds_of(step, bad=BAD.get(case, ())) | {n: f(step) for n, f in fed.items()}


def trained(session, case, rank=0, size=1):
    outputs = [
        session.step(part(feeds_for(case, step), rank, size), outputs=["loss", "updated"])
        for step in range(STEPS)
    ]
    return session.state, outputs
