"""Gradients of operators that move elements, or let them be."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from graphopt.gradients import differentiate, prepare
from tests.helpers.gradient_oracle import (
    Case,
    cases,
    check,
    normal,
    onnx_gradients,
    onnx_model,
    torch_gradients,
)

I64 = np.int64


def ints(*values):
    return np.array(values, I64)


RESHAPED = {
    "Identity": Case("y = Identity(x)", {"x": normal(2, 3)}, lambda x: x),
    "Identity of a scalar": Case("y = Identity(x)", {"x": normal()}, lambda x: x),
    "Cast to float64 and back": Case(
        "d = Cast<to=11>(x) e = Mul(d, d) y = Cast<to=1>(e)", {"x": normal(2, 3)}, lambda x: x * x
    ),
    "Cast to its own dtype": Case("y = Cast<to=1>(x)", {"x": normal(2, 3)}, lambda x: x),
    "CastLike": Case(
        "d = CastLike(x, like) e = Mul(d, d) y = CastLike(e, x)",
        {"x": normal(2, 3), "like": np.zeros(1)},
        lambda x, *_: x * x,
    ),
    **{
        f"Reshape {shape} to {target} {attributes}": Case(
            f"y = Reshape{attributes}(x, s)",
            {"x": normal(*shape), "s": ints(*target)},
            lambda x, *_, result=result: x.reshape(result),
        )
        for shape, target, attributes, result in (
            ((2, 3, 4), (6, 4), "", (6, 4)),
            ((2, 3, 4), (0, -1), "", (2, 12)),
            ((2, 3, 4), (-1,), "", (24,)),
            ((2, 0, 4), (0, 0, 2, 2), "<allowzero=0>", (2, 0, 2, 2)),
            ((2, 0, 4), (0, 3), "<allowzero=1>", (0, 3)),
            ((1,), (), "", ()),
            ((), (1, 1), "", (1, 1)),
            ((0, 3), (0, 3, 1), "", (0, 3, 1)),
        )
    },
    **{
        f"Flatten {shape} axis={axis}": Case(
            f"y = Flatten<axis={axis}>(x)",
            {"x": normal(*shape)},
            lambda x, axis=axis: x.reshape(int(np.prod(x.shape[:axis])), -1),
        )
        for shape, axis in (((2, 3, 4), 0), ((2, 3, 4), 1), ((2, 3, 4), -1), ((5,), 0))
    },
    "Squeeze": Case(
        "y = Squeeze(x, a)", {"x": normal(2, 1, 3), "a": ints(-2)}, lambda x, *_: x.squeeze(1)
    ),
    "Squeeze of all": Case(
        "y = Squeeze(x)", {"x": normal(2, 1, 3, 1)}, lambda x: x.squeeze(), dynamic="none"
    ),
    "Squeeze to a scalar": Case(
        "y = Squeeze(x)", {"x": normal(1, 1)}, lambda x: x.squeeze(), dynamic="none"
    ),
    "Unsqueeze": Case(
        "y = Unsqueeze(x, a)",
        {"x": normal(2, 3), "a": ints(0, -1)},
        lambda x, *_: x[None, :, :, None],
    ),
    "Unsqueeze of a scalar": Case(
        "y = Unsqueeze(x, a)", {"x": normal(), "a": ints(0)}, lambda x, *_: x[None]
    ),
    **{
        f"Transpose {shape} {perm}": Case(
            f"y = Transpose{'' if perm is None else f'<perm={list(perm)}>'}(x)",
            {"x": normal(*shape)},
            lambda x, perm=perm: x.permute(perm or tuple(range(x.ndim))[::-1]),
        )
        for shape, perm in (
            ((2, 3, 4), None),
            ((2, 3, 4, 5), (2, 0, 3, 1)),
            ((3,), (0,)),
            ((0, 3), (1, 0)),
        )
    },
    "Trilu": Case("y = Trilu(x)", {"x": normal(2, 4, 3)}, torch.triu),
    "Trilu upper=0 k=1": Case(
        "y = Trilu<upper=0>(x, k)",
        {"x": normal(4, 5), "k": np.array(1)},
        lambda x, k: torch.tril(x, int(k)),
    ),
    "Trilu k=-1": Case(
        "y = Trilu(x, k)",
        {"x": normal(4, 5), "k": np.array(-1)},
        lambda x, k: torch.triu(x, int(k)),
    ),
}


def depth_to_space(block, crd):
    def compute(x):
        n, c, h, w = x.shape
        if crd:
            return torch.nn.functional.pixel_shuffle(x, block)
        split = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return split.reshape(n, c // block**2, h * block, w * block)

    return compute


def space_to_depth(x):
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(n, c * 4, h // 2, w // 2)


BLOCKS = {
    "DepthToSpace": Case(
        "y = DepthToSpace<blocksize=2>(x)", {"x": normal(2, 12, 2, 3)}, depth_to_space(2, False)
    ),
    "DepthToSpace DCR": Case(
        'y = DepthToSpace<blocksize=3, mode="DCR">(x)',
        {"x": normal(1, 9, 2, 2)},
        depth_to_space(3, False),
    ),
    "DepthToSpace CRD": Case(
        'y = DepthToSpace<blocksize=2, mode="CRD">(x)',
        {"x": normal(2, 12, 2, 3)},
        depth_to_space(2, True),
        dynamic="batch",
    ),
    "SpaceToDepth": Case(
        "y = SpaceToDepth<blocksize=2>(x)", {"x": normal(2, 3, 4, 6)}, space_to_depth
    ),
}
JOINED = {
    "Concat of one": Case("y = Concat<axis=0>(a)", {"a": normal(2, 3)}, lambda a: a),
    **{
        f"Concat of {count} axis={axis}": Case(
            f"y = Concat<axis={axis}>({', '.join('abcd'[:count])})",
            {
                name: normal(2, size, 3, seed=size)
                for name, size in zip("abcd"[:count], (2, 1, 0, 3), strict=False)
            },
            lambda *parts: torch.cat(parts, 1),
        )
        for count, axis in ((2, 1), (3, -2), (4, 1))
    },
    "Concat of an empty batch": Case(
        "y = Concat<axis=1>(a, b)",
        {"a": normal(0, 2), "b": normal(0, 3)},
        lambda a, b: torch.cat((a, b), 1),
    ),
    "Concat of one twice": Case(
        "y = Concat<axis=-1>(a, a)", {"a": normal(3)}, lambda a: torch.cat((a, a))
    ),
    "Concat with a constant": Case(
        "y = Concat<axis=1>(b, a, b)",
        {"a": normal(2, 3), "b": normal(2, 1)},
        lambda a, b: torch.cat((b, a, b), 1),
        constants=("b",),
    ),
    "Concat with a constant of two": Case(
        "y = Concat<axis=1>(b, a, c)",
        {"a": normal(2, 3), "b": normal(2, 1), "c": normal(2, 2)},
        lambda a, b, c: torch.cat((b, a, c), 1),
        constants=("b",),
    ),
    "Split into equal parts": Case(
        "u, v, w = Split<axis=1>(x)",
        {"x": normal(2, 6)},
        lambda x: x.chunk(3, 1),
        outputs=("u", "v", "w"),
        dynamic="batch",
    ),
    "Split num_outputs, the last smaller": Case(
        "u, v = Split<axis=-1, num_outputs=2>(x)",
        {"x": normal(2, 5)},
        lambda x: x.split((3, 2), 1),
        outputs=("u", "v"),
        opset=18,
        dynamic="batch",
    ),
    "Split by sizes": Case(
        "u, v, w = Split(x, s)",
        {"x": normal(6, 2), "s": ints(1, 0, 5)},
        lambda x, *_: x.split((1, 0, 5)),
        outputs=("u", "v", "w"),
    ),
    "Split, one output without a gradient": Case(
        "u, v, w = Split<axis=1>(x, s)",
        {"x": normal(2, 6), "s": ints(1, 2, 3)},
        lambda x, *_: (x[:, :1], x[:, 3:]),
        outputs=("u", "w"),
    ),
}
REPEATED = {
    **{
        f"Expand {shape} to {target}": Case(
            "y = Expand(x, s)",
            {"x": normal(*shape), "s": ints(*target)},
            lambda x, s: x.expand(torch.broadcast_shapes(x.shape, tuple(s.tolist()))),
        )
        for shape, target in (
            ((3, 1), (2, 3, 4)),
            ((2, 3), (1, 1)),
            ((), (2, 3)),
            ((1, 3, 1), (0, 3, 1)),
            ((3,), (3,)),
        )
    },
    "Expand to a shape of the running graph": Case(
        "s = Shape(z) y = Expand(x, s)",
        {"x": normal(3, 1), "z": normal(2, 3, 4)},
        lambda x, z: x.expand(z.shape),
        constants=("z",),
    ),
    **{
        f"Tile {shape} by {repeats}{at}": Case(
            node,
            {"x": normal(*shape), "k": ints(*repeats)},
            lambda x, k: x.tile(tuple(k.tolist())),
        )
        for at, node in (
            ("", "y = Tile(x, k)"),
            (" at run time", "r = Identity(k) y = Tile(x, r)"),
        )
        for shape, repeats in (
            ((2, 3), (2, 1)),
            ((2, 3, 4), (2, 3, 2)),
            ((2, 3), (1, 1)),
            ((2, 3), (2, 0)),
            ((0, 3), (2, 2)),
            ((1,), (5,)),
        )
    },
    "ReverseSequence": Case(
        "y = ReverseSequence<batch_axis=0, time_axis=1>(x, n)",
        {"x": normal(3, 4, 2), "n": ints(4, 1, 3)},
        lambda x, n: torch.stack(
            [torch.cat((row[:k].flip(0), row[k:])) for row, k in zip(x, n.tolist(), strict=True)]
        ),
    ),
    "ReverseSequence time first": Case(
        "y = ReverseSequence(x, n)",
        {"x": normal(4, 2), "n": ints(2, 3)},
        lambda x, n: torch.stack(
            [torch.cat((x[:k, i].flip(0), x[k:, i])) for i, k in enumerate(n.tolist())], 1
        ),
    ),
}


@pytest.mark.quick
@cases(RESHAPED | BLOCKS | JOINED | REPEATED)
def test_gradients(case, dynamic):
    check(case, dynamic)


def test_reshape_where_the_rank_is_unknown():
    """To a shape, of an unknown length, that an operator of the running graph computes."""
    case = Case(
        "q = Reshape(x, t) v = Reshape(q, s) y = Mul(v, w)",
        {"x": normal(2, 3), "w": normal(2, 3, seed=1), "t": ints(3, 2, 1), "s": ints(2, 3)},
        lambda x, w, *_: x * w,
        constants=("w",),
    )
    check(case, dynamic=False)
    text = "u = NonZero(t) m = Constant<value_ints=[-1]>() f = Reshape(u, m)"
    text += " g = Gather(t, f) q = Reshape(x, g) v = Reshape(q, s) y = Mul(v, w)"
    check(Case(text, case.inputs, case.torch, constants=("w",)), dynamic=False)


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("a = Transpose<perm=[0, 1]>(x) y = Gemm(a, w)", {"x": normal(4, 3), "w": normal(3, 2)}),
        ("a = Transpose(x) y = Mul(a, w)", {"x": normal(), "w": normal()}),
    ],
    ids=["matrix", "scalar"],
)
def test_a_transpose_that_moves_nothing_has_none_behind_it(node, inputs):
    """Beside a Gemm, ONNX Runtime 1.19 takes it for the transpose."""
    case = Case(node, inputs, lambda x, w: x @ w if x.ndim else x * w, constants=("w",))
    prepared, statistics = prepare(onnx_model(case, ["x"], dynamic=False), ["x"])
    built = differentiate(prepared, ["x"], prepared.graph.outputs[0], statistics)
    behind = [node for node in built.model.graph if node.name and node.name.startswith("backward/")]
    assert "Transpose" not in {node.op_type for node in behind}


@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("cast", ["", "d = Cast<to=11>(x) "])
def test_split_with_an_output_that_is_left_out(is_dynamic, cast):
    x = "d" if cast else "x"
    to_float = "y = Cast<to=1>(f)" if cast else "y = Identity(f)"
    case = Case(
        f"{cast}e, nobody, g = Split<axis=0>({x}, s) f = Mul(e, e) {to_float} z = Identity(e)",
        {"x": normal(6, 2), "s": ints(2, 1, 3)},
        lambda x, *_: x[:2] ** 2,
    )
    names = ["x"]
    model = onnx_model(case, names, dynamic=is_dynamic)
    split = next(node for node in model.graph.node if node.op_type == "Split")
    split.output[1] = split.output[2] = ""
    prepared, statistics = prepare(model, ["p_x" if is_dynamic else "x"])
    trained = ["p_x" if is_dynamic else "x"]
    built = differentiate(prepared, trained, prepared.graph.outputs[0], statistics)
    prepared.graph.outputs.extend(built.gradients.values())
    session = onnxruntime.InferenceSession(
        ir.to_proto(prepared).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    array = case.inputs["x"]
    feeds = {"p_x": array.reshape(-1), "shape_x": ints(6, 2)} if is_dynamic else {"x": array}
    got = session.run([f"{trained[0]}_grad"], feeds)[0].reshape(6, 2)
    np.testing.assert_allclose(got, torch_gradients(case, names)["x"], rtol=1e-5)


def test_depth_to_space_with_unknown_channels():
    case = Case(
        'y = DepthToSpace<blocksize=2, mode="CRD">(x)',
        {"x": normal(2, 12, 2, 3)},
        depth_to_space(2, True),
    )
    with pytest.raises(ValueError, match=r"DepthToSpace 'y'.*only the batch is dynamic"):
        onnx_gradients(case, ["x"], dynamic=True)
