"""Gradients of GridSample and AffineGrid."""

import dataclasses
import itertools

import numpy as np
import onnx.parser
import onnxruntime
import pytest
import torch
from torch.nn import functional

from tests.helpers.gradient_oracle import Case, cases, check, check_types, normal

AS_PYTORCH = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
SIZES = {4: ((4, 5), (3, 7)), 5: ((3, 4, 2), (2, 3, 2))}


def places(*shape, seed=0):
    """Some within the image, some on several sides around it, none at an edge or center."""
    return np.random.default_rng([seed, *shape]).uniform(-2.6, 2.6, shape).astype(np.float32)


def sampled(mode, padding, corners, rank=4, opset=20, grid=None, image=None, **more):
    sizes, out = SIZES[rank]
    name = mode if opset >= 20 else AS_PYTORCH[mode]
    return Case(
        f'y = GridSample<mode="{name}", padding_mode="{padding}", align_corners={corners}>(x, g)',
        {
            "x": normal(2, 3, *sizes) if image is None else image,
            "g": places(2, *out, len(sizes)) if grid is None else grid,
        },
        lambda x, g: functional.grid_sample(x, g, AS_PYTORCH[mode], padding, bool(corners)),
        opset=opset,
        constants=("g",) if mode == "nearest" else (),
        **more,
    )


PADDINGS = ("zeros", "border", "reflection")
SAMPLED = {
    f"{mode} {padding} align_corners={corners}": sampled(mode, padding, corners)
    for mode, padding, corners in itertools.product(AS_PYTORCH, PADDINGS, (0, 1))
} | {
    f"{mode} {padding} align_corners={corners}, a volume": sampled(
        mode, padding, corners, 5, dynamic="all" if padding == "reflection" else "none"
    )
    for mode, padding, corners in itertools.product(("linear", "nearest"), PADDINGS, (0, 1))
}


# At the centers of elements and halfway between them, at both ends, and around the image.
QUARTERS = np.arange(-16, 17) / 4
CORNERS = np.stack(np.meshgrid(QUARTERS, QUARTERS, indexing="ij"), -1).astype(np.float32)[None]
AT_KINKS = {
    f"{mode} {padding} align_corners={corners}, {name}": sampled(
        mode, padding, corners, grid=CORNERS, image=normal(1, 2, *sizes), dynamic="none"
    )
    for mode, padding, corners in itertools.product(AS_PYTORCH, PADDINGS, (0, 1))
    for name, sizes in (("at kinks", (5, 9) if corners else (4, 4)), ("one element", (1, 1)))
    # Of one element the slope is 0, up to rounding errors of the weights of "cubic".
    if not (mode == "cubic" and name == "one element")
}


def as_the_runtime(case):
    """With what the operator itself gives for each element by itself."""
    grid, image = case.inputs["g"], case.inputs["x"]
    elements = np.eye(image[0, 0].size, dtype=np.float32).reshape(1, -1, *image.shape[2:])
    node = onnx.parser.parse_node(case.node)
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in "xgy"]
    graph = onnx.helper.make_graph([node], "g", values[:2], values[2:])
    opset = [onnx.helper.make_opsetid("", case.opset)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    read = torch.tensor(session.run(None, {"x": elements, "g": grid})[0][0]).double()
    return dataclasses.replace(
        case, torch=lambda x, _: torch.einsum("nce,ehw->nchw", x.flatten(2), read)
    )


# PyTorch reflects halves before it rounds them, ONNX Runtime rounds them first.
HALVES = "nearest reflection align_corners=0, at kinks"
AT_KINKS[HALVES] = as_the_runtime(AT_KINKS[HALVES])
OTHERS = {f"{mode}, older name": sampled(mode, "border", 0, opset=16) for mode in AS_PYTORCH} | {
    "only the batch is open": sampled("linear", "reflection", 0, dynamic="batch"),
    "far away": sampled("linear", "reflection", 1, grid=40 * places(2, 3, 7, 2), tolerance=5e-5),
}


@pytest.mark.quick
@cases(SAMPLED | AT_KINKS | OTHERS)
def test_grid_sample(case, dynamic):
    check(case, dynamic)


@pytest.mark.any_runtime
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtypes_of_grid_sample(dtype):
    check_types(sampled("linear", "reflection", 0), dtype)
    check_types(sampled("cubic", "zeros", 1), dtype)


AFFINE = {
    f"AffineGrid align_corners={corners}, {rank} axes": Case(
        f"y = AffineGrid<align_corners={corners}>(t, s)",
        {"t": normal(2, rank, rank + 1), "s": np.array([2, 3, *sizes])},
        lambda t, s, corners=corners: functional.affine_grid(t, s.tolist(), bool(corners)),
        opset=20,
    )
    for corners in (0, 1)
    for rank, sizes in ((2, (4, 5)), (3, (2, 3, 4)))
} | {
    "AffineGrid, size at run time": Case(
        "r = Add(s, nought) y = AffineGrid(t, r)",
        {"t": normal(2, 2, 3), "s": np.array([2, 3, 4, 5])},
        lambda t, s: functional.affine_grid(t, s.tolist(), align_corners=False),
        opset=20,
    ),
    "a spatial transformer": Case(
        "g = AffineGrid(t, s) y = GridSample(x, g)",
        {"x": normal(2, 3, 4, 5), "t": normal(2, 2, 3), "s": np.array([2, 3, 4, 5])},
        lambda x, t, s: functional.grid_sample(
            x, functional.affine_grid(t, s.tolist(), align_corners=False), align_corners=False
        ),
        opset=20,
    ),
}


@cases(AFFINE)
def test_affine_grid(case, dynamic):
    check(case, dynamic)


def test_an_infinite_gradient_of_what_lies_outside():
    """There, the slope of a root is infinite, but nothing was read."""
    grid = np.array([[0.3, -0.2], [-9, 0.1], [0.1, 7]], np.float32).reshape(1, 1, 3, 2)
    image = np.abs(normal(1, 2, 4, 5)) + 0.5
    inner = sampled("linear", "zeros", 0, grid=grid, image=image)
    case = dataclasses.replace(
        inner,
        node=inner.node.replace("y =", "z =") + " y = Sqrt(z)",
        torch=lambda x, g: inner.torch(x, g).sqrt(),
        constants=("g",),
    )
    check(case, dynamic=False)
