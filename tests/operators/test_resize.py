"""Gradients of Resize."""

import numpy as np
import onnx.parser
import onnxruntime
import pytest
import torch
from torch.nn.functional import interpolate

from tests.helpers.gradient_oracle import Case, cases, check, normal, onnx_gradients


def scales(*values):
    return np.array(values, np.float32)


def sizes(*values):
    return np.array(values, np.int64)


def node(mode, transformation, operands="x,, s", more=""):
    return (
        f'y = Resize<mode="{mode}", coordinate_transformation_mode="{transformation}"{more}>'
        f"({operands})"
    )


def interpolated(mode, size, corners=None):
    return lambda x, *_: interpolate(x, size=size, mode=mode, align_corners=corners)


FLOOR = ', nearest_mode="floor"'
AS_PYTORCH = {
    **{
        f"{mode} {transformation} to {size}{at}": Case(
            text,
            {"x": normal(2, 3, 4, 5), "s": values},
            interpolated(torch_mode, size, corners),
            constants=("s",),
            dynamic="batch" if at == " by sizes" else "all",
        )
        for mode, torch_mode, transformation, corners, more in (
            ("linear", "bilinear", "half_pixel", False, ""),
            ("linear", "bilinear", "pytorch_half_pixel", False, ""),
            ("linear", "bilinear", "align_corners", True, ""),
            ("cubic", "bicubic", "half_pixel", False, ", cubic_coeff_a=-0.75"),
            ("cubic", "bicubic", "align_corners", True, ""),
            ("nearest", "nearest", "asymmetric", None, FLOOR),
            ("nearest", "nearest-exact", "half_pixel", None, ', nearest_mode="round_prefer_ceil"'),
        )
        for size in ((8, 10), (3, 2), (4, 15), (7, 5), (1, 1))
        for at, text, values in (
            (
                " by scales",
                node(mode, transformation, "x,, s", more),
                scales(1, 1, size[0] / 4, size[1] / 5),
            ),
            (
                " by sizes",
                node(mode, transformation, "x,,, s", more),
                sizes(2, 3, *size),
            ),
        )
        # Where one element remains, ONNX's pytorch_half_pixel takes the first, PyTorch does not.
        if size != (1, 1) or transformation != "pytorch_half_pixel"
    },
    "linear, one axis of a signal": Case(
        node("linear", "half_pixel"),
        {"x": normal(2, 3, 5), "s": scales(1, 1, 2)},
        interpolated("linear", 10, False),
        constants=("s",),
    ),
    "linear, a volume": Case(
        node("linear", "half_pixel"),
        {"x": normal(1, 2, 3, 4, 2), "s": scales(1, 1, 2, 1.5, 2)},
        interpolated("trilinear", (6, 6, 4), False),
        constants=("s",),
    ),
    "nearest, a volume": Case(
        node("nearest", "asymmetric", more=FLOOR),
        {"x": normal(1, 2, 3, 4, 2), "s": scales(1, 1, 2, 1, 3)},
        interpolated("nearest", (6, 4, 6)),
        constants=("s",),
    ),
    "nearest, a signal": Case(
        node("nearest", "asymmetric", more=FLOOR),
        {"x": normal(2, 3, 5), "s": scales(1, 1, 3)},
        interpolated("nearest", 15),
        constants=("s",),
    ),
    "nearest, channels too": Case(
        node("nearest", "asymmetric", more=FLOOR),
        {"x": normal(2, 3, 4), "s": scales(2, 2, 0.5)},
        lambda x, _: x.repeat_interleave(2, 0).repeat_interleave(2, 1)[..., ::2],
        constants=("s",),
    ),
    "scales at run time": Case(
        "n = CastLike(nought, s) t = Add(s, n) " + node("linear", "half_pixel", "x,, t"),
        {"x": normal(2, 3, 4, 5), "s": scales(1, 1, 2, 0.4)},
        interpolated("bilinear", (8, 2), False),
        constants=("s",),
    ),
    "sizes at run time": Case(
        "n = CastLike(nought, s) t = Add(s, n) " + node("linear", "half_pixel", "x,,, t"),
        {"x": normal(2, 3, 4, 5), "s": sizes(2, 3, 8, 2)},
        interpolated("bilinear", (8, 2), False),
    ),
    "sizes of axes": Case(
        node("linear", "half_pixel", "x,,, s", ", axes=[3, 2]"),
        {"x": normal(2, 3, 4, 5), "s": sizes(2, 8)},
        interpolated("bilinear", (8, 2), False),
        opset=18,
    ),
    "antialiased, exclude_outside": Case(
        node("linear", "half_pixel", "x,,, s", ", antialias=1, exclude_outside=1"),
        {"x": normal(2, 3, 8, 9), "s": sizes(2, 3, 3, 5)},
        lambda x, _: interpolate(x, (3, 5), mode="bilinear", antialias=True),
        opset=18,
        dynamic="batch",
    ),
}


