"""The table of steps by ranks is that of the measurement."""

import pytest

from tools.bench.parallel_table import PAGE, table

pytestmark = pytest.mark.any_runtime


def test_table():
    assert table() in PAGE.read_text("utf-8")
