"""What the server does in a round, beside NumPy in float64."""

import dataclasses

import numpy as np
import pytest

import graphopt
from graphopt import schedules
from graphopt.federated import ClientUpdate, FederatedServer, weighted_mean
from graphopt.reference import ReferenceRMSProp
from tests.helpers.environments import typical
from tests.helpers.federated import HEAD, SHAPES, initial, moved, optimizer

EXAMPLES = [3, 1, 12]


def round_of(values, index, names=None):
    return [
        moved(values, seed=10 * index + k, client=f"client {k}", examples=n, names=names)
        for k, n in enumerate(EXAMPLES)
    ]


def mean(updates, name):
    """By another way than the server's."""
    stacked = np.stack([u.values[name].astype(np.float64) for u in updates])
    return np.average(stacked, axis=0, weights=[u.examples for u in updates])


OPTIMIZERS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True, "epsilon": 1e-4, "momentum": 0.5},
    "schedule": {"learning_rate": schedules.ExponentialDecayLR(0.05, 0.5, 2), "momentum": 0.9},
    "clipping": {"clip_norm": 0.1},
    "weight decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "mean square from 0": {"initial_mean_square": 0.0, "epsilon": 1e-6},
    "average": {"average": 0.9, "nesterov": True, "momentum": 0.5},
}


@pytest.mark.quick
@pytest.mark.parametrize("settings", typical(OPTIMIZERS, "centered", "schedule"))
def test_a_round_is_a_step_of_the_reference_on_minus_the_mean_difference(settings):
    opt = optimizer(**{"learning_rate": 0.01} | settings)
    server, reference = FederatedServer(opt, initial()), ReferenceRMSProp(opt, initial())
    for index in range(4):
        updates = round_of(server.values, index)
        gradients = {n: reference.state[n] - mean(updates, n) for n in SHAPES}
        server.apply(updates)
        reference.step(gradients)
        for name, value in server.state.items():
            if not name.startswith("average."):
                # The clients' values are those of float32, whose rounding the gradient has whole.
                np.testing.assert_allclose(value, reference.state[name], rtol=2e-5, atol=2e-6)
    assert server.rounds == 4


def test_groups_have_rates_of_their_own():
    body, head = ([graphopt.Parameter(n, SHAPES[n]) for n in names]
                  for names in (["body.weight", "body.bias"], ["head.weight"]))  # fmt: skip
    opt = graphopt.RMSProp([{"params": body, "lr": 0.001}, {"params": head, "lr": 0.1}])
    server, reference = FederatedServer(opt, initial()), ReferenceRMSProp(opt, initial())
    updates = round_of(initial(), 0)
    server.apply(updates)
    reference.step({n: initial()[n].astype(np.float64) - mean(updates, n) for n in SHAPES})
    for name in SHAPES:
        np.testing.assert_allclose(server.values[name], reference.state[name], rtol=1e-6)


def test_with_a_mean_square_of_one_it_is_the_weighted_mean():
    server = FederatedServer(optimizer(learning_rate=1.0, decay=1.0), initial())
    for index in range(3):
        updates = round_of(server.values, index)
        server.apply(updates)
        for name, value in server.values.items():
            np.testing.assert_allclose(value, mean(updates, name), rtol=3e-7, atol=3e-7)


def test_the_head_alone():
    """Then the others stay, and so do their states, although there is momentum."""
    opt = optimizer(learning_rate=0.01, momentum=0.9, weight_decay=0.1)
    server, reference = FederatedServer(opt, initial()), ReferenceRMSProp(opt, initial())
    for index, mask in enumerate([None, HEAD, HEAD]):
        names = server.asked(mask)
        assert names == (["head.weight"] if mask else list(SHAPES))
        updates = round_of(server.values, index, names)
        before = server.state
        gradients = {
            n: reference.state[n] - mean(updates, n) if n in names else np.zeros(SHAPES[n])
            for n in SHAPES
        }
        server.apply(updates, group_mask=mask)
        reference.step(gradients, enabled=mask)
        for name, value in server.state.items():
            np.testing.assert_allclose(value, reference.state[name], rtol=1e-5, atol=1e-6)
            if mask and "body" in name:
                np.testing.assert_array_equal(value, before[name])
    with pytest.raises(ValueError, match="got 3 flags, expected one for each of the 2 groups"):
        server.apply(updates, group_mask=[True] * 3)


def test_what_is_no_parameter_is_averaged():
    """Running statistics, and integers, of which it is the nearest."""
    values = initial() | {"mean": np.float32([0, 0]), "count": np.array([5, 7])}
    server = FederatedServer(optimizer(learning_rate=0.01), values)
    updates = [
        ClientUpdate("a", initial() | {"mean": np.float32([1, 2]), "count": np.array([6, 9])}, 1),
        ClientUpdate("b", initial() | {"mean": np.float32([3, -2]), "count": np.array([9, 9])}, 3),
    ]
    server.apply(updates)
    found = server.values
    assert found["mean"].dtype == np.float32
    assert found["mean"].tolist() == [2.5, -1.0]
    assert found["count"].dtype == np.int64
    assert found["count"].tolist() == [8, 9]  # 8.25 and 9
    np.testing.assert_array_equal(found["body.bias"], initial()["body.bias"])
    assert weighted_mean(updates, "count").tolist() == [8.25, 9]
    with pytest.raises(TypeError, match="'flag' is bool, of which there is no mean"):
        FederatedServer(optimizer(), initial() | {"flag": np.array([True])})


GOOD = [ClientUpdate("a", initial(), 2), ClientUpdate("b", initial(), 1)]


def with_value(name, value):
    return ClientUpdate("node 7", initial() | {name: value}, 4)


def without(name):
    return ClientUpdate("node 7", {n: a for n, a in initial().items() if n != name}, 4)


