"""Gradients of RoiAlign and MaxRoiPool, against the points of each part one by one."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from tests.helpers.gradient_oracle import Case, cases, check, distinct

BOXES = np.array(
    [
        [0.3, 0.2, 5.4, 4.1],
        [1.2, 0.3, 9.1, 9.2],
        [-3.1, -2.2, 2.3, 3.4],
        [2.1, 2.2, 2.15, 2.25],  # nearly nothing
        [3.3, 3.4, 1.1, 1.2],  # the wrong way round
        [-9, -9, -5, -6],  # nowhere in the image
    ],
    np.float32,
)
IMAGES = np.array([0, 1, 1, 0, 0, 1])


def aligned(parts, ratio, scale, mode, shift):
    """RoiAlign as its reference computes it."""

    def of_part(image, start, width, counts):
        height, breadth = image.shape[1:]
        values = []
        for number in np.ndindex(*counts):
            y, x = (
                s + (n + 0.5) * w / c
                for s, n, w, c in zip(start, number, width, counts, strict=True)
            )
            if not (-1 <= y <= height and -1 <= x <= breadth):
                values.append(0 * image[:, :1, 0].repeat(1, 4))
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), breadth - 1)
            rows = [(int(y), 1 - y % 1), (min(int(y) + 1, height - 1), y % 1)]
            columns = [(int(x), 1 - x % 1), (min(int(x) + 1, breadth - 1), x % 1)]
            corners = [image[:, r][:, c] * v * w for r, v in rows for c, w in columns]
            values.append(torch.stack(corners, 1))
        if not values:
            return torch.zeros(len(image)).double()
        products = torch.stack(values, 1)
        return products.sum(2).mean(1) if mode == "avg" else products.flatten(1).max(1).values

    def compute(x, boxes, images):
        regions = []
        for box, image in zip(boxes.detach().double().numpy() * scale - shift, images, strict=True):
            extent = box[[3, 2]] - box[[1, 0]]
            width = (extent if shift else np.maximum(extent, 1)) / parts
            counts = [ratio or max(math.ceil(w), 0) for w in width]
            values = [
                of_part(x[image], box[[1, 0]] + width * at, width, counts)
                for at in np.ndindex(*parts)
            ]
            regions.append(torch.stack(values, 1).reshape(-1, *parts))
        return torch.stack(regions)

    return compute


def align(mode="avg", transformation="half_pixel", ratio=2, scale=1.0, parts=(2, 3), **more):
    attributes = (
        f"output_height={parts[0]}, output_width={parts[1]}, sampling_ratio={ratio}, "
        f'mode="{mode}", spatial_scale={scale}, coordinate_transformation_mode="{transformation}"'
    )
    shift = 0.5 if transformation == "half_pixel" else 0
    return Case(
        f"y = RoiAlign<{attributes}>(x, boxes, images)",
        {"x": distinct(2, 3, 6, 7), "boxes": BOXES, "images": IMAGES},
        aligned(parts, ratio, scale, mode, shift),
        constants=("boxes",),
        **more,
    )


ALIGNED = {
    f"RoiAlign {mode} {transformation} {ratio} points": align(
        mode, transformation, ratio, dynamic="none" if ratio == 1 else "all"
    )
    for mode, transformation, ratio in itertools.product(
        ("avg", "max"), ("half_pixel", "output_half_pixel"), (0, 1, 2)
    )
} | {
    "RoiAlign, smaller": align(scale=0.5, ratio=0, parts=(1, 1)),
    "RoiAlign, max, larger": align("max", scale=1.5, ratio=0, parts=(3, 1)),
    "RoiAlign, a part": align(dynamic="batch"),
}


def pooled(parts, scale):
    def compute(x, boxes):
        regions = []
        for image, *box in boxes.numpy():
            left, top, right, bottom = (math.floor(abs(v) * scale + 0.5) * np.sign(v) for v in box)
            extent = (max(bottom - top + 1, 1), max(right - left + 1, 1))
            values = []
            for at in np.ndindex(*parts):
                spans = []
                for start, size, n, k, most in zip(
                    (top, left), extent, at, parts, x.shape[2:], strict=True
                ):
                    ends = (math.floor(n * size / k), math.ceil((n + 1) * size / k))
                    spans.append(slice(*(int(min(max(start + e, 0), most)) for e in ends)))
                part = x[int(image)][:, spans[0], spans[1]].flatten(1)
                values.append(part.max(1).values if part.shape[1] else 0 * x[0, :, 0, 0])
            regions.append(torch.stack(values, 1).reshape(-1, *parts))
        return torch.stack(regions)

    return compute


def pool(parts=(2, 3), scale=1.0, **more):
    boxes = np.concatenate([IMAGES[:, None].astype(np.float32), BOXES], 1)
    boxes[0, 1:] = (0.5, 1.5, 4.5, 5.5)  # halves
    return Case(
        f"y = MaxRoiPool<pooled_shape={list(parts)}, spatial_scale={scale}>(x, boxes)",
        {"x": distinct(2, 3, 6, 7), "boxes": boxes},
        pooled(parts, scale),
        constants=("boxes",),
        **more,
    )


POOLED = {
    "MaxRoiPool": pool(),
    "MaxRoiPool, smaller": pool((3, 2), 0.5),
    "MaxRoiPool, larger": pool((1, 2), 1.25),
}


def at_run_time(case, count):
    """With the first few of the regions, whose number only the running graph knows."""
    names = [name for name in case.inputs if name != "x"]
    lines = ["n = Add(count, nought) m = Reshape(n, one)"]
    lines += [f"some_{name} = Slice({name}, zero, m, zero)" for name in names]
    operands = ", ".join(["x", *(f"some_{name}" for name in names)])
    node = f"{' '.join(lines)} {case.node.partition('(')[0]}({operands})"
    numbers = {"count": np.array(count), "one": np.array([1]), "zero": np.array([0])}

    def compute(x, *others):
        given = [other[:count] for other in others[: len(names)]]
        return case.torch(x, *given) if count else x.new_zeros((0, 3, 2, 3)) * x.sum()

    inputs = case.inputs | numbers
    return dataclasses.replace(case, node=node, inputs=inputs, torch=compute, dynamic="none")


FEW = {
    f"{name}, {count} regions": at_run_time(case, count)
    for count in (2, 0)
    for name, case in (
        ("RoiAlign", align(ratio=0)),
        ("RoiAlign, max", align("max", ratio=0)),
        ("MaxRoiPool", pool()),
    )
}


@pytest.mark.quick
@cases(ALIGNED | POOLED | FEW)
def test_gradients(case, dynamic):
    check(case, dynamic)


def test_an_older_version_does_not_shift():
    case = align(transformation="output_half_pixel", dynamic="none")
    node = case.node.replace(', coordinate_transformation_mode="output_half_pixel"', "")
    check(dataclasses.replace(case, node=node, opset=10), dynamic=False)


@pytest.mark.any_runtime
def test_boxes_are_constants():
    case = dataclasses.replace(align(), constants=())
    with pytest.raises(ValueError, match="no gradient of the loss reaches 'boxes'"):
        check(case, dynamic=False)
