"""Flower's messages and strategies, in one process."""

import doctest
import importlib
import logging

import numpy as np
import pytest

import graphopt
from graphopt.federated import ClientUpdate, FederatedServer, OnDeviceClient, SessionClient
from tests.helpers.environments import HAS_FLOWER, needs_flower, needs_training_package
from tests.helpers.federated import (
    HEAD,
    SHAPES,
    batches,
    initial,
    model,
    normalized,
    optimizer,
    same,
)

if HAS_FLOWER:
    from flwr import app
    from flwr.clientapp import ClientApp
    from flwr.clientapp.mod import fixedclipping_mod
    from flwr.serverapp.strategy import (
        DifferentialPrivacyClientSideFixedClipping,
        FedAdam,
        FedAvg,
    )

    from graphopt.federated import flower
    from tests.helpers.flower import OneProcess, replaced, seeded

pytestmark = pytest.mark.any_runtime

NODES = 4
CLIENT = {"learning_rate": 0.05, "initial_mean_square": 0.0, "epsilon": 1e-6}
SERVER = {"learning_rate": 0.01, "momentum": 0.9, "centered": True, "epsilon": 1e-4}


@pytest.fixture
def graph():
    return graphopt.training_graph(model(), "mse", optimizer(**CLIENT), group_mask=True)


def given_to(node):
    """What a node trains on: the more, the higher its number; node 0 has nothing."""
    return batches(node, size=2, seed=node)


def app_of(client, mods=None, data=given_to, **options):
    made = ClientApp(mods=mods)

    @made.train()
    def train(message, context):
        return flower.train(message, context, client, data(context.node_id), **options)

    @made.evaluate()
    def evaluate(message, context):
        return flower.evaluate(message, client, given_to(context.node_id), squared_error)

    return made


def squared_error(outputs, batch):
    return {"error": float(np.square(outputs["y"] - batch["labels"]).mean())}


def started(strategy, grid, values=None, rounds=3, **options):
    arrays = flower.arrays_of(initial() if values is None else values)
    return seeded(strategy.start, grid, arrays, num_rounds=rounds, **options)


def strategy_of(**settings):
    return flower.FedRMSProp(optimizer(**SERVER), **{"fraction_evaluate": 0.0} | settings)


def federated(client, rounds, group_mask=None, leave_out=()):
    """The same rounds by `FederatedServer` alone."""
    server = FederatedServer(optimizer(**SERVER), initial())
    for _ in range(rounds):
        updates = []
        for node in set(range(NODES)) - set(leave_out):
            trained = client.train(server.values, given_to(node), group_mask=group_mask)
            updates.append(ClientUpdate(f"{node}", trained.values, trained.examples))
        server.apply(updates, group_mask=group_mask)
    return server


@needs_flower
@pytest.mark.quick
def test_a_run_is_that_of_the_server_alone(graph):
    client = SessionClient(graph)
    strategy = strategy_of(fraction_evaluate=1.0)
    result = started(strategy, OneProcess(app_of(client), NODES))
    server = federated(client, 3)
    same(flower.values_of(result.arrays), server.values)
    same(strategy.server.state, server.state)
    losses = [result.train_metrics_clientapp[r]["loss"] for r in (1, 2, 3)]
    assert losses == sorted(losses, reverse=True)
    assert [result.train_metrics_clientapp[r]["refused-clients"] for r in (1, 2, 3)] == [0, 0, 0]
    given = [batch for node in range(NODES) for batch in given_to(node)]
    _, expected = client.evaluate(server.values, given, squared_error)
    assert result.evaluate_metrics_clientapp[3]["error"] == pytest.approx(expected["error"])


@needs_flower
def test_with_a_mean_square_of_one_it_is_fed_avg(graph):
    grid = OneProcess(app_of(SessionClient(graph)), NODES)
    plain = started(FedAvg(fraction_evaluate=0.0), grid)
    opt = optimizer(learning_rate=1.0, decay=1.0)
    found = started(flower.FedRMSProp(opt, fraction_evaluate=0.0), grid)
    for name, array in plain.arrays.items():
        np.testing.assert_allclose(found.arrays[name].numpy(), array.numpy(), rtol=1e-5, atol=1e-6)


@needs_flower
def test_flowers_own_strategies_train_graphs_too(graph):
    """FedAdam makes float64 of parameters, which clients take in their own dtype."""
    client = SessionClient(graph)
    result = started(FedAdam(fraction_evaluate=0.0), OneProcess(app_of(client), NODES))
    assert result.arrays["head.weight"].numpy().dtype == np.float64
    values = flower.values_of(result.arrays, client.values)
    assert {array.dtype.name for array in values.values()} == {"float32"}
    assert result.train_metrics_clientapp[3]["loss"] < result.train_metrics_clientapp[1]["loss"]


@needs_flower
def test_partial_participation(graph):
    grid = OneProcess(app_of(SessionClient(graph)), NODES)
    found = started(strategy_of(fraction_train=0.5), grid, rounds=1)
    nodes = [message.metadata.dst_node_id for message in grid.sent]
    assert len(nodes) == 2
    expected = federated(SessionClient(graph), 1, leave_out=set(range(NODES)) - set(nodes))
    same(flower.values_of(found.arrays), expected.values)


