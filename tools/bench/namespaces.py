"""Network namespaces, one for each rank, that a wire joins: several machines on one.

It needs Linux, ``ip`` and ``tc``, and root; ``unshare -rnm`` makes a user root enough. Nothing of
the host's own network is touched.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INTERFACE = "eth0"
_NETWORK = "10.77.0"
_BURST = "256kb"  # of a token bucket: what a segment that TCP hands over may have, and more
_PATIENCE = 10.0  # seconds until an interface is up
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Wire:
    """What joins the namespaces: each has a port of a switch.

    Attributes:
        rate: Bits a second, in each direction of each port; None: what the machine gives.
        delay: Seconds that a packet takes beyond that, one way.
    """

    rate: float | None = None
    delay: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a rank runs.

    Attributes:
        name: The namespace.
        address: What it has there.
    """

    name: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """What a command is started with, so that it runs there."""
        return ["ip", "netns", "exec", self.name]


@contextmanager
def namespaces(count: int, wire: Wire) -> Iterator[list[Place]]:
    """So many namespaces, which are removed at the end.

    The kernel limits the rate, by a token bucket at each end. A delay wants a process that keeps
    the packets for so long, `tools.bench.relay`, because ``netem`` is not in each kernel; it limits
    the rate too.

    Raises:
        RuntimeError: This machine or this user cannot have them; the message has what was refused.
    """
    own = f"ranks{os.getpid()}"
    places = [Place(f"{own}-{rank}", f"{_NETWORK}.{rank + 1}") for rank in range(count)]
    names, relay = [place.name for place in places], None
    try:
        for name in (*names, own):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        if wire.delay:
            relay = _relayed(names, wire)
        else:
            _switched(names, own, wire)
        for place in places:
            _run("ip", "-n", place.name, "address", "add", f"{place.address}/24", "dev", INTERFACE)
            _run("ip", "-n", place.name, "link", "set", INTERFACE, "up")
        for place in places:
            _wait_for(place.name, INTERFACE)
        for rank in range(0 if wire.delay else count):
            _wait_for(own, f"port{rank}")
        yield places
    finally:
        if relay is not None:
            with relay:
                relay.terminate()
        for name in (*names, own):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _switched(names: list[str], switch: str, wire: Wire) -> None:
    _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
    _run("ip", "-n", switch, "link", "set", "bridge", "up")
    for rank, name in enumerate(names):
        port = f"port{rank}"
        _run(
            *("ip", "link", "add", INTERFACE, "netns", name, "type", "veth"),
            *("peer", "name", port, "netns", switch),
        )
        _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
        for space, device in ((name, INTERFACE), (switch, port)):
            if wire.rate is not None:
                _run(
                    *("tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf"),
                    *("rate", f"{wire.rate:.0f}bit", "burst", _BURST, "latency", "50ms"),
                )


def _relayed(names: list[str], wire: Wire) -> subprocess.Popen[str]:
    """A relay, which has made the interfaces."""
    rate = "inf" if wire.rate is None else str(wire.rate)
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.bench.relay", rate, str(wire.delay), *names],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError(f"the relay of packets ended with {process.wait()}")
    return process


def _wait_for(space: str, device: str) -> None:
    """Wait until a device has a carrier, without which libraries do not see it."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        said = _run("ip", "-n", space, "link", "show", device)
        if "LOWER_UP" in said and "NO-CARRIER" not in said and "state DOWN" not in said:
            return
        time.sleep(0.05)
    raise RuntimeError(f"the interface {device} of {space} does not come up: {said}")


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
