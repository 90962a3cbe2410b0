"""Folders of checkpoints: what is kept, what is gone on from, and saving beside training."""

import errno
import threading

import numpy as np
import pytest

import graphopt
from graphopt import checkpoint
from graphopt.checkpoint.safetensors_file import TensorFile
from graphopt.checkpoint_folder import best_checkpoint
from tests.helpers.faults import failing

pytestmark = pytest.mark.any_runtime

GRADIENT = {"w_grad": np.float32([1, -2, 3])}


@pytest.fixture(scope="module")
def graph():
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (3,))], learning_rate=0.01, momentum=0.9)
    return graphopt.update_graph(optimizer)


@pytest.fixture
def session(graph):
    return graphopt.Session(graph, parameters={"w": np.ones(3, np.float32)})


def steps_of(checkpoints):
    return [checkpoint.step_of(path) for path in checkpoints.paths]


def train(session, checkpoints, until):
    while session.global_step < until:
        session.step(GRADIENT)
        checkpoints.save_if_due(session, {"batch": session.global_step})


def bits(state):
    return {name: array.tobytes() for name, array in state.items()}


@pytest.mark.parametrize("background", [False, True])
def test_a_run_goes_on_from_the_newest(graph, session, tmp_path, background):
    whole = graphopt.Session(graph, parameters={"w": np.ones(3, np.float32)})
    for _ in range(12):
        whole.step(GRADIENT)
    with graphopt.Checkpoints(tmp_path / "run", every=4, keep=2, background=background) as saved:
        assert saved.resume(session) is None
        train(session, saved, 10)
    assert steps_of(saved) == [4, 8]
    other = graphopt.Session(graph, parameters={"w": np.zeros(3, np.float32)})
    with graphopt.Checkpoints(tmp_path / "run", every=4, keep=2, background=background) as saved:
        assert saved.resume(other) == {"batch": 8}
        train(other, saved, 12)
    assert bits(other.state) == bits(whole.state)
    assert steps_of(saved) == [8, 12]
    assert sorted(path.name for path in saved.folder.iterdir()) == [
        "step-0000000008.safetensors",
        "step-0000000012.safetensors",
    ]
    session.load_checkpoint(tmp_path / "run")  # the newest
    assert session.global_step == 12


def test_a_damaged_one_is_left_out(graph, session, tmp_path):
    saved = graphopt.Checkpoints(tmp_path, every=1)
    train(session, saved, 3)
    newest = saved.paths[-1]
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    other = graphopt.Session(graph, parameters={"w": np.zeros(3, np.float32)})
    with pytest.warns(UserWarning, match=r"is damaged.*; it is left out"):
        assert saved.resume(other) == {"batch": 2}
    assert steps_of(saved) == [1, 2]
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == content
    other.step(GRADIENT)
    saved.save(other)
    assert steps_of(saved) == [1, 2, 3]


def test_each_value_is_read_once(graph, session, tmp_path, monkeypatch):
    saved = graphopt.Checkpoints(tmp_path, every=1)
    train(session, saved, 2)
    found, read = [], TensorFile.read
    monkeypatch.setattr(
        TensorFile, "read", lambda file, name: found.append(name) or read(file, name)
    )
    assert saved.resume(graphopt.Session(graph, {"w": np.zeros(3, np.float32)})) == {"batch": 2}
    assert sorted(found) == sorted(session.state)