@needs_flower
def test_the_head_alone(graph):
    """Of what is sent back, the others are not part; and head alone is sent, if that is wanted."""
    client = SessionClient(graph)
    grid = OneProcess(app_of(client), NODES)
    strategy = strategy_of(group_mask=HEAD)
    result = started(strategy, grid)
    assert [list(reply.content["arrays"]) for reply in grid.replies] == [["head.weight"]] * NODES
    same(flower.values_of(result.arrays), federated(client, 3, group_mask=HEAD).values)
    head = graphopt.RMSProp([graphopt.Parameter("head.weight", SHAPES["head.weight"])], **SERVER)
    alone = flower.FedRMSProp(head, fraction_evaluate=0.0)
    config = app.ConfigRecord({"group-mask": HEAD})
    start = {"head.weight": initial()["head.weight"]}
    sent = started(alone, grid, start, train_config=config)
    assert [list(message.content["arrays"]) for message in grid.sent] == [["head.weight"]] * NODES
    np.testing.assert_array_equal(
        sent.arrays["head.weight"].numpy(), result.arrays["head.weight"].numpy()
    )
    with pytest.raises(ValueError, match=r"the server did not send 'body\.weight'"):
        started(alone, grid, start)


@needs_flower
def test_running_statistics_are_averaged():
    made = normalized()
    opt = graphopt.RMSProp(graphopt.parameters(made), **CLIENT)
    client = SessionClient(graphopt.training_graph(made, "mse", opt))
    grid = OneProcess(app_of(client), NODES)
    strategy = flower.FedRMSProp(
        graphopt.RMSProp(graphopt.parameters(made), learning_rate=1e-9), fraction_evaluate=0.0
    )
    result = started(strategy, grid, client.values, rounds=1)
    counts = np.arange(NODES)
    means = [reply.content["arrays"]["mean"].numpy() for reply in grid.replies]
    order = [reply.metadata.src_node_id for reply in grid.replies]
    expected = np.average(np.stack(means).astype(np.float64), axis=0, weights=counts[order])
    np.testing.assert_allclose(result.arrays["mean"].numpy(), expected, rtol=1e-6)
    masks = [reply.content["metrics"]["loss"] for reply in grid.replies]
    again = started(strategy, grid, client.values, rounds=1)
    assert again.train_metrics_clientapp[1]["loss"] == pytest.approx(
        result.train_metrics_clientapp[1]["loss"], rel=1e-3
    )
    assert [reply.content["metrics"]["loss"] for reply in grid.replies] == masks  # the same seeds


@pytest.fixture
def warnings_of_flower():
    """What Flower's logger was told, at level WARNING."""
    lines, logger = [], logging.getLogger("flwr")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


LOST = {"body.bias": np.float32([np.nan, 0, np.inf, 0])}


@needs_flower
def test_a_node_with_nan_is_left_out_and_named(graph, warnings_of_flower):
    client = SessionClient(graph)
    grid = OneProcess(replaced(app_of(client), 2, LOST), NODES)
    result = started(strategy_of(), grid, rounds=2)
    same(flower.values_of(result.arrays), federated(client, 2, leave_out=[2]).values)
    assert [result.train_metrics_clientapp[r]["refused-clients"] for r in (1, 2)] == [1, 1]
    told = [line for line in warnings_of_flower if "Left out" in line]
    expected = "\t> Left out of the mean: node 2: 2 of 4 numbers of 'body.bias' are NaN or infinite"
    assert told == [expected] * 2


@needs_flower
def test_a_node_that_fails_is_not_waited_for(graph):
    client = SessionClient(graph)
    result = started(strategy_of(), OneProcess(app_of(client), NODES, failing=[1]), rounds=2)
    same(flower.values_of(result.arrays), federated(client, 2, leave_out=[1]).values)


@needs_flower
@pytest.mark.parametrize("settings", [{"fraction_train": 0.0}, {"min_replies": 4}])
def test_a_round_without_enough_replies_changes_nothing(settings, graph, warnings_of_flower):
    """Node 0 has no examples, so that three count."""
    strategy = strategy_of(**settings)
    result = started(strategy, OneProcess(app_of(SessionClient(graph)), NODES), rounds=2)
    assert dict(result.arrays) == {}
    assert strategy.server.rounds == 0
    same(strategy.server.values, initial())
    counted = 0 if "fraction_train" in settings else 3
    assert f"round 2 changes nothing: {counted} sound replies" in warnings_of_flower[-1]


OTHERS = {
    "names": ({"tail": np.zeros(2, np.float32)}, None, "node 3: it has 'tail'"),
    "shapes": ({"body.bias": np.zeros(5, np.float32)}, None, r"node 3: 'body.bias' is float32\[5"),
    "dtypes": ({"body.bias": np.zeros(4)}, None, r"node 3: 'body.bias' is float64\[4\]"),
    "examples": (None, -3, "node 3: got -3 examples"),
}


