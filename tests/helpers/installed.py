"""Installing a test's tools into .cache/, once, whichever of the test processes comes first."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.helpers.folders import ROOT

CACHE = ROOT / ".cache"


def install(name: str, version: str, into: Callable[[Path], None]) -> Path:
    """The folder .cache/NAME, filled by a function unless it holds this version already."""
    folder, stamp = CACHE / name, CACHE / f"{name}.installed"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != version:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            into(folder)
            stamp.write_text(version, encoding="utf-8")
    return folder
