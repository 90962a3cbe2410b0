"""``python -m tools.device_code`` compiles update.cu into the text that the kernels carry.

It needs the ``nvcc`` of a CUDA toolkit; building the kernels does not.
"""

import re
import subprocess
import tempfile
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "graphopt" / "kernels"
SOURCE, TARGET = KERNELS / "update.cu", KERNELS / "device_code.h"
# The first GPUs that the newest toolkit compiles for, and the oldest language that says it all.
_ARCHITECTURE, _LANGUAGE = "compute_75", "6.4"


def compiler() -> str:
    """The version of nvcc."""
    shown = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True)
    return str(re.findall(r"V[\d.]+", shown.stdout)[-1])


def compiled() -> str:
    """The device code as a C header.

    Raises:
        FileNotFoundError: There is no nvcc.
        subprocess.CalledProcessError: The source has an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "update.ptx"
        options = ["-ptx", f"-arch={_ARCHITECTURE}", "-O3", "-fmad=false", "-o", str(path)]
        subprocess.run(["nvcc", *options, str(SOURCE)], check=True)
        text = path.read_text()
    text = re.sub(r"^\.version .*$", f".version {_LANGUAGE}", text, flags=re.MULTILINE)
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith((".pragma", "//"))]
    literals = [f'"{line.replace(chr(9), " ")}\\n"' for line in kept]
    return "\n".join(
        [
            f"/* Made of update.cu by `python -m tools.device_code`, with nvcc {compiler()}.",
            " *",
            " * It is code for any GPU, which the driver compiles for the one that there is. */",
            "static const char device_code[] =",
            *(f"    {literal}" for literal in literals),
            "    ;",
            "",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(compiled())
