"""A Chromium without a window: an installed one, or one that is unpacked into .cache/."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.installed import install

_NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
_PACKAGE = "chromium-headless-shell"
SOFTWARE_GPU = (
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan,WebGPU",
    "--use-webgpu-adapter=swiftshader",
    "--use-vulkan=swiftshader",
)
"""Options for WebGPU without a GPU."""


@contextmanager
def opened(address: str, home: Path, more: Iterable[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Shows a page for as long as the context lasts.

    Args:
        address: Of the page.
        home: An empty folder for what Chromium writes, among it ``log``.
        more: Further options.
    """
    executable, environment = program()
    options = [
        "--headless",
        "--no-sandbox",  # containers forbid it
        "--disable-dev-shm-usage",  # it is small there
        *(() if "--enable-unsafe-webgpu" in (more := tuple(more)) else ("--disable-gpu",)),
        "--enable-logging=stderr",
        f"--user-data-dir={home / 'profile'}",
        "--no-first-run",
        "--disable-background-networking",  # a browser with a window looks for updates of itself
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing reaches the network
        "--remote-debugging-port=0",  # without it, the page is closed as soon as it has loaded
        *more,
    ]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [executable, *options, address],
            env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(home)},
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def program() -> tuple[str, dict[str, str]]:
    """The program and the environment that it needs, or the test is skipped."""
    for name in _NAMES:
        found = shutil.which(name)
        if found:
            return found, dict(os.environ)
    root = install("chromium", "1", _unpack)
    libraries = sorted({str(path.parent) for path in root.rglob("*.so*")})
    executable = root / "usr/lib/chromium" / _PACKAGE
    return str(executable), {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}


def _unpack(root: Path) -> None:
    """Downloads Debian's package with what it needs and the system lacks, and installs nothing."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("NOT RUN: needs Chromium; without Debian's apt, install it yourself")
    packages = root / "packages"
    (root / "apt/lists/partial").mkdir(parents=True)
    (root / "apt/archives/partial").mkdir(parents=True)
    packages.mkdir()
    options = {
        "Dir::State": root / "apt",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": root / "apt",
        "APT::Sandbox::User": "root",  # another user could not write here
    }
    apt = ["apt-get", *(f"--option={key}={value}" for key, value in options.items())]
    try:
        _run([*apt, "update"], packages)
        plan = _run([*apt, "install", "--dry-run", "--no-install-recommends", _PACKAGE], packages)
        needed = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
        _run([*apt, "download", *needed], packages)
        for package in packages.iterdir():
            _run(["dpkg-deb", "--extract", str(package), str(root)], packages)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"NOT RUN: apt could not deliver {_PACKAGE}: {error}; {error.stderr!r}")
    finally:
        shutil.rmtree(packages, ignore_errors=True)
        shutil.rmtree(root / "apt", ignore_errors=True)


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, check=True
    )
    return done.stdout
