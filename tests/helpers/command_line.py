"""The command line of graphopt, in the process of the tests."""

from typer.testing import CliRunner, Result

from graphopt.cli import app


def run(*arguments: object) -> Result:
    """What a command answers, whether it succeeds or not."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    """What a command answers that must succeed."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result
