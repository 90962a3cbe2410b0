"""Where the files are that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "reference"
DOCS = ROOT / "docs"
JAVASCRIPT = ROOT / "graphopt" / "examples" / "javascript"
