"""A disk that fails, whatever is written: the error names the file, and what was there stays."""

import errno
import os
import resource
import subprocess
from contextlib import contextmanager, suppress

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import RMSProp
from tests.helpers.command_line import run
from tests.helpers.faults import contents, failing

pytestmark = pytest.mark.any_runtime

CODES = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)
TRAIN = ("train", "t.onnx", "--data", "d.npz", "--epochs", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A forward model, its training graph, a session of it and samples."""
    folder = tmp_path_factory.mktemp("made")
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N,64] x) => (float[N,8] y) { y = MatMul (x, w) }""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 8), "f"), "w"))
    onnx.save(model, folder / "f.onnx")
    optimizer = RMSProp(graphopt.parameters(model))
    graph = graphopt.training_graph(model, "mse", optimizer)
    graph.save(folder / "t.onnx")
    session = graphopt.Session(graph)
    session.save_checkpoint(folder / "c.safetensors")
    samples = {"x": np.ones((4, 64), "f"), "labels": np.ones((4, 8), "f")}
    np.savez(folder / "d.npz", **samples)
    return folder, model, optimizer, graph, session


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """The current folder, which has all of that, and an older file of each name."""
    for path in made[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "out").write_bytes(b"old")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments):
    """Runs a command, which must end with an error in one line."""

    def call(*_):
        result = run(*arguments)
        if result.exit_code == 0:
            return
        assert result.exit_code == 1, result.exception
        assert result.output.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in result.output
        raise OSError(" ".join(result.output.split()))

    return call


CALLS = {
    "save": lambda graph, _session: graph.save("out"),
    "save_checkpoint": lambda _graph, session: session.save_checkpoint("out"),
    "export": lambda _graph, session: session.export("out"),
    "command build": command("build", "f.onnx", "--loss", "mse", "-o", "out"),
    "command train": command(*TRAIN, "--checkpoint", "out"),
    "command train, export": command(*TRAIN, "--export", "out"),
    "command export": command("export", "t.onnx", "--checkpoint", "c.safetensors", "-o", "out"),
    "command inspect": command("inspect", "t.onnx", "--html", "out"),
    "command profile": command("profile", "t.onnx", "--steps", "1", "--json", "out"),
}


def older(name, folder):
    """Put the older file there: of what goes on from a checkpoint, one."""
    old = (folder / "c.safetensors").read_bytes() if name == "command train" else b"old"
    (folder / "out").write_bytes(old)
    return old


@contextmanager
def room_for(size):
    """Let files grow to so many bytes only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", CALLS)
def test_each_operation_fails_once(name, folder, made):
    def call():
        CALLS[name](*made[3:])

    old = older(name, folder)
    with failing(None) as operations:
        call()
    assert {"open", "fsync", "replace"} <= set(operations)
    older(name, folder)
    before = contents(folder)
    errors = []
    for at in range(len(operations)):
        with suppress(OSError), failing(at, code=CODES[at % len(CODES)]), noted(errors):
            call()
        after = contents(folder)
        assert len(after["out"]) > 100 or after["out"] == old, at
        assert {**after, "out": old} == before, at
        older(name, folder)
    assert len(errors) >= 3
    if "profile" not in name:  # which first makes a folder of its own, elsewhere
        assert [error for error in errors if "'out'" not in error] == []


@contextmanager
def noted(errors):
    """Write down the message of an error of the system."""
    try:
        yield
    except OSError as error:
        errors.append(str(error))
        raise


@pytest.mark.parametrize("size", [0, 1, 100])
@pytest.mark.parametrize("name", [name for name in CALLS if "profile" not in name])
def test_no_room(name, size, folder, made):
    older(name, folder)
    before = contents(folder)
    with room_for(size), pytest.raises(OSError, match=r"out") as caught:
        CALLS[name](*made[3:])
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize("size", [0, 1, 500, 3000])
def test_no_room_for_a_set(size, folder, made):
    _, model, optimizer, *_ = made
    graphopt.export_on_device(model, "mse", optimizer, "device")
    before = contents(folder)
    changed = RMSProp(optimizer.params, learning_rate=0.5, momentum=0.5)
    with room_for(size), pytest.raises(OSError, match="device") as caught:
        graphopt.export_on_device(model, "mse", changed, "device")
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert contents(folder) == before


@pytest.fixture
def full_disk(tmp_path):
    """A small file system with little room."""
    place = tmp_path / "full"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True)
    except FileNotFoundError as error:
        pytest.skip(f"nothing may be mounted: {error}")
    if mounted.returncode:
        pytest.skip(f"nothing may be mounted: {mounted.stderr.decode().strip()}")
    (place / "out").write_bytes(b"old")
    (place / "other").write_bytes(b"x" * 4096 * 2)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk(full_disk, made):
    _, model, optimizer, graph, session = made
    before = contents(full_disk)
    calls = (
        lambda: graph.save(full_disk / "out"),
        lambda: session.save_checkpoint(full_disk / "out"),
        lambda: graphopt.export_on_device(model, "mse", optimizer, full_disk / "device"),
        command("inspect", made[0] / "t.onnx", "--html", full_disk / "out"),
    )
    for call in calls:
        with pytest.raises(OSError, match=str(full_disk)) as caught:
            call()
        assert os.strerror(errno.ENOSPC) in str(caught.value)
        assert contents(full_disk) == before
        assert not list(full_disk.rglob(".graphopt-*"))
