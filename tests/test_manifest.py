"""What a graph says of itself: written as before, read without trusting it."""

import json

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import Parameter, manifest
from graphopt.examples import digits_cnn
from graphopt.manifest import Manifest
from graphopt.operators.labels import ClassLabels
from graphopt.schedules import CosineDecayLR

GIVEN = [Parameter("conv.weight", (4, 2, 3, 3), op_type="Conv"), Parameter("half", (5,), "float16")]


def graph(**settings):
    groups = [
        {"params": GIVEN[:1], "grad_centralization": True, "lr": CosineDecayLR(0.0, 0.1, 9)},
        {"params": GIVEN[1:], "weight_decay": 0.5},
    ]
    return graphopt.update_graph(graphopt.RMSProp(groups, momentum=0.9, **settings))


def metadata(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def trained():
    model = digits_cnn.build()
    return graphopt.training_graph(
        model, "cross_entropy", graphopt.RMSProp(graphopt.parameters(model))
    )


def with_entry(model, name, text):
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    entries = metadata(model) | {f"graphopt.{name}": text}
    onnx.helper.set_model_props(changed, entries)
    return changed


def test_keys_and_their_json():
    """Programs in other languages rely on these."""
    said = {key: json.loads(text) for key, text in metadata(graph().model).items()}
    assert list(said) == [
        f"graphopt.{name}"
        for name in (
            *("version", "optimizer", "groups", "parameters", "layout", "requirements"),
            *("update_binding", "views"),
        )
    ]
    assert said["graphopt.version"] == manifest.VERSION == 1
    assert said["graphopt.optimizer"] == {
        "name": "RMSProp",
        "decay": 0.9,
        "momentum": 0.9,
        "epsilon": 1e-10,
        "centered": False,
        "loss_scale": 1.0,
        "use_locking": False,
        "epsilon_inside_root": True,
        "initial_mean_square": 1.0,
        "learning_rate_inside_moment": True,
        "decoupled_weight_decay": False,
        "nesterov": False,
        "skip_on_overflow": False,
        "clip_norm": None,
        "clip_norm_per": "all",
        "clip_value": None,
        "average": None,
        "accumulation": None,
        "steps": None,
        "group_mask": False,
    }
    cosine = {"schedule": "CosineDecayLR", "min_lr": 0.0, "max_lr": 0.1, "decay_steps": 9}
    assert said["graphopt.groups"] == [
        {
            "parameters": ["conv.weight"],
            "learning_rate": cosine,
            "weight_decay": 0.0,
            "grad_centralization": True,
        },
        {
            "parameters": ["half"],
            "learning_rate": 0.1,
            "weight_decay": 0.5,
            "grad_centralization": False,
        },
    ]
    assert said["graphopt.parameters"][0] == {
        "name": "conv.weight",
        "shape": [4, 2, 3, 3],
        "dtype": "float32",
        "op_type": "Conv",
        "group": 0,
        "learning_rate": cosine,
        "weight_decay": 0.0,
        "grad_centralization": True,
    }
    assert said["graphopt.update_binding"]["moment.half"] == "moment.half.next"
    assert said["graphopt.views"]["moment.half"] == [["moment.half", [5], 0]]
    assert set(said["graphopt.requirements"]) == {"ir_version", "opsets", "operators", "functions"}


@pytest.mark.parametrize("made", [graph, trained])
def test_what_is_read_is_written_the_same(made):
    model = made().model
    assert Manifest.read(model).entries() == metadata(model)


@pytest.mark.quick
def test_of_a_training_graph():
    made = trained()
    said = Manifest.read(made.model)
    assert said.class_labels == (ClassLabels("labels", 10),) == made.class_labels
    assert said.requirements == graphopt.requirements(made)
    assert said.views == {value.input: value.views for value in made.carried}
    assert said.layout.buckets == made.buckets
    assert [bucket["name"] for bucket in made.layout["buckets"]] == [b.name for b in made.buckets]


def test_only_what_is_asked_for_is_read():
    model = with_entry(graph().model, "groups", "{")
    assert Manifest.read(model, "optimizer").groups is None
    with pytest.raises(
        ValueError, match=r"^the metadata is damaged: 'graphopt.groups' is not JSON"
    ):
        Manifest.read(model)


class TestFromBefore:
    """Files that were written before there was a version, and other ones that say less."""

    def test_without_a_version(self):
        model = graph(use_locking=True).model
        entries = metadata(model)
        del entries["graphopt.version"]
        onnx.helper.set_model_props(model, entries)
        said = Manifest.read(model)
        assert said.version == 0
        assert said.optimizer.use_locking
        assert graphopt.graph.TrainingGraph(model).use_locking
        assert graphopt.inspect(model).optimizer.source == "metadata and graph"

    def test_without_metadata(self):
        made = graph()
        del made.model.metadata_props[:]
        read = graphopt.graph.TrainingGraph(made.model)
        assert Manifest.read(made.model) == Manifest(version=0)
        assert (read.use_locking, read.group_mask, read.steps, read.class_labels) == (
            *(False, False, None),
            (),
        )
        assert read.layout == {"name": "unknown", "buckets": []}
        assert [view.name for value in read.carried for view in value.views] == [
            value.input for value in made.carried
        ]
        assert "unknown optimizer" in repr(read)

    def test_of_a_newer_graphopt(self):
        model = with_entry(graph().model, "version", "2")
        message = "the metadata has version 2, expected 1 at most; a newer graphopt wrote it"
        with pytest.raises(ValueError, match=f"^{message}$"):
            Manifest.read(model, "optimizer")
        (hazard,) = graphopt.inspect(model).hazards
        assert hazard.kind == "metadata-damaged"
        assert message in hazard.why


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("optimizer", "null", "'graphopt.optimizer' is NoneType, expected dict"),
        ("optimizer", "{}", "KeyError 'name'"),
        ("groups", "[1]", "'graphopt.groups' is int, expected dict"),
        ("parameters", '[{"name": "w", "shape": [-1]}]', r"'shape' is \[-1\], expected sizes >= 0"),
        ("layout", '{"name": "chunks", "buckets": {}}', "'buckets' is dict, expected list"),
        ("layout", '{"name": true, "buckets": []}', "'name' is bool, expected str"),
        ("class_labels", '[{"name": "y", "classes": 1.5}]', "'classes' is float, expected int"),
        ("update_binding", '{"w": 1}', "'graphopt.update_binding' is int, expected str"),
        ("views", '{"w": [["w", [3]]]}', "'graphopt.views' has 2 items, expected 3"),
        ("momentums", "[" * 5000, "RecursionError|is not JSON"),
        ("version", '"1"', "'graphopt.version' is str, expected int"),
        ("version", "9" * 5000, "'graphopt.version' is not JSON"),
    ],
)
def test_damaged(name, text, message):
    with pytest.raises(ValueError, match=f"^the metadata is damaged: .*({message})"):
        Manifest.read(with_entry(graph().model, name, text))


def test_schedules_have_bounds():
    groups = json.loads(metadata(graph().model)["graphopt.groups"])
    inner = {"schedule": "A"}
    for _ in range(30):
        inner = {"schedule": "A", "inner": inner}
    groups[0]["learning_rate"] = inner
    with pytest.raises(ValueError, match="more than 20 levels"):
        Manifest.read(with_entry(graph().model, "groups", json.dumps(groups)), "groups")


def test_the_forward_model_is_packed_without_values_that_stand_elsewhere():
    forward = digits_cnn.build()
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in forward.graph.initializer}
    text = manifest.packed(forward, arrays)
    assert len(text) < len(manifest.packed(forward, {})) / 5
    stored = {tensor.name: tensor for tensor in forward.graph.initializer}
    assert manifest.unpacked(text, {}, {}, stored) == forward
    name = "conv1.weight"
    zeros = {name: np.zeros_like(arrays[name])}
    other = manifest.unpacked(text, zeros, {}, stored)
    found = {t.name: onnx.numpy_helper.to_array(t) for t in other.graph.initializer}
    assert not found[name].any()
