"""Gradients of operators that pick elements, put them somewhere, or surround them."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.helpers.gradient_oracle import Case, cases, check, distinct, normal, onnx_gradients

LARGEST = np.iinfo(np.int64).max
SMALLEST = np.iinfo(np.int64).min


def ints(*values):
    return np.array(values, np.int64)


def take(axis):
    def compute(x, i):
        i = i.long()
        picked = x.index_select(axis, torch.where(i < 0, i + x.shape[axis], i).reshape(-1))
        return picked.reshape((*x.shape[:axis], *i.shape, *x.shape[axis + 1 :]))

    return compute


REPEATING = np.random.default_rng(0).integers(-7, 7, (5, 4))
GATHER = {
    f"Gather {shape} axis={axis} at {name}{at}": Case(
        f"{node} y = Gather<axis={axis}>(x, {operand})",
        {"x": normal(*shape), "i": np.asarray(indices)},
        take(axis % len(shape)),
    )
    for at, node, operand in (
        ("", "", "i"),
        (" at run time", "nil = CastLike(nought, i) j = Add(i, nil)", "j"),
    )
    for shape, axis, name, indices in (
        ((7, 3), 0, "repeated", REPEATING),
        ((7, 3), 0, "int32", REPEATING.astype(np.int32)),
        ((200, 3), 0, "a large table", REPEATING),
        ((7,), 0, "repeated", REPEATING),
        ((2, 7, 3), 1, "repeated", REPEATING),
        ((2, 3, 7), -1, "repeated", REPEATING[0]),
        ((2, 3, 7), 2, "a scalar", -2),
        ((2, 7, 3), 1, "a scalar", 0),
        ((7,), 0, "a scalar", 6),
        ((2, 7, 3), 1, "a range", [2, 3, 4]),
        ((7, 3), 0, "a range", [[-3, -2], [-1, -0]][:1]),
        ((7, 3), 0, "a range across the end", [-2, -1, 0, 1]),
        ((2, 3, 3), 1, "a permutation", [2, 0, 1]),
        ((2, 4, 3), 1, "a permutation with negatives", [-1, 0, 2, 1]),
        ((2, 7, 3), 1, "distinct", [5, 0, 3]),
        ((7, 3), 0, "distinct", [[5, 0], [3, 2]]),
        ((7, 3), 0, "one alias", [6, -1]),
        ((7, 3), 0, "no element", np.zeros((0,), np.int64)),
        ((0, 7), 1, "an empty batch", [1, 1, 2]),
        ((1, 3), 0, "a table of one row", [0, 0, -1]),
        ((7, 0), 0, "rows of nothing", [1, 1]),
    )
    # ONNX Runtime computes no Expand to a batch that is known to be empty.
    if at == "" or name != "an empty batch"
}
PICKED = {
    **{
        f"GatherElements {shape} axis={axis}": Case(
            f"y = GatherElements<axis={axis}>(x, i)",
            {"x": normal(*shape), "i": np.array(indices)},
            lambda x, i, axis=axis: x.gather(axis, torch.where(i < 0, i + x.shape[axis], i)),
        )
        for shape, axis, indices in (
            ((3, 4), 0, [[0, 2, -1, 0], [0, 2, 1, 0]]),
            ((3, 4), -1, [[3, 3, 0, 0, 1], [1, -1, -4, 0, 0], [2, 2, 2, 2, 2]]),
            ((3, 4), 1, [[1], [2]]),
            ((5,), 0, [4, 4, 0]),
        )
    },
    "GatherND of elements": Case(
        "y = GatherND(x, i)",
        {"x": normal(3, 4), "i": np.array([[0, 1], [-1, -1], [2, 3], [0, 1]])},
        lambda x, i: x[i[:, 0], i[:, 1]],
    ),
    "GatherND of rows": Case(
        "y = GatherND(x, i)",
        {"x": normal(3, 4, 2), "i": np.array([[[0], [-1]], [[2], [2]]])},
        lambda x, i: x[i[..., 0]],
    ),
    "GatherND of one": Case(
        "z = GatherND(x, i) y = Reshape(z, s)",
        {"x": normal(3, 4), "i": ints(1, 2), "s": ints(1)},
        lambda x, i, _: x[i[0], i[1]][None],
    ),
    "GatherND at run time": Case(
        "nil = CastLike(nought, i) j = Add(i, nil) y = GatherND(x, j)",
        {"x": normal(3, 4, 2), "i": np.array([[0, 1], [-1, -1], [2, 3], [0, 1]])},
        lambda x, i: x[i[:, 0], i[:, 1]],
    ),
    "GatherND with a batch": Case(
        "y = GatherND<batch_dims=1>(x, i)",
        {"x": normal(2, 3, 4), "i": np.array([[[0], [-1]], [[2], [2]]])},
        lambda x, i: torch.stack([row[k[:, 0]] for row, k in zip(x, i, strict=True)]),
    ),
    "GatherND with a batch of two axes": Case(
        "y = GatherND<batch_dims=2>(x, i)",
        {"x": normal(2, 3, 4), "i": np.array([[[0], [-1], [1]], [[2], [2], [3]]])},
        lambda x, i: x.gather(2, torch.where(i < 0, i + 4, i))[..., 0],
    ),
    **{
        f"Compress axis={axis} {keep}": Case(
            f"y = Compress{'' if axis is None else f'<axis={axis}>'}(x, c)",
            {"x": normal(3, 4, 2), "c": np.array(keep, bool)},
            lambda x, c, axis=axis: (
                x.reshape(-1)[: len(c)][c]
                if axis is None
                else x.index_select(axis, c.nonzero()[:, 0])
            ),
        )
        for axis, keep in (
            (None, [0, 1, 1, 0, 1]),
            (0, [1, 0, 1]),
            (1, [0, 1, 1]),
            (-1, [0, 1]),
            (1, [0, 0, 0, 0]),
        )
    },
    **{
        f"TopK {attributes} k={k}": Case(
            f"y, i = TopK{attributes}(x, k)",
            {"x": distinct(3, 5, 2), "k": ints(k)},
            lambda x, *_, axis=axis, k=k, largest=largest: x.topk(k, axis, largest).values,
        )
        for attributes, axis, k, largest in (
            ("<axis=1>", 1, 2, True),
            ("<axis=-2, largest=0>", 1, 3, False),
            ("", -1, 2, True),
            ("<axis=0>", 0, 0, True),
        )
    },
    "CenterCropPad": Case(
        "y = CenterCropPad<axes=[2, 3]>(x, s)",
        {"x": normal(2, 3, 5, 4), "s": ints(3, 6)},
        lambda x, _: functional.pad(x[:, :, 1:4], (1, 1)),
        opset=18,
    ),
    "TopK, indices unused": Case(
        "y, unused = TopK<axis=1>(x, k)",
        {"x": distinct(3, 5), "k": ints(2)},
        lambda x, *_: x.topk(2, 1).values,
    ),
}


def sliced(x, starts, ends, axes, steps):
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        kept = list(range(*slice(start, end, step).indices(x.shape[axis])))
        x = x.index_select(axis, torch.tensor(kept, dtype=torch.long))
    return x


SLICE = {
    f"Slice {shape} {starts}:{ends}:{steps} of {axes}{at}": Case(
        f"{node} y = Slice({operands})",
        {
            "x": normal(*shape),
            "b": ints(*starts),
            "e": ints(*ends),
            "a": ints(*axes),
            "s": ints(*steps),
        },
        lambda x, *_, arguments=(starts, ends, axes, steps): sliced(x, *arguments),
    )
    for at, node, operands in (
        ("", "", "x, b, e, a, s"),
        (
            " at run time",
            "nil = CastLike(nought, b) c = Add(b, nil) d = Add(e, nil)",
            "x, c, d, a, s",
        ),
    )
    for shape, starts, ends, axes, steps in (
        ((7,), (2,), (5,), (0,), (1,)),
        ((7, 3), (-3,), (LARGEST,), (0,), (1,)),
        ((2, 7, 3), (1, 0), (-1, 2), (1, -1), (1, 1)),
        ((7, 2), (0,), (7,), (0,), (2,)),
        ((7, 2), (1,), (100,), (0,), (2,)),
        ((7, 2), (1,), (3,), (0,), (3,)),
        ((6, 8), (1, 0), (6, 8), (0, 1), (2, 3)),
        ((7, 2), (-1,), (SMALLEST,), (0,), (-1,)),
        ((7, 2), (100,), (0,), (0,), (-2,)),
        ((7, 2), (5,), (1,), (0,), (-3,)),
        ((7, 6), (1, -2), (7, SMALLEST), (0, 1), (2, -2)),
        ((7, 2), (-100,), (3,), (0,), (1,)),
        ((7, 2), (4,), (2,), (0,), (1,)),
        ((7, 2), (4,), (2,), (0,), (2,)),
        ((7, 2), (2,), (4,), (0,), (-1,)),
        ((7, 2), (9,), (12,), (0,), (1,)),
        ((7, 2), (0,), (7,), (0,), (1,)),
        ((0, 5), (1,), (3,), (1,), (1,)),
    )
} | {
    "Slice of the first axes": Case(
        "y = Slice(x, b, e)",
        {"x": normal(4, 5, 2), "b": ints(1, 2), "e": ints(3, 5)},
        lambda x, *_: x[1:3, 2:5],
    ),
    "Slice with steps of the first axes": Case(
        "y = Slice(x, b, e,, s)",
        {"x": normal(4, 5, 2), "b": ints(1, 0), "e": ints(3, 5), "s": ints(1, 2)},
        lambda x, *_: x[1:3, ::2],
    ),
    **{
        f"Slice backwards from before the front of {size} to {end}{at}": Case(
            f"{node} y = Slice(x, {operands})",
            {"x": normal(size, 2), "b": ints(-10), "e": ints(end), "a": ints(0), "s": ints(step)},
            lambda x, *_, taken=taken: x[:taken],
        )
        for at, node, operands in (
            ("", "", "b, e, a, s"),
            (" at run time", "nil = CastLike(nought, b) c = Add(b, nil)", "c, e, a, s"),
        )
        for size, end, step, taken in ((4, -100, -1, 1), (4, -100, -2, 1), (4, 0, -1, 0))
    },
    "Slice by int32": Case(
        "nil = CastLike(nought, b) c = Add(b, nil) y = Slice(x, c, e, a)",
        {
            "x": normal(4, 5),
            "b": np.array([-2], np.int32),
            "e": np.array([5], np.int32),
            "a": np.array([1], np.int32),
        },
        lambda x, *_: x[:, 3:],
    ),
}


def padded(mode, *widths):
    def compute(x, *_):
        for axis, (before, after) in enumerate(widths):
            # PyTorch's modes need particular ranks; its constant one crops too.
            if mode == "constant":
                x = functional.pad(x, [*[0, 0] * (x.ndim - 1 - axis), before, after], value=0.5)
            else:
                kept = np.arange(max(-before, 0), x.shape[axis] + min(after, 0))
                picked = np.pad(kept, np.maximum((before, after), 0), mode=mode)
                x = x.index_select(axis, torch.tensor(picked))
        return x

    return compute


PAD = (
    {
        f"Pad {mode} {shape} {widths}{at} opset={opset}": Case(
            f'{node} y = Pad<mode="{mode}">({operands})',
            {
                "x": normal(*shape),
                "p": np.array(widths, np.int64).T.reshape(-1),
                "v": np.array(0.5, np.float32),
            },
            padded(mode, *widths),
            constants=("v",),
            opset=opset,
        )
        for mode, shape, widths, opset in (
            ("constant", (3, 4), ((1, 2), (0, 3)), 17),
            ("constant", (3, 4), ((1, 2), (0, 3)), 21),
            ("constant", (3, 4), ((0, 0), (0, 0)), 17),
            ("constant", (3, 4), ((-1, 2), (1, -2)), 17),
            ("constant", (3, 4), ((-1, -1), (0, 0)), 18),
            ("constant", (0, 4), ((0, 0), (1, 1)), 17),
            ("constant", (5,), ((2, 0),), 17),
            ("reflect", (3, 4), ((2, 1), (0, 3)), 17),
            ("reflect", (2, 2, 5), ((0, 0), (1, 1), (4, 4)), 18),
            ("edge", (3, 4), ((2, 1), (0, 5)), 17),
            ("edge", (3, 4), ((-1, 2), (1, -2)), 18),
            ("edge", (1,), ((2, 3),), 19),
            ("wrap", (3, 4), ((2, 1), (0, 4)), 19),
        )
        for at, node, operands in (
            ("", "", "x, p" if mode != "constant" else "x, p, v"),
            (" at run time", "nil = CastLike(nought, p) q = Add(p, nil)", "x, q, v"),
        )
    }
    | {
        f"Pad {mode} of axes{at}": Case(
            f'{node} y = Pad<mode="{mode}">(x, {pads}, v, a)',
            {
                "x": normal(3, 4, 5),
                "p": ints(1, 2, 3, 0),
                "v": np.array(0.5, np.float32),
                "a": ints(-1, 1),
            },
            padded(mode, (0, 0), (2, 0), (1, 3)),
            constants=("v",),
            opset=18,
        )
        for mode in ("constant", "reflect", "edge")
        for at, node, pads in (
            ("", "", "p"),
            (" at run time", "nil = CastLike(nought, p) q = Add(p, nil)", "q"),
        )
    }
    | {
        f"Pad by a trained value{at}": Case(
            f"{node} y = Pad(x, {pads}, v)",
            {"x": normal(3, 4), "p": ints(1, -1, 2, 3), "v": np.array(0.5, np.float32)},
            lambda x, _, v: torch.cat(
                [v.expand(1, 6), torch.cat([x[:, 1:], v.expand(3, 3)], 1), v.expand(2, 6)]
            ),
        )
        for at, node, pads in (
            ("", "", "p"),
            (" at run time", "nil = CastLike(nought, p) q = Add(p, nil)", "q"),
        )
    }
)


@pytest.mark.quick
@cases(GATHER | PICKED)
def test_gradients(case, dynamic):
    check(case, dynamic)


@pytest.mark.quick
@cases(SLICE)
def test_slice(case, dynamic):
    check(case, dynamic)


@pytest.mark.quick
@cases(PAD)
def test_pad(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize("rows", [100, 1000])
def test_many_repeated_indices(rows):
    """Rows that several threads might add to at once."""
    indices = np.random.default_rng(1).integers(0, 5, 4096)
    case = Case(
        "nil = CastLike(nought, i) j = Add(i, nil) y = Gather(x, j)",
        {"x": normal(rows, 64), "i": indices},
        take(0),
    )
    check(case, dynamic=False)
    rows_of = np.stack([indices, indices % 3], 1)
    node = "nil = CastLike(nought, i) j = Add(i, nil) y = GatherND(x, j)"
    case = Case(node, {"x": normal(5, 3, 64), "i": rows_of}, lambda x, i: x[i[:, 0], i[:, 1]])
    check(case, dynamic=False)


HALVES = {
    f"{node} in float16": Case(
        f"h = Cast<to=10>(x) nil = CastLike(nought, i) j = Add(i, nil) "
        f"g = {node} y = Cast<to=1>(g)",
        {"x": normal(3, 4), "i": indices},
        function,
        tolerance=2e-3,
    )
    for node, indices, function in (
        ("Gather(h, j)", ints(0, 2, 2), lambda x, i: x[i]),
        ("GatherElements(h, j)", np.zeros((2, 4), np.int64), lambda x, i: x.gather(0, i)),
        ("GatherND(h, j)", np.array([[1], [1]]), lambda x, i: x[i[:, 0]]),
    )
}


@cases(HALVES)
def test_float16(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_gather_formulated_for_a_provider(provider):
    case = Case(
        "nil = CastLike(nought, i) j = Add(i, nil) y = Gather(x, j)",
        {"x": normal(7, 3), "i": REPEATING},
        take(0),
        options={"provider": provider},
    )
    check(case, dynamic=False)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            "nil = CastLike(nought, s) t = Add(s, nil) y = Slice(x, s, s, s, t)",
            r"Slice 'y'.*steps, but 't' is not a constant",
        ),
        (
            "nil = CastLike(nought, s) t = Add(s, nil) y = Slice(x, s, s, t)",
            r"Slice 'y'.*axes, but 't' is not a constant",
        ),
        ('y = Pad<mode="reflect">(x, l)', r"Pad 'y'.*'reflect'.*within the size"),
    ],
)
def test_what_is_refused(node, message):
    case = Case(
        node,
        {
            "x": normal(2, 3),
            "s": ints(1),
            "l": ints(2, 0, 0, 0),
        },
        lambda x, *_: x.new_zeros(()),
        opset=18,
    )
    with pytest.raises(ValueError, match=message):
        onnx_gradients(case, ["x"], dynamic=False)
