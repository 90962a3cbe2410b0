"""Files and sets of files are written whole or not at all, whatever fails and whoever is killed."""

import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt._file_sets import write_together
from graphopt._files import write_atomically
from tests.helpers.faults import failing

pytestmark = pytest.mark.any_runtime

NAMES = ("model", "eval", "state", "gone", "added", "about")
OLD = {name: f"old {name}" for name in NAMES if name != "added"}
NEW = {name: f"new {name}" for name in NAMES if name != "gone"}


def fill(files):
    def write(folder):
        for name, text in files.items():
            (folder / name).write_text(text)

    return write


def replace(folder, files):
    write_together(folder, fill(files), NAMES, last="model")


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@contextmanager
def suppress_naming(path):
    """An error of the disk may come, which names this."""
    try:
        yield
    except OSError as error:
        if error.filename != str(path):
            raise


def operations(tmp_path):
    """How many there are when a set is replaced."""
    folder = tmp_path / "counted"
    folder.mkdir()
    replace(folder, OLD)
    with failing(None) as done:
        replace(folder, NEW)
    return len(done)


@pytest.mark.parametrize("for_ever", [False, True])
def test_a_set_is_replaced_or_stays(for_ever, tmp_path):
    count = operations(tmp_path)
    assert count > 20
    outcomes = []
    for at in range(count):
        folder = tmp_path / str(at)
        folder.mkdir()
        replace(folder, OLD)
        with suppress_naming(folder), failing(at, for_ever=for_ever):
            replace(folder, NEW)
        found = content(folder)
        if for_ever and "model" not in found:  # not even the way back: nobody can begin
            outcomes.append("none")
        else:
            assert found in (OLD, NEW), at
            outcomes.append("old" if found == OLD else "new")
        replace(folder, NEW)
        assert content(folder) == NEW
        assert hidden(folder) == []
    assert outcomes.count("old") > count / 2
    if not for_ever:
        assert "none" not in outcomes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_killed_one_leaves_no_mixture_and_the_next_one_ends_it(tmp_path):
    count = operations(tmp_path)
    for at in range(count):
        folder = tmp_path / str(at)
        folder.mkdir()
        replace(folder, OLD)
        child = os.fork()
        if child == 0:
            with failing(at, fail=lambda: os.kill(os.getpid(), signal.SIGKILL)):
                replace(folder, NEW)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), at
        found = content(folder)
        assert "model" not in found or found in (OLD, NEW), at
        with pytest.raises(RuntimeError, match="nothing to write"):
            write_together(folder, refuse, NAMES, last="model")
        assert content(folder) in (OLD, NEW), at
        assert hidden(folder) == []


def refuse(_folder):
    raise RuntimeError("nothing to write")


def test_a_new_set_leaves_nothing_when_it_fails(tmp_path):
    with failing(None) as done:
        (tmp_path / "first").mkdir()
        replace(tmp_path / "first", OLD)
    for at in range(1, len(done)):
        folder = tmp_path / str(at)
        folder.mkdir()
        with failing(at):
            try:
                replace(folder, OLD)
            except OSError:
                assert content(folder) in ({}, OLD)
        assert content(folder) in ({}, OLD)


# --- one file ---------------------------------------------------------------------------------


def test_a_file_is_replaced_or_stays(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with failing(None) as done:
        write_atomically(tmp_path / "other", lambda part: part.write_text("new"))
    assert {"replace", "fsync"} <= set(done)
    for at in range(len(done)):
        with suppress_naming(path), failing(at):
            write_atomically(path, lambda part: part.write_text("new"))
        assert path.read_text() in ("old", "new")
        path.write_text("old")
    write_atomically(path, lambda part: part.write_text("new"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "other"]


def test_the_folder_is_synced_after_the_move(tmp_path):
    with failing(None) as done:
        write_atomically(tmp_path / "file", lambda part: part.write_text("new"))
    moved = done.index("replace")
    assert "fsync" in done[:moved]
    assert "fsync" in done[moved:]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_permissions_are_those_of_new_files_or_of_the_old_one(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / "new", lambda part: part.write_text("x"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_atomically(path, lambda part: part.write_text("y"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
        path.chmod(0o444)
        write_atomically(path, lambda part: part.write_text("z"))
        assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("z", 0o444)
    finally:
        os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="nothing is swept on Windows")
def test_what_the_killed_left_is_swept_and_what_is_being_written_is_not(tmp_path):
    program = (
        "import os, signal, sys; from graphopt._files import write_atomically\n"
        "def write(part): part.write_text('half'); print(flush=True); sys.stdin.read()\n"
        "write_atomically(sys.argv[1], write)"
    )
    arguments = [sys.executable, "-c", program, tmp_path / "other"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (tmp_path / f".graphopt-{'0' * 16}.part").write_text("left by an older graphopt")
        (tmp_path / ".graphopt-notes").write_text("not ours")
        write_atomically(tmp_path / "file", lambda part: part.write_text("new"))
        being_written = [name for name in hidden(tmp_path) if name != ".graphopt-notes"]
        assert len(being_written) == 1
        process.kill()
    write_atomically(tmp_path / "file", lambda part: part.write_text("new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".graphopt-notes", "file"]


HELD = """
import sys
from pathlib import Path
from graphopt.soundness.file import read_model

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

read_model(Path(sys.argv[1]))
before = resident()
models = [read_model(Path(sys.argv[2])) for _ in range(2)]
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: it reads /proc")
def test_the_bytes_of_a_file_are_given_back_once_it_is_read(tmp_path):
    def written(name, count):
        values = [
            numpy_helper.from_array(np.ones(2**16, np.float32), f"w{i}") for i in range(count)
        ]
        output = helper.make_tensor_value_info("y", 1, [2**16])
        node = helper.make_node("Identity", ["w0"], ["y"])
        graph = helper.make_graph([node], "g", [], [output], values)
        onnx.save(helper.make_model(graph, ir_version=8), tmp_path / name)
        return tmp_path / name

    paths = [written("small.onnx", 1), written("large.onnx", 64)]
    done = subprocess.run(
        [sys.executable, "-c", HELD, *map(str, paths)], capture_output=True, text=True, check=True
    )
    assert 30 < float(done.stdout) < 40  # two models of 16 MiB, and not their files too
