"""A network that is trained in PyTorch goes on here, and the other way, by files and by objects."""

import numpy as np
import pytest
import torch
from onnx import parser
from torch import nn

import graphopt
from graphopt import conversion
from graphopt.graph import load
from tests.helpers.command_line import run, succeed

pytestmark = [pytest.mark.any_runtime, pytest.mark.usefixtures("one_registry")]

STEPS = 40
BATCHES = [
    (rng.normal(size=(8, 1, 6, 6)).astype(np.float32), rng.integers(0, 3, 8))
    for rng in (np.random.default_rng([5, step]) for step in range(STEPS))
]
SETTINGS = {"lr": 0.002, "alpha": 0.95, "eps": 1e-3, "momentum": 0.9}
OURS = {
    "learning_rate": 0.002,
    "decay": 0.95,
    "epsilon": 1e-3,
    "momentum": 0.9,
    "epsilon_inside_root": False,
    "initial_mean_square": 0.0,
    "learning_rate_inside_moment": False,
}
# Gradients differ by rounding, which an update with a small epsilon would amplify where the mean
# square is still near zero.
TOLERANCE = 1e-6


class Network(nn.Module):
    """Its parameters are used in another order than they are registered in."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 3)
        self.middle = nn.Linear(16, 16)
        self.first = nn.Conv2d(1, 4, 3, stride=2)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)).flatten(1))))


def network():
    torch.manual_seed(0)
    return Network()


def train(module, optimizer, batches):
    for x, labels in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()


def trained(steps):
    module = network()
    optimizer = torch.optim.RMSprop(module.parameters(), **SETTINGS)
    train(module, optimizer, BATCHES[:steps])
    return module, optimizer


@pytest.fixture(scope="module")
def model():
    return graphopt.torch.export(network(), (torch.zeros(8, 1, 6, 6),), input_names=["x"])


def graph_of(model, **changes):
    optimizer = graphopt.RMSProp(graphopt.parameters(model), **OURS | changes)
    return graphopt.training_graph(model, "cross_entropy", optimizer)


@pytest.fixture(scope="module")
def graph(model):
    return graph_of(model)


@pytest.fixture(scope="module")
def whole():
    module, _ = trained(STEPS)
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


NAMES = [name for name, _ in network().named_parameters()]


def step_on(session, batches):
    for x, labels in batches:
        session.step({"x": x, "labels": labels})


def check(whole, found):
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.exhaustive
def test_the_order_of_the_graph_is_that_of_the_module(graph):
    assert list(conversion._load.Own.of(graph).parameters) == NAMES


@pytest.mark.parametrize("form", ["file", "two files", "named", "objects"])
def test_torch_goes_on_here(graph, whole, tmp_path, form):
    session = graphopt.Session(graph)
    module, optimizer = trained(20)
    file, weights = tmp_path / "optimizer.pt", tmp_path / "weights.pt"
    if form == "file":
        torch.save({"model": module.state_dict(), "optim": optimizer.state_dict()}, file)
        report = conversion.load_state(session, file, names=NAMES)
    elif form == "two files":
        torch.save(optimizer.state_dict(), file)
        torch.save(module.state_dict(), weights)
        report = conversion.load_state(session, file, weights=weights, names=NAMES)
    elif form == "named":
        module = network()
        optimizer = torch.optim.RMSprop(module.named_parameters(), **SETTINGS)
        train(module, optimizer, BATCHES[:20])
        state = optimizer.state_dict()
        report = conversion.load_state(session, state, weights=module.state_dict())
    else:
        state = optimizer.state_dict()
        report = conversion.load_state(session, state, weights=module.state_dict(), names=NAMES)
    assert report.kept == ()
    assert session.global_step == 20
    step_on(session, BATCHES[20:])
    check(whole, session.state)


def test_this_goes_on_in_torch(graph, whole, tmp_path):
    session = graphopt.Session(graph)
    step_on(session, BATCHES[:20])
    conversion.save_state(session, tmp_path / "ours.pt", "torch", names=NAMES)
    saved = torch.load(tmp_path / "ours.pt", weights_only=True)
    module = network()
    module.load_state_dict(saved["model"])
    optimizer = torch.optim.RMSprop(module.parameters(), lr=7.0)
    optimizer.load_state_dict(saved["optimizer"])
    train(module, optimizer, BATCHES[20:])
    check(whole, {name: tensor.numpy() for name, tensor in module.state_dict().items()})


def test_by_the_command_there_and_back(graph, tmp_path):
    graph.save(tmp_path / "train.onnx")
    module, optimizer = trained(20)
    torch.save(
        {"model": module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "there.pt"
    )
    (tmp_path / "names.txt").write_text("\n".join(NAMES), "utf-8")
    files = [tmp_path / name for name in ("train.onnx", "there.pt", "here.safetensors", "back.pt")]
    train_onnx, there, here, back = files
    refused = run("convert", train_onnx, "--from", there, "-o", here)
    assert refused.exit_code == 1
    assert "has no names of its parameters" in refused.output
    assert not here.exists()
    for order in (["--names", tmp_path / "names.txt"], ["--graph-order"]):
        output = succeed("convert", train_onnx, "--from", there, *order, "-o", here).output
        assert f"graphopt state at step 20: {here}" in output
    succeed("convert", train_onnx, "--from", here, "--to", "torch", "-o", back)
    one, other = torch.load(there, weights_only=True), torch.load(back, weights_only=True)
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name])
    for index, state in one["optimizer"]["state"].items():
        for key, tensor in state.items():
            assert torch.equal(tensor, other["optimizer"]["state"][index][key])
    refused = run("convert", train_onnx, "--from", there, "--graph-order", "-o", there)
    assert "is --from itself" in refused.output


def test_a_linear_layer_that_the_exporter_has_transposed():
    """Gradients are those of y = x @ w.T there and x @ v here, with v = w.T."""
    rng = np.random.default_rng(3)
    steps = [rng.normal(size=(3, 5)).astype(np.float32) for _ in range(10)]
    weight = nn.Parameter(torch.from_numpy(rng.normal(size=(3, 5)).astype(np.float32)))
    optimizer = torch.optim.RMSprop([weight], **SETTINGS)

    def there(gradients):
        for gradient in gradients:
            weight.grad = torch.from_numpy(gradient)
            optimizer.step()

    there(steps[:5])
    graph = graphopt.update_graph(graphopt.RMSProp([graphopt.Parameter("val_7", (5, 3))], **OURS))
    session = graphopt.Session(graph, parameters={"val_7": np.zeros((5, 3), np.float32)})
    state, names = optimizer.state_dict(), {"fc.weight": "val_7"}
    weights = {"fc.weight": weight}
    with pytest.raises(ValueError, match=r"say so: transposed=\['val_7'\]"):
        conversion.load_state(session, state, weights=weights, names=names)
    conversion.load_state(session, state, weights=weights, names=names, transposed=["val_7"])
    for gradient in steps[5:]:
        session.step({"val_7_grad": np.ascontiguousarray(gradient.T)})
    there(steps[5:])
    np.testing.assert_allclose(session.state["val_7"].T, weight.detach(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="'val_8' is no matrix that the graph trains"):
        conversion.load_state(session, state, names=names, transposed=["val_8"])


CHANGES = {
    "learning_rate": ({"learning_rate": 0.1}, "learning_rate of 'last.weight' and 5 more is 0.002"),
    "decay": ({"decay": 0.9}, "decay is 0.95 there, and 0.9 in the graph"),
    "epsilon": ({"epsilon": 1e-10}, "epsilon is 0.001 there, and 1e-10 in the graph"),
    "momentum": ({"momentum": 0.5}, "momentum is 0.9 there, and 0.5 in the graph"),
    "centered": ({"centered": True}, "has no 'grad_avg' of 'last.weight'"),
    "root": ({"epsilon_inside_root": True}, "epsilon_inside_root is False there, and True"),
    "moment": ({"learning_rate_inside_moment": True}, "learning_rate_inside_moment is False there"),
    "nesterov": ({"nesterov": True}, "nesterov is False there, and True in the graph"),
    "weight_decay": ({"weight_decay": 0.1}, "weight_decay of 'last.weight' and 5 more is 0.0"),
    "schedule": (
        {"learning_rate": graphopt.schedules.CosineDecayLR(0.0, 0.002, 30)},
        r"learning_rate of 'last.weight' and 5 more is 0.002 there, and 0.0005\d* at step 20",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_hyperparameters_are_refused_with_the_remedy(model, change):
    changes, message = CHANGES[change]
    session = graphopt.Session(graph_of(model, **changes))
    before = session.state
    module, optimizer = trained(20)
    with pytest.raises(ValueError, match=message) as error:
        conversion.load_state(
            session, optimizer.state_dict(), weights=module.state_dict(), names=NAMES
        )
    for name, value in session.state.items():
        np.testing.assert_array_equal(value, before[name])
    if change != "centered":
        _, _, remedy = str(error.value).partition("Build the graph with ")
        params = graphopt.parameters(model)
        made = eval(remedy, {"graphopt": graphopt, "params": params})
        fitting = graphopt.Session(graphopt.training_graph(model, "cross_entropy", made))
        conversion.load_state(fitting, optimizer.state_dict(), names=NAMES)


def test_a_schedule_is_compared_at_the_step_of_the_state(model):
    rate = graphopt.schedules.CosineDecayLR(0.0, 0.01, 30)
    session = graphopt.Session(graph_of(model, learning_rate=rate))
    _, optimizer = trained(20)
    optimizer.param_groups[0]["lr"] = rate.value(20)
    conversion.load_state(session, optimizer.state_dict(), names=NAMES)
    assert session.global_step == 20


def test_what_only_the_caller_knows_is_reported(model, tmp_path):
    session = graphopt.Session(
        graph_of(model, learning_rate=graphopt.schedules.FromCaller("learning_rate"))
    )
    _, optimizer = trained(3)
    report = conversion.load_state(session, optimizer.state_dict(), names=NAMES)
    assert (
        "learning_rate of 'last.weight' and 5 more could not be compared" in report.differences[0]
    )
    with pytest.raises(ValueError, match="is known to the running graph only; say what"):
        conversion.save_state(session, tmp_path / "ours.pt", "torch")
    conversion.save_state(session, tmp_path / "ours.pt", "torch", fed={"learning_rate": 0.5})
    saved = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == 0.5


def test_groups_are_those_of_the_graph(model, tmp_path):
    params = graphopt.parameters(model)
    biases = params.of_rank(1)
    groups = [
        {"params": params.without(biases), "weight_decay": 0.01},
        {"params": biases, "lr": 0.05},
    ]
    session = graphopt.Session(
        graphopt.training_graph(model, "cross_entropy", graphopt.RMSProp(groups, **OURS))
    )
    step_on(session, BATCHES[:2])
    conversion.save_state(session, tmp_path / "ours.pt", "torch")
    saved = torch.load(tmp_path / "ours.pt", weights_only=True)["optimizer"]
    module = network()
    optimizer = torch.optim.RMSprop(
        [
            {"params": [p for p in module.parameters() if p.dim() > 1]},
            {"params": [p for p in module.parameters() if p.dim() == 1]},
        ]
    )
    optimizer.load_state_dict(saved)
    first, second = optimizer.param_groups
    assert (first["lr"], first["weight_decay"]) == (0.002, 0.01)
    assert (second["lr"], second["weight_decay"]) == (0.05, 0.0)
    named = dict(module.named_parameters())
    for name, parameter in named.items():
        expected = session.state[f"mean_square.{name}"]
        np.testing.assert_array_equal(optimizer.state[parameter]["square_avg"], expected)
    conversion.load_state(session, tmp_path / "ours.pt")  # which has names


def test_what_the_framework_cannot_do_is_refused(model, tmp_path):
    inside = graphopt.Session(graph_of(model, epsilon_inside_root=True))
    for framework, session, message in (
        ("torch", inside, "epsilon_inside_root is True in the graph"),
        ("timm", graphopt.Session(graph_of(model)), "epsilon_inside_root is False in the graph"),
        ("mindspore", graphopt.Session(graph_of(model)), "epsilon_inside_root is False"),
        ("torch", graphopt.Session(graph_of(model, nesterov=True)), "nesterov is True"),
    ):
        with pytest.raises(ValueError, match=message):
            conversion.save_state(session, tmp_path / "ours.pt", framework)
    with pytest.raises(ValueError, match="framework: got 'keras'"):
        conversion.save_state(inside, tmp_path / "ours.pt", "keras")
    assert list(tmp_path.iterdir()) == []


def test_names_must_be_those_of_both(graph):
    session = graphopt.Session(graph)
    _, optimizer = trained(1)
    state = optimizer.state_dict()
    for names, message in (
        (NAMES[:-1], "the graph also trains 'first.bias'"),
        ([*NAMES[:-1], "other"], "the graph does not train 'other'"),
        ([*NAMES, NAMES[0]], "a name stands twice"),
        (dict.fromkeys(NAMES, NAMES[0]), "a name stands twice"),
        (NAMES[::-1], r"'square_avg' of 'first.bias' has the shape \[3, 16\]"),
    ):
        with pytest.raises(ValueError, match=message):
            conversion.load_state(session, state, names=names)
    with pytest.raises(TypeError, match="expected a list or a dict of names"):
        conversion.load_state(session, state, names="last.weight")
    state["state"].pop(2)
    with pytest.raises(ValueError, match=r"no state of 'middle\.weight', because its gradient was"):
        conversion.load_state(session, state, names=NAMES)


def test_a_state_before_the_first_step_is_what_the_framework_starts_from(graph):
    session = graphopt.Session(graph)
    step_on(session, BATCHES[:2])
    module = network()
    state = torch.optim.RMSprop(module.parameters(), **SETTINGS).state_dict()
    conversion.load_state(session, state, weights=module.state_dict(), names=NAMES)
    assert session.global_step == 0
    for name in NAMES:
        assert not session.state[f"mean_square.{name}"].any()
        np.testing.assert_array_equal(session.state[name], module.state_dict()[name])


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_another_optimizer_is_refused(graph, kind):
    state = kind(network().parameters(), lr=0.1).state_dict()
    with pytest.raises(
        ValueError, match=r"the state of another optimizer than torch\.optim\.RMSprop"
    ):
        conversion.load_state(graphopt.Session(graph), state, names=NAMES)


def test_maximizing_is_refused(graph):
    state = torch.optim.RMSprop(network().parameters(), maximize=True).state_dict()
    with pytest.raises(ValueError, match="maximize=True, which a graph does not"):
        conversion.load_state(graphopt.Session(graph), state, names=NAMES)


def test_several_weights_in_a_file_are_asked_for(graph, tmp_path):
    session = graphopt.Session(graph)
    module, optimizer = trained(2)
    file = tmp_path / "both.pt"
    weights = module.state_dict()
    ema = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save({"optimizer": optimizer.state_dict(), "state_dict": weights, "ema": ema}, file)
    with pytest.raises(ValueError, match="it has several weights, 'state_dict', 'ema'"):
        conversion.load_state(session, file, names=NAMES)
    chosen = conversion.read_torch(file)["ema"]
    conversion.load_state(session, file, weights=chosen, names=NAMES)
    np.testing.assert_array_equal(session.state["last.bias"], ema["last.bias"])


def test_weights_by_other_names_do_not_stay_behind_their_optimizer(graph, tmp_path):
    session = graphopt.Session(graph)
    module, optimizer = trained(2)
    file = tmp_path / "parallel.pt"
    weights = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"optimizer": optimizer.state_dict(), "model": weights}, file)
    with pytest.raises(ValueError, match=r"it has 'model', which has no 'last\.weight', but 'modu"):
        conversion.load_state(session, file, names=NAMES)
    theirs = {f"module.{name}": name for name in NAMES}
    assert conversion.load_state(session, file, names=theirs).kept == ()
    np.testing.assert_array_equal(session.state["last.bias"], weights["module.last.bias"].detach())


def test_weights_and_optimizer_in_one_dict(graph, tmp_path):
    session = graphopt.Session(graph)
    module, optimizer = trained(2)
    file = tmp_path / "flat.pt"
    torch.save(dict(module.state_dict()) | {"optimizer": optimizer.state_dict()}, file)
    assert conversion.load_state(session, file, names=NAMES).kept == ()
    np.testing.assert_array_equal(session.state["last.bias"], module.last.bias.detach())


def test_gradients_that_are_added_up_are_not_for_other_parameters(model):
    optimizer = graphopt.RMSProp(graphopt.parameters(model), **OURS)
    graph = graphopt.training_graph(model, "cross_entropy", optimizer, accumulation=2)
    session = graphopt.Session(graph)
    step_on(session, BATCHES[:1])
    _, there = trained(2)
    with pytest.raises(ValueError, match="has added up the gradients of 1 steps"):
        conversion.load_state(session, there.state_dict(), names=NAMES)


@pytest.mark.parametrize("steps", [0, 3])
def test_float64(steps):
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (double[N, 3] x) => (double[N, 3] y) <double[3] w = {1, 2, 3}> { y = Mul (x, w) }""")
    optimizer = graphopt.RMSProp(graphopt.parameters(model), **OURS)
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer))
    there = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.RMSprop([there], **SETTINGS)
    batches = np.random.default_rng(6).normal(size=(6, 4, 3))
    for step, x in enumerate(batches):
        if step == steps:
            conversion.load_state(
                session, theirs.state_dict(), weights={"w": there.detach()}, names=["w"]
            )
        theirs.zero_grad()
        (torch.from_numpy(x) * there).square().mean().backward()
        theirs.step()
        if step >= steps:
            session.step({"x": x, "labels": np.zeros_like(x)})
    np.testing.assert_allclose(session.state["w"], there.detach(), rtol=1e-12)


