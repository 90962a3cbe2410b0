"""Modules of one feature each are trained from their graph as PyTorch trains them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.torch.training import Case, check, floats

pytestmark = [pytest.mark.any_runtime, pytest.mark.usefixtures("one_registry")]


class Lambda(nn.Module):
    """A linear layer, and what is done with its result."""

    def __init__(self, function, inputs=4, outputs=6, **layers):
        super().__init__()
        self.linear, self.function = nn.Linear(inputs, outputs), function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.function(self, self.linear(inputs[0]), *inputs[1:])


def after(function, **layers):
    return lambda: Lambda(function, **layers)


def no_grad(_, y):
    with torch.no_grad():
        gate = torch.sigmoid(y)
        gate = gate * 2
    return y * gate


def nested_no_grad(m, y):
    with torch.no_grad():
        a = torch.sin(y)
        with torch.enable_grad():
            b = m.second(y)
        c = b * a
    return y + c + b


def actor_critic(m, y):
    value, policy = y[:, :1], m.second(y)
    return (policy.mean(1, keepdim=True) * (1.0 - value).detach()).mean() + (value - 1).pow(
        2
    ).mean()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("offset", torch.randn(3))
        self.register_buffer("hidden", torch.randn(3), persistent=False)
        self.scale = nn.Parameter(torch.randn(3), requires_grad=False)

    def forward(self, x):
        return self.linear(x) * self.scale + self.offset * self.hidden


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(4))
        self.position = nn.Embedding(9, 5)

    def forward(self, x):
        y = self.conv(x) * self.gamma.view(1, -1, 1, 1)
        return y + self.position(torch.arange(x.shape[3]))


class Standardized(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 2)
        self.gain = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x):
        rows = self.weight.reshape(1, 4, -1)
        rows = functional.batch_norm(rows, None, None, self.gain, training=True, momentum=0.0)
        return functional.conv2d(x, rows.reshape_as(self.weight), self.bias)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.cell = kind(4, 5, batch_first=True, **options)
        self.dense = nn.Linear(5 * (2 if self.cell.bidirectional else 1), 2)

    def forward(self, x):
        return self.dense(self.cell(x)[0][:, -1])


def attention(m, y, mask=None, **options):
    q, k, v = (
        part.view(y.shape[0], y.shape[1], 2, 3).transpose(1, 2) for part in m.qkv(y).chunk(3, dim=2)
    )
    mask = None if mask is None else mask[:, None]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)


def masked(batch):
    """Each row of attention sees itself at least."""
    mask = torch.rand(batch, 5, 5) > 0.5
    return torch.randn(batch, 5, 4), mask | torch.eye(5, dtype=torch.bool)


def with_empty_rows(batch):
    """Whole rows are masked."""
    x, mask = masked(batch)
    mask[:, 2] = False
    return x, mask


def minus_infinity(batch):
    x, mask = with_empty_rows(batch)
    return x, torch.where(mask, torch.randn(()), -torch.inf)


def norm(module, mode):
    layers = nn.Sequential(nn.Linear(4, 6, bias=False), module(6), nn.Tanh(), nn.Linear(6, 2))
    layers[1].train(mode)
    nn.init.uniform_(layers[1].running_var, 0.5, 2.0)
    nn.init.normal_(layers[1].running_mean)
    return layers


def frozen_norm():
    layers = norm(nn.BatchNorm1d, mode=False)
    return layers.requires_grad_(True) and layers[1].requires_grad_(False) and layers


IMAGE = floats(3, 5, 5)
CASES = {
    "linear": Case(lambda: nn.Linear(4, 3), floats(4)),
    "three axes": Case(lambda: nn.Linear(4, 3), floats(5, 4)),
    "convolutions": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2, bias=False)), IMAGE
    ),
    "volumes without bias": Case(
        lambda: nn.Sequential(nn.Conv3d(1, 3, 2, bias=False), nn.Conv3d(3, 2, 1)),
        floats(1, 3, 3, 3),
    ),
    "one axis, transposed": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2, bias=False), nn.ConvTranspose1d(3, 2, 2)),
        floats(2, 6),
    ),
    "reshaped parameter": Case(LayerScale, IMAGE),
    "tied": Case(Tied, floats(4)),
    "split": Case(after(lambda _, y: torch.mul(*y.split(3, 1))), floats(4)),
    "uneven split": Case(
        after(lambda _, y: torch.cat([p.cumsum(1) for p in y.split(4, 1)], 1)), floats(4)
    ),
    "split with sizes": Case(
        after(lambda _, y: torch.cat([p.cumsum(1) for p in y.split([1, 3, 2], 1)], 1)), floats(4)
    ),
    "chunk": Case(after(lambda _, y: sum(p * p for p in y.chunk(3, -1))), floats(4)),
    "uneven chunk": Case(
        after(lambda _, y: torch.cat([p.cumsum(1) for p in y.chunk(4, -1)], 1)), floats(4)
    ),
    "unbind and stack": Case(after(lambda _, y: torch.stack(y.unbind(1)[::-1], 2)), floats(3, 4)),
    "tensor_split": Case(
        after(lambda _, y: torch.cat([p.cumsum(1) for p in y.tensor_split(4, 1)], 1)), floats(4)
    ),
    "batch normalization": Case(lambda: norm(nn.BatchNorm1d, mode=True), floats(4)),
    "batch normalization of images": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 2, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()
        ),
        IMAGE,
    ),
    "without weights": Case(
        lambda: nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2)
        ),
        floats(4),
    ),
    "no dropout in evaluation": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5)).eval(), floats(4)
    ),
    "layer and group normalization": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.LayerNorm(5)), IMAGE
    ),
    "weight_norm": Case(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), floats(4)),
    "LSTM": Case(lambda: Recurrent(nn.LSTM, bidirectional=True), floats(2, 4)),
    "GRU": Case(lambda: Recurrent(nn.GRU, num_layers=2), floats(2, 4)),
    "RNN": Case(lambda: Recurrent(nn.RNN, num_layers=2, bidirectional=True), floats(2, 4)),
    "padding": Case(
        lambda: nn.Sequential(nn.Embedding(4, 4, padding_idx=1), nn.Linear(4, 2)),
        lambda batch: (torch.randint(0, 4, (batch, 3)),),
    ),
    "standardized weights": Case(Standardized, IMAGE),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)),
        lambda batch: (torch.randint(0, 7, (batch, 3)),),
    ),
    "attention": Case(after(attention, qkv=nn.Linear(6, 18)), floats(5, 4)),
    "causal attention": Case(
        after(lambda m, y: attention(m, y, is_causal=True), qkv=nn.Linear(6, 18)), floats(5, 4)
    ),
    "masked attention": Case(after(attention, qkv=nn.Linear(6, 18)), masked),
    "rows that minus infinity masks": Case(after(attention, qkv=nn.Linear(6, 18)), minus_infinity),
    "rows that are masked": Case(after(attention, qkv=nn.Linear(6, 18)), with_empty_rows),
    "multi-head attention": Case(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), floats(5, 8)
    ),
    "in place": Case(after(lambda _, y: torch.sin(y).mul_(2).add_(y)), floats(4)),
    "cross entropy inside": Case(
        after(lambda _, y, labels: functional.cross_entropy(y, labels)),
        lambda batch: (torch.randn(batch, 4), torch.randint(0, 6, (batch,))),
    ),
    "smoothed labels": Case(
        after(lambda _, y, labels: functional.cross_entropy(y, labels, label_smoothing=0.1)),
        lambda batch: (torch.randn(batch, 4), torch.randint(0, 6, (batch,))),
    ),
    "smoothed labels, some ignored": Case(
        after(
            lambda _, y, labels: functional.cross_entropy(
                y.transpose(1, 2),
                labels,
                (torch.arange(6.0) + 1).to(y),
                ignore_index=-1,
                label_smoothing=0.2,
            )
        ),
        lambda batch: (torch.randn(batch, 3, 4), torch.randint(-1, 6, (batch, 3))),
    ),
    "probabilities as labels": Case(
        after(
            lambda _, y, labels: functional.cross_entropy(
                y, labels.softmax(1), (torch.arange(6.0) + 1).to(y), label_smoothing=0.1
            )
        ),
        lambda batch: (torch.randn(batch, 4), torch.randn(batch, 6)),
    ),
    "numbers and None": Case(
        after(lambda _, y, times, none, flag: y * times if flag and none is None else y),
        lambda batch: (torch.randn(batch, 4), 3, None, True),
    ),
    "scatter": Case(
        after(lambda _, y, i: torch.zeros_like(y).scatter_add(0, i[:, None].expand_as(y), y * y)),
        lambda batch: (torch.randn(batch, 4), torch.randint(0, batch, (batch,))),
    ),
    "frozen": Case(Frozen, floats(4)),
    "detach": Case(after(lambda _, y: y * torch.sigmoid(y).detach()), floats(4)),
    "detached output of a loss": Case(after(actor_critic, second=nn.Linear(6, 3)), floats(4)),
    "straight through": Case(after(lambda _, y: y + (torch.round(y) - y).detach()), floats(4)),
    "no_grad": Case(after(no_grad), floats(4)),
    "enable_grad in no_grad": Case(after(nested_no_grad, second=nn.Linear(6, 6)), floats(4)),
    "batch normalization in evaluation": Case(lambda: norm(nn.BatchNorm1d, mode=False), floats(4)),
    "frozen batch normalization": Case(frozen_norm, floats(4)),
}


GROUPS = [
    pytest.param(dict(list(CASES.items())[start::4]), marks=pytest.mark.exhaustive if start else ())
    for start in range(4)
]


@pytest.mark.parametrize("cases", GROUPS, ids=range(len(GROUPS)))
def test_modules_train_as_in_pytorch(cases):
    check(cases)
