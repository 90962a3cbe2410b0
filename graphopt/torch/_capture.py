"""Capturing what a module computes, with an open batch where the module allows one."""

import inspect
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from graphopt.torch._custom_gradients import Function, OwnGradientError, derivatives_of, refused
from graphopt.torch._errors import chain, refusal
from graphopt.torch._quiet import quiet

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_OTHER_SIZES = (*range(3, 18), 31, 32, 33, 63, 64, 65, 127, 128, 129)


@dataclass(frozen=True)
class Captured:
    """What was captured.

    Attributes:
        program: PyTorch's record of it.
        sizes: What open sizes are called, by PyTorch's symbol.
    """

    program: ExportedProgram
    sizes: Mapping[str, str] = field(default_factory=dict)


def capture(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_batch: bool,
    dynamic_shapes: Any,
) -> Captured:
    """What a module computes.

    Raises:
        ValueError: It cannot be captured.
    """
    if dynamic_shapes is not None:
        return _with_open_axes(module, args, kwargs, dynamic_shapes)
    size = _batch_size(args, kwargs) if dynamic_batch else None
    if size is None:
        return Captured(_captured(module, args, kwargs, None))
    opened, why = _with_open_batch(module, args, kwargs, size)
    if opened is not None:
        return opened
    fixed = Captured(_captured(module, args, kwargs, None))
    warnings.warn(
        f"the batch is fixed to {size}, because {why}; say which axes may change with "
        "dynamic_shapes=..., or that none may with dynamic_batch=False",
        stacklevel=4,
    )
    return fixed


def _with_open_axes(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> Captured:
    """The program with the open axes that are given; a string stands for one size of this name."""
    dims: dict[str, Any] = {}

    def dim(leaf: Any) -> Any:
        return dims.setdefault(leaf, Dim(leaf)) if isinstance(leaf, str) else leaf

    shapes = pytree.tree_map(dim, dynamic_shapes)
    program = _captured(module, args, kwargs, shapes)
    entries = pytree.tree_leaves(dynamic_shapes, is_leaf=_is_of_a_tensor)
    leaves = pytree.tree_leaves((args, kwargs))
    given = [e for e, leaf in zip(entries, leaves, strict=False) if isinstance(leaf, torch.Tensor)]
    sizes: dict[str, str] = {}
    for entry, value in zip(given, _user_inputs(program), strict=False):
        named = entry if isinstance(entry, dict) else dict(enumerate(entry or ()))
        for axis, name in named.items():
            size = value.shape[axis]
            if isinstance(name, str) and isinstance(size, torch.SymInt):
                sizes.setdefault(str(size.node.expr), name)
    return Captured(program, sizes)


def _is_of_a_tensor(entry: Any) -> bool:
    """Whether it says which axes of one tensor are open."""
    if isinstance(entry, dict):
        return all(isinstance(axis, int) for axis in entry)
    return (
        isinstance(entry, list | tuple)
        and not any(isinstance(size, dict | list | tuple) for size in entry)
        and any(isinstance(size, str) for size in entry)
    )


def _with_open_batch(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], size: int
) -> tuple[Captured | None, str]:
    """The program with an open batch, or why there is none."""

    def more(leaf: Any) -> Any:
        # Of an axis of one element PyTorch takes for granted that it is one.
        return torch.cat([leaf.detach()] * 2) if size == 1 and _has_rows(leaf, size) else leaf

    def axes(leaf: Any) -> Any:
        return {0: Dim.AUTO} if _has_rows(leaf, size) else None

    examples: _Arguments = pytree.tree_map(more, (args, kwargs))
    shapes = pytree.tree_map(axes, _by_name(module, args, kwargs))
    try:
        program = _captured(module, *examples, shapes)
    except ValueError as error:
        return None, f"with an open one {error}"
    symbols, closed = _open_rows(program, module, examples, max(size, 2))
    if closed:
        return None, closed
    numbered = {symbol: f"batch_{index}" for index, symbol in enumerate(symbols)}
    sizes = numbered if len(symbols) > 1 else dict.fromkeys(symbols, "batch")
    return Captured(program, sizes), ""


def _captured(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    try:
        with quiet(), torch.enable_grad():
            try:
                return _exported(module, args, kwargs, dynamic_shapes, frozenset())
            except Exception as error:
                if not any(isinstance(cause, OwnGradientError) for cause in chain(error)):
                    raise
            derivatives = derivatives_of(module, args, kwargs)
            return _exported(module, args, kwargs, dynamic_shapes, derivatives)
    except Exception as error:
        raise refusal("the module cannot be exported", error) from error


def _exported(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    derivatives: frozenset[Function],
) -> ExportedProgram:
    with refused(derivatives):
        return torch.export.export(
            module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
        )


def _has_rows(leaf: Any, size: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


def _batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The size of the first axis of the first tensor that has one; None without a batch."""
    leaves = pytree.tree_leaves((args, kwargs))
    sizes = (leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim())
    return next(sizes, None) or None


def _open_rows(
    program: ExportedProgram, module: torch.nn.Module, arguments: _Arguments, size: int
) -> tuple[tuple[str, ...], str]:
    """The symbols of the batch; or why it is not open for all sizes."""
    symbols: dict[str, None] = {}
    for value in _user_inputs(program):
        rows = value.shape[0] if value.dim() else None
        if isinstance(rows, int) and rows == size:
            return (), "the module computes with this size"
        if not isinstance(rows, torch.SymInt):
            continue
        symbols[str(rows.node.expr)] = None
        bounds = program.range_constraints.get(rows.node.expr)
        if bounds is not None and (bounds.lower > 2 or bounds.upper < math.inf):
            return (), f"what the module computes depends on whether it is in {bounds}"
    broken = _broken_condition(program, module, arguments, size)
    return tuple(symbols), broken and f"the module computes the same only where {broken}"


def _broken_condition(
    program: ExportedProgram, module: torch.nn.Module, arguments: _Arguments, size: int
) -> str:
    """A condition under which the program was captured, and that other batches do not meet."""
    conditions = getattr(program, "_guards_code", None) or ()
    for rows in _OTHER_SIZES if conditions else ():
        args, kwargs = pytree.tree_map(lambda leaf: _resized(leaf, size, rows), arguments)  # noqa: B023
        named = _by_name(module, args, kwargs)
        for condition in conditions:
            try:
                holds = eval(condition, {"L": named, "torch": torch})
            except Exception:  # noqa: BLE001 - it is about something else
                continue
            if not holds:
                return re.sub(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]", r"\1.shape[\2]", condition)
    return ""


def _by_name(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call of a module, by the names of its parameters."""
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)


def _resized(leaf: Any, size: int, rows: int) -> Any:
    """A tensor without values, with another number of rows where it has the batch."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    shape = (rows, *leaf.shape[1:]) if _has_rows(leaf, size) else leaf.shape
    return torch.empty(shape, dtype=leaf.dtype, device="meta")


def _user_inputs(program: ExportedProgram) -> list[torch.Tensor]:
    names = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in nodes if node.name in names]
    return [value for value in values if isinstance(value, torch.Tensor)]
