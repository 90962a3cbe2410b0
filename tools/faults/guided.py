"""Damages files where that reaches new lines, ``python -m tools.faults.guided --seconds 3600``.

With atheris, which needs an environment of its own that has all that graphopt needs: it watches
which lines of graphopt a file reaches, and goes on from those files that reach others. What is
right is what `tools.faults` says. Each find is printed, and kept once for each place in graphopt.
A process that has crashed, hung or taken too much memory is a find, and the next one goes on.
"""

import argparse
import contextlib
import importlib
import os
import pkgutil
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tools.faults.pool import MEMORY, SECONDS, judged

_OUTSIDE = ("graphopt.torch",)  # imports PyTorch, and reads no files
_LARGEST = 60_000  # bytes of a file


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument(
        "--keep", type=Path, default=Path("finds"), help="a folder for what is found"
    )
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.keep.mkdir(exist_ok=True)
    if options.process:
        _fuzz(options.keep, options.seconds)
    end = time.monotonic() + options.seconds
    crashes = 0
    while (left := int(end - time.monotonic())) > 0:
        command = [sys.executable, "-m", "tools.faults.guided", "--process"]
        command += ["--seconds", str(left), "--keep", str(options.keep)]
        code = subprocess.run(command, check=False).returncode
        if code == 1:
            raise RuntimeError("the process did not begin; what it wrote says why")
        if code:
            crashes += 1
            print(f"process {crashes} ended with {code}", flush=True)
    found = sorted(path.name for path in options.keep.iterdir() if path.is_file())
    print(f"{len(found)} finds: {' '.join(found)}")
    raise SystemExit(min(len(found), 1))


def _fuzz(keep: Path, seconds: int) -> None:
    """Fuzz in this process until the time is over, or it cannot go on."""
    import atheris
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    with atheris.instrument_imports(include=["graphopt"]):
        _import_all("graphopt")
    from tools.faults.guided_subjects import guided_subjects, seeds
    from tools.faults.inside import damaged_inside

    corpus = keep / "corpus"
    corpus.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=_fastest()))
    found = guided_subjects(folder)
    for name, data in seeds(found).items():
        (corpus / name).write_bytes(data)

    def one(data: bytes) -> None:
        if not data:
            return
        subject = found[data[0] % len(found)]
        path = folder / f"damaged-{subject.path.name}"
        path.write_bytes(data[1:])
        for name, call in subject.calls.items():
            outcome, message, error = judged(call, path)
            if outcome in ("accepted", "refused"):
                continue
            place = _place(error)
            key = f"{name}-{outcome}-{place}".replace(" ", "-").replace("/", ".")
            if not (keep / key).exists():
                (keep / key).write_bytes(data)
                print(f"FIND {key}: {message[:300]!r}", flush=True)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        kind, body = data[:1] or b"\0", data[1:]
        return kind + damaged_inside(seed, body, most - 1, atheris.Mutate)

    resource.setrlimit(resource.RLIMIT_DATA, (2 * MEMORY, 2 * MEMORY))
    arguments = [
        f"-max_total_time={seconds}",
        f"-timeout={10 * SECONDS}",  # by the clock, on a machine that may be busy
        f"-rss_limit_mb={MEMORY // 2**20}",
        f"-max_len={_LARGEST}",
        f"-artifact_prefix={keep}{os.sep}",
        "-len_control=0",
        str(corpus),
    ]
    atheris.Setup(["guided", *arguments], one, custom_mutator=mutated)
    atheris.Fuzz()


def _import_all(name: str) -> None:
    """Import a package with all that is in it, so that its lines are watched."""
    package: Any = importlib.import_module(name)
    for module in pkgutil.iter_modules(package.__path__, f"{name}."):
        if module.name.startswith(_OUTSIDE) or module.name.endswith("__main__"):
            continue
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
        if module.ispkg:
            _import_all(module.name)


def _place(error: BaseException | None) -> str:
    """The innermost line of graphopt at which it was raised."""
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    own = [frame for frame in frames if "graphopt/" in frame.filename]
    return f"{own[-1].filename.split('graphopt/')[-1]}:{own[-1].lineno}" if own else "?"


def _fastest() -> str | None:
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() else None


if __name__ == "__main__":
    main()
