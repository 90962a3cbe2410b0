"""What cannot be exported as it is in PyTorch is refused, with the line of the module."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import graphopt

pytestmark = [pytest.mark.any_runtime, pytest.mark.usefixtures("one_registry")]


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return dy * (s * (1 + x * (1 - s)))


class Round(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return torch.round(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, dy):  # noqa: ARG004
        return dy


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):  # noqa: ARG004
        return -dy


swish, rounded, reverse = Swish.apply, Round.apply, Reversed.apply


class Layer(nn.Module):
    def __init__(self, function, **buffers):
        super().__init__()
        self.linear, self.function = nn.Linear(3, 4), function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.function(self, self.linear(x))


def branch(_, y):
    if y.sum() > 0:
        return y
    return -y


def hooked(_, y):
    y.register_hook(lambda dy: 2 * dy)
    return y


def moving(m, y):
    m.average.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
    return y - m.average


def changed(_, y):
    z = y.detach()
    z.mul_(2)
    return y + z


def with_hook():
    layer = Layer(lambda _, y: y)
    layer.linear.weight.register_hook(lambda dy: dy * 0)
    return layer


def frequent():
    return nn.Sequential(nn.Linear(3, 4), IndexOf(), nn.Embedding(4, 2, scale_grad_by_freq=True))


class IndexOf(nn.Module):
    def forward(self, y):
        return y.argmax(1)


LINE = r".*test_refused\.py:\d+: "
REFUSED = {
    "branch": (lambda: Layer(branch), rf"depends on the values of tensors{LINE}if y.sum\(\) > 0"),
    "rounded": (
        lambda: Layer(lambda _, y: rounded(y)),
        rf"Round is a torch.autograd.Function whose gradient is not the derivative{LINE}",
    ),
    "reversed": (
        lambda: Layer(lambda _, y: reverse(y)),
        rf"Reversed is a torch.autograd.Function whose gradient is not the derivative{LINE}",
    ),
    "hook": (lambda: Layer(hooked), rf"a hook of a tensor gets its gradient{LINE}y.register_hook"),
    "hook of a parameter": (
        with_hook,
        r"'linear.weight' \(Parameter\) has a hook for its gradient",
    ),
    "buffer": (
        lambda: Layer(moving, average=torch.zeros(4)),
        r"the forward pass changes 'average', which a training graph does not carry",
    ),
    "detached in place": (lambda: Layer(changed), rf"a detached tensor is changed in place{LINE}"),
    "input in place": (
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)),
        r"the forward pass changes its input 'input' in place; let it change a copy: x.clone\(\)",
    ),
    "no translation": (
        lambda: Layer(lambda _, y: torch.linalg.svd(y)[0]),
        r"PyTorch has no translation of aten._linalg_svd",
    ),
    "all batches": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None)),
        r"'1' \(BatchNorm1d\) has momentum=None",
    ),
    "frequency": (frequent, r"scale_grad_by_freq=True"),
}


@pytest.mark.parametrize(("module", "message"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused(module, message, capfd):
    with pytest.raises(ValueError, match=message):
        graphopt.torch.export(module(), (torch.randn(2, 3),), dynamic_batch=False)
    assert capfd.readouterr() == ("", "")


def operators(function, **options):
    model = graphopt.torch.export(Layer(function), (torch.randn(2, 3),), **options)
    return [node.op_type for node in model.graph]


def test_a_function_that_gives_the_derivative_is_what_it_computes():
    checkpoint = torch.utils.checkpoint.checkpoint
    found = operators(lambda _, y: checkpoint(torch.sin, swish(y), use_reentrant=True))
    assert found == ["Gemm", "Sigmoid", "Mul", "Sin"]


FIXED = {
    "one size": (lambda _, y: y.view(4, -1), r"only where x.shape\[0\] == 4"),
    "a branch": (lambda _, y: y * 2 if y.shape[0] < 8 else y, "what the module computes depends"),
    "even": (lambda _, y: y.view(-1, 2, 4), r"only where .*x.shape\[0\]\) % 8\) == 0"),
}


@pytest.mark.parametrize(("function", "reason"), FIXED.values(), ids=FIXED)
def test_a_batch_that_cannot_change_is_fixed_with_a_warning(function, reason):
    args = (torch.randn(4, 3),)
    with pytest.warns(UserWarning, match=rf"the batch is fixed to 4, because .*{reason}") as caught:
        model = graphopt.torch.export(Layer(function), args)
    assert caught[0].filename == __file__
    assert model.graph.inputs[0].shape == (4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = graphopt.torch.export(Layer(function), args, dynamic_batch=False)
    assert model.graph.inputs[0].shape == (4, 3)


def test_axes_and_names():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.ones(4))

        def forward(self, x, y):
            return x * self.x, y

    args = (torch.randn(2, 5, 4), torch.randn(3))
    options = {"dynamic_shapes": ({0: "batch", 1: "time"}, None), "output_names": ["a", "b"]}
    model = graphopt.torch.export(Named(), args, **options)
    assert [str(d) for d in model.graph.inputs[0].shape] == ["batch", "time", "4"]
    assert [value.name for value in model.graph.inputs] == ["x_1", "y"]
    assert [value.name for value in model.graph.outputs] == ["a", "b"]
    assert [p.name for p in graphopt.parameters(model)] == ["x"]
    with pytest.raises(ValueError, match=r"'x' is the name of a parameter of the module"):
        graphopt.torch.export(Named(), args, input_names=["x", "y"])
    with pytest.raises(ValueError, match=r"input_names: got 1 names, expected 2, for 'x', 'y'"):
        graphopt.torch.export(Named(), args, input_names=["z"])


WRONG = {
    "module": ((1, ()), {}, r"module: got int, expected a torch.nn.Module"),
    "tensor": ((nn.ReLU(), torch.ones(1)), {}, r"args: got a tensor, .* write \(x,\)"),
    "list": ((nn.ReLU(), [torch.ones(1)]), {}, r"args: got list, expected a tuple"),
    "names": ((nn.ReLU(), ()), {"input_names": "x"}, r"input_names: got 'x', expected a list"),
    "batch": ((nn.ReLU(), ()), {"dynamic_batch": 1}, r"dynamic_batch: got 1"),
}


@pytest.mark.parametrize(("args", "options", "message"), WRONG.values(), ids=WRONG)
def test_types_are_checked(args, options, message):
    with pytest.raises(TypeError, match=message):
        graphopt.torch.export(*args, **options)


def test_a_module_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3), Layer(swish_of)
    )
    module[1].eval()
    module(torch.randn(2, 3)).sum().backward()
    modes = [m.training for m in module.modules()]
    grads = [p.grad.clone() for p in module.parameters()]
    values = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    graphopt.torch.export(module, (torch.randn(2, 3, generator=torch.Generator()),))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in module.modules()] == modes
    pairs = zip(module.parameters(), grads, strict=True)
    assert all(torch.equal(p.grad, grad) for p, grad in pairs)
    assert all(torch.equal(v, values[name]) for name, v in module.state_dict().items())
    assert list(tmp_path.iterdir()) == []


def swish_of(_, y):
    return swish(y)


@pytest.mark.quick
def test_pytorch_is_imported_when_it_is_needed():
    program = (
        "import sys; sys.modules['torch'] = None; import graphopt\n"
        "try: graphopt.torch.export(None, ())\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert "pip install 'graphopt[torch]'" in result.stdout, result.stderr
