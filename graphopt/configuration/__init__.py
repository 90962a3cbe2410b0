"""Configuration files: everything of a training graph in TOML, checked, for the command line."""

from graphopt.configuration.example_file import example
from graphopt.configuration.making import (
    checked_alone,
    device_arguments,
    graph_arguments,
    left_to_the_command,
    optimizer_of,
)
from graphopt.configuration.reading import Configuration, read_configuration

__all__ = [
    "Configuration",
    "checked_alone",
    "device_arguments",
    "example",
    "graph_arguments",
    "left_to_the_command",
    "optimizer_of",
    "read_configuration",
]
