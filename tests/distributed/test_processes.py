"""Processes that mpiexec and torchrun start: the command line, and what goes wrong between them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import graphopt
from graphopt import checkpoint
from graphopt.cli import app
from graphopt.distributed import _mpi, _torch, mpi, torch_distributed
from tests.helpers.folders import ROOT
from tests.helpers.parallel import graph_of
from tools.launchers import launcher

# What adds arrays up does not know of the runtime.
pytestmark = pytest.mark.any_runtime

COMMAND = ["-m", "tests.helpers.one_thread", "train", "train.onnx", "--data", "data.npz"]
MPI, TORCH = ("--distributed", "mpi"), ("--distributed", "torch")


def by_mpi(count, *arguments, **settings):
    return finished([*launcher("mpi", count), *arguments], **settings)


def by_torch(count, *arguments, **settings):
    return finished([*launcher("torch", count), *arguments], **settings)


def finished(command, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    command = list(map(str, command))
    settings = {"capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, check=False, env=environment, **settings)


def alone(*arguments):
    result = CliRunner().invoke(app, ["train", "train.onnx", "--data", "data.npz", *arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graph_of(momentum=0.9, options={"accumulation": 2}, clip_norm=0.5).save("train.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((45, 6)).astype(np.float32)
    np.savez("data.npz", x=x, labels=rng.standard_normal((45, 3)).astype(np.float32))
    return tmp_path


def state(path):
    return checkpoint.read(path)


def close(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, 1e-6, 1e-6, err_msg=name)


def test_the_command_trains_with_any_number_of_ranks_and_goes_on_with_another(folder):
    steps = ["--batch-size", "10", "--seed", "3"]
    alone(*steps, "--epochs", "6", "--checkpoint", "one.safetensors")
    command = [*COMMAND, *steps, *MPI, "--checkpoint", "run", "--export", "trained.onnx"]
    run = by_mpi(3, *command, "--epochs", "3")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("checkpoint: run") == 1
    assert run.stdout.count("trained model: trained.onnx") == 1
    run = by_mpi(2, *command, "--epochs", "6")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("goes on after step 15 of 30") == 1
    (newest,) = (path for path in Path("run").iterdir() if checkpoint.step_of(path) == 15)
    close(state("one.safetensors"), state(newest))
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith("r")) == ["run"]


@pytest.mark.exhaustive
@pytest.mark.usefixtures("folder")
def test_ranks_validate_and_end_early_together():
    """Rank 0 alone looks how good it is, and all end after the same epoch."""
    steps = ["--batch-size", "10", "--seed", "3", "--epochs", "9", "--validation", "data.npz"]
    steps += ["--patience", "2", "--min-delta", "100", "--keep-best", "--log", "log.csv"]
    alone(*steps, "--checkpoint", "one")
    rows = Path("log.csv").read_text().splitlines()
    assert len(rows) == 1 + 3
    run = by_mpi(2, *COMMAND, *steps, *MPI, "--checkpoint", "two", "--plot", "plot.svg")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("stopped early: 2 epochs without a better validation loss") == 1
    assert len(Path("log.csv").read_text().splitlines()) == 1 + 3
    newest = [max(Path(folder).iterdir()) for folder in ("one", "two")]
    assert newest[0].name == newest[1].name
    one, two = (checkpoint.read_stored(path) for path in newest)
    close(one.state, two.state)
    for before, after in zip(one.note["history"], two.note["history"], strict=True):
        assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("folder")
def test_torchrun_trains_the_same():
    steps = ["--batch-size", "10", "--epochs", "2"]
    alone(*steps, "--checkpoint", "one.safetensors")
    run = by_torch(2, *COMMAND, *steps, *TORCH, "--checkpoint", "two.safetensors")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("checkpoint: two.safetensors") == 1
    close(state("one.safetensors"), state("two.safetensors"))


def test_an_exception_on_one_rank_ends_all_with_its_message(folder):
    script = folder / "script.py"
    script.write_text(
        "from graphopt.distributed import DataParallel, mpi\n"
        "from tests.helpers.parallel import feeds_of\n"
        "with mpi() as ranks:\n"
        "    session = DataParallel('train.onnx', ranks)\n"
        "    session.step(feeds_of(0))\n"
        "    if ranks.rank == 1:\n"
        "        raise KeyError('no such picture')\n"
        "    session.step(feeds_of(1))\n"
    )
    run = by_mpi(2, script)
    assert run.returncode != 0
    assert "rank 1 of 2 failed:" in run.stderr
    assert "KeyError: 'no such picture'" in run.stderr


@pytest.mark.usefixtures("folder")
def test_what_all_ranks_refuse_is_said_once():
    run = by_mpi(2, *COMMAND, *MPI, "--epochs", "1", "--resume", "nothing.safetensors")
    assert run.returncode != 0
    assert run.stderr.count("error: ") == 1
    assert "nothing.safetensors" in run.stderr


def test_an_mpiexec_of_another_mpi_is_noticed(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    told = r"an mpiexec of Open MPI has started 4 processes .*, so that each thinks it is alone"
    with pytest.raises(RuntimeError, match=told):
        mpi()
    _mpi.check_company(4, {"PMI_SIZE": "4"}, "MPICH")
    _mpi.check_company(1, {"PMI_SIZE": "1"}, "MPICH")
    with pytest.raises(
        RuntimeError, match=r"4 processes \(PMI_SIZE\), but mpi4py uses Open MPI v5"
    ):
        _mpi.check_company(1, {"PMI_SIZE": "4"}, "Open MPI v5.0.8, package: Open MPI\nmore")


def test_gloo_needs_an_address_that_others_reach(monkeypatch):
    several = {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
    with pytest.raises(
        RuntimeError, match=r"gloo would listen at 127\.0\.1\.1.*GLOO_SOCKET_IFNAME"
    ):
        _torch.check_address(several, "127.0.1.1")
    _torch.check_address(several, "10.0.0.1")
    _torch.check_address({**several, "GLOO_SOCKET_IFNAME": "eth0"}, "127.0.1.1")
    _torch.check_address({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4"}, "127.0.1.1")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match=r"torchrun has not started this process \(RANK, WORLD"):
        torch_distributed()


def test_an_interface_that_is_none_is_said(monkeypatch):
    told = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
    for name, value in (told | {"GLOO_SOCKET_IFNAME": "nothing0"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError) as caught:
        torch_distributed(timeout=5)
    said = str(caught.value)
    assert "did not connect to 127.0.0.1:29577 as rank 0 of 1" in said
    assert "GLOO_SOCKET_IFNAME is nothing0: set GLOO_SOCKET_IFNAME to the interface" in said


@pytest.mark.parametrize(
    ("engine", "module", "extra"), [(mpi, "mpi4py", "mpi"), (torch_distributed, "torch", "torch")]
)
def test_what_is_not_installed_is_said_with_its_extra(engine, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'graphopt\[{extra}\]'"):
        engine()


def test_one_process_needs_no_mpiexec():
    with mpi() as ranks:
        session = graphopt.DataParallel(graph_of(), ranks)
        assert (session.rank, session.size) == (0, 1)