LOST = np.full(4, np.nan, np.float32)
BAD = {
    "NaN": (with_value("body.bias", LOST), FloatingPointError,
            "node 7: 4 of 4 numbers of 'body.bias' are NaN or infinite"),
    "infinite": (with_value("body.bias", -np.float32([np.inf, 0, 0, 0])), FloatingPointError,
                 "node 7: 1 of 4 numbers of 'body.bias'"),
    "no name": (without("head.weight"), ValueError, "node 7: it lacks 'head.weight'"),
    "another name": (with_value("tail", LOST), ValueError, "node 7: it has 'tail', which the ser"),
    "another shape": (with_value("body.bias", np.zeros(5, np.float32)), ValueError,
                      r"node 7: 'body.bias' is float32\[5\], but float32\[4\] on the server"),
    "another dtype": (with_value("body.bias", np.zeros(4)), ValueError,
                      r"node 7: 'body.bias' is float64\[4\]"),
    "negative": (ClientUpdate("node 7", initial(), -1), ValueError, "node 7: got -1 examples"),
    "a fraction": (ClientUpdate("node 7", initial(), 0.5), ValueError, "node 7: got 0.5 examples"),
    "twice": (ClientUpdate("a", initial(), 1), ValueError, "a: got 2 updates of it"),
}  # fmt: skip


@pytest.mark.any_runtime
@pytest.mark.parametrize("bad", BAD)
def test_what_does_not_fit_is_refused_with_the_name_of_the_client(bad):
    update, error, message = BAD[bad]
    server = FederatedServer(optimizer(momentum=0.9), initial())
    before = server.state
    with pytest.raises(error, match=message):
        server.apply([*GOOD, update])
    for name, value in server.state.items():
        np.testing.assert_array_equal(value, before[name])


def test_clients_without_examples_do_not_count():
    servers = [FederatedServer(optimizer(learning_rate=0.01), initial()) for _ in range(2)]
    updates = round_of(initial(), 0)
    idle = ClientUpdate("idle", {n: np.full(s, np.nan, np.float32) for n, s in SHAPES.items()}, 0)
    servers[0].apply(updates)
    servers[1].apply([idle, *updates])
    for name, value in servers[0].state.items():
        np.testing.assert_array_equal(value, servers[1].state[name])
    for nobody in ([idle], []):
        with pytest.raises(ValueError, match=f"got {len(nobody)} updates without any example"):
            servers[0].apply(nobody)
    assert servers[0].rounds == 1


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path):
    rate = schedules.ExponentialDecayLR(0.05, 0.5, 2)
    opt = optimizer(learning_rate=rate, momentum=0.9, centered=True, epsilon=1e-4)
    values = initial() | {"mean": np.zeros(2, np.float32)}
    server = FederatedServer(opt, values)
    file = tmp_path / "server.safetensors"
    for index in range(4):
        if index == 2:
            server.save_checkpoint(file, note={"round": 2})
        server.apply(round_of(server.values, index))
    again = FederatedServer.from_checkpoint(opt, file)
    assert again.rounds == 2
    assert again.values.keys() == values.keys()
    for index in (2, 3):
        again.apply(round_of(again.values, index))
    assert again.state.keys() == server.state.keys()
    for name, value in server.state.items():
        np.testing.assert_array_equal(value, again.state[name])
    with pytest.raises(ValueError, match=r"momentum is 0.9 in it, but 0.5 in the graph"):
        FederatedServer.from_checkpoint(
            optimizer(learning_rate=rate, momentum=0.5, centered=True, epsilon=1e-4), file
        )
    session = graphopt.Session(graphopt.update_graph(opt), parameters=initial())
    session.save_checkpoint(tmp_path / "session.safetensors")
    from_session = FederatedServer.from_checkpoint(opt, tmp_path / "session.safetensors")
    assert from_session.values.keys() == SHAPES.keys()


def test_other_values_keep_the_states():
    server = FederatedServer(optimizer(momentum=0.9), initial() | {"count": np.array(3)})
    updates = [moved(initial(), 1)]
    server.apply(
        [dataclasses.replace(u, values=dict(u.values, count=np.array(3))) for u in updates]
    )
    before = server.state
    server.load_values({"head.weight": np.ones((4, 2), np.float32), "count": np.array(4)})
    after = server.state
    assert after["count"] == 4
    assert (after["head.weight"] == 1).all()
    for name in before.keys() - {"count", "head.weight"}:
        np.testing.assert_array_equal(before[name], after[name])
    with pytest.raises(ValueError, match="values: it has 'tail', which the graph does not"):
        server.load_values({"tail": np.zeros(3)})
    with pytest.raises(ValueError, match=r"numbers of 'head.weight'"):
        server.load_values({"head.weight": np.full((4, 2), np.inf, np.float32)})


def test_what_a_server_cannot_have():
    with pytest.raises(ValueError, match=r"loss_scale: got 8.0, but the server's gradient"):
        FederatedServer(optimizer(loss_scale=8.0), initial())
    with pytest.raises(ValueError, match=r"head.weight"):
        FederatedServer(optimizer(), {n: a for n, a in initial().items() if "head" not in n})
    with pytest.raises(TypeError, match="optimizer: got NoneType"):
        FederatedServer(None, initial())


def test_rates_that_are_fed():
    opt = optimizer(learning_rate=schedules.FromCaller("rate"), decay=1.0)
    server = FederatedServer(opt, initial())
    updates = round_of(initial(), 0)
    server.apply(updates, feeds={"rate": np.float32(0.5)})
    for name, value in server.values.items():
        halfway = (initial()[name] + mean(updates, name)) / 2
        np.testing.assert_allclose(value, halfway, rtol=1e-6, atol=1e-6)
