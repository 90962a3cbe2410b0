"""The command line in a process of its own, whose sessions take one thread, as in the tests."""

from graphopt.cli import app
from tests.conftest import pytest_configure

if __name__ == "__main__":
    pytest_configure()
    app(prog_name="graphopt")
