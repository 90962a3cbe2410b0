"""Carries packets between network namespaces, late.

``python -m tools.bench.relay RATE DELAY NAME...`` makes the interface of each namespace, says so,
and goes on until it is ended. A packet is sent when the port of its sender has taken its bits at
the rate, then that of its receiver, and arrives after the delay. Packets are as large as IP allows,
so that Python carries Gigabits; nothing is lost.
"""

import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tools.bench.namespaces import INTERFACE

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_LARGEST = 65535  # bytes of a packet
_LAST_OF_DESTINATION = 19  # where the last byte of the receiver's address is in a packet of IPv4
_PRIORITY = 10  # of those that are run as soon as they can


def interface(name: str) -> int:
    """The file of packets of the interface that is made in a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", name).open("rb") as space:
        if libc.setns(space.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"no way into the namespace {name}")
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH14x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(file, _TUNSETIFF, request)
    subprocess.run(["ip", "link", "set", INTERFACE, "mtu", str(_LARGEST)], check=True)
    return file


class Switch:
    """Where all ports meet.

    Args:
        rate: Bits a second of each port, in each direction.
        delay: Seconds from port to port.
        files: Those of the ports, in the order of the last bytes of their addresses, from 1.
    """

    def __init__(self, rate: float, delay: float, files: list[int]) -> None:
        """See the class."""
        self._rate, self._delay, self._files = rate, delay, files
        self._sent, self._received = ([0.0] * len(files) for _ in range(2))  # when it is free
        self._late: list[tuple[float, int, int, bytes]] = []
        self._count = 0

    def take(self, port: int, packet: bytes, now: float) -> None:
        """Take a packet that a port sends; one that is not for a port is dropped."""
        to = packet[_LAST_OF_DESTINATION] - 1 if packet[0] >> 4 == 4 else -1
        if not 0 <= to < len(self._files):
            return
        bits = 8 * len(packet) / self._rate
        self._sent[port] = begin = max(now, self._sent[port]) + bits
        # The receiver's port takes the bits as they come, unless it is still busy with others.
        self._received[to] = end = max(begin, self._received[to] + bits)
        self._count += 1
        heapq.heappush(self._late, (end + self._delay, self._count, to, packet))

    def deliver(self, now: float) -> float | None:
        """Hand over what is due; returns the seconds until there is more."""
        while self._late and self._late[0][0] <= now:
            _, _, to, packet = heapq.heappop(self._late)
            try:
                os.write(self._files[to], packet)
            except OSError:  # the interface is not up, or is full: the packet is lost
                continue
        return max(0.0, self._late[0][0] - now) if self._late else None

    def run(self) -> None:
        """Carry packets for ever."""
        ports = {file: port for port, file in enumerate(self._files)}
        while True:
            ready, _, _ = select.select(self._files, [], [], self.deliver(time.monotonic()))
            now = time.monotonic()
            for file in ready:
                try:
                    self.take(ports[file], os.read(file, _LARGEST), now)
                except BlockingIOError:
                    continue


def main() -> None:
    """See the module."""
    rate, delay, *names = sys.argv[1:]
    switch = Switch(float(rate), float(delay), [interface(name) for name in names])
    # A wire does not wait until the ranks leave it a core, if this user may say so.
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    print("ready", flush=True)
    switch.run()


if __name__ == "__main__":
    main()