def test_progress_is_not_overwritten(graph, session, tmp_path):
    train(session, graphopt.Checkpoints(tmp_path, every=5), 5)
    fresh = graphopt.Session(graph, parameters={"w": np.zeros(3, np.float32)})
    fresh.step(GRADIENT)
    with pytest.raises(ValueError, match="is further than this run, which is at step 1"):
        graphopt.Checkpoints(tmp_path).save(fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000005.safetensors"]


def test_another_graph_is_refused(session, tmp_path):
    train(session, graphopt.Checkpoints(tmp_path, every=1), 1)
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (3,))], learning_rate=0.5, momentum=0.9)
    other = graphopt.Session(graphopt.update_graph(optimizer), {"w": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"learning_rate of 'w' is 0\.01 in it, but 0\.5"):
        graphopt.Checkpoints(tmp_path).resume(other)


@pytest.mark.parametrize(("best", "kept"), [("min", 2), ("max", 3)])
def test_the_best_is_kept_beside_the_newest(session, tmp_path, best, kept):
    saved = graphopt.Checkpoints(tmp_path, keep=1, best=best)
    for metric in (0.5, 0.1, 0.9, 0.3, 0.4):
        session.step(GRADIENT)
        saved.save(session, metric=metric)
    assert steps_of(saved) == [kept, 5]


def test_the_best_stays_the_best_when_it_is_saved_again(session, tmp_path):
    saved = graphopt.Checkpoints(tmp_path, keep=1)
    session.step(GRADIENT)
    saved.save(session, metric=0.1)
    saved.save(session, {"position": 2})  # a step without an update, such as a skipped one
    session.step(GRADIENT)
    saved.save(session, metric=0.2)
    assert steps_of(saved) == [1, 2]
    assert best_checkpoint(tmp_path) == saved.paths[0]


def test_minutes(session, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("graphopt.checkpoint_folder.time.monotonic", lambda: now[0])
    saved = graphopt.Checkpoints(tmp_path, minutes=2, keep=None)
    for seconds in (60, 61, 10, 120, 119):
        now[0] += seconds
        session.step(GRADIENT)
        saved.save_if_due(session)
    assert steps_of(saved) == [2, 4]
    now[0] += 1000
    assert saved.save_if_due(session) is not None
    now[0] += 1000
    assert saved.save_if_due(session) is None, "nothing has been done since"


def test_there_is_a_complete_one_whatever_fails(graph, session, tmp_path):
    saved = graphopt.Checkpoints(tmp_path, keep=1)
    session.step(GRADIENT)
    saved.save(session)
    at, failures = 0, 0
    while True:
        session.step(GRADIENT)
        before = steps_of(saved)
        try:
            with failing(at) as done:
                saved.save(session)
            if at >= len(done):
                break
        except OSError:
            failures += 1
        assert steps_of(saved)[-1] in (before[-1], session.global_step)
        other = graphopt.Session(graph, parameters={"w": np.zeros(3, np.float32)})
        assert graphopt.Checkpoints(tmp_path, keep=1).resume(other) == {}
        at += 1
    assert failures > 4
    assert len(list(tmp_path.iterdir())) == 1


def test_errors_in_the_background_come_with_the_next_call(session, tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    saved = graphopt.Checkpoints(tmp_path, background=True)
    session.step(GRADIENT)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        saved.save(session)
        with pytest.raises(OSError, match=r"No space left on device: .*step-0000000001"):
            saved.save(session)
    saved.save(session)
    saved.wait()
    assert steps_of(saved) == [1]


def test_what_is_saved_in_the_background_is_the_state_of_then(session, tmp_path, monkeypatch):
    go, save = threading.Event(), checkpoint.save

    def slowly(*arguments):
        assert go.wait(10)
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save", slowly)
    saved = graphopt.Checkpoints(tmp_path, background=True)
    session.step(GRADIENT)
    expected = bits(session.state)
    path = saved.save(session)
    for _ in range(3):
        session.step(GRADIENT)
    assert not path.exists()
    go.set()
    saved.wait()
    assert bits(checkpoint.read(path)) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"keep": 0}, ValueError, "keep: got 0"),
        ({"every": 1.5}, TypeError, "every: got 1.5"),
        ({"minutes": -1}, ValueError, "minutes: got -1"),
        ({"best": "most"}, ValueError, "best: got 'most'"),
        ({"background": 1}, TypeError, "background: got 1"),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        graphopt.Checkpoints(tmp_path, **arguments)


def test_bad_folders(tmp_path, session):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder"):
        graphopt.Checkpoints(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        graphopt.Checkpoints(tmp_path / "a" / "b")
    with pytest.raises(FileNotFoundError, match="has no checkpoint, such as step-0000000001"):
        session.load_checkpoint(tmp_path)
