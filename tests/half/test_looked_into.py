"""Graphs in half precision, looked into: inspection, hazards, verification, and the command."""

import onnx
import pytest
from typer.testing import CliRunner

import graphopt
from graphopt import DynamicLossScale
from graphopt.cli import app
from graphopt.examples import digits_cnn

HALVES = pytest.mark.parametrize("precision", ["float16", "bfloat16"])
SCALES = {"float16": DynamicLossScale(1024.0), "bfloat16": 1.0}


def built(precision, provider="CPUExecutionProvider", **options):
    model = digits_cnn.build()
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3, **options)
    return graphopt.training_graph(
        model, "cross_entropy", optimizer, precision=precision, provider=provider
    )


@HALVES
def test_the_update_and_the_gradients_are_verified(precision):
    """The gradients against differences in float64, as far as rounding lets them be compared."""
    checked = graphopt.verify(built(precision, loss_scale=SCALES[precision]))
    assert checked.verified, checked.differences
    assert checked.unchecked == ()
    assert checked.gradients.precision == checked.forward.precision == "float64"
    assert checked.forward.forward_model


@pytest.mark.any_runtime
@HALVES
@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
@pytest.mark.parametrize("strip", [False, True])
def test_the_optimizer_is_recognised(precision, provider, strip):
    model = built(precision, provider, loss_scale=SCALES[precision], momentum=0.9).model
    if strip:
        del model.metadata_props[:]
    found = graphopt.inspect(model)
    assert found.model.precision[-1] == precision
    assert found.optimizer.name == "RMSProp"
    assert found.optimizer.momentum == 0.9
    assert {(p.dtype, p.learning_rate) for p in found.parameters} == {("float32", 1e-3)}
    assert {state.dtype for state in found.state} == {"float32", "int64"}
    assert found.hazards == ()


@pytest.mark.any_runtime
def test_float32_is_said_alone():
    assert graphopt.inspect(built(None)).model.precision == ("float32",)


@pytest.mark.any_runtime
@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_float16_without_a_loss_scale_is_a_hazard(provider):
    (hazard,) = graphopt.inspect(built("float16", provider)).hazards
    assert (hazard.kind, hazard.level) == ("float16-unscaled", "warning")
    assert "DynamicLossScale()" in hazard.fix


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    ("precision", "level"), [("float16", "warning"), ("bfloat16", "note"), (None, "note")]
)
def test_a_loss_scale_that_is_not_checked(precision, level):
    (hazard,) = graphopt.inspect(built(precision, loss_scale=1024.0)).hazards
    assert (hazard.kind, hazard.level) == ("loss-scale-unchecked", level)


@pytest.mark.any_runtime
def test_requirements_are_standard():
    needed = graphopt.requirements(built("bfloat16"))
    assert needed.standard
    assert "Cast" in needed.operators[""]


def test_costs_are_those_of_what_is_computed():
    """Products are counted as before, and values of 16 bits take half the bytes."""
    found = [graphopt.inspect(built(p, "CUDAExecutionProvider")) for p in (None, "float16")]
    flops = [{stage.stage: stage.flops for stage in f.stages}["forward"] for f in found]
    assert flops[0] <= flops[1] < 1.1 * flops[0]
    assert found[1].memory.activations < 0.8 * found[0].memory.activations


@pytest.mark.any_runtime
def test_the_command_builds_it(tmp_path):
    forward, train = tmp_path / "forward.onnx", tmp_path / "train.onnx"
    onnx.save(digits_cnn.build(), forward)
    arguments = ["build", str(forward), "--loss", "cross_entropy", "--precision", "float16"]
    result = CliRunner().invoke(app, [*arguments, "--loss-scale", "dynamic", "-o", str(train)])
    assert result.exit_code == 0, result.output
    assert graphopt.inspect(train).model.precision == ("float32", "float16")
    shown = CliRunner().invoke(app, ["inspect", str(train)])
    assert "computed in float32 and float16" in " ".join(shown.output.split())
