"""Training graphs of many configurations, and whether an inspection finds what they are made of."""

from functools import cache
from typing import Any

import onnx
from onnx import inliner

import graphopt
from graphopt import DynamicLossScale, RMSProp
from graphopt.average import ParameterAverage
from graphopt.examples import digits_cnn
from graphopt.schedules import (
    CosineDecayLR,
    ExponentialDecayLR,
    FromCaller,
    InverseDecayLR,
    MultiStepLR,
    NaturalExpDecayLR,
    PolynomialDecayLR,
    SequentialLR,
    WarmUpLR,
    piecewise_constant_lr,
)

MODEL = digits_cnn.build()


PARAMETERS = graphopt.parameters(MODEL)
CONV = PARAMETERS.matching("conv*")
DENSE = PARAMETERS.without(CONV)
ROOT = """<domain: "local", opset_import: ["": 17]>
inverse_root (step) => (lr) {
    one = Constant <value = double {1.0}> ()
    start = Constant <value = double {0.1}> ()
    count = Add (step, one)
    root = Sqrt (count)
    lr = Div (start, root)
}"""


WARM_UP = SequentialLR([WarmUpLR(0.1, 10), CosineDecayLR(0.0, 0.1, 90)], [10])
THREE = SequentialLR(
    [WarmUpLR(0.1, 10), ExponentialDecayLR(0.1, 0.5, 4), CosineDecayLR(0.0, 0.1, 9)], [10, 50]
)
SPLIT = [{"params": CONV}, {"params": DENSE, "lr": 0.3}]
# Arguments of the optimizer, and of the graph.
CONFIGURATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "separate": ({"learning_rate": 0.01}, {"layout": "separate"}),
    "buckets": ({"learning_rate": 0.01}, {"layout": "buckets"}),
    "cuda": ({"learning_rate": 0.01}, {"provider": "CUDAExecutionProvider"}),
    "momentum": ({"momentum": 0.9, "decay": 0.99}, {}),
    "nesterov": ({"momentum": 0.5, "nesterov": True}, {}),
    "centered": ({"centered": True, "epsilon": 1e-3}, {}),
    "centered momentum": ({"centered": True, "momentum": 0.9}, {"layout": "separate"}),
    "no decay of the mean square": ({"decay": 0.0}, {}),
    "epsilon outside": ({"epsilon_inside_root": False, "epsilon": 1e-8}, {}),
    "rate outside": ({"learning_rate_inside_moment": False, "momentum": 0.9}, {}),
    "starts at zero": ({"initial_mean_square": 0.0}, {}),
    "weight decay": ({"weight_decay": 1e-4}, {}),
    "decoupled": ({"weight_decay": 0.01, "decoupled_weight_decay": True}, {}),
    "loss scale": ({"loss_scale": 1000.0, "weight_decay": 3e-4}, {}),
    "locking": ({"use_locking": True}, {}),
    "groups": ({"params": [SPLIT[0] | {"weight_decay": 0.02}, SPLIT[1]]}, {}),
    "ordered": ({"params": [*SPLIT, {"order_params": PARAMETERS[::-1]}]}, {}),
    "centralized": ({"params": [SPLIT[0] | {"grad_centralization": True}, SPLIT[1]]}, {}),
    "centralized, decayed": (
        {
            "params": [SPLIT[0] | {"grad_centralization": True}, SPLIT[1]],
            "weight_decay": 0.07,
            "loss_scale": 7.0,
        },
        {},
    ),
    "group mask": ({"params": SPLIT}, {"group_mask": True}),
    "one rule, two groups": (
        {"params": [SPLIT[0], {"params": DENSE}]},
        {"group_mask": True, "layout": "separate"},
    ),
    "exponential": ({"learning_rate": ExponentialDecayLR(0.1, 0.5, 4)}, {}),
    "exponential stairs": ({"learning_rate": ExponentialDecayLR(0.1, 0.5, 4, True)}, {}),
    "natural": ({"learning_rate": NaturalExpDecayLR(0.1, 0.9, 4)}, {}),
    "natural stairs": ({"learning_rate": NaturalExpDecayLR(0.1, 0.9, 4, True)}, {}),
    "inverse": ({"learning_rate": InverseDecayLR(0.1, 0.3, 7)}, {}),
    "inverse stairs": ({"learning_rate": InverseDecayLR(0.1, 0.3, 7, True)}, {}),
    "cosine": ({"learning_rate": CosineDecayLR(0.01, 0.1, 100)}, {}),
    "polynomial": ({"learning_rate": PolynomialDecayLR(0.1, 0.01, 10, 0.5)}, {}),
    "polynomial again": ({"learning_rate": PolynomialDecayLR(0.1, 0.01, 9, 2.0, True)}, {}),
    "warm-up": ({"learning_rate": WarmUpLR(0.1, 10)}, {"layout": "separate"}),
    "milestones": ({"learning_rate": MultiStepLR(0.3, 0.1, [4, 9, 11])}, {}),
    "sequence": ({"learning_rate": WARM_UP}, {}),
    "three in sequence": ({"learning_rate": THREE, "weight_decay": WarmUpLR(0.5, 7)}, {}),
    "scaled decay schedule": ({"weight_decay": WarmUpLR(0.5, 7), "loss_scale": 3.0}, {}),
    "list": ({"learning_rate": piecewise_constant_lr([3, 9], [0.1, 0.01])}, {}),
    "from the caller": ({"learning_rate": FromCaller("rate")}, {}),
    "dynamic loss scale": ({"loss_scale": DynamicLossScale(floor=1.0, ceiling=2.0**20)}, {}),
    "loss scale from the caller": (
        {"loss_scale": FromCaller("loss_scale"), "weight_decay": 0.01},
        {"layout": "separate"},
    ),
    "skipping": ({"skip_on_overflow": True}, {"layout": "foreach"}),
    "averaged": ({"average": 0.99, "skip_on_overflow": True}, {}),
    "averaged with warm-up": (
        {"average": ParameterAverage(0.999, warm_up=True)},
        {"layout": "separate"},
    ),
    "clipped": ({"clip_norm": 5.0, "weight_decay": 0.01}, {}),
    "clipped by value": ({"clip_value": 0.5, "loss_scale": 3.0}, {}),
    "clipped one by one": (
        {"clip_norm": 5.0, "clip_norm_per": "parameter", "loss_scale": DynamicLossScale(2.0**15)},
        {"layout": "buckets"},
    ),
    "clipped by group": (
        {
            "params": [SPLIT[0] | {"grad_centralization": True}, SPLIT[1]],
            "clip_norm": 5.0,
            "clip_norm_per": "group",
            "weight_decay": 0.01,
            "loss_scale": 1000.0,
            "skip_on_overflow": True,
        },
        {"group_mask": True},
    ),
    "everything": (
        {
            "params": [
                SPLIT[0] | {"grad_centralization": True, "weight_decay": 0.01, "lr": WARM_UP},
                SPLIT[1] | {"lr": [0.1, 0.2, 0.3]},
            ],
            "momentum": 0.9,
            "centered": True,
            "loss_scale": 512.0,
            "decay": 0.95,
        },
        {"group_mask": True},
    ),
}


