"""``python -m graphopt``: the command line."""

from graphopt.cli import app

app(prog_name="graphopt")
