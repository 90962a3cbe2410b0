"""Compares all networks with PyTorch, each in a process of its own: ``python -m tools.field``.

With words as arguments, those whose package or name has one of them. Writes bench/networks.json,
and from it, the table in docs/networks.md.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.field.networks import Network, networks

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "bench" / "networks.json"
_LIMIT = 600  # seconds
_AT_ONCE = 2


def main() -> None:
    """Compare, and write down what was found."""
    words = sys.argv[1:]
    chosen = [n for n in networks() if not words or any(w in (n.package, n.name) for w in words)]
    found = {_key(entry): entry for entry in _known()}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for entry in pool.map(_compare, chosen):
            found[_key(entry)] = entry
            print(_line(entry), flush=True)
            order = {(n.package, n.name): i for i, n in enumerate(networks())}
            kept = sorted((k for k in found if k in order), key=lambda key: order[key])
            text = json.dumps([found[key] for key in kept], indent=1)
            _RESULTS.write_text(text + "\n", encoding="utf-8")


def _known() -> list[dict[str, Any]]:
    return json.loads(_RESULTS.read_text(encoding="utf-8")) if _RESULTS.exists() else []


def _key(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["package"], entry["name"]


def _compare(network: Network) -> dict[str, Any]:
    command = [sys.executable, "-m", "tools.field.compare", network.package, network.name]
    named = {"package": network.package, "name": network.name}
    try:
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {**named, "refused": f"nothing within {_LIMIT} seconds"}
    try:
        entry: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {**named, "refused": f"WRONG: {done.stderr.strip()[-500:]}"}
    return entry


def _line(entry: dict[str, Any]) -> str:
    if entry.get("gradient") is None or entry["refused"]:
        return f"{entry['package']} {entry['name']}: {entry['refused']}"
    return (
        f"{entry['package']} {entry['name']}: gradient {entry['gradient']:.2f} "
        f"({entry['gradient_error']:.1e}), worst {entry['worst'][1]:.1f} {entry['worst'][0]}, "
        f"steps {entry['steps'][0]:.0e} ({entry['steps'][1]:.0e}), "
        f"in float64 {_exact(entry)}, loss {entry['loss']:.0e}, "
        f"{entry['seconds']:.0f} s"
    )


def _exact(entry: dict[str, Any]) -> str:
    return "not run" if entry["exact"] is None else f"{entry['exact']:.0e}"


if __name__ == "__main__":
    main()
