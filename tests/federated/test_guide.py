"""What the guide and the example do with Flower, in one process; tests/docs has the rest of it."""

import importlib
import json
import sys
import tomllib

import numpy as np
import pytest

from graphopt.federated import SessionClient
from tests.helpers.documents import blocks
from tests.helpers.environments import HAS_FLOWER, needs_flower, needs_training_package
from tests.helpers.folders import DOCS, ROOT

if HAS_FLOWER:
    from flwr import app

    from graphopt.federated import flower
    from tests.helpers.flower import OneProcess, seeded

pytestmark = [pytest.mark.any_runtime, needs_flower]


def run_of(server_app, grid, config):
    """What a server does, from its beginning to its end."""
    seeded(server_app, grid, app.Context(1, 1, {}, app.RecordDict(), config))


def test_the_snippets_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for snippet in blocks("python", (DOCS / "federated.md").read_text(encoding="utf-8")):
        exec(compile(snippet, "federated.md", "exec"), namespace)
    (tmp_path / "server.safetensors").unlink()
    grid = OneProcess(namespace["app"], 2)
    run_of(namespace["server_app"], grid, {})
    assert (tmp_path / "server.safetensors").is_file()
    start = flower.arrays_of(namespace["client"].values)
    assert sum(len(array.data) for array in start.values()) == 55848
    head = {n: array for n, array in namespace["client"].values.items() if "dense2" in n}
    assert sum(len(array.data) for array in flower.arrays_of(head).values()) == 2856


@pytest.fixture
def example(monkeypatch):
    """The modules of the Flower App."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "flower"))
    names = ("files", "data", "client_app", "server_app")
    yield {name: importlib.import_module(f"digits_app.{name}") for name in names}
    for name in [name for name in sys.modules if name.startswith("digits_app")]:
        del sys.modules[name]


def configuration(folder, **settings):
    """That of pyproject.toml, with others."""
    text = (ROOT / "examples" / "flower" / "pyproject.toml").read_text(encoding="utf-8")
    own = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    assert set(settings) <= set(own)
    return {**own, "files": str(folder), **settings}


CASES = {
    "FedRMSProp": {"rounds": 4},
    "FedAvg": {"rounds": 1, "strategy": "FedAvg"},
    "FedAdam": {"rounds": 1, "strategy": "FedAdam", "learning-rate": 0.03},
    "head": {"rounds": 1, "only-head": True, "fraction-train": 0.3},
    "devices": {"rounds": 1, "on-devices": 2, "fraction-train": 1.0},
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=needs_training_package if name == "devices" else ())
        for name in CASES
    ],
)
def test_the_example_trains(case, example, tmp_path):
    config = configuration(tmp_path, **CASES[case])
    example["files"].write(tmp_path)
    grid = OneProcess(example["client_app"].app, 10)
    for node, context in grid.contexts.items():
        context.run_config = config
        context.node_config = {"partition-id": node, "num-partitions": 10}
    run_of(example["server_app"].app, grid, config)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["strategy"] == config["strategy"]
    assert len(found["accuracy"]) == config["rounds"] + 1
    if case == "FedRMSProp":
        assert found["accuracy"][-1] > 0.4
    sent = [set(reply.content["arrays"]) for reply in grid.replies]
    names = set(example["files"].HEAD)
    assert all((arrays == names) == (case == "head") for arrays in sent)
    assert len(sent) == (3 if case == "head" else 10)
    start = flower.arrays_of(SessionClient(tmp_path / "train.onnx").values)
    content = app.RecordDict({"arrays": start})
    message = app.Message(content, dst_node_id=1, message_type="evaluate")
    reply = example["client_app"].app(message, grid.contexts[1])
    assert 0 <= reply.content["metrics"]["accuracy"] <= 1


def test_each_sample_has_one_client(example):
    data = example["data"]
    parts = data.shares(10, 0)
    assert len(parts) == 10
    assert sorted(np.concatenate(parts)) == list(range(1437))
    assert min(map(len, parts)) < max(map(len, parts)) / 3
