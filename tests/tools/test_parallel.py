"""What several ranks are measured with: namespaces of the network, and the relay between them."""

import os
import subprocess
import sys

import pytest

from tools.bench.link_cost import Link, cost, ring, tree
from tools.bench.namespaces import Wire, namespaces
from tools.bench.relay import Switch

pytestmark = [
    pytest.mark.any_runtime,
    pytest.mark.skipif(sys.platform != "linux", reason="namespaces and files of packets"),
]


def packet(to, size):
    """As IPv4 has it, as far as a switch looks."""
    head = bytearray(20)
    head[0], head[19] = 0x45, to + 1
    return bytes(head) + bytes(size - 20)


def test_a_port_takes_one_packet_after_another_and_hands_them_over_late():
    files = [os.pipe() for _ in range(3)]
    switch = Switch(8e6, 0.5, [write for _, write in files])  # a byte a microsecond
    switch.take(0, packet(1, 1000), 10.0)
    switch.take(0, packet(1, 1000), 10.0)  # waits for the first
    switch.take(2, packet(1, 3000), 10.0)  # another sender, the same receiver
    switch.take(0, packet(7, 1000), 10.0)  # nobody's, as what is no IPv4
    switch.take(0, b"\x60" + bytes(60), 10.0)
    due = []
    now = switch.deliver(10.0)
    while now is not None:
        due.append(round(10.0 + now, 6))
        now = switch.deliver(10.0 + now + 1e-9)
        now = None if now is None else due[-1] - 10.0 + now
    # From 10 s: 1 ms; 2 ms; and 3 more, which the port of the receiver begins to take at 2 ms.
    assert due == [10.501, 10.502, 10.505]
    assert len(os.read(files[1][0], 10_000)) == 5000
    for pair in files:
        for file in pair:
            os.close(file)


@pytest.mark.exhaustive
def test_what_passes_a_wire_takes_as_long_as_it_says():
    """A datagram there and back, between two namespaces."""
    begin = "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    answers = (
        "s.bind(('', 9)); print(flush=True)\n"
        "for _ in range(5): data, at = s.recvfrom(99); s.sendto(data, at)"
    )
    asks = (
        "s.settimeout(10); taken = []\n"
        "for _ in range(5):\n"
        " begin = time.monotonic(); s.sendto(b'x', ('10.77.0.1', 9)); s.recv(99)\n"
        " taken.append(time.monotonic() - begin)\n"
        "print(min(taken))"
    )
    for delay in (0.0, 0.05):
        try:
            with namespaces(2, Wire(1e9, delay)) as (one, other):
                command = [*one.prefix, sys.executable, "-c", begin + answers]
                with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                    process.stdout.readline()
                    command = [*other.prefix, sys.executable, "-c", begin + asks]
                    taken = float(subprocess.run(command, check=True, capture_output=True).stdout)
        except RuntimeError as error:
            pytest.skip(f"this user may not make namespaces: {error}")
        assert 2 * delay <= taken < 2 * delay + 0.02
    assert not [line for line in _namespaces() if line.startswith(f"ranks{os.getpid()}")]


def _namespaces():
    done = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def test_the_cost_of_a_sum():
    link = Link(1e-3, 1e9)
    assert ring(link, 1e9, 4) == pytest.approx(6 * (1e-3 + 0.25))
    assert tree(link, 1e9, 4) == pytest.approx(2 * (1e-3 + 1.0))
    assert cost(link, 1e9, 10, 1) == 0
    small = 2 * tree(link, 64, 4)
    assert cost(link, 1e9, 10, 4) == pytest.approx(10 * ring(link, 1e8, 4) + small)
