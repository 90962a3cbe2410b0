"""Gradients at zeros, ties and saturation are PyTorch's own, where these are finite."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

import graphopt
from graphopt.gradients import differentiate, prepare

ZEROS = [0.0, 1, -1, 2, 0]
SHARES = [0.0, 1, 0.5, 2, 0]
UNIT = [0.0, 1, 0.5, 0.25, 0, 1]
TARGET = torch.tensor([0.0, 1, 0.5, 1, 1, 0])
SATURATED = [-1e4, -200, -104, -90, 0, 90, 200, 1e4]
LABELS = torch.tensor([0.0, 1, 1, 0, 0.5, 1, 0, 1])
ROWS = [[0.0, 0, 0], [1, 0, 2], [1, 1, 1], [0, 0, 3]]
POINTS = [[0.0, 0], [0, 1], [1, 0], [-1, 0], [0, -1], [1, 1], [-2, 1], [3, -4]]
TIMES = torch.tensor([[1.0, 0, 2], [1, 0, 2]])
INDEX = torch.tensor([0, 0, 1, 1, 2])
MASK = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0]]) > 0
FLOATS = torch.where(MASK, 0.0, -torch.inf)
LOWEST = torch.where(MASK, 0.0, torch.finfo(torch.float32).min)


pytestmark = [pytest.mark.any_runtime, pytest.mark.usefixtures("one_registry")]


def attention(x, mask):
    x = x[None, None]
    return functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def scatter(name, **options):
    return lambda x: x.new_full((4,), -9).scatter_reduce(0, INDEX, x, name, **options)


CASES = {
    "sinc": (torch.sinc, ZEROS),
    "xlogy": (lambda x: torch.xlogy(x[0], x[1]), [[0.0, 0, 1, 2], [1, 2, 3, 1]]),
    "xlogy of a number": (lambda x: torch.xlogy(x, 2), SHARES),
    "xlogy of zeros": (lambda x: torch.xlogy(x, torch.zeros_like(x)) * (x == 0), [0.0, 0]),
    "a number's xlogy": (lambda x: torch.special.xlogy(0, x), [1.0, 2]),
    "xlog1py": (lambda x: torch.special.xlog1py(x, TIMES[0]), [0.0, 0, 1]),
    "logsigmoid": (functional.logsigmoid, SATURATED),
    "logaddexp": (lambda x: torch.logaddexp(x[0], x[1]), [[-1e4, 0.0, 1e4], [1.0, 0, -1e4]]),
    "logaddexp2": (lambda x: torch.logaddexp2(x[0], x[1:]), [[-1e4, 0.0, 1e4], [1.0, 0, -1e4]]),
    "atan2": (lambda x: torch.atan2(x[:, 1], x[:, 0]), POINTS),
    "arctan2, broadcast": (lambda x: torch.arctan2(x[:, 1], x[:1, :1]), POINTS[1:]),
    "hypot": (lambda x: torch.hypot(x[:, 0], x[:, 1]), POINTS[1:]),
    "bce": (lambda x: functional.binary_cross_entropy(x, TARGET.to(x)), UNIT),
    "bce, weighted": (
        lambda x: functional.binary_cross_entropy(x, TARGET.to(x), 2 * x.detach(), reduction="sum"),
        UNIT,
    ),
    "bce of sigmoid": (
        lambda x: functional.binary_cross_entropy(x.sigmoid(), LABELS.to(x), reduction="none"),
        SATURATED,
    ),
    "bce with logits": (
        lambda x: functional.binary_cross_entropy_with_logits(
            x, LABELS.to(x), pos_weight=x.new_tensor(3.0)
        ),
        SATURATED,
    ),
    "soft margin": (lambda x: functional.multilabel_soft_margin_loss(x, (LABELS > 0).to(x)),
                    SATURATED),
    "focal": (lambda x: (1 - x.sigmoid()) ** 2 * functional.logsigmoid(x), SATURATED),
    "relu6": (functional.relu6, [0.0, 6, 3, -1, 7]),
    "hardtanh": (functional.hardtanh, ZEROS),
    "clamp": (lambda x: x.clamp(-1.0, 1.0), ZEROS),
    "clamp by integers": (lambda x: x.clamp(-1, 1), ZEROS),
    "clamp by tensors": (lambda x: x.clamp(x.new_zeros(1), x.new_ones(1)), ZEROS),
    "clamp from below": (lambda x: x.clamp(min=0), ZEROS),
    "max": (lambda x: x.max(1)[0], ROWS),
    "min, kept": (lambda x: x.min(1, keepdim=True).values, ROWS),
    "amax": (lambda x: x.amax(1), ROWS),
    "max of all": (lambda x: x.max(), ROWS),
    "norm": (lambda x: x.norm(dim=1), ROWS),
    "norm of 3": (lambda x: x.norm(p=3, dim=1), ROWS),
    "normalize": (lambda x: functional.normalize(x, dim=1), ROWS),
    "cosine similarity": (lambda x: functional.cosine_similarity(x, x.flip(0)), ROWS),
    "distance": (lambda x: functional.pairwise_distance(x, x.flip(0)), ROWS),
    "cdist": (lambda x: torch.cdist(x, x), ROWS),
    "cdist of 1": (lambda x: torch.cdist(x, x.flip(0), p=1.0), ROWS),
    "cdist by product": (
        lambda x: torch.cdist(x, x[:2], compute_mode="use_mm_for_euclid_dist"), ROWS
    ),
    "std": (lambda x: x.std(1), ROWS),
    "masked std": (lambda x: torch.where((x > 0).any(1), x.std(1), 0.0), ROWS),
    "var": (lambda x: x.var(1), ROWS),
    "prod": (lambda x: x.prod(1), ROWS),
    "logsumexp": (lambda x: x.logsumexp(1), [[-math.inf, -math.inf, 0], [0.0, 1, 2]]),
    "pow": (lambda x: torch.pow(x, x.new_tensor([0.0, 1, 2, 3, 1.5])), [0.0] * 5),
    "gelu": (functional.gelu, SATURATED),
    "scatter mean": (scatter("mean"), ZEROS),
    "scatter mean of parts": (scatter("mean", include_self=False), ZEROS),
    "scatter amax": (scatter("amax", include_self=False), ZEROS),
    "scatter prod": (scatter("prod"), ZEROS),
    "attention, bool": (lambda x: attention(x, MASK), ROWS[1:]),
    "attention, float": (lambda x: attention(x, FLOATS.to(x)), ROWS[1:]),
    "attention, lowest": (lambda x: attention(x, LOWEST.to(x)), ROWS[1:]),
}  # fmt: skip


class Together(nn.Module):
    """Each function of a parameter of its own, and a weighted sum of all results."""

    def __init__(self, names, dtype):
        super().__init__()
        self.names = names
        self.at = nn.ParameterList(torch.tensor(CASES[n][1], dtype=dtype) for n in names)

    def forward(self, one):
        loss = one * 0
        for name, at in zip(self.names, self.at, strict=True):
            y = CASES[name][0](at * one)
            loss = loss + (y * torch.arange(1, y.numel() + 1).to(y).reshape(y.shape)).sum()
        return loss


def differences(module, model, tolerance):
    """The gradients that are not PyTorch's."""
    one = torch.ones((), dtype=module.at[0].dtype)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradients = torch.autograd.grad(module(one), list(module.at))
    expected = [gradient.numpy() for gradient in gradients]
    names = [f"at.{index}" for index in range(len(module.names))]
    prepared, statistics = prepare(model, names)
    built = differentiate(prepared, names, prepared.graph.outputs[0], statistics)
    prepared.graph.outputs.extend(built.gradients.values())
    session = onnxruntime.InferenceSession(
        ir.to_proto(prepared).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = dict(zip(names, (at.detach().numpy() for at in module.at), strict=True))
    feeds |= {x.name: one.numpy() for x in session.get_inputs() if x.name not in names}
    got = session.run([f"{name}_grad" for name in names], feeds)
    return {
        name: (ours.tolist(), theirs.tolist())
        for name, ours, theirs in zip(module.names, got, expected, strict=True)
        if not np.isfinite(theirs).all()
        or not np.allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())
    }


