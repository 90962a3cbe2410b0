"""The results as a table in the terminal, as JSON, as Markdown and as a picture."""

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from tools.bench import sized
from tools.bench.cases import SETS, VARIANTS, is_update
from tools.bench.contenders import CONTENDERS
from tools.bench.measure import Measured, Record

_COLOURS = {
    "graphopt": "#d62728",
    "graphopt without kernels": "#ff9896",
    "pytorch": "#1f77b4",
    "pytorch foreach": "#aec7e8",
    "optax": "#2ca02c",
    "keras": "#9467bd",
    "mindspore": "#ff7f0e",
    "copy": "#7f7f7f",
}
_TITLES = {True: "Update", False: "Training step"}


@dataclass
class Report:
    """Everything that a run of the command found out.

    Attributes:
        records: What was measured.
        left_out: Why contenders were not measured, by contender.
        versions: The versions of their packages, by contender.
    """

    records: list[Record] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, measured: Measured) -> None:
        """Take in what came of a case."""
        self.records += measured.records
        self.left_out |= measured.left_out
        self.versions |= measured.versions

    def tables(self) -> list[Table]:
        """For the terminal: a row for each case, updates and training steps separately."""
        return [
            _table(_TITLES[update], part)
            for update in _TITLES
            if (part := [r for r in self.records if is_update(r.case) == update])
        ]

    def save(self, folder: Path) -> None:
        """Write ``results.json``, ``results.md`` and, of updates, ``update.png``.

        Each is replaced at once; nothing stays of an earlier run but networks of real sizes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        plain = [record.to_json() for record in self.records]
        kept = [record for record in sized.records_in(folder) if sized.is_sized(record)]
        _replace(folder / "results.json", (json.dumps(plain + kept, indent=1) + "\n").encode())
        _replace(folder / "results.md", sized.with_section(self._markdown(), kept).encode())
        picture = folder / "update.png"
        updates = [record for record in self.records if is_update(record.case)]
        if updates:
            _write(picture, lambda path: _draw(updates, path))
        else:
            picture.unlink(missing_ok=True)

    def _markdown(self) -> str:
        lines = ["# Measurements", "", f"{machine()}. Medians in milliseconds ± half the distance"]
        lines += ["between the quartiles; in brackets graphopt's time over the contender's.", ""]
        for update, title in _TITLES.items():
            part = [record for record in self.records if is_update(record.case) == update]
            if part:
                lines += [f"## {title}", "", *_markdown_table(part), ""]
        lines += ["## Contenders", ""]
        for name, versions in self.versions.items():
            text = ", ".join(f"{package} {version}" for package, version in versions.items())
            lines.append(f"- {name}" + (f": {text}" if text else "") + _notes(name))
        lines += [f"- {name}: left out, {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines) + "\n"


def machine() -> str:
    """The processor and how many of its cores there are."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return f"{model}, {os.cpu_count()} cores"


def _notes(name: str) -> str:
    contender = CONTENDERS[name]
    notes = [contender.note] if contender.note else []
    notes += [f"{variant}: {how}" for variant, how in contender.departures.items()]
    return "".join(f"; {note}" for note in notes)


def _rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and a row of cells for each case and number of threads."""
    names = [name for name in CONTENDERS if any(r.contender == name for r in records)]
    rows: dict[tuple[str, int], dict[str, Record]] = {}
    for record in records:
        rows.setdefault((record.case, record.threads), {})[record.contender] = record
    cells = [
        [case, str(threads), *(_cell(row.get(name), names[0]) for name in names)]
        for (case, threads), row in rows.items()
    ]
    return ["case", "threads", *names], cells


def _cell(record: Record | None, first: str) -> str:
    if record is None:
        return ""
    text = f"{record.median_ms:.2f} ± {record.spread_ms:.2f}"
    return text if record.contender == first else f"{text} ({record.ratio:.2f})"


def _table(title: str, records: Sequence[Record]) -> Table:
    table = Table(title=f"{title}; {machine()}", caption="ratio: graphopt's time over theirs")
    for name in ("case", "threads", "contender", "median ms", "±", "ratio"):
        table.add_column(name, justify="left" if name in ("case", "contender") else "right")
    shown = None
    for record in records:
        case = (record.case, str(record.threads))
        if case != shown:
            table.add_section()
        numbers = (f"{value:.2f}" for value in (record.median_ms, record.spread_ms, record.ratio))
        table.add_row(*(case if case != shown else ("", "")), record.contender, *numbers)
        shown = case
    return table


def _markdown_table(records: Sequence[Record]) -> list[str]:
    names, rows = _rows(records)
    rule = ["---", *("---:" for _ in names[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (names, rule, *rows)]


def _draw(records: Sequence[Record], path: Path) -> None:
    """A panel for each set, in it a group of bars for each variant."""
    from matplotlib import pyplot as plt

    threads = max(record.threads for record in records)
    measured = {
        (record.case, record.contender): record for record in records if record.threads == threads
    }
    sets = [s for s in SETS if any(case.split("/")[1] == s for case, _ in measured)]
    figure, axes = plt.subplots(
        len(sets), 1, figsize=(11, 3.2 * len(sets)), squeeze=False, layout="constrained"
    )
    for axis, which in zip(axes[:, 0], sets, strict=True):
        _draw_set(axis, which, measured)
    handles = {
        label: handle
        for axis in axes[:, 0]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    plural = "thread" if threads == 1 else "threads"
    figure.suptitle(f"One RMSProp update, milliseconds; {threads} {plural}, {machine()}")
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _draw_set(axis: Any, which: str, measured: Mapping[tuple[str, str], Record]) -> None:
    variants = [v for v in VARIANTS if any(c == f"update/{which}/{v}" for c, _ in measured)]
    names = [n for n in _COLOURS if any(c.split("/")[1] == which for c, m in measured if m == n)]
    width = 0.9 / len(names)
    for place, name in enumerate(names):
        found = [(x, measured.get((f"update/{which}/{v}", name))) for x, v in enumerate(variants)]
        bars = [(x, record) for x, record in found if record is not None]
        drawn = axis.bar(
            [x + (place - (len(names) - 1) / 2) * width for x, _ in bars],
            [record.median_ms for _, record in bars],
            width * 0.92,
            yerr=[record.spread_ms for _, record in bars],
            color=_COLOURS[name],
            error_kw={"elinewidth": 0.8},
            label=name,
        )
        axis.bar_label(drawn, [f"{r.median_ms:.3g}" for _, r in bars], fontsize=7, padding=2)
    axis.set_yscale("log")
    axis.margins(y=0.15)
    axis.set_xticks(range(len(variants)), variants)
    shapes = SETS[which]
    plural = "tensor" if len(shapes) == 1 else "tensors"
    elements = sum(math.prod(shape) for shape in shapes)
    title = f"{which}: {len(shapes):,} {plural}, {elements:,} elements"
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_ylabel("ms")
    axis.spines[["top", "right"]].set_visible(False)


def _replace(path: Path, data: bytes) -> None:
    _write(path, lambda new: new.write_bytes(data))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside the path, then put it there."""
    new = path.with_name(f".{path.name}.new")
    write(new)
    new.replace(path)
