"""20 steps in another framework and 20 here, or the other way, against 40 there."""

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

import graphopt
from graphopt import conversion
from tests.helpers.folders import ROOT
from tools.conversions import (
    CASES,
    HALF,
    SHAPES,
    WHOLE,
    differences,
    gradients,
    here,
    optimizer,
    start,
)

pytestmark = pytest.mark.any_runtime

RECORDED = ROOT / "tests" / "reference" / "conversion"
# Of the largest value of a parameter: the graph computes in float32, and so do the frameworks.
TOLERANCE = 1e-6
NAMES = list(SHAPES)


def session_of(framework, case):
    return graphopt.Session(
        graphopt.update_graph(optimizer(framework, CASES[framework][case])), parameters=start()
    )


def largest(whole, other):
    return max(np.abs(v - other[n]).max() / np.abs(v).max() for n, v in whole.items())


@pytest.mark.quick
@pytest.mark.parametrize("case", CASES["torch"])
def test_torch_goes_on_here_and_this_goes_on_in_torch(tmp_path, case):
    ended_here, ended_there = differences("torch", CASES["torch"][case], tmp_path)
    assert max(ended_here, ended_there) < TOLERANCE


class RMSpropTF:
    """timm 1.0.31, timm.optim.RMSpropTF: _single_tensor_rmsprop_tf in timm/optim/rmsprop_tf.py."""

    def __init__(self, values, state=None, **group):
        self.w = {name: value.astype(np.float64) for name, value in values.items()}
        self.group = {"alpha": 0.9, "eps": 1e-10, "momentum": 0.0, "weight_decay": 0.0} | group
        self.state = state or {
            name: {
                "square_avg": np.ones(value.shape),
                "grad_avg": np.zeros(value.shape),
                "momentum_buffer": np.zeros(value.shape),
                "step": 0,
            }
            for name, value in self.w.items()
        }

    def step(self, grads):
        one = self.group
        decoupled = one.get("decoupled_decay", False)
        for name, gradient in grads.items():
            g, w, s, lr = gradient, self.w[name], self.state[name], one["lr"]
            s["step"] += 1
            if decoupled:
                w *= 1 - lr * one["weight_decay"]
            else:
                g = g + one["weight_decay"] * w
            s["square_avg"] += (1 - one["alpha"]) * (g**2 - s["square_avg"])
            s["grad_avg"] += (1 - one["alpha"]) * (g - s["grad_avg"])
            centered = s["grad_avg"] ** 2 if one.get("centered") else 0.0
            average = np.sqrt(s["square_avg"] - centered + one["eps"])
            inside = one.get("lr_in_momentum", True)
            s["momentum_buffer"] *= one["momentum"]
            s["momentum_buffer"] += (lr if inside else 1.0) * g / average
            w -= s["momentum_buffer"] * (1.0 if inside else lr)

    def state_dict(self):
        group = {"centered": False, "decoupled_decay": False, "lr_in_momentum": True}
        group |= {"corrected_weight_decay": False, "caution": False} | self.group
        return {
            "state": dict(enumerate(self.state.values())),
            "param_groups": [group | {"params": list(range(len(self.w)))}],
        }


@pytest.mark.parametrize("case", CASES["timm"])
def test_timm_goes_on_here_and_this_goes_on_in_timm(tmp_path, case):
    settings = CASES["timm"][case]
    whole, half = (RMSpropTF(start(), **settings) for _ in range(2))
    for step in gradients(0, WHOLE):
        whole.step(step)
    for step in gradients(0, HALF):
        half.step(step)
    session = session_of("timm", case)
    weights = {name: value.astype(np.float32) for name, value in half.w.items()}
    conversion.load_state(session, half.state_dict(), weights=weights, names=NAMES)
    assert session.global_step == HALF
    here(session, HALF, WHOLE)
    assert largest(whole.w, session.state) < TOLERANCE

    session = session_of("timm", case)
    here(session, 0, HALF)
    conversion.save_state(session, tmp_path / "ours.pt", "timm")
    saved = torch.load(tmp_path / "ours.pt", weights_only=True)
    (group,) = saved["optimizer"]["param_groups"]
    assert group["param_names"] == NAMES
    said = RMSpropTF(start(), **settings).state_dict()["param_groups"][0]
    assert {key: group[key] for key in said} == said
    state = {
        name: {"grad_avg": np.zeros(SHAPES[name]), "momentum_buffer": np.zeros(SHAPES[name])}
        | {key: value.numpy().astype(np.float64) for key, value in own.items()}
        for name, own in zip(NAMES, saved["optimizer"]["state"].values(), strict=True)
    }
    assert {float(own["step"]) for own in state.values()} == {HALF}
    weights = {name: value.numpy() for name, value in saved["model"].items()}
    ended = RMSpropTF(weights, state, **settings)
    for step in gradients(HALF, WHOLE):
        ended.step(step)
    assert largest(whole.w, ended.w) < TOLERANCE


