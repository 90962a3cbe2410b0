"""The average of checkpoints."""

import numpy as np
import pytest

import graphopt
from models.zoo import ZOO
from tests.helpers.command_line import succeed

NETWORK = ZOO["digits_cnn"]


@pytest.fixture
def run(tmp_path):
    """Three checkpoints in a folder, the graph in a file, and the states."""
    model = NETWORK.build()
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=1e-2, momentum=0.9)
    graph = graphopt.training_graph(model, NETWORK.loss, opt)
    graph.save(tmp_path / "train.onnx")
    session, found = graphopt.Session(graph), []
    rng = np.random.default_rng(0)
    with graphopt.Checkpoints(tmp_path / "run", keep=5) as checkpoints:
        for _ in range(3):
            session.step(NETWORK.feeds(rng, 8))
            checkpoints.save(session, note={"position": len(found)})
            found.append(session.state)
    return tmp_path, graph, found


def check(path, graph, found):
    session = graphopt.Session(graph)
    session.load_checkpoint(path)
    for name, value in session.state.items():
        expected = found[-1][name]
        if "mean_square." not in name and "moment." not in name and name != "global_step":
            expected = np.mean([state[name] for state in found], axis=0, dtype=np.float64)
        np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-12)
    return session


def test_a_folder(run):
    folder, graph, found = run
    taken = graphopt.average_checkpoints(folder / "run", folder / "mean.safetensors")
    assert [path.name[5:15] for path in taken] == ["0000000001", "0000000002", "0000000003"]
    session = check(folder / "mean.safetensors", graph, found)
    session.export(folder / "mean.onnx")
    with graphopt.Checkpoints(folder / "again") as checkpoints:
        (folder / "again").mkdir(exist_ok=True)
        (folder / "mean.safetensors").rename(folder / "again" / taken[-1].name)
        note = checkpoints.resume(session)
    assert note is not None
    assert (note["position"], note["average_of"]) == (2, 3)


def test_files_in_any_order_and_the_last_of_them(run):
    folder, graph, found = run
    files = sorted((folder / "run").iterdir(), reverse=True)
    graphopt.average_checkpoints(map(str, files), folder / "mean.safetensors", last=2)
    check(folder / "mean.safetensors", graph, found[1:])


def test_the_command(run):
    folder, graph, found = run
    command = ["average", str(folder / "run"), "--last", "2", "-o", str(folder / "mean")]
    result = succeed(*command)
    assert "of 2 checkpoints" in result.output
    session = check(folder / "mean", graph, found[1:])
    session.export(folder / "there.onnx")
    command = ["export", str(folder / "train.onnx"), "--checkpoint", str(folder / "mean")]
    succeed(*command, "-o", folder / "here.onnx")
    assert (folder / "here.onnx").read_bytes() == (folder / "there.onnx").read_bytes()


def test_export_writes_the_average_that_a_graph_carries(tmp_path):
    model = NETWORK.build()
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=1e-2, average=0.5)
    graph = graphopt.training_graph(model, NETWORK.loss, opt)
    graph.save(tmp_path / "train.onnx")
    session = graphopt.Session(graph)
    for _ in range(2):
        session.step(NETWORK.feeds(np.random.default_rng(0), 8))
    session.save_checkpoint(tmp_path / "c")
    session.export(tmp_path / "there.onnx", average=True)
    command = ["export", str(tmp_path / "train.onnx"), "--checkpoint", str(tmp_path / "c")]
    succeed(*command, "--average", "-o", tmp_path / "here.onnx")
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "there.onnx").read_bytes()


def test_what_cannot_be_averaged(run):
    folder, _, _ = run
    model = ZOO["mlp"].build()
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=1e-2)
    session = graphopt.Session(graphopt.training_graph(model, ZOO["mlp"].loss, opt))
    session.save_checkpoint(folder / "other")
    mean = folder / "mean"
    (folder / "empty").mkdir()
    refused = [
        (
            ValueError,
            r"other' does not belong to the graph of '.*: its model",
            ["run", "other"],
            {},
        ),
        (ValueError, "last: got 4, but there are 3", ["run"], {"last": 4}),
        (ValueError, r"last: got 0 \(int\)", ["run"], {"last": 0}),
        (FileNotFoundError, "no checkpoint", ["empty"], {}),
        (FileNotFoundError, "no file '.*none'", ["none"], {}),
        (FileNotFoundError, "no file '.*none'", ["none"], {"last": 3}),
        (ValueError, "other' is given twice", ["other", "run", "other"], {}),
        (ValueError, "checkpoints: got none", [], {}),
    ]
    for error, message, names, options in refused:
        with pytest.raises(error, match=message):
            graphopt.average_checkpoints([folder / name for name in names], mean, **options)
        assert not mean.exists()
    with pytest.raises(ValueError, match="a checkpoint that is averaged"):
        graphopt.average_checkpoints([folder / "other"], folder / "other")
