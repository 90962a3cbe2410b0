"""A snapshot of the graphs is the same each time, and what is different is said."""

import shutil

import numpy as np
import onnx
import pytest

import graphopt
from tools import snapshot

pytestmark = pytest.mark.any_runtime


PART = ["mlp"], ["plain", "groups"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A snapshot of one network, and what an inspection finds in it."""
    folder = tmp_path_factory.mktemp("snapshot")
    snapshot.make(folder / "graphs", *PART)
    snapshot.facts(folder / "graphs/zoo", folder / "facts")
    return folder


@pytest.fixture
def changed(made, tmp_path):
    """A copy to be changed."""
    return shutil.copytree(made / "graphs", tmp_path / "graphs")


@pytest.mark.exhaustive
def test_it_is_the_same_each_time(made, tmp_path):
    snapshot.make(tmp_path, *PART)
    assert snapshot.compare(made / "graphs", tmp_path) == {}


def test_it_has_what_was_asked_for(made):
    names = {path.relative_to(made / "graphs").as_posix() for path in (made / "graphs").rglob("*")}
    assert {"update/groups_auto_mask.onnx", "update_steps/plain_kernels.npz"} <= names
    assert {"zoo/mlp_static_cuda.onnx", "steps/mlp_dynamic.npz"} <= names
    assert {"variants/mlp_plain_separate.onnx", "device/mlp_groups/checkpoint"} <= names


def test_no_two_configurations_are_the_same():
    graphs = map(graphopt.update_graph, snapshot.optimizers(snapshot._PARAMETERS).values())
    assert len({graph.model.SerializeToString() for graph in graphs}) == 17


def test_facts_of_every_graph(made):
    graphs = [path.name for path in (made / "graphs/zoo").iterdir()]
    assert sorted(path.stem for path in (made / "facts").iterdir()) == sorted(graphs)


def edit(path, change):
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def renamed(model):
    """Every value of the graph has another name."""
    for node in model.graph.node:
        node.name += "_"
        for names in (node.input, node.output):
            names[:] = [f"{name}_" if name else "" for name in names]
    for values in (model.graph.input, model.graph.output, model.graph.initializer):
        for value in values:
            value.name += "_"


CHANGES = {
    "metadata": (
        lambda m: m.metadata_props.add(key="new", value="1"),
        "metadata: new; the same nodes",
    ),
    "documentation": (lambda m: setattr(m, "doc_string", "new"), "the same nodes"),
    "names": (renamed, "the same nodes with other names"),
    "a node more": (
        lambda m: m.graph.node.add(op_type="Neg", input=["x"], output=["y"]),
        "OTHER NODES: +1 Neg",
    ),
    "an attribute": (
        lambda m: m.graph.node[0].attribute.add(name="new", i=1, type=onnx.AttributeProto.INT),
        "OTHER NODES: of the same operators",
    ),
    "a constant": (
        lambda m: m.graph.initializer.add().CopyFrom(
            onnx.numpy_helper.from_array(np.ones(2, "f"), "new")
        ),
        "OTHER NODES: of the same operators",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_different_is_said(made, changed, case):
    change, how = CHANGES[case]
    edit(changed / "zoo/mlp_dynamic_cpue.onnx", change)
    assert snapshot.compare(made / "graphs", changed) == {how: ["zoo/mlp_dynamic_cpue.onnx"]}


def test_files_that_are_gone_and_new_and_other(made, changed, capsys, monkeypatch):
    (changed / "steps/mlp_static.npz").rename(changed / "steps/new.npz")
    (changed / "steps/mlp_dynamic.npz").write_bytes(b"")
    found = snapshot.compare(made / "graphs", changed)
    assert found == {
        "only before": ["steps/mlp_static.npz"],
        "only after": ["steps/new.npz"],
        "other content": ["steps/mlp_dynamic.npz"],
    }
    monkeypatch.setattr("sys.argv", ["snapshot", "compare", str(made / "graphs"), str(changed)])
    assert snapshot.main() == 1
    assert capsys.readouterr().out.endswith("3 files differ\n")
