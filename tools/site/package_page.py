"""Writes docs/package.md, the README of the package: ``python -m tools.site.package_page``.

It is read where no file of the repository is beside it, so that it has the README's words without
its links and pictures.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "package.md"


def text() -> str:
    """The README without pictures, and with words in the place of links.

    Links within code are none: what looks so there stays.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"^!\[.*\n\n", "", readme, flags=re.MULTILINE)
    parts = re.split(r"(^```.*?^```$)", readme, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", part) for part in parts[::2]]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
