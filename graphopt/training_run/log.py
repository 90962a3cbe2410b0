"""The log of a run: a row for each epoch, and for some of the steps, in CSV or JSON lines."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphopt._files import about, check_target, sync, write_atomically

_ENDINGS = {".csv": "csv", ".jsonl": "json", ".ndjson": "json"}


class Log:
    """A file to which rows are added.

    A run that goes on from a checkpoint goes on with its log: rows of later steps, which are taken
    again, are removed first, and what a kill has left of a line.

    Args:
        path: Of the file; its ending says the format.
        columns: The names of the values, in order; "step" is one.
        position: The step from which the run goes on; 0: the file is begun anew.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The ending is none of these, or the file is another one.
    """

    def __init__(self, path: Path, columns: Sequence[str], position: int) -> None:
        """See the class."""
        self.path, self._columns = path, tuple(columns)
        self._format = log_format(path)
        kept = self._read(position) if position and path.exists() else []
        text = self._head() + "".join(map(self._line, kept))
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; what it lacks stays empty.

        Raises:
            OSError: It could not be written.
        """
        with about(self.path), self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._line(row))

    def sync(self) -> None:
        """Return when its rows are on the disk."""
        with about(self.path):
            sync(self.path)

    def _head(self) -> str:
        return self._csv(self._columns) if self._format == "csv" else ""

    def _line(self, row: Mapping[str, Any]) -> str:
        values = {name: _finite(row.get(name)) for name in self._columns}
        if self._format == "csv":
            return self._csv(["" if value is None else value for value in values.values()])
        said = {name: value for name, value in values.items() if value is not None}
        return json.dumps(said) + "\n"

    @staticmethod
    def _csv(cells: Sequence[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        return text.getvalue()

    def _read(self, position: int) -> list[dict[str, Any]]:
        """The rows up to a step."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = text[: text.rfind("\n") + 1].splitlines()
        if self._format == "csv":
            rows: list[dict[str, Any]] = list(csv.DictReader(lines))
            if lines and next(csv.reader(lines)) != list(self._columns):
                raise ValueError(
                    f"'{self.path}' has other columns ({lines[0]}) than this run "
                    f"({', '.join(self._columns)}); give another file"
                )
        else:
            try:
                rows = [json.loads(line) for line in lines]
            except ValueError:
                raise ValueError(f"'{self.path}' is no log of a run; give another file") from None
        try:
            return [row for row in rows if int(row["step"]) <= position]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"'{self.path}' is no log of a run; give another file") from None


def log_format(path: Path) -> str:
    """The format of a log.

    Raises:
        FileNotFoundError: Its folder does not exist.
        ValueError: The ending is none of one.
    """
    found = _ENDINGS.get(path.suffix.lower())
    if found is None:
        raise ValueError(f"--log: got '{path}', expected a name that ends with .csv or .jsonl")
    check_target(path)
    return found


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
