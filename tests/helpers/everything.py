"""A network with Dropout, trained with everything on."""

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

import graphopt
from graphopt import DynamicLossScale, ParameterAverage, schedules


def network(*, noise=True):
    """Batch normalization, noise if wanted, and Dropout between two products."""
    noisy, dropped = "", "n"
    if noise:
        noisy, dropped = "noise = RandomNormalLike <scale = 0.1> (n) m = Add (n, noise)", "m"
    made = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 6] x) => (float[N, 2] y) {{
        on = Constant <value = bool {{1}}> () r = Constant <value = float {{0.3}}> ()
        h = MatMul (x, w) n = BatchNormalization (h, scale, bias, mean, var)
        {noisy}
        d = Dropout ({dropped}, r, on) y = MatMul (d, v) }}""")
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((6, 8)), "v": rng.standard_normal((8, 2))}
    arrays |= {"scale": np.ones(8), "bias": np.zeros(8), "mean": np.zeros(8), "var": np.ones(8)}
    for name, array in arrays.items():
        made.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return made


def graph_of(model, *, scale=8.0, **options):
    """Everything: a falling rate, a dynamic scale, clipping, averages, sums of three steps."""
    params = {p.name: p for p in graphopt.parameters(model)}
    rate = schedules.ExponentialDecayLR(1e-2, 0.9, 1)
    groups = [
        {"params": [params[n] for n in ("w", "scale", "bias")], "weight_decay": 1e-3},
        {"params": [params["v"]], "weight_decay": 0.0},
    ]
    optimizer = graphopt.RMSProp(
        groups,
        rate,
        momentum=0.9,
        centered=True,
        epsilon=1e-3,
        loss_scale=DynamicLossScale(initial=scale, growth_interval=2),
        clip_norm=0.5,
        clip_norm_per="group",
        average=ParameterAverage(0.9, warm_up=True, statistics=True),
    )
    return graphopt.training_graph(model, "mse", optimizer, accumulation=3, **options)


def feeds_of(step, *, bad=True, **more):
    """Those of a step, one of five with a number that is none, if there are to be such."""
    rng = np.random.default_rng(step)
    x = rng.standard_normal((5, 6)).astype(np.float32)
    if bad and step % 5 == 3:
        x[0, 0] = np.nan
    return {"x": x, "labels": rng.standard_normal((5, 2)).astype(np.float32), **more}
