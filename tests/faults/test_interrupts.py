"""A step, a save and a load are done or not done, whenever Ctrl-C or a lack of memory comes."""

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import graphopt
from graphopt import _step_io, checkpoint

STEPS = 40


def linear(n=24):
    """A model that also reports its parameter, which therefore takes turns."""
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        linear (float[N,{n}] x) => (float[N,{n}] y, float[{n},{n}] shown)
        {{ y = MatMul(x, w) shown = Identity(w) }}""")
    w = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return model


def linear_graph(**settings):
    model = linear()
    settings = {"learning_rate": 1e-3, "momentum": 0.9} | settings
    optimizer = graphopt.RMSProp(graphopt.parameters(model), **settings)
    return graphopt.training_graph(model, "mse", optimizer, loss_output="y")


def batch(step, n=24):
    rng = np.random.default_rng([7, step])
    return {
        "x": rng.normal(size=(4, n)).astype(np.float32),
        "labels": rng.normal(size=(4, n)).astype(np.float32),
    }


def bits(state):
    return tuple((name, array.tobytes()) for name, array in sorted(state.items()))


def session_of(graph):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return graphopt.Session(graph, session_options=options)


@pytest.fixture(scope="module")
def reference():
    """The state after each step."""
    session = session_of(linear_graph())
    states = [bits(session.state)]
    for step in range(STEPS):
        session.step(batch(step))
        states.append(bits(session.state))
    return states


@contextmanager
def alarms():
    """A function that calls another one, into which an interrupt comes after a delay."""
    armed = []

    def interrupt(*_):
        if armed:
            raise KeyboardInterrupt

    def call(action, delay):
        try:
            armed.append(True)
            signal.setitimer(signal.ITIMER_REAL, delay)
            action()
            armed.clear()
            return False
        except KeyboardInterrupt:
            armed.clear()
            return True

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield call
    finally:
        armed.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
# A file that Python has opened, and whose name it has not bound yet, is closed by the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_300_interrupts(reference, tmp_path):
    session, rng, path = session_of(linear_graph()), random.Random(0), tmp_path / "c"
    assert session._next, "what is tested are values that take turns"
    known = {state: step for step, state in enumerate(reference)}
    session.save_checkpoint(path)
    feeds = [batch(step) for step in range(STEPS)]

    def step():
        session.step(feeds[session._step])

    actions = {
        "step": step,
        "save": lambda: session.save_checkpoint(path),
        "load": lambda: session.load_checkpoint(path),
    }
    length = {}
    for name, action in actions.items():
        start = time.perf_counter()
        action()
        action()
        length[name] = (time.perf_counter() - start) / 2
    hits = Counter()
    with alarms() as call:
        for _ in range(3000):
            if hits.total() == 300:
                break
            name = rng.choice(["step", "step", "step", "save", "load"])
            before = known[bits(session.state)]
            if before == STEPS:
                name = "load"
            saved = int(checkpoint.read(path)["global_step"])
            if call(actions[name], max(1e-6, rng.uniform(0, 1.3) * length[name])):
                hits[name] += 1
            after = known[bits(session.state)]  # otherwise it is that of no step
            possible = {"step": before + 1, "save": before, "load": saved}[name]
            assert after in (before, possible), name
            assert session._step == after
            kept = known[bits(checkpoint.read(path))]
            assert kept in (saved, before if name == "save" else saved)
            if after == STEPS:
                session = session_of(linear_graph())
    assert hits.total() == 300
    assert min(hits["step"], hits["save"], hits["load"]) > 20
    while session._step < STEPS:
        step()
    assert bits(session.state) == reference[-1]
    session.save_checkpoint(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


class Interrupting:
    """A session of the runtime in which Ctrl-C is pressed, seen when it has run."""

    def __init__(self, session):
        self._session = session

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments):
        self._session.run_with_iobinding(*arguments)
        raise KeyboardInterrupt


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_what_has_run_is_done(reference, error, monkeypatch):
    session = session_of(linear_graph())

    class Stopping(Interrupting):
        def run_with_iobinding(self, *arguments):
            self._session.run_with_iobinding(*arguments)
            raise error

    for step in range(4):
        with monkeypatch.context() as patch:
            if step % 2:
                patch.setattr(session._io, "_session", Stopping(session._io._session))
                with pytest.raises((error, RuntimeError)):
                    session.step(batch(step))
            else:
                session.step(batch(step))
        assert bits(session.state) == reference[step + 1]


def test_the_rates_are_counted_by_the_state(monkeypatch):
    session = session_of(linear_graph(learning_rate=[0.1, 0.01]))
    with monkeypatch.context() as patch:
        patch.setattr(session._io, "_session", Interrupting(session._io._session))
        with pytest.raises(KeyboardInterrupt):
            session.step(batch(0))
    session.step(batch(1))
    with pytest.raises(RuntimeError, match="step 2: the learning rate has values for steps 0 to 1"):
        session.step(batch(2))
    assert session.state["global_step"] == 2


def test_an_interrupted_load_is_ended(reference, tmp_path, monkeypatch):
    graph = linear_graph()
    saved = session_of(graph)
    for step in range(3):
        saved.step(batch(step))
    saved.save_checkpoint(tmp_path / "c")
    update = onnxruntime.OrtValue.update_inplace
    for at in range(len(graph.carried)):
        session, calls = session_of(graph), []

        def interrupted(value, array, at=at, calls=calls):
            calls.append(array)
            if len(calls) == at + 1:
                raise KeyboardInterrupt
            update(value, array)

        with monkeypatch.context() as patch:
            patch.setattr(onnxruntime.OrtValue, "update_inplace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.load_checkpoint(tmp_path / "c")
        assert bits(session.state) == reference[3]
        session.step(batch(3))
        assert bits(session.state) == reference[4]


def test_no_memory_for_outputs(reference, monkeypatch):
    session = session_of(linear_graph())

    def none(*_, **__):
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(_step_io.StepIO, "_copied", none)
        with pytest.raises(MemoryError, match="the step is done, and only its outputs are lost"):
            session.step(batch(0))
    assert bits(session.state) == reference[1]
    session.step(batch(1))
    with monkeypatch.context() as patch:
        patch.setattr(_step_io.np, "empty_like", none)
        with pytest.raises(MemoryError, match="none left"):
            session.step(batch(2))
    assert bits(session.state) == reference[2]
    first, second = session.step(batch(2)), session.step(batch(3))
    assert not np.shares_memory(first["y"], second["y"])
    assert bits(session.state) == reference[4]


def test_outputs_of_other_sizes_are_right():
    session = session_of(linear_graph())
    for size in (4, 4, 2, 2, 5):
        feeds = {name: np.resize(array, (size, 24)) for name, array in batch(0).items()}
        w = session.state["w"]
        outputs = session.step(feeds)
        np.testing.assert_allclose(outputs["y"], feeds["x"] @ w, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(outputs["shown"], w)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("use_locking", [False, True])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_refused_and_does_not_hang(use_locking):
    session, done = session_of(linear_graph(use_locking=use_locking)), threading.Event()

    def step():
        while not done.is_set():
            session.step(batch(0))

    thread = threading.Thread(target=step)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                answers = []
                for use in (lambda: session.state, lambda: session.step(batch(0)), session.wait):
                    try:
                        use()
                    except RuntimeError as error:
                        answers.append("make a session in the process that uses it" in str(error))
                os._exit(0 if answers == [True] * 3 else 1)
            for _ in range(500):
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    break
                time.sleep(0.01)
            else:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                pytest.fail("the child hangs")
            assert status == 0
    finally:
        done.set()
        thread.join()
    assert session.state["global_step"] > 0
