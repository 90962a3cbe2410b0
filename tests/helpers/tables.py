"""Tables of the terminal as text."""

import io

from rich.console import Console


def drawn(parts, width=100, color=None):
    """What a terminal shows of these parts."""
    with io.StringIO() as file:
        console = Console(
            file=file, width=width, force_terminal=color is not None, color_system=color,
            legacy_windows=False,
        )  # fmt: skip
        for part in parts:
            console.print(part)
        return file.getvalue()
