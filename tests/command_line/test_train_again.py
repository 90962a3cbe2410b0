"""``graphopt train`` where another run, another process or the disk gets in its way."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import checkpoint, checkpoint_folder
from graphopt.limits import TooLargeError
from graphopt.samples import source
from graphopt.training_run import target
from tests.helpers.command_line import run, succeed
from tests.helpers.faults import contents

pytestmark = pytest.mark.any_runtime

MODEL = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,4] x) => (float[N,3] logits) { logits = MatMul (x, w) }"""
RUN = ("train", "train.onnx", "--data", "data.npz", "--batch-size", 8)


def parts():
    """Of the training graph."""
    made = onnx.parser.parse_model(MODEL)
    made.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 3), np.float32), "w"))
    optimizer = graphopt.RMSProp(graphopt.parameters(made), 0.05, momentum=0.9)
    return made, "cross_entropy", optimizer


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with a training graph and 40 samples: 5 steps in an epoch."""
    monkeypatch.chdir(tmp_path)
    graphopt.training_graph(*parts()).save("train.onnx")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4)).astype(np.float32)
    np.savez("data.npz", x=x, labels=x[:, :3].argmax(axis=1))
    return tmp_path


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1, result.stdout
    return result.stderr


def same(first, second):
    first, second = (graphopt.checkpoint.read(checkpoint.file_of(p)) for p in (first, second))
    return all(np.array_equal(first[name], second[name]) for name in first)


def hold(path, ready, done):
    checkpoints = graphopt.Checkpoints(path)
    checkpoints.claim()
    ready.set()
    done.wait()


@pytest.fixture
def another_process():
    """A process that saves to the folder ``run``; ends when it is called."""
    if sys.platform == "win32":
        pytest.skip("there are no such locks")
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=("run", ready, done))
    process.start()

    def end():
        done.set()
        process.join()

    assert ready.wait(60)
    yield end
    end()


def test_two_processes_do_not_save_to_one_folder(another_process):
    succeed(*RUN, "--epochs", 1, "--checkpoint", "other")
    shutil.copytree("other", "run", dirs_exist_ok=True)
    before = contents(Path("run"))
    for epochs in (1, 2):
        message = refused(*RUN, "--epochs", epochs, "--checkpoint", "run")
        assert "another process saves its checkpoints to 'run'" in message
    assert contents(Path("run")) == before
    succeed("export", "train.onnx", "--checkpoint", "run", "-o", "out.onnx")  # it may be read
    another_process()
    assert "goes on after step 5" in succeed(*RUN, "--epochs", 2, "--checkpoint", "run").stdout


@pytest.mark.exhaustive
def test_two_commands_at_once():
    """One of them trains, as if it were alone; the other is refused."""
    command = [sys.executable, "-m", "graphopt", *map(str, RUN), "--epochs", "60"]
    command += ["--checkpoint", "run", "--save-every", "52"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    second = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ended = [(process.communicate()[1], process.returncode) for process in (first, second)]
    codes = sorted(code for _, code in ended)
    if codes != [0, 0]:  # where they were not at once, the second had nothing to do
        assert codes == [0, 1]
        assert any("another process saves its checkpoints to 'run'" in text for text, _ in ended)
    succeed(*RUN, "--epochs", 60, "--checkpoint", "whole.safetensors")
    assert same("run", "whole.safetensors")


def test_a_file_that_another_process_writes_meanwhile_is_not_overwritten():
    session = graphopt.Session("train.onnx")
    ours = target.target_at(
        Path("c.safetensors"), every=None, minutes=None, keep=3, best=None, background=False
    )
    assert ours.resume(session, None) is None
    ours.save(session, {"position": 1})
    ours.save(session, {"position": 2})  # its own may be
    session.save_checkpoint("c.safetensors", note={"position": 100})
    theirs = Path("c.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"another process has written 'c\.safetensors'"):
        ours.save(session, {"position": 3})
    assert Path("c.safetensors").read_bytes() == theirs
    Path("c.safetensors").unlink()  # by hand: it may be written again
    ours.save(session, {"position": 4})


def test_where_there_are_no_locks_the_checkpoint_of_another_run_is_not_overwritten(monkeypatch):
    monkeypatch.setattr(checkpoint_folder, "lock_of", lambda _: None)
    feeds = {"x": np.ones((2, 4), np.float32), "labels": np.zeros(2, np.int64)}
    sessions = [graphopt.Session("train.onnx") for _ in range(2)]
    runs = [graphopt.Checkpoints("run") for _ in range(2)]
    for session, one in zip(sessions, runs, strict=True):
        assert one.resume(session) is None
        session.step(feeds)
    runs[0].save(sessions[0])
    with pytest.raises(ValueError, match=r"another run has saved 'run.*0001"):
        runs[1].save(sessions[1])
    runs[0].save(sessions[0])


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_it_does_not_begin_anew_because_all_checkpoints_are_damaged():
    succeed(*RUN, "--epochs", 2, "--checkpoint", "run")
    for path in Path("run").iterdir():
        damage(path)
    before = contents(Path("run"))
    for _ in range(2):  # as something does that starts it again and again
        message = refused(*RUN, "--epochs", 3, "--checkpoint", "run")
        assert "no checkpoint of 'run' is whole" in message
        assert "step-0000000010.safetensors' is damaged" in message
        assert contents(Path("run")) == before


def newer(path):
    """As a later release writes it."""
    with checkpoint.opened(path) as tensors:
        state, metadata = dict(tensors), dict(tensors._file.metadata)
    metadata["version"] = "3"
    metadata["checksum"] = checkpoint.checksum_of(metadata)
    from safetensors.numpy import save_file

    save_file(state, path, metadata)


def test_what_a_newer_release_wrote_is_not_taken_for_damaged():
    succeed(*RUN, "--epochs", 2, "--checkpoint", "run", "--save-every", 4)
    newer(checkpoint.file_of("run"))
    before = contents(Path("run"))
    message = refused(*RUN, "--epochs", 3, "--checkpoint", "run")
    assert "a newer graphopt wrote it" in message
    assert contents(Path("run")) == before


def test_what_there_is_no_memory_for_is_not_taken_for_damaged(monkeypatch):
    succeed(*RUN, "--epochs", 2, "--checkpoint", "run", "--save-every", 4)
    before = contents(Path("run"))

    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr(checkpoint.file, "checksum", exhausted)
    session = graphopt.Session("train.onnx")
    with pytest.raises(TooLargeError, match=r"0010\.safetensors' asks for more memory"):
        graphopt.Checkpoints("run").resume(session)
    assert contents(Path("run")) == before


def test_a_checkpoint_to_begin_with_and_a_folder_of_another_run():
    succeed(*RUN, "--epochs", 1, "--checkpoint", "first")
    succeed(*RUN, "--epochs", 2, "--checkpoint", "second")
    before = contents(Path("second"))
    message = refused(*RUN, "--epochs", 3, "--resume", "first", "--checkpoint", "second")
    assert "--resume: 'second' has checkpoints of another run already" in message
    assert "leave out --resume" in message
    assert contents(Path("second")) == before
    stdout = succeed(*RUN, "--epochs", 3, "--resume", "second", "--checkpoint", "second").stdout
    assert "goes on after step 10 of 15" in stdout


@pytest.mark.parametrize("cause", ["step", "resume"])
def test_a_run_that_never_began_leaves_no_folder(cause):
    command = [*RUN, "--epochs", 1, "--checkpoint", "run"]
    if cause == "step":
        with np.load("data.npz") as data:
            np.savez("data.npz", x=data["x"], labels=data["labels"] + 3)
    else:
        succeed(*RUN, "--epochs", 1, "--checkpoint", "first")
        damage(checkpoint.file_of("first"))
        command += ["--resume", "first"]
    refused(*command)
    assert not Path("run").exists()
    Path("run").mkdir()  # by hand: it stays
    refused(*command)
    assert list(Path("run").iterdir()) == []


@pytest.mark.parametrize("kept", ["run", "run.safetensors"])
def test_the_same_command_goes_on_with_a_checkpoint_to_begin_with_too(kept):
    succeed(*RUN, "--epochs", 1, "--checkpoint", "first")
    command = (*RUN, "--resume", "first", "--checkpoint", kept)
    assert "goes on after step 5 of 10" in succeed(*command, "--epochs", 2).stdout
    assert "goes on after step 10 of 15" in succeed(*command, "--epochs", 3).stdout
    # Without the option it is the same run, and with it again.
    assert "goes on after step 15" in succeed(*RUN, "--checkpoint", kept, "--epochs", 4).stdout
    assert "goes on after step 20 of 25" in succeed(*command, "--epochs", 5).stdout
    succeed(*RUN, "--epochs", 5, "--checkpoint", "whole.safetensors")
    assert same(kept, "whole.safetensors")
    message = refused(*RUN, "--epochs", 6, "--resume", "none", "--checkpoint", kept)
    assert "there is no file 'none'" in message


def test_a_file_to_go_on_from_is_read_once(monkeypatch):
    files = graphopt.export_on_device(*parts(), "device")
    succeed(*RUN, "--epochs", 1, "--checkpoint", "c.safetensors")
    read = []
    looked_at = checkpoint.file.checksum
    monkeypatch.setattr(
        checkpoint.file, "checksum", lambda name, array: read.append(name) or looked_at(name, array)
    )
    session = graphopt.Session("train.onnx")
    options = {"every": None, "minutes": None, "keep": 3, "best": None, "background": False}
    for resume in (None, Path("c.safetensors")):
        note = target.target_at(Path("c.safetensors"), **options).resume(session, resume)
        assert note["position"] == session.global_step == 5
        assert sorted(read) == sorted(session.state)
        read.clear()
    assert target.target_at(None, **options).resume(session, files.checkpoint) == {}
    assert session.global_step == 0


def test_it_goes_on_in_the_middle_although_its_last_one_is_damaged():
    succeed(*RUN, "--epochs", 1, "--checkpoint", "first")
    command = (*RUN, "--resume", "first", "--checkpoint", "run", "--save-every", 2)
    succeed(*command, "--epochs", 2)
    damage(checkpoint.file_of("run"))
    with pytest.warns(UserWarning, match="it is left out"):
        assert "goes on after step 8 of 10" in succeed(*command, "--epochs", 2).stdout


def in_arrays():
    """The same data, each array in a file: that of ``x``, and the command that trains on them."""
    Path("arrays").mkdir()
    with np.load("data.npz") as data:
        for name in data.files:
            np.save(f"arrays/{name}.npy", data[name])
    return Path("arrays/x.npy"), (*RUN[:3], "arrays", *RUN[4:])


def test_data_that_are_written_during_a_run_are_told_of_when_it_goes_on(monkeypatch):
    monkeypatch.setattr(source, "_WHOLE", 100)
    edited, command = in_arrays()
    with monkeypatch.context() as during:
        step = graphopt.Session.step

        def written(*given, **options):
            os.utime(edited, ns=(1, 1))
            return step(*given, **options)

        during.setattr(graphopt.Session, "step", written)
        succeed(*command, "--epochs", 1, "--checkpoint", "run")
    with pytest.warns(UserWarning, match="files of the data were written since the run began"):
        succeed(*command, "--epochs", 2, "--checkpoint", "run")


@pytest.mark.parametrize("kind", ["arrays", "pictures"])
def test_data_that_were_written_again_are_told_of_where_not_all_are_compared(kind, monkeypatch):
    monkeypatch.setattr(source, "_WHOLE", 100)
    monkeypatch.setattr(source, "_ROWS", 2)
    if kind == "arrays":
        edited, command = in_arrays()
    else:
        image = pytest.importorskip("PIL.Image")
        for label in range(3):
            Path("pictures", str(label)).mkdir(parents=True)
            for index in range(6):
                image.new("L", (2, 2), 9 * index).save(f"pictures/{label}/{index}.bmp")
        made = onnx.parser.parse_model(MODEL.replace("N,4", "N,1,2,2").replace("x)", "x)", 1))
        made.graph.node[0].CopyFrom(onnx.helper.make_node("Flatten", ["x"], ["flat"]))
        made.graph.node.append(onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"]))
        made.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 3), np.float32), "w"))
        optimizer = graphopt.RMSProp(graphopt.parameters(made), 0.05)
        graphopt.training_graph(made, "cross_entropy", optimizer).save("pictures.onnx")
        edited = Path("pictures/1/3.bmp")
        command = ("train", "pictures.onnx", "--data", "pictures", "--batch-size", 8)
    succeed(*command, "--epochs", 1, "--checkpoint", "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        succeed(*command, "--epochs", 2, "--checkpoint", "run")
    content = bytearray(edited.read_bytes())
    content[-70] ^= 1  # of a row, or a pixel, that nothing looks at
    edited.write_bytes(content)
    with pytest.warns(UserWarning, match="files of the data were written since the run began"):
        succeed(*command, "--epochs", 3, "--checkpoint", "run")


def test_a_folder_that_is_moved_during_a_run_is_made_again():
    session = graphopt.Session("train.onnx")
    feeds = {"x": np.ones((2, 4), np.float32), "labels": np.zeros(2, np.int64)}
    checkpoints = graphopt.Checkpoints("run")
    session.step(feeds)
    checkpoints.save(session)
    Path("run").rename("moved")
    session.step(feeds)
    with pytest.warns(UserWarning, match="the folder 'run' was moved or removed"):
        checkpoints.save(session)
    assert [path.name for path in Path("moved").iterdir()] == [checkpoint.name_at(1)]
    assert [path.name for path in Path("run").iterdir()] == [checkpoint.name_at(2)]
    succeed(*RUN, "--epochs", 1, "--checkpoint", "c")
    Path("c").rename("d")  # between runs, it is another place of the same run
    assert "goes on after step 5" in succeed(*RUN, "--epochs", 2, "--checkpoint", "d").stdout


def test_the_new_folder_is_on_the_disk_before_what_is_in_it(monkeypatch):
    done = []
    sync = checkpoint_folder.sync_folder
    monkeypatch.setattr(checkpoint_folder, "sync_folder", lambda f: (done.append(f), sync(f)))
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *a: (done.append("saved"), save(*a)))
    succeed(*RUN, "--epochs", 1, "--checkpoint", "run")
    assert done == [Path(), "saved"]


def test_the_log_is_on_the_disk_before_the_checkpoint_that_goes_on_with_it(monkeypatch):
    order = []
    fsync, save = os.fsync, checkpoint.save

    def synced(number):
        order.append(Path(f"/proc/self/fd/{number}").resolve().name)
        fsync(number)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(checkpoint, "save", lambda *a: (order.append("checkpoint"), save(*a)))
    log = ("--log", "log.jsonl", "--log-every", 1)
    succeed(*RUN, "--epochs", 1, "--checkpoint", "run", "--save-every", 2, *log)
    saved = [index for index, name in enumerate(order) if name == "checkpoint"]
    assert len(saved) == 3
    assert [order[index - 1] for index in saved] == ["log.jsonl"] * 3
    rows = [json.loads(line) for line in Path("log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["row"] == "step"] == [1, 2, 3, 4, 5]


def mounted(place, options):
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("nothing may be mounted")


@pytest.fixture
def place(folder):
    """Where something is mounted."""
    place = folder / "place"
    yield place
    subprocess.run(["umount", "--recursive", str(place)], check=False)


@pytest.mark.parametrize(
    "option", [("--checkpoint", "run"), ("--checkpoint", "c.safetensors"), ("--export", "o.onnx")]
)
def test_a_disk_that_is_read_only_is_found_before_anything_is_trained(option, place, monkeypatch):
    mounted(place, "ro,size=64k")
    monkeypatch.setattr(graphopt.Session, "step", lambda *_, **__: pytest.fail("it trains"))
    message = refused(*RUN, "--epochs", 1, option[0], f"place/{option[1]}")
    assert os.strerror(errno.EROFS) in message
    assert "'place" in message


def test_a_folder_in_one_that_nobody_may_write_to_is_trained_into(place):
    """Such as a volume of a container, whose parent is its root."""
    mounted(place, "size=64k")
    mounted(place / "run", "size=64k")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    command = (*RUN, "--checkpoint", "place/run")
    succeed(*command, "--epochs", 1)
    assert "goes on after step 5 of 10" in succeed(*command, "--epochs", 2).stdout
    subprocess.run(["mount", "-o", "remount,ro", str(place / "run")], check=True)
    before = contents(place / "run")
    assert os.strerror(errno.EROFS) in refused(*command, "--epochs", 3)
    assert contents(place / "run") == before


def test_a_full_disk_leaves_the_last_checkpoint_and_the_same_command_goes_on(place):
    mounted(place, "size=40k")
    (place / "log.csv").write_text("")
    command = (*RUN, "--checkpoint", "place/run", "--log", "place/log.csv", "--log-every", 1)
    succeed(*command, "--epochs", 1)
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    before = contents(place / "run")
    message = refused(*command, "--epochs", 50)
    assert os.strerror(errno.ENOSPC) in message
    assert "'place/" in message
    assert contents(place / "run") == before
    ballast.unlink()
    assert "goes on after step 5 of 10" in succeed(*command, "--epochs", 2).stdout
    succeed(*RUN, "--epochs", 2, "--checkpoint", "whole.safetensors")
    assert same("place/run", "whole.safetensors")
    rows = (place / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + 10 + 2
