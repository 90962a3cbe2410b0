"""Processes of which one fails, hangs or ends early: the others end soon, and say why."""

import os
import subprocess
import sys
import time

import pytest

from tests.helpers.folders import ROOT
from tools.launchers import launcher

pytestmark = [
    pytest.mark.any_runtime,
    pytest.mark.skipif(sys.platform == "win32", reason="signals that stop and kill"),
]

LONGEST = 20.0  # seconds until all have ended; about four where the machine is idle

SCRIPT = """
import os, signal, sys, time
from graphopt.distributed import DataParallel, mpi, torch_distributed
from tests.helpers.parallel import feeds_of, graph_of

engine = mpi if sys.argv[1] == "mpi" else torch_distributed
with engine(timeout=3) as ranks:
    session = DataParallel(graph_of(), ranks)
    for step in range(6):
        if ranks.rank == int(sys.argv[3]) and step == 3:
            with open("began", "w") as file:
                file.write(str(os.getpid()))
            {deed}
        session.step(feeds_of(step))
"""

DEEDS = {
    "kill": "os.kill(os.getpid(), signal.SIGKILL)",
    "stop": "os.kill(os.getpid(), signal.SIGSTOP)",
    "fewer": "break",
    "raise": "raise KeyError('no such picture')",
    # As where a debugger looks at the exception, or a thread goes on.
    "linger": "ranks.__exit__(KeyError, KeyError('no such picture'), None); time.sleep(60)",
}
SILENT = "has given no sign of life for 3 s: its process is stopped, or its machine is lost"


def run(folder, engine, deed, rank):
    """What three ranks say, and for how long after the deed they go on."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(deed=DEEDS[deed]), encoding="utf-8")
    began, output = folder / "began", folder / "output"
    command = [*launcher(engine, 3), str(script), engine, deed, str(rank)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
        try:
            assert process.wait(240) != 0
        finally:
            process.kill()
    return output.read_text("utf-8", "replace"), time.time() - began.stat().st_mtime


def exhaustive(*case):
    return pytest.param(*case, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    ("engine", "deed", "rank", "said"),
    [
        ("mpi", "stop", 1, f"waits for a sum in vain: rank 1 of 3 {SILENT}"),
        exhaustive("mpi", "stop", 0, f"rank 0 of 3 {SILENT}"),
        exhaustive("mpi", "fewer", 0, "rank 0 of 3 has ended"),
        ("mpi", "fewer", 2, "waits for a sum in vain: rank 2 of 3 has ended"),
        exhaustive("mpi", "kill", 2, "Killed (signal 9)"),
        exhaustive("mpi", "raise", 2, "KeyError: 'no such picture'"),
        exhaustive("torch", "fewer", 1, "nothing was updated: rank 1 of 3 has ended"),
        exhaustive("torch", "raise", 2, "KeyError: 'no such picture'"),
        exhaustive("torch", "kill", 1, "Signal 9 (SIGKILL)"),
    ],
)
def test_ranks_end_with_one_that_is_lost(engine, deed, rank, said, tmp_path):
    output, taken = run(tmp_path, engine, deed, rank)
    assert said in output
    assert taken < LONGEST


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("deed", "rank", "said"),
    [
        ("stop", 0, f"nothing was updated: rank 0 of 3 {SILENT}"),
        ("stop", 2, f"nothing was updated: rank 2 of 3 {SILENT}"),
        ("linger", 1, "nothing was updated: rank 1 of 3 failed: KeyError: 'no such picture'"),
    ],
)
def test_ranks_of_gloo_end_though_it_does_not(deed, rank, said, tmp_path):
    """torchrun ends what is stopped, which takes it half a minute; the others have ended before."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(deed=DEEDS[deed]), encoding="utf-8")
    store = "import torch.distributed as d, time; s = d.TCPStore('127.0.0.1', 0, is_master=True, "
    store += "wait_for_workers=False); print(s.port, flush=True); time.sleep(600)"
    processes = {}
    with subprocess.Popen([sys.executable, "-c", store], stdout=subprocess.PIPE) as server:
        try:
            variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.stdout.readline()}
            variables["MASTER_PORT"] = variables["MASTER_PORT"].decode().strip()
            variables |= {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
            variables |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": str(ROOT)}
            for r in range(3):
                processes[r] = subprocess.Popen(
                    [sys.executable, str(script), "torch", deed, str(rank)],
                    cwd=tmp_path,
                    env={**os.environ, **variables, "RANK": str(r), "LOCAL_RANK": str(r)},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            others = [process for r, process in processes.items() if r != rank]
            for process in others:
                assert said in process.communicate(timeout=240)[1]
                assert process.returncode == 1
            assert time.time() - (tmp_path / "began").stat().st_mtime < LONGEST
            assert processes[rank].poll() is None
        finally:
            server.kill()
            for process in processes.values():
                process.kill()
                process.communicate()
