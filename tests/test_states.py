"""The kinds of state, each described once."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import Parameter, states
from graphopt.states import (
    ACCUMULATED,
    AVERAGE,
    MEAN_GRAD,
    MEAN_SQUARE,
    MOMENT,
    OF_PARAMETERS,
    STATES,
)

OTHERS = (ACCUMULATED, AVERAGE)
"""What the functions of the update do not move."""


def test_names_and_symbols_tell_them_apart():
    assert len({state.name for state in STATES}) == len(STATES)
    symbols = [state.symbol for state in OF_PARAMETERS if state not in OTHERS]
    assert len(set(symbols)) == len(symbols)
    assert "" not in symbols
    assert {state.symbol for state in OTHERS} == {""}


@pytest.mark.quick
def test_split_is_the_inverse_of_of():
    names = {"fc.weight"}
    for state in OF_PARAMETERS:
        assert states.split(state.of("fc.weight"), names) == (state.name, "fc.weight")
        assert states.is_called_as_one(state.of("weight"))
    others = ("fc.weight", "moment", "moment.", "global_step", "statistic.x", "", "moment.weight")
    for name in others:
        assert states.split(name, names) == ("", name)
    assert not any(map(states.is_called_as_one, others[:-1]))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, (MEAN_SQUARE,)),
        ({"momentum": 0.9}, (MEAN_SQUARE, MOMENT)),
        ({"centered": True}, (MEAN_SQUARE, MEAN_GRAD)),
        ({"momentum": 0.9, "centered": True}, (MEAN_SQUARE, MEAN_GRAD, MOMENT)),
        ({"skip_on_overflow": True}, (MEAN_SQUARE,)),
        ({"average": 0.9}, (MEAN_SQUARE, AVERAGE)),
        ({"loss_scale": graphopt.DynamicLossScale(8.0)}, (MEAN_SQUARE,)),
    ],
)
def test_what_a_session_has(settings, kept):
    opt = graphopt.RMSProp([Parameter("w", (3,))], initial_mean_square=0.25, **settings)
    assert states.kept_by(opt) == kept
    assert opt.states == tuple(state.name for state in kept)
    weights = {"w": np.ones(3, np.float32)}
    found = graphopt.Session(graphopt.update_graph(opt), parameters=weights, kernels=False).state
    own = [state for state in states.OF_GRAPHS if state.is_kept(opt)]
    assert list(found) == ["w", *(state.of("w") for state in kept), *(state.name for state in own)]
    for state in own:
        array = found[state.name]
        assert (array.dtype.name, array.item()) == (state.dtype, state.start(opt))
    for state in kept:
        array = found[state.of("w")]
        assert array.dtype.name == state.dtype
        assert (array == (1 if state == AVERAGE else state.start(opt))).all()


def test_anything_with_the_hyperparameters_says_what_is_kept():
    assert states.kept_by(SimpleNamespace(centered=None, momentum="Nesterov")) == (
        *(MEAN_SQUARE, MOMENT),
    )


def test_a_state_that_nothing_depends_on_is_known_by_its_name():
    """Such as an average of the parameters; its formula is not looked for."""
    opt = graphopt.RMSProp([Parameter("w", (3,))])
    model = graphopt.update_graph(opt, layout="separate").model
    name = MOMENT.of("w")
    for values, kind in ((model.graph.input, name), (model.graph.output, f"{name}.next")):
        values.append(onnx.helper.make_tensor_value_info(kind, onnx.TensorProto.FLOAT, [3]))
    model.graph.node.append(onnx.helper.make_node("Neg", ["w.next"], [f"{name}.next"]))
    model.training_info[0].update_binding.add(key=name, value=f"{name}.next")
    del model.metadata_props[:]
    found = graphopt.inspect(model)
    assert found.parameters[0].states == (MEAN_SQUARE.name, MOMENT.name)
    assert [(hazard.kind, hazard.where) for hazard in found.hazards] == [
        ("unknown-update", (name,))
    ]
