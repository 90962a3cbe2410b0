"""The records of networks of real sizes, beside others in ``results.json`` and ``results.md``."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

_FIRST = "graphopt"
_HEADING = "## Networks of real sizes"
_EXPLAINED = (
    "A training step in its own process, on two threads, interleaved: milliseconds, MiB at most "
    "beyond the libraries, and in brackets graphopt's over theirs, of both. Build and load are "
    "graphopt's: milliseconds, and the peak over the file and the state."
)


def is_sized(record: Record) -> bool:
    """Whether a record is one of a network of a real size."""
    return "peak_mib" in record


def records_in(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder; none where there are no results."""
    path = folder / "results.json"
    if not path.exists():
        return []
    records: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return records


def put(folder: Path, new: Sequence[Record]) -> None:
    """Put records in the place of those of the same cases, and leave the others."""
    cases = {record["case"] for record in new}
    kept = [
        record
        for record in records_in(folder)
        if not (is_sized(record) and record["case"] in cases)
    ]
    records = [*kept, *new]
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "results.md"
    before = text.read_text(encoding="utf-8") if text.exists() else "# Measurements\n"
    (folder / "results.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    text.write_text(with_section(before, [r for r in records if is_sized(r)]), encoding="utf-8")


def with_section(text: str, records: Sequence[Record]) -> str:
    """A Markdown text whose last section is that of these records."""
    text = text.partition(f"\n{_HEADING}\n")[0]
    return "\n".join([text.rstrip("\n"), "", *_section(records), ""]) if records else text


def _section(records: Sequence[Record]) -> list[str]:
    rows: dict[str, dict[str, Record]] = {}
    for record in records:
        rows.setdefault(record["case"], {})[record["contender"]] = record
    names = list(dict.fromkeys(record["contender"] for record in records))
    header = ["case", *names, "build", "load"]
    lines = [
        _HEADING,
        "",
        _EXPLAINED,
        "",
        _row(header),
        _row(["---", *["---:"] * (len(header) - 1)]),
    ]
    for case, row in rows.items():
        lines.append(_row([case, *(_cell(row.get(name)) for name in names), *_files(row)]))
    lines += [
        f"\nOver {name}: " + _summary(row[name] for row in rows.values() if name in row)
        for name in names[1:]
    ]
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(record: Record | None) -> str:
    if record is None:
        return ""
    text = f"{record['median_ms']:.1f} ms, {record['peak_mib']:.0f} MiB"
    if record["contender"] == _FIRST:
        return text
    return f"{text} ({record['ratio']:.2f}, {record['memory_ratio']:.2f})"


def _files(row: Mapping[str, Record]) -> list[str]:
    own = row.get(_FIRST, {})
    return [
        f"{own[f'{what}_ms']:.0f} ms, {own[f'{what}_ratio']:.2f}" if f"{what}_ms" in own else ""
        for what in ("build", "load")
    ]


def _summary(records: Iterable[Record]) -> str:
    found = list(records)
    texts = []
    for key, what in (("ratio", "time"), ("memory_ratio", "memory")):
        values = [record[key] for record in found]
        worst = max(found, key=lambda record: record[key])
        texts.append(
            f"{what} {statistics.median(values):.2f} in the median, at most {worst[key]:.2f} "
            f"({worst['case']})"
        )
    return "; ".join(texts) + "."
