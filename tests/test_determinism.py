"""The same inputs give the same bits: with how many threads, in which threads and processes."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import _runtime
from models.zoo import ZOO
from tests.helpers.environments import needs_kernels
from tests.helpers.state_digest import digest, trained
from tests.helpers.zoo import zoo_graph


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A file of a network whose bits depend on the number of threads, and a batch."""
    folder = tmp_path_factory.mktemp("digits_cnn")
    zoo_graph("digits_cnn").save(folder / "train.onnx")
    np.savez(folder / "feeds.npz", **ZOO["digits_cnn"].feeds(np.random.default_rng(0), 16))
    return str(folder / "train.onnx"), str(folder / "feeds.npz")


def in_a_process(*arguments):
    command = [sys.executable, "-m", "tests.helpers.state_digest", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=needs_kernels), False])
def test_deterministic_is_the_same_bits_with_any_number_of_cores(network, kernels):
    once = trained(*network, deterministic=True, kernels=kernels)
    assert once == trained(*network, threads=1, kernels=kernels)
    if kernels:
        cores = ["--one-core"] if hasattr(os, "sched_setaffinity") else []
        assert once == in_a_process(*network, "--deterministic", *cores)


def test_the_same_number_of_threads_is_the_same_bits(network):
    assert trained(*network, threads=2) == trained(*network, threads=2)


def test_deterministic_refuses_other_numbers_of_threads(network):
    options = _runtime.session_options(_runtime.onnxruntime())
    options.intra_op_num_threads = 2
    with pytest.raises(ValueError, match="with intra_op_num_threads=2, expected 1"):
        graphopt.Session(network[0], session_options=options, deterministic=True)
    with pytest.raises(TypeError, match="deterministic"):
        graphopt.Session(network[0], deterministic=1)
    options.intra_op_num_threads = 1
    graphopt.Session(network[0], session_options=options, deterministic=True)
    assert options.use_deterministic_compute


def locked_session():
    optimizer = graphopt.RMSProp(
        [graphopt.Parameter("w", (300,))], learning_rate=0.01, momentum=0.9, use_locking=True
    )
    return graphopt.Session(
        graphopt.update_graph(optimizer), parameters={"w": np.zeros(300, np.float32)}
    )


GRADIENT = {"w_grad": np.linspace(-1, 1, 300, dtype=np.float32)}


def test_eight_threads_of_1000_steps_are_8000_steps():
    alone, shared = locked_session(), locked_session()
    for _ in range(8000):
        alone.step(GRADIENT)

    def work(_):
        for _ in range(1000):
            shared.step(GRADIENT)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert shared.global_step == 8000
    assert digest(shared.state) == digest(alone.state)


class Open:
    """A lock that lets everybody in."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def locked(self):
        return False


@pytest.mark.parametrize("lock", ["lock", "none"])
def test_without_the_lock_steps_would_meet(monkeypatch, lock):
    session, inside, most = locked_session(), [], []
    run = session._io.run

    def watched(values, names):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        run(values, names)
        inside.pop()

    monkeypatch.setattr(session._io, "run", watched)
    if lock == "none":
        monkeypatch.setattr(session, "_lock", Open())
    threads = [threading.Thread(target=session.step, args=(GRADIENT,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most) == 1) == (lock == "lock")


def test_a_spawned_process_trains_the_same_bits(network):
    context = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(1), context.Pool(1) as pool:
        there = pool.apply(trained, network, {"deterministic": True})
    assert there == trained(*network, deterministic=True)


def test_sessions_of_one_process_are_apart(network):
    """Two sessions of one graph train in two threads at once, each as if it were alone."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: trained(*network, deterministic=True), range(2)))
    assert set(found) == {trained(*network, deterministic=True)}


def roots_are_rounded_rightly():
    """Whether the runtime's Sqrt is that of IEEE 754; that of 1.19 is off by one unit in many."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = Sqrt(x) }'
    )
    session = _runtime.onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).random(10_000, np.float32)
    return np.array_equal(session.run(None, {"x": x})[0], np.sqrt(x))


@needs_kernels
def test_kernels_compute_the_bits_of_the_bodies_where_roots_are_rounded_rightly():
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (1000,))], momentum=0.9, centered=True)
    graph = graphopt.update_graph(optimizer)
    states = []
    for kernels in (True, False):
        session = graphopt.Session(
            graph, parameters={"w": np.zeros(1000, np.float32)}, kernels=kernels
        )
        for step in range(5):
            rng = np.random.default_rng(step)
            session.step({"w_grad": rng.normal(size=1000).astype(np.float32)})
        states.append(session.state)
    assert (digest(states[0]) == digest(states[1])) == roots_are_rounded_rightly()
