"""Writes the tables of docs/networks.md: ``python -m tools.field.report``."""

import json
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "networks.md"
_WORST = 3.0  # times PyTorch's error


def main() -> None:
    """Write them over the old ones."""
    page = _PAGE.read_text(encoding="utf-8")
    for name, table in (("networks", _networks), ("files", _files)):
        found = json.loads((_ROOT / "bench" / f"{name}.json").read_text(encoding="utf-8"))
        before, rest = page.split(f"<!-- {name} -->\n")
        after = rest[rest.index("<!-- end -->") :]
        page = f"{before}<!-- {name} -->\n{table(found)}{after}"
    _PAGE.write_text(page, encoding="utf-8")


def _networks(found: list[dict[str, Any]]) -> str:
    trained = [entry for entry in found if not entry["refused"]]
    exact = [entry["exact"] for entry in trained if entry.get("exact") is not None]
    right = [entry for entry in trained if entry["gradient"] <= _WORST]
    rows = [
        (
            f"{len(found)} networks: {len(trained)} trained, {len(right)} of them with a gradient "
            f"no worse than {_WORST:.0f} times PyTorch's own; {len(found) - len(trained)} refused. "
            f"Five steps in float64 of {len(exact)}: at most {max(exact):.0e} from PyTorch's."
        ),
        "",
        (
            "| network | from | tensors | gradient | worst tensor | rate | in float64 | in float32 "
            "| PyTorch's | losses |"
        ),
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in found:
        start = f"| {entry['name']} | {entry['package']} |"
        if entry["refused"]:
            rows.append(f"{start} | refused: {_short(entry['refused'])} | | | | | | |")
        else:
            ours, *theirs = (f"{error:.0e}" for error in entry["steps"])
            error = entry.get("exact")
            rows.append(
                f"{start} {entry['parameters']} | {entry['gradient']:.2f} | "
                f"{entry['worst'][1]:.2f} | {entry['rate']:.0e} | "
                f"{'' if error is None else f'{error:.0e}'} | {ours} | "
                f"{' to '.join(dict.fromkeys(theirs))} | {entry['loss']:.0e} |"
            )
    return "\n".join(rows) + "\n"


def _files(found: list[dict[str, Any]]) -> str:
    rows = [
        "| file | package | written by | trained | tensors | forward | gradient | loss |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for entry in found:
        start = (
            f"| `{entry['file']}` | {entry['package'].replace('==', ' ')} | {entry['producer']} | "
            f"{entry['trained']} |"
        )
        if entry["refused"]:
            rows.append(f"{start} | refused: {_short(entry['refused'])} | | |")
        else:
            single = "" if entry["double"] else " (float32)"
            losses = f"{entry['before']:.2e} → {entry['after']:.2e}"
            rows.append(
                f"{start} {entry['parameters']} | {entry['forward']:.0e} | "
                f"{entry['derivative']:.0e}{single} | {losses} |"
            )
    return "\n".join(rows) + "\n"


def _short(refused: str) -> str:
    text = " ".join(refused.split()).replace("|", "\\|")
    return text if len(text) < 160 else text[:157] + "..."


if __name__ == "__main__":
    main()