def jacobian(text, x, s, opset):
    """The forward pass, which is linear, applied to each element of the input by itself."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> '
        f"m (float[a,b,c,d] x, float[4] s) => (float[a,b,e,f] y) {{ {text} }}"
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    basis = np.eye(x.size, dtype=np.float32).reshape(-1, 1, *x.shape)
    return np.concatenate(
        [session.run(None, {"x": image[0][None, None], "s": s})[0] for image in basis]
    )


def in_ratio(mode, transformation, policy, size, wanted, more=""):
    """Resized along two axes by the scale of one of them, as the runtime does."""
    text = node(mode, transformation, "x,,, s", f', keep_aspect_ratio_policy="{policy}"{more}')
    text = text.replace("<", "<axes=[2, 3], ")
    x, s = normal(2, 3, *size), sizes(*wanted)
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> m (float[a,b,c,d] x, int64[2] s) => '
        f"(float[a,b,e,f] y) {{ {text} }}"
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    basis = np.eye(np.prod(size), dtype=np.float32).reshape(-1, 1, *size)
    columns = torch.tensor(session.run(None, {"x": basis, "s": s})[0][:, 0]).double()
    return Case(
        text,
        {"x": x, "s": s},
        lambda x, _: torch.einsum("ncp,phw->nchw", x.flatten(2), columns),
        constants=("s",),
        opset=18,
    )


def as_the_runtime(text, x, s, opset=17):
    columns = torch.tensor(jacobian(text, x[0, 0], s, opset)).double()
    return Case(
        text,
        {"x": x, "s": s},
        lambda x, _: torch.einsum("ncp,pqhw->nchw", x.flatten(2), columns),
        constants=("s",),
        opset=opset,
    )


AS_THE_RUNTIME = {
    f"{mode} {transformation}{more} by {factors}": as_the_runtime(
        node(mode, transformation, more=more), normal(2, 3, 3, 4), scales(1, 1, *factors)
    )
    for mode, transformation, more in (
        ("nearest", "half_pixel", ""),
        ("nearest", "half_pixel", ', nearest_mode="ceil"'),
        ("nearest", "asymmetric", ', nearest_mode="round_prefer_ceil"'),
        ("nearest", "align_corners", FLOOR),
        ("nearest", "pytorch_half_pixel", ""),
        ("linear", "asymmetric", ""),
        ("cubic", "asymmetric", ", cubic_coeff_a=-0.5"),
        ("cubic", "half_pixel", ", exclude_outside=1"),
    )
    for factors in ((2, 3), (1.5, 0.6))
} | {
    "antialiased": as_the_runtime(
        node("linear", "half_pixel", more=", antialias=1"),
        normal(2, 3, 8, 9),
        scales(1, 1, 0.4, 0.6),
        18,
    ),
    # Where no size changes, runtimes copy, whatever the scale.
    "scale of 1.2 that keeps the size": as_the_runtime(
        node("linear", "asymmetric"), normal(1, 2, 3, 2), scales(1, 1, 1.2, 1)
    ),
    "nearest half_pixel_symmetric": as_the_runtime(
        node("nearest", "half_pixel_symmetric"), normal(2, 3, 3, 4), scales(1, 1, 2, 1.4), 19
    ),
}


IN_RATIO = {
    f"{mode} {transformation}{more} {policy}, {size} to {wanted}": in_ratio(
        mode, transformation, policy, size, wanted, more
    )
    for mode, transformation, more in (
        ("linear", "half_pixel", ""),
        ("nearest", "asymmetric", FLOOR),
        ("cubic", "half_pixel", ""),
        ("linear", "align_corners", ""),
        ("linear", "half_pixel", ", antialias=1"),
    )
    for policy in ("not_larger", "not_smaller")
    for size, wanted in (((4, 5), (8, 8)), ((4, 5), (7, 9)), ((5, 3), (3, 3)))
} | {
    "one axis in ratio": Case(
        node("linear", "half_pixel", "x,,, s", ', axes=[3], keep_aspect_ratio_policy="not_larger"'),
        {"x": normal(2, 3, 4, 5), "s": sizes(8)},
        interpolated("bilinear", (4, 8), False),
        opset=18,
        dynamic="batch",
    ),
}


PART = scales(0, 0, -0.2, 0.3, 1, 1, 0.7, 1.1)


def cropped(mode, at="", **more):
    """A part that reaches over two of the edges, where it is filled."""

    def matrix(size, length, start, end):
        places = np.linspace(start * (size - 1), end * (size - 1), length)[:, None]
        distance = np.abs(places - np.arange(size))
        weights = np.maximum(1 - distance, 0) if mode == "linear" else distance < 0.5
        is_inside = (places >= 0) & (places <= size - 1)
        return torch.tensor(weights * is_inside).double()

    rows, columns = matrix(4, 7, -0.2, 0.7), matrix(5, 8, 0.3, 1.1)
    text = node(
        mode, "tf_crop_and_resize", f"x, {'t' if at else 'r'},, s", ", extrapolation_value=3.0"
    )
    return Case(
        f"n = CastLike(nought, r) t = Add(r, n) {text}" if at else text,
        {"x": normal(2, 3, 4, 5), "r": PART, "s": sizes(2, 3, 7, 8)},
        lambda x, *_: rows @ x @ columns.T,
        constants=("r",),
        dynamic="batch",
        **more,
    )


CROPPED = {
    "linear crop": cropped("linear"),
    "nearest crop": cropped("nearest"),
    "linear crop at run time": cropped("linear", " at run time"),
    # Where no size changes, runtimes copy.
    "crop that keeps the sizes": Case(
        node("linear", "tf_crop_and_resize", "x, r,, s"),
        {"x": normal(2, 3, 4, 5), "r": PART, "s": sizes(2, 3, 4, 5)},
        lambda x, *_: x,
        constants=("r",),
        dynamic="none",
    ),
    "crop of an axis": Case(
        node("linear", "tf_crop_and_resize", "x, r,, s", ", axes=[3]"),
        {"x": normal(2, 3, 4, 5), "r": scales(0, 0.5), "s": sizes(7)},
        lambda x, *_: interpolate(
            x[..., :3].flatten(0, 1), 7, mode="linear", align_corners=True
        ).reshape(2, 3, 4, 7),
        constants=("r",),
        opset=18,
        dynamic="batch",
    ),
}


@pytest.mark.quick
@cases(AS_PYTORCH | AS_THE_RUNTIME | IN_RATIO | CROPPED)
def test_gradients(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            node("linear", "half_pixel", "x,,, z", ', keep_aspect_ratio_policy="not_larger"'),
            r"Resize 'v'.*keep_aspect_ratio_policy.*name them by axes",
        ),
        (
            node(
                "linear",
                "half_pixel",
                "x,,, a",
                ', axes=[-2, -1], keep_aspect_ratio_policy="not_larger"',
            ),
            r"Resize 'v'.*ONNX Runtime does not resize; count them from the front",
        ),
        (
            node("linear", "tf_crop_and_resize", "x, r, k"),
            r"Resize 'v'.*sizes of axis 2 before and after it.*crop that axis with Slice",
        ),
        (
            node("linear", "asymmetric", "x,, k"),
            r"Resize 'v'.*scale of axis 2 is not 1 but keeps the size 4; give sizes",
        ),
    ],
)
def test_what_is_refused(text, message):
    # Shape inference may leave the rank open.
    case = Case(
        text.replace("y =", "v =") + " y = Reshape(v, z)",
        {
            "x": normal(1, 1, 4, 4),
            "s": scales(1, 1, 2, 2),
            "z": sizes(1, 1, 8, 8),
            "a": sizes(8, 8),
            "k": scales(1, 1, 1.2, 4),
            "r": PART,
        },
        lambda x, *_: interpolate(x, (8, 8)),
        opset=18,
        constants=("s", "k", "r"),
    )
    with pytest.raises(ValueError, match=message):
        onnx_gradients(case, ["x"], dynamic=False)
