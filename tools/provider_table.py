"""Writes the table of docs/providers.md: ``python -m tools.provider_table``."""

import re
from pathlib import Path

import graphopt
from graphopt.inspection.reading.read_model import read
from graphopt.inspection.structure.roles import stages_of_nodes
from graphopt.inspection.targets.providers import Placement, placed, providers
from graphopt.shapes.engine import Shapes
from models.zoo import ZOO

GUIDE = Path(__file__).parent.parent / "docs" / "providers.md"
NETWORKS = ("mlp", "digits_cnn", "resnet", "mobilenet_v3", "transformer", "lstm")
_BATCH = 8  # QNN takes no open dimension


def table() -> str:
    """How many nodes of each stage a provider takes, in percent."""
    names = [provider.name for provider in providers().values()]
    rows = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    rows += [f"| {name} | {' | '.join(_cells(name))} |" for name in NETWORKS]
    return "\n".join(rows) + "\n"


def _cells(name: str) -> list[str]:
    entry = ZOO[name]
    forward = entry.build(batch=_BATCH)
    optimizer = graphopt.RMSProp(graphopt.parameters(forward), learning_rate=1e-3)
    reading = read(graphopt.training_graph(forward, entry.loss, optimizer))
    stages, shapes = stages_of_nodes(reading), Shapes(reading.file.model)
    return [
        " / ".join(_share(found[stage]) for stage in ("forward", "backward", "update"))
        for found in (placed(provider, stages, shapes) for provider in providers().values())
    ]


def _share(placement: Placement) -> str:
    return f"{100 * placement.taken // max(placement.nodes, 1)}"


def main() -> None:
    """Write it over the old one."""
    guide, new = GUIDE.read_text(encoding="utf-8"), table()
    head = re.escape(new.partition("\n")[0])
    GUIDE.write_text(re.sub(rf"{head}\n(?:\|.*\n)+", new, guide), encoding="utf-8")


if __name__ == "__main__":
    main()
