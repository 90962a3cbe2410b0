"""The command line of graphopt, in the process of the tests."""

from functools import cache

from typer import testing
from typer.testing import CliRunner, Result

from graphopt.cli import app

# To make all commands takes longer than to run one.
testing._get_command = cache(testing._get_command)


def run(*arguments: object, **settings: object) -> Result:
    """What a command answers, whether it succeeds or not."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **settings)


def succeed(*arguments: object) -> Result:
    """What a command answers that must succeed."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result