@pytest.mark.exhaustive
def test_gradients():
    module = Together(list(CASES), torch.float32)
    model = graphopt.torch.export(module, (torch.ones(()),))
    assert differences(module, ir.to_proto(model), 2e-5) == {}


IN_DOUBLE = ["xlogy", "logsigmoid", "bce", "norm of 3", "attention, float"]


def test_gradients_in_double():
    module = Together(IN_DOUBLE, torch.float64)
    model = graphopt.torch.export(module, (torch.ones((), dtype=torch.float64),))
    assert differences(module, ir.to_proto(model), 1e-6) == {}


# Not those where a file does not say enough: which of the elements that tie, what a logarithm is
# bounded by, whether a shape is that of a distance.
ELSEWHERE = [
    *(
        "sinc",
        "logsigmoid",
        "bce with logits",
        "soft margin",
        "focal",
        "relu6",
        "clamp by integers",
    ),
    *("amax", "norm of 3", "normalize", "std", "masked std"),
    *("attention, bool", "attention, float", "attention, lowest"),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"dynamo": True, "optimize": False, "verbose": False, "opset_version": 20},
        {
            "dynamo": False,
            "training": torch.onnx.TrainingMode.TRAINING,
            "do_constant_folding": False,
            "opset_version": 18,
        },
    ],
    ids=["dynamo", "TorchScript"],
)
@pytest.mark.filterwarnings("ignore")
def test_files_of_the_exporter(options, tmp_path):
    unsaid = () if options["dynamo"] else ("sinc", "relu6", "clamp by integers")
    names = [name for name in ELSEWHERE if name not in unsaid]
    module = Together(names, torch.float32)
    path = tmp_path / "model.onnx"
    torch.onnx.export(module, (torch.ones(()),), path, **options)
    assert differences(module, onnx.load(path), 2e-5) == {}
