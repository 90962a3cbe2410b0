"""A process that measures: it is told how often to run, line by line, and answers with a line."""

import json
import subprocess
from typing import Any


class Answering:
    """Such a process.

    Args:
        process: With pipes to it and from it.
        name: How errors call it.
    """

    def __init__(self, process: "subprocess.Popen[str]", name: str) -> None:
        """It has been started."""
        self.process, self._name = process, name

    def run(self, count: int) -> list[float]:
        """The milliseconds of each of several runs."""
        assert self.process.stdin is not None
        print(count, file=self.process.stdin, flush=True)
        times: list[float] = self.answer()
        return times

    def answer(self) -> Any:
        """What it says next, which is JSON.

        Raises:
            RuntimeError: It has failed.
        """
        assert self.process.stdout is not None
        return parsed(self.process.stdout.readline(), self._name)


def parsed(line: str, name: str) -> Any:
    """What a process has answered.

    Raises:
        RuntimeError: It has not.
    """
    if not line:
        raise RuntimeError(f"{name} failed, see above")
    return json.loads(line)
