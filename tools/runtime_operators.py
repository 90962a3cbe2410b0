"""Finds the operators that ONNX Runtime has, for ``inspection/targets/runtime_operators.py``.

``python -m tools.runtime_operators kernels FILE`` writes the kernels of the installed ONNX Runtime,
and ``names FILE`` the operators that it knows at all, which takes a minute. ``write`` makes the
module of these files: the kernels of onnxruntime and of onnxruntime-gpu, and the names of
onnxruntime-training and of onnxruntime, both of one version.
"""

import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

import onnxruntime
import typer
from onnx import TensorProto, helper

app = typer.Typer(add_completion=False)

_MODULE = Path(__file__).parents[1] / "graphopt" / "inspection" / "targets" / "runtime_operators.py"
_NO_END = 2**31 - 1
_DOMAINS = {"": 20, "com.microsoft": 1, "org.pytorch.aten": 1}
_UNKNOWN = ("is not a registered", "No Op registered", "No opset import")
_WIDTH = 100


@app.command()
def kernels(file: Path) -> None:
    """Write the kernels of each execution provider, with the versions of the operators."""
    found: dict[str, dict[str, set[tuple[int, int]]]] = defaultdict(lambda: defaultdict(set))
    for kernel in _native().get_all_opkernel_def():
        found[kernel.provider][_name(kernel.domain, kernel.op_name)].add(kernel.version_range)
    versions = {
        provider: {name: sorted(ranges) for name, ranges in sorted(operators.items())}
        for provider, operators in found.items()
    }
    file.write_text(json.dumps({"version": onnxruntime.__version__, "kernels": versions}))


@app.command()
def names(file: Path) -> None:
    """Write the operators that are known: of all words in the library, those that it accepts."""
    found = [
        _name(domain, word)
        for domain, version in _DOMAINS.items()
        for word in sorted(_words())
        if _is_known(word, domain, version)
    ]
    file.write_text(json.dumps({"version": onnxruntime.__version__, "names": found}))


@app.command()
def write(cpu: Path, cuda: Path, training: Path, stock: Path) -> None:
    """Write the module."""
    on_cpu, on_cuda, all_names, stock_names = (
        json.loads(file.read_text()) for file in (cpu, cuda, training, stock)
    )
    only = sorted(set(all_names["names"]) - set(stock_names["names"]))
    later = sorted(
        name
        for name in on_cpu["kernels"]["CPUExecutionProvider"]
        if name.startswith("com.microsoft::") and name not in all_names["names"]
    )
    _MODULE.write_text(
        _TEXT.format(
            cpu_version=on_cpu["version"],
            cuda_version=on_cuda["version"],
            training_version=all_names["version"],
            cpu=_table(on_cpu["kernels"]["CPUExecutionProvider"]),
            cuda=_table(on_cuda["kernels"]["CUDAExecutionProvider"]),
            training=_wrapped(only),
            later=_wrapped(later),
        )
    )


def _native() -> Any:
    return import_module("onnxruntime.capi.onnxruntime_pybind11_state")


def _name(domain: str, name: str) -> str:
    return f"{domain}::{name}" if domain else name


def _words() -> set[str]:
    """What may be the name of an operator; linkers let one text be the end of another."""
    library = Path(_native().__file__).read_bytes()
    texts = (found.group().decode() for found in re.finditer(rb"[A-Za-z]\w{2,60}(?=\0)", library))
    return {
        text[at:]
        for text in texts
        for at, letter in enumerate(text)
        if letter.isupper() and len(text) - at > 1
    }


def _is_known(name: str, domain: str, version: int) -> bool:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"], domain=domain)], "g", [x], [y])
    opsets = [helper.make_opsetid(*entry) for entry in ({"": 20} | {domain: version}).items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the node
        return not any(text in str(error) for text in _UNKNOWN)
    return True


def _table(operators: dict[str, list[tuple[int, int]]]) -> str:
    return _wrapped(
        [
            name if ranges == [(1, _NO_END)] else f"{name}:{','.join(_ranges(ranges))}"
            for name, ranges in operators.items()
        ]
    )


def _ranges(ranges: list[tuple[int, int]]) -> Iterator[str]:
    """The versions for which there are kernels; one that ends before the next needs no end."""
    for (start, end), (after, _) in zip_longest(ranges, ranges[1:], fillvalue=(0, 0)):
        if end == _NO_END:
            yield f"{start}+"
        else:
            yield f"{start}" if end in (after - 1, start) else f"{start}-{end}"


def _wrapped(entries: list[str]) -> str:
    """Entries by domain, which stands once before those of it."""
    of_domain: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        domain, separator, name = entry.rpartition("::")
        of_domain[domain + separator].append(name)
    return "\n".join(
        textwrap.fill(
            " ".join([domain, *names]).strip(),
            _WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for domain, names in of_domain.items()
    )


_TEXT = '''"""The operators that ONNX Runtime has; made by ``tools/runtime_operators.py``."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

Kernels = dict[str, tuple[tuple[int, int | None], ...]]
"""For each operator the versions for which there are kernels; None: that very version, or no later
one is known. Operators that are not ONNX's own begin with their domain and "::".
"""


def _kernels(text: str) -> Kernels:
    """What stands behind "::" is of that domain; an operator without versions has "1+"."""
    table: Kernels = {{}}
    domain = ""
    for entry in text.split():
        if entry.endswith("::"):
            domain = entry
        else:
            name, _, versions = entry.partition(":")
            table[domain + name] = tuple(_ranges((versions or "1+").split(",")))
    return table


def _ranges(texts: Sequence[str]) -> Iterator[tuple[int, int | None]]:
    """A range without an end goes on to the next, the last one is of one version."""
    for text, after in zip_longest(texts, texts[1:]):
        start, _, end = text.rstrip("+").partition("-")
        if text.endswith("+"):
            yield int(start), None
        elif end or after is None:
            yield int(start), int(end or start)
        else:
            yield int(start), int(after.rstrip("+").partition("-")[0]) - 1


CPU = _kernels(
    """
{cpu}
    """
)
"""Kernels of the CPU execution provider of onnxruntime {cpu_version}."""

CUDA = _kernels(
    """
{cuda}
    """
)
"""Kernels of the CUDA execution provider of onnxruntime-gpu {cuda_version}."""

TRAINING_ONLY = frozenset(
    _kernels(
        """
{training}
        """
    )
)
"""What onnxruntime-training {training_version} has and onnxruntime {training_version} has not."""

ADDED_LATER = frozenset(
    _kernels(
        """
{later}
        """
    )
)
"""Of ONNX Runtime's own operators, those that came after {training_version}."""
'''

if __name__ == "__main__":
    app()