@cache
def configured(name: str) -> tuple[RMSProp, onnx.ModelProto]:
    """That of a configuration, which nobody changes."""
    return built(*CONFIGURATIONS[name])


def built(optimizer: dict[str, Any], graph: dict[str, Any]):
    """An optimizer and its training graph."""
    opt = RMSProp(**{"params": PARAMETERS} | optimizer)
    return opt, graphopt.training_graph(MODEL, "cross_entropy", opt, **graph).model


def without_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    del stripped.metadata_props[:]
    return stripped


def without_declarations(model: onnx.ModelProto) -> onnx.ModelProto:
    stripped = without_metadata(model)
    del stripped.training_info[:]
    return stripped


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    return inliner.inline_local_functions(without_declarations(model))


def described(schedule) -> Any:
    """A learning rate, as the inspection shows it."""
    description = dict(schedule.describe())
    return schedule.value(0) if description["schedule"] == "Fixed" else description


def by_nodes(schedule) -> Any:
    """The same without what nodes do not say."""
    description = described(schedule)
    if isinstance(description, dict):
        natural = description["schedule"] == "NaturalExpDecayLR"
        if natural and not description["is_stair"]:
            del description["decay_steps"]
    return description


def assert_clean(found: graphopt.inspection.Inspection, opt: RMSProp) -> None:
    """There are no hazards, but that a loss scale is not checked for overflow."""
    kinds = [(hazard.kind, hazard.level) for hazard in found.hazards]
    is_unchecked = opt.loss_scale != 1 and not opt.skip_on_overflow
    assert kinds == ([("loss-scale-unchecked", "note")] if is_unchecked else [])


def said_of(loss_scale, start: float | None) -> Any:
    """A loss scale, as the inspection shows it; nodes do not say what it starts at."""
    if isinstance(loss_scale, float):
        return loss_scale
    description = dict(loss_scale.describe())
    if start is None:
        description.pop("initial", None)
    return description


def check(
    found: graphopt.inspection.Inspection, opt: RMSProp, source: str, show, start: float | None
) -> None:
    assert found.optimizer is not None
    facts = found.optimizer
    assert facts.name == "RMSProp"
    assert facts.source == source
    decays = any(rule.decays for rule in opt.rules)
    same = ("decay", "momentum", "epsilon", "centered", "nesterov", "skip_on_overflow")
    for name in (*same, "clip_norm", "clip_norm_per", "clip_value", "average"):
        assert getattr(facts, name) == getattr(opt, name), name
    assert facts.loss_scale == said_of(opt.loss_scale, start)
    assert facts.epsilon_inside_root == opt.epsilon_inside_root
    assert facts.initial_mean_square == start
    assert facts.decoupled_weight_decay == (opt.decoupled_weight_decay and decays)
    assert facts.learning_rate_inside_moment == opt.learning_rate_inside_moment
    assert facts.guarded == (True if opt.centered else None)
    parameters = {parameter.name: parameter for parameter in found.parameters}
    assert set(parameters) == {parameter.name for parameter in opt.params}
    for wanted, rule in zip(opt.params, opt.rules, strict=True):
        parameter = parameters[wanted.name]
        assert parameter.shape == wanted.shape
        assert parameter.dtype == wanted.dtype
        assert parameter.op_type == wanted.op_type
        assert parameter.learning_rate == show(rule.learning_rate)
        assert parameter.weight_decay == show(rule.weight_decay)
        assert parameter.grad_centralization == rule.grad_centralization
        assert parameter.states == opt.states
        assert parameter.bytes == 4 * wanted.size
        assert parameter.state_bytes == 4 * wanted.size * len(opt.states)
