"""What a part measured, as lines of JSON, which survive a part that is ended early."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

MARK = "RECORD "


def print_records(records: Iterable[Mapping[str, Any]]) -> None:
    """Print each as soon as it is there."""
    for record in records:
        print(MARK + json.dumps(record), flush=True)


def read_records(text: str) -> list[dict[str, Any]]:
    """What `print_records` printed."""
    return [
        json.loads(line.removeprefix(MARK)) for line in text.splitlines() if line.startswith(MARK)
    ]