def recorded(case, step):
    """A checkpoint that MindSpore 2.10 has written, by ``python -m tools.conversions``."""
    return RECORDED / f"mindspore_{case}_{step}.ckpt"


def checkpoint_message():
    """The message of a checkpoint, as protobuf itself reads it."""
    file = descriptor_pb2.FileDescriptorProto(
        name="checkpoint.proto", package="of", syntax="proto2"
    )
    kind = descriptor_pb2.FieldDescriptorProto
    fields = {
        "Tensor": [
            ("dims", 1, kind.TYPE_INT64, kind.LABEL_REPEATED, None),
            ("tensor_type", 2, kind.TYPE_STRING, kind.LABEL_REQUIRED, None),
            ("tensor_content", 3, kind.TYPE_BYTES, kind.LABEL_REQUIRED, None),
        ],
        "Value": [
            ("tag", 1, kind.TYPE_STRING, kind.LABEL_REQUIRED, None),
            ("tensor", 2, kind.TYPE_MESSAGE, kind.LABEL_OPTIONAL, ".of.Tensor"),
        ],
        "Checkpoint": [("value", 1, kind.TYPE_MESSAGE, kind.LABEL_REPEATED, ".of.Value")],
    }
    for name, entries in fields.items():
        message = file.message_type.add(name=name)
        for field, number, type_, label, type_name in entries:
            message.field.add(
                name=field, number=number, type=type_, label=label, type_name=type_name
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("of.Checkpoint"))


def tensors(path):
    """The tensors of a checkpoint, read with protobuf: dtype, dims and bytes of each."""
    message = checkpoint_message().FromString(path.read_bytes())
    return {
        v.tag: (v.tensor.tensor_type, list(v.tensor.dims), v.tensor.tensor_content)
        for v in message.value
    }


@pytest.mark.parametrize("case", CASES["mindspore"])
def test_mindspore_goes_on_here(case):
    session = session_of("mindspore", case)
    conversion.load_state(session, recorded(case, HALF))
    assert session.global_step == HALF
    here(session, HALF, WHOLE)
    whole = {n: np.frombuffer(d, "f") for n, (_, _, d) in tensors(recorded(case, WHOLE)).items()}
    for name in NAMES:
        difference = np.abs(whole[name] - session.state[name].reshape(-1)).max()
        assert difference < TOLERANCE * np.abs(whole[name]).max()


@pytest.mark.parametrize("case", CASES["mindspore"])
def test_what_is_written_is_what_mindspore_writes_at_that_step(tmp_path, case):
    session = session_of("mindspore", case)
    here(session, 0, HALF)
    conversion.save_state(session, tmp_path / "ours.ckpt", "mindspore")
    ours, theirs = tensors(tmp_path / "ours.ckpt"), tensors(recorded(case, HALF))
    if case == "listed":  # the list, which its optimizer has anyway
        assert theirs.pop("learning_rate")[:2] == ("Float32", [WHOLE])
    if not CASES["mindspore"][case].get("momentum"):  # without it, only the last update
        theirs = {n: v for n, v in theirs.items() if not n.startswith("moment.")}
        ours = {n: v for n, v in ours.items() if not n.startswith("moment.")}
    assert sorted(ours) == sorted(theirs)
    for name, (dtype, dims, data) in theirs.items():
        assert ours[name][:2] == (dtype, dims), name
        kind = "i4" if dtype == "Int32" else "f4"
        one, other = np.frombuffer(ours[name][2], kind), np.frombuffer(data, kind)
        assert np.abs(one - other).max() <= TOLERANCE * max(np.abs(other).max(), 1e-3), name


def test_a_large_tensor_of_mindspore_is_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion._save._mindspore_file, "_SLICE", 16)
    session = session_of("mindspore", "plain")
    conversion.save_state(session, tmp_path / "ours.ckpt", "mindspore")
    message = checkpoint_message().FromString((tmp_path / "ours.ckpt").read_bytes())
    parts = [v.tensor for v in message.value if v.tag == "fc.weight"]
    assert [len(part.tensor_content) for part in parts] == [16] * 8 + [12]
    assert {tuple(part.dims) for part in parts} == {SHAPES["fc.weight"]}
    other = session_of("mindspore", "plain")
    other.load_state({"fc.weight": np.zeros(SHAPES["fc.weight"], np.float32)})
    conversion.load_state(other, tmp_path / "ours.ckpt")
    np.testing.assert_array_equal(other.state["fc.weight"], start()["fc.weight"])
