"""The files that onnxruntime-training's own `generate_artifacts` writes, and those of graphopt."""

import importlib

import onnx
import pytest

import graphopt
from graphopt import RMSProp
from graphopt.examples import digits_cnn
from tests.helpers.environments import needs_training_package
from tests.helpers.on_device import forward_model

MODEL = digits_cnn.build()
PARAMETERS = graphopt.parameters(MODEL)


@pytest.fixture(scope="module", params=["AdamW", "SGD"])
def artifacts(request, tmp_path_factory):
    """An optimizer's name and the folder of its files."""
    module = importlib.import_module("onnxruntime.training.artifacts")
    folder = tmp_path_factory.mktemp(request.param)
    module.generate_artifacts(
        forward_model(),
        requires_grad=["w", "b"],
        frozen_params=["scale"],
        loss=module.LossType.MSELoss,
        optimizer=getattr(module.OptimType, request.param),
        artifact_directory=folder,
    )
    return request.param, folder


@needs_training_package
class TestOfONNXRuntime:
    def test_optimizer_model(self, artifacts):
        name, folder = artifacts
        found = graphopt.inspect(folder / "optimizer_model.onnx")
        assert found.model.kind == "on-device optimizer model"
        assert (found.optimizer.name, found.optimizer.source) == (name, "graph")
        if name == "AdamW":
            assert found.optimizer.others == {
                "alpha": 0.9,
                "beta": 0.999,
                "epsilon": 1e-6,
                "weight_decay": 0.0,
                "adam_mode": 1.0,
                "correct_bias": 1.0,
            }
        assert {value.name for value in found.inputs} >= {"learning_rate", "params", "gradients"}
        targets = {target.name: target for target in found.targets}
        assert not targets["ONNX Runtime (CPU)"].runs  # the operator is in training builds only
        reasons = targets["on-device training API"].reasons
        # The file has the newest version that the onnx package knows, which may be too new.
        assert all("knows" in reason for reason in reasons)
        model = onnx.load(folder / "optimizer_model.onnx")
        model.ir_version = 9
        for entry in model.opset_import:
            if not entry.domain:
                entry.version = 17
        lowered = {target.name: target.runs for target in graphopt.inspect(model).targets}
        assert lowered["on-device training API"]

    @pytest.mark.quick
    def test_training_model(self, artifacts):
        _, folder = artifacts
        found = graphopt.inspect(folder / "training_model.onnx")
        assert found.model.kind == "on-device gradient model"
        assert found.optimizer is None
        assert [(p.name, p.shape) for p in found.parameters] == [("w", (3, 4)), ("b", (4,))]
        assert {p.op_type for p in found.parameters} == {"MatMul", None}
        assert all(parameter.gradient for parameter in found.parameters)
        stages = {stage.stage: stage.nodes for stage in found.stages}
        assert stages["forward"] >= 2
        assert stages["forward"] + stages["loss"] == 6
        assert stages["backward"] > 6
        assert {target.name: target.runs for target in found.targets}["on-device training API"]
        assert [h for h in found.hazards if h.level != "note"] == []

    def test_eval_model(self, artifacts):
        _, folder = artifacts
        found = graphopt.inspect(folder / "eval_model.onnx")
        assert found.model.kind == "model"
        assert found.hazards == ()

    def test_verify_says_what_it_is(self, artifacts):
        name, folder = artifacts
        found = graphopt.verify(folder / "optimizer_model.onnx")
        assert not found.verified
        assert found.optimizer.startswith(name)
        assert found.differences == (f"the graph computes {name}, not RMSProp",)


class TestOfGraphopt:
    OPTIMIZER = RMSProp(
        [
            {"params": PARAMETERS.matching("conv*"), "weight_decay": 0.01},
            {"params": PARAMETERS.without(PARAMETERS.matching("conv*")), "lr": 0.02},
        ],
        learning_rate=0.01,
        momentum=0.9,
        loss_scale=8.0,
    )

    @pytest.mark.parametrize("strip", [False, True])
    @pytest.mark.parametrize("accumulate", [False, True])
    def test_training_model(self, tmp_path, accumulate, strip):
        files = graphopt.export_on_device(
            MODEL, "cross_entropy", self.OPTIMIZER, tmp_path, gradient_accumulation=accumulate
        )
        model = onnx.load(files.training_model)
        if strip:
            del model.metadata_props[:]
        found = graphopt.inspect(model)
        assert found.model.kind == "on-device training model"
        assert found.optimizer.source == ("graph" if strip else "metadata and graph")
        assert (found.optimizer.decay, found.optimizer.momentum) == (0.9, 0.9)
        assert found.optimizer.loss_scale == 8.0
        rules = {p.name: (p.learning_rate, p.weight_decay, p.shape) for p in found.parameters}
        assert rules == {
            p.name: ((0.01, 0.01) if p.name.startswith("conv") else (0.02, 0.0)) + (p.shape,)
            for p in PARAMETERS
        }
        assert found.layout == "separate"
        assert all(state.output is None for state in found.state)
        kinds = [state.kind for state in found.state]
        assert (kinds.count("parameter"), kinds.count("moment")) == (8, 8)
        assert {target.name: target.runs for target in found.targets}["on-device training API"]

    @pytest.mark.parametrize("strip", [False, True])
    def test_optimizer_model(self, tmp_path, strip):
        shapes = len({p.shape for p in PARAMETERS})
        assert shapes == len(PARAMETERS)  # which this way of training tells them apart by
        files = graphopt.export_on_device(
            MODEL, "cross_entropy", self.OPTIMIZER, tmp_path, optimizer_model=True
        )
        model = onnx.load(files.optimizer_model)
        if strip:
            del model.metadata_props[:]
        found = graphopt.inspect(model)
        assert found.model.kind == "on-device optimizer model"
        assert found.optimizer.name == "RMSProp"
        assert found.optimizer.source == ("graph" if strip else "metadata and graph")
        for name in ("decay", "momentum", "epsilon", "centered", "loss_scale"):
            assert getattr(found.optimizer, name) == getattr(self.OPTIMIZER, name), name
        assert len(found.parameters) == (0 if strip else 8)
        gradients = graphopt.inspect(files.training_model)
        assert gradients.model.kind == "on-device gradient model"
        assert {p.name for p in gradients.parameters} == {p.name for p in PARAMETERS}
