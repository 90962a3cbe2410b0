"""Scaled dot-product attention, with finite gradients whatever is masked.

Where a mask leaves a query nothing to look at, PyTorch gives zeros, and gradients of zero. Softmax
of a row of minus infinities would be NaN, so what is masked gets a number that is as good as minus
infinity, and results of such rows are multiplied by zero.
"""

import math
from typing import Any, cast

import onnx_ir as ir
import torch
from onnxscript import opset18
from torch.export import ExportedProgram

from graphopt.torch._nodes import call, replace

op = cast(Any, opset18)  # whose types know nothing of values that are traced
aten = torch.ops.aten
_MASKED = {ir.DataType.FLOAT16: -3e4}
_MASKED_OTHERWISE = -1e30


@torch.library.custom_op("graphopt::attention", mutates_args=())
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What PyTorch computes, always laid out in the order of its axes."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    ).contiguous()


@attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    del key
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


ATTENTION = torch.ops.graphopt.attention.default


def settle(program: ExportedProgram) -> None:
    """Replace attention, whose layout differs from one kernel of PyTorch to another."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is aten.scaled_dot_product_attention.default:
            with graph.inserting_before(node):
                replace(graph, node, call(graph, node, ATTENTION, *node.args, **node.kwargs))
    program.graph_module.recompile()


def to_onnx(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(query keyᵀ scale + mask) value, with dropout of the weights."""
    if enable_gqa:
        key, value = (_repeated_heads(x, query) for x in (key, value))
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    rank = len(key.shape)
    transposed = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, _number(scale, query)), transposed)
    masked = _number(_MASKED.get(query.dtype, _MASKED_OTHERWISE), query)
    if is_causal:
        attn_mask = op.Trilu(op.Expand(_true(), _last_sizes(query, key)), upper=0)
    seen = None
    if attn_mask is not None:
        mask = attn_mask
        if is_causal or attn_mask.dtype == ir.DataType.BOOL:
            mask = op.Where(attn_mask, _number(0.0, query), masked)
        else:
            mask = op.Max(attn_mask, masked)
        scores = op.Add(scores, mask)
        if not is_causal:
            # A mask of the lowest finite number leaves all keys alike, so nothing else is masked.
            hidden = masked if attn_mask.dtype == ir.DataType.BOOL else _number(-math.inf, query)
            given = mask if attn_mask.dtype == ir.DataType.BOOL else attn_mask
            highest = op.ReduceMax(given, _ints(-1), keepdims=1)
            seen = op.CastLike(op.Greater(highest, hidden), query)
    weights = op.Softmax(scores, axis=-1)
    if dropout_p:
        weights, _ = op.Dropout(weights, op.Constant(value_float=dropout_p), _true())
    result = op.MatMul(weights, value)
    return result if seen is None else op.Mul(result, seen)


def _repeated_heads(x: Any, query: Any) -> Any:
    """Each head of x as often as there are heads of the query for it."""
    times = query.shape[-3] // x.shape[-3]
    if times == 1:
        return x
    rank = len(x.shape)
    sizes = [op.Shape(x, start=axis, end=axis + 1) for axis in range(rank)]
    wide = op.Concat(*sizes[:-2], _ints(times), *sizes[-2:], axis=0)
    flat = op.Concat(*sizes[:-3], _ints(query.shape[-3]), *sizes[-2:], axis=0)
    return op.Reshape(op.Expand(op.Unsqueeze(x, _ints(rank - 2)), wide), flat)


def _last_sizes(query: Any, key: Any) -> Any:
    ends = [op.Shape(x, start=len(x.shape) - 2, end=len(x.shape) - 1) for x in (query, key)]
    return op.Concat(*ends, axis=0)


def _number(number: float, like: Any) -> Any:
    return op.Constant(value=ir.tensor(number, dtype=like.dtype))


def _ints(*numbers: int) -> Any:
    return op.Constant(value_ints=list(numbers))


def _true() -> Any:
    return op.Constant(value=ir.tensor(True))