@needs_flower
@pytest.mark.parametrize("what", OTHERS)
def test_other_replies_end_the_run_and_are_named(what, graph):
    values, examples, message = OTHERS[what]
    grid = OneProcess(replaced(app_of(SessionClient(graph)), 3, values, examples), NODES)
    with pytest.raises(ValueError, match=message):
        started(strategy_of(), grid)


@needs_flower
def test_a_checkpoint_of_each_round_goes_on_bit_for_bit(graph, tmp_path):
    file = tmp_path / "server.safetensors"
    grid = OneProcess(app_of(SessionClient(graph)), NODES)
    whole = started(strategy_of(), grid, rounds=4)
    started(strategy_of(checkpoint=file), grid, rounds=2)
    again = strategy_of(checkpoint=file)
    result = seeded(again.start, grid, again.resume(file), num_rounds=2)
    assert {message.content["config"]["server-round"] for message in grid.sent} == {4}
    same(flower.values_of(result.arrays), flower.values_of(whole.arrays))
    assert again.server.rounds == 4
    same(FederatedServer.from_checkpoint(optimizer(**SERVER), file).state, again.server.state)


@needs_flower
def test_the_optimizer_of_a_client_may_go_on(graph):
    """Its state is kept by Flower, where the node is, and not sent."""
    grid = OneProcess(app_of(SessionClient(graph), keep_state=True), NODES)
    started(strategy_of(), grid, rounds=3)
    kept = flower.values_of(grid.contexts[2].state["graphopt"])
    assert kept["global_step"] == 3 * len(given_to(2))
    assert not kept.keys() & SHAPES.keys()
    forgetting = OneProcess(app_of(SessionClient(graph)), NODES)
    started(strategy_of(), forgetting, rounds=1)
    assert not forgetting.contexts[2].state


@needs_flower
def test_flower_clips_what_clients_send(graph):
    """By its modification of clients, which looks for what it sent in what comes back.

    It divides by how far a client has moved, so that each has examples here.
    """
    norm = 0.01
    clipping = app_of(
        SessionClient(graph), mods=[fixedclipping_mod], data=lambda node: given_to(node + 1)
    )
    grid = OneProcess(clipping, NODES)
    strategy = DifferentialPrivacyClientSideFixedClipping(
        strategy_of(),
        noise_multiplier=0.0,
        clipping_norm=norm,
        num_sampled_clients=NODES,
    )
    started(strategy, grid, rounds=1)
    for reply in grid.replies:
        sent = {name: array.numpy() for name, array in reply.content["arrays"].items()}
        moved = np.concatenate([(sent[n] - initial()[n]).ravel() for n in SHAPES])
        assert np.linalg.norm(moved) == pytest.approx(norm, rel=1e-3)
    strategy.noise_multiplier = 0.1
    noisy = started(strategy, grid, rounds=2)
    server = strategy.strategy.server
    assert any((noisy.arrays[n].numpy() != array).any() for n, array in server.values.items())
    assert server.rounds == 3


@needs_flower
@needs_training_package
def test_files_for_devices_beside_a_session(graph, tmp_path):
    graphopt.export_on_device(
        model(), "mse", optimizer(**CLIENT), tmp_path / "device", group_mask=True, outputs=["y"]
    )
    session, device = SessionClient(graph), OnDeviceClient(tmp_path / "device", threads=1)
    apps = {True: app_of(device), False: app_of(session)}

    def mixed(message, context):
        return apps[context.node_id < 2](message, context)

    strategy = strategy_of(fraction_evaluate=1.0)
    result = started(strategy, OneProcess(mixed, NODES))
    expected = federated(session, 3).values
    for name, value in flower.values_of(result.arrays).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)
    assert result.evaluate_metrics_clientapp[3]["error"] > 0


@needs_flower
def test_what_the_strategy_and_a_client_refuse(graph):
    fed = optimizer(learning_rate=graphopt.schedules.FromCaller("rate"))
    with pytest.raises(ValueError, match="'rate' is fed to each update, but the strategy has"):
        flower.FedRMSProp(fed)
    with pytest.raises(TypeError, match="optimizer: got int"):
        flower.FedRMSProp(3)
    with pytest.raises(ValueError, match=r"loss_scale: got 8\.0, but the server's gradient"):
        flower.FedRMSProp(optimizer(loss_scale=8.0))
    grid = OneProcess(app_of(SessionClient(graph)), NODES)
    message = app.Message(app.RecordDict(), dst_node_id=1, message_type="train")
    with pytest.raises(ValueError, match="got 0 records of arrays, expected one"):
        app_of(SessionClient(graph))(message, grid.contexts[1])


@needs_flower
def test_docstring_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    public = {name: getattr(graphopt, name) for name in graphopt.__all__} | {"np": np}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(flower, globs={**public, **vars(flower)}):
        runner.run(test)
    result = runner.summarize(verbose=False)
    assert result.attempted == 5
    assert result.failed == 0


@pytest.mark.skipif(HAS_FLOWER, reason="Flower is there")
def test_without_flower_an_error_names_the_extra():
    with pytest.raises(ImportError, match=r"needs Flower .*: pip install 'graphopt\[flower\]'"):
        importlib.import_module("graphopt.federated.flower")