def test_a_graph_on_disk_has_all_that_is_needed(graph, tmp_path):
    graph.save(tmp_path / "train.onnx")
    _, optimizer = trained(2)
    session = graphopt.Session(load(tmp_path / "train.onnx"))
    report = conversion.load_state(session, optimizer.state_dict(), names=NAMES)
    assert set(report.kept) == set(NAMES)


def test_what_frameworks_do_not_have_stays_as_it_is(model, tmp_path):
    """A dynamic loss scale, counts of skipped steps, and averages, which begin anew."""
    arguments = {"loss_scale": graphopt.DynamicLossScale(), "average": 0.9}
    session = graphopt.Session(graph_of(model, **arguments))
    step_on(session, BATCHES[:2])
    before = session.state
    module, optimizer = trained(20)
    weights = module.state_dict()
    conversion.load_state(session, optimizer.state_dict(), weights=weights, names=NAMES)
    state = session.state
    for name in ("loss_scale", "loss_scale_steps", "skipped_steps"):
        assert state[name] == before[name]
    for name in NAMES:
        np.testing.assert_array_equal(state[f"average.{name}"], weights[name])
    conversion.save_state(session, tmp_path / "ours.pt", "torch")
    assert list(conversion.read_torch(tmp_path / "ours.pt")["model"]) == NAMES


def test_impossible_values_name_the_file(graph, tmp_path):
    session = graphopt.Session(graph)
    conversion.save_state(session, tmp_path / "state.pt", "torch", names=NAMES)
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    for state in stored["optimizer"]["state"].values():
        state["square_avg"] -= 1
    torch.save(stored, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt.*expected 0 or more"):
        conversion.load_state(session, tmp_path / "state.pt", names=NAMES)
