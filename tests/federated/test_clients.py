"""What clients do in a round, with a training graph and with the files for devices."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

import graphopt
from graphopt.federated import OnDeviceClient, SessionClient
from graphopt.on_device import load_state, read_state
from tests.helpers.environments import HAS_TRAINING_PACKAGE, needs_training_package
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

if HAS_TRAINING_PACKAGE:
    from tests.helpers.device import Device

SETTINGS = {"learning_rate": 0.01, "momentum": 0.9}


def graph(**options):
    opt = optimizer(**SETTINGS)
    return graphopt.training_graph(model(), "mse", opt, group_mask=True, **options)


@pytest.mark.quick
def test_each_round_starts_from_what_came_and_without_a_past():
    client, session = SessionClient(graph()), graphopt.Session(graph(), parameters=initial(1))
    client.train(initial(2), batches(2))
    trained = client.train(initial(1), batches(3, size=5))
    losses = [session.step(batch)["loss"] for batch in batches(3, size=5)]
    same(trained.state, session.state)
    same(trained.values, {name: session.state[name] for name in SHAPES})
    assert trained.examples == 15
    assert trained.metrics == {"loss": pytest.approx(np.mean(losses), rel=1e-6)}
    same(client.values, initial())


def test_the_loss_is_the_mean_over_examples():
    client, session = SessionClient(graph()), graphopt.Session(graph())
    given = [*batches(1, size=6), *batches(1, size=2)]
    trained = client.train(initial(), given)
    first, second = (float(session.step(batch)["loss"]) for batch in given)
    assert trained.metrics["loss"] == pytest.approx((6 * first + 2 * second) / 8, rel=1e-6)


def test_the_optimizer_goes_on_where_the_caller_hands_its_state_over():
    client, session = SessionClient(graph()), graphopt.Session(graph())
    before = client.train(initial(), batches(2))
    own = {name: array for name, array in before.state.items() if name not in SHAPES}
    client.train(initial(3), batches(1))
    after = client.train(before.values, batches(2, seed=1), state=own)
    for batch in [*batches(2), *batches(2, seed=1)]:
        session.step(batch)
    same(after.state, session.state)
    assert after.state["global_step"] == 4


def test_without_a_batch_it_sends_back_what_came():
    trained = SessionClient(graph()).train(initial(1), [])
    same(trained.values, initial(1))
    assert (trained.examples, trained.metrics) == (0, {})


def test_the_head_alone():
    client = SessionClient(graph())
    trained = client.train(initial(1), batches(2), group_mask=HEAD)
    assert trained.values.keys() == {"head.weight"}
    assert (trained.values["head.weight"] != initial(1)["head.weight"]).any()
    same({n: trained.state[n] for n in SHAPES if "body" in n},
         {n: initial(1)[n] for n in SHAPES if "body" in n})  # fmt: skip
    given = {"head.weight": initial()["head.weight"]}
    alone = client.train(given, batches(2), group_mask=HEAD)  # the body is that of the file
    session = graphopt.Session(graph())
    for batch in batches(2):
        session.step(batch | {"group_mask": np.array(HEAD)})
    same(alone.values, {"head.weight": session.state["head.weight"]})


MISTAKES = {
    "not sent": (
        {"head.weight": initial()["head.weight"]}, {},
        "the server did not send 'body.weight'; 'body.bias', which the client would train"),
    "length": (initial(), {"group_mask": [True]}, "got 1 flags, expected one for each of the 2"),
    "unknown": (initial() | {"tail": np.zeros(1)}, {},
                "the server sent 'tail', but the client has 'body.weight'"),
    "shape": (initial() | {"body.bias": np.zeros(3, np.float32)}, {},
              r"'body.bias' is float32\[3\], but float32\[4\] in the client's files"),
    "NaN": (initial() | {"body.bias": np.full(4, np.nan, np.float32)}, {},
            "4 of 4 numbers of 'body.bias'"),
    "seed": (initial(), {"seed": -1}, "seed: got -1"),
}  # fmt: skip


@pytest.mark.any_runtime
@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_a_client_refuses(mistake):
    values, options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        SessionClient(graph()).train(values, batches(1), **options)


@pytest.mark.any_runtime
def test_batches_and_graphs_that_do_not_fit():
    client = SessionClient(graph())
    with pytest.raises(ValueError, match=r"a batch has no 'x', got .'labels'"):
        client.train(initial(), [{"labels": np.zeros((2, 2), np.float32)}])
    with pytest.raises(ValueError, match="a batch has no 'x'"):
        client.evaluate(initial(), [{"labels": 3}], dict)
    plain = graphopt.training_graph(model(), "mse", optimizer())
    with pytest.raises(ValueError, match="no such input; build it with group_mask=True"):
        SessionClient(plain).train(initial(), batches(1), group_mask=HEAD)
    with pytest.raises(ValueError, match="update alone"):
        SessionClient(graphopt.update_graph(optimizer()), parameters=initial())


def test_running_statistics_travel_and_random_numbers_follow_the_seed():
    made = normalized()
    opt = graphopt.RMSProp(graphopt.parameters(made), learning_rate=0.01)
    client = SessionClient(graphopt.training_graph(made, "mse", opt))
    assert client.values.keys() == {"w", "scale", "bias", "mean", "variance"}
    values = client.values | {"mean": np.float32([2, 3])}
    first, again, other = (client.train(values, batches(2), seed=s) for s in (5, 5, 6))
    same(first.values, again.values)
    assert (first.values["w"] != other.values["w"]).any()
    assert first.values.keys() == client.values.keys()
    assert (first.values["mean"] != values["mean"]).all()


def test_evaluation_is_that_of_the_exported_model(tmp_path):
    made = normalized()
    opt = graphopt.RMSProp(graphopt.parameters(made), learning_rate=0.01)
    client = SessionClient(graphopt.training_graph(made, "mse", opt))
    values = client.values | {"mean": np.float32([2, 3])}
    session = graphopt.Session(graphopt.training_graph(made, "mse", opt))
    session.load_state(values)
    session.export(tmp_path / "model.onnx")
    exported = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    given = [*batches(1, size=6), *batches(1, size=2)]
    expected = np.concatenate([exported.run(None, {"x": batch["x"]})[0] for batch in given])

    def metrics(outputs, batch):
        return {"mean": outputs["y"].mean(), "labels": batch["labels"].mean()}

    examples, means = client.evaluate(values, given, metrics)
    assert examples == 8
    assert means["mean"] == pytest.approx(expected.mean(), rel=1e-5)
    assert client.evaluate(values, [], metrics) == (0, {})


def added_up(accumulation=3):
    opt = optimizer(**SETTINGS)
    return graphopt.training_graph(model(), "mse", opt, accumulation=accumulation)


def test_what_is_added_up_and_not_applied_does_not_count():
    """The round of 3 steps for one update, and 2 that nothing came of."""
    client, session = SessionClient(added_up()), graphopt.Session(added_up())
    given = [*batches(3, size=4), *batches(2, size=7, seed=1)]
    with pytest.warns(UserWarning, match="the last 14 of 26 examples of the round were added up"):
        trained = client.train(initial(), given)
    for batch in given:
        session.step(batch)
    assert trained.examples == 12
    same(trained.values, {name: session.state[name] for name in SHAPES})
    losses = SessionClient(added_up(5)).train(initial(), given).metrics
    assert trained.metrics["loss"] != losses["loss"]  # of all batches, whose parameters differ


def test_a_round_does_not_go_on_with_what_was_added_up_for_other_parameters():
    client = SessionClient(added_up())
    with pytest.warns(UserWarning, match="the last 4 of 16 examples"):
        before = client.train(initial(), batches(4))
    assert before.state["accumulation_count"] == 1
    own = {name: array for name, array in before.state.items() if name not in SHAPES}
    begun = client._files.begin(initial(2), None, own, None).loaded
    assert not [name for name in begun if name.startswith("accumul")]
    after = client.train(initial(2), batches(3, seed=1), state=own)
    session = graphopt.Session(added_up())
    sums = {name: a for name, a in own.items() if not name.startswith("accumul")}
    session.load_state({**sums, **initial(2)})
    for batch in batches(3, seed=1):
        session.step(batch)
    same(after.state, session.state)
    assert (after.examples, after.state["accumulation_count"]) == (12, 0)


def test_no_update_at_all_is_no_example():
    with pytest.warns(UserWarning, match="the last 8 of 8 examples"):
        trained = SessionClient(added_up()).train(initial(), batches(2))
    assert trained.examples == 0
    same(trained.values, initial())


def test_the_caller_may_say_which_step_updates():
    ends = [{"update": np.array(is_last)} for is_last in (False, True)]
    given = [batch | end for batch, end in zip(batches(2), ends, strict=True)]
    client = SessionClient(added_up(graphopt.Accumulation(None)))
    assert client.train(initial(), given).examples == 8
    with pytest.warns(UserWarning, match="the last 4 of 8 examples"):
        assert client.train(initial(), given[::-1]).examples == 4


# On devices.


def export(folder, *, native=False):
    opt = optimizer(groups=not native, **SETTINGS)
    return graphopt.export_on_device(
        model(), "mse", opt, folder, optimizer_model=native, group_mask=not native, outputs=["y"]
    )


KINDS = pytest.mark.parametrize("native", [False, True], ids=["update inside", "native"])


@KINDS
def test_values_go_into_a_checkpoint_by_name(native, tmp_path):
    files = export(tmp_path / "device", native=native)
    before = read_state(files.checkpoint)
    report = load_state(files.checkpoint, {"body.bias": np.float32([1, 2, 3, 4])})
    assert report.loaded == ("body.bias",)
    assert {"body.weight", "mean_square.body.bias", "global_step"} <= set(report.kept)
    same(read_state(files.checkpoint), before | {"body.bias": np.float32([1, 2, 3, 4])})
    load_state(files.checkpoint, {"global_step": np.array(2**24 + 1)}, output=tmp_path / "other")
    assert read_state(tmp_path / "other")["global_step"] == 2**24 + 1
    assert read_state(files.checkpoint)["global_step"] == 0
    for wrong, message in {
        "tail": "it has 'tail', which the graph does not",
        "body.bias": r"'body.bias' is float64\[2\] in it",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_state(files.checkpoint, {wrong: np.zeros(2)})
    with pytest.raises(ValueError, match="NaN"):
        load_state(files.checkpoint, {"body.bias": np.full(4, np.nan, np.float32)})


@needs_training_package
@KINDS
def test_a_device_trains_as_a_session_does(native, tmp_path):
    export(tmp_path / "device", native=native)
    device = OnDeviceClient(tmp_path / "device", threads=1)
    client = SessionClient(
        graphopt.training_graph(model(), "mse", optimizer(groups=not native, **SETTINGS))
    )
    same(device.values, client.values)
    files = {f.name: f.read_bytes() for f in (tmp_path / "device").iterdir()}
    for seed in (1, 2):
        found, expected = (c.train(initial(seed), batches(3, seed=seed)) for c in (device, client))
        assert found.examples == expected.examples == 12
        assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-6)
        assert found.values.keys() == expected.values.keys()
        for name, value in expected.state.items():
            np.testing.assert_allclose(found.state[name], value, rtol=1e-5, atol=1e-6)
    own = {name: array for name, array in found.state.items() if name not in SHAPES}
    found = device.train(found.values, batches(2), state=own)
    own = {name: array for name, array in expected.state.items() if name not in SHAPES}
    expected = client.train(expected.values, batches(2), state=own)
    assert found.state["global_step"] == 5
    for name, value in expected.state.items():
        np.testing.assert_allclose(found.state[name], value, rtol=2e-5, atol=2e-6)
    assert {f.name: f.read_bytes() for f in (tmp_path / "device").iterdir()} == files

    def metrics(outputs, batch):
        return {"y": outputs["y"].mean(), "error": np.square(outputs["y"] - batch["labels"]).mean()}

    measured = [c.evaluate(initial(1), batches(2), metrics) for c in (device, client)]
    assert measured[0][0] == measured[1][0] == 8
    assert measured[0][1] == pytest.approx(measured[1][1], rel=1e-5)


@needs_training_package
def test_what_a_device_adds_up_and_does_not_apply_does_not_count(tmp_path):
    opt = optimizer(**SETTINGS)
    graphopt.export_on_device(model(), "mse", opt, tmp_path / "device", accumulation=3)
    device = OnDeviceClient(tmp_path / "device", threads=1)
    with pytest.warns(UserWarning, match="the last 8 of 20 examples"):
        trained = device.train(initial(), batches(5))
    assert trained.examples == 12
    own = {name: array for name, array in trained.state.items() if name not in SHAPES}
    after = device.train(initial(2), batches(3, seed=1), state=own)
    assert (after.examples, after.state["accumulation_count"]) == (12, 0)
    assert after.state["global_step"] == 2


@needs_training_package
def test_a_device_trains_the_head_alone_and_refuses_what_a_session_does(tmp_path):
    export(tmp_path / "device")
    device = OnDeviceClient(tmp_path / "device", threads=1)
    given = {"head.weight": initial(1)["head.weight"]}
    trained = device.train(given, batches(2), group_mask=HEAD)
    assert trained.values.keys() == given.keys()
    expected = SessionClient(graph()).train(given, batches(2), group_mask=HEAD)
    np.testing.assert_allclose(
        trained.values["head.weight"], expected.values["head.weight"], rtol=1e-5, atol=1e-6
    )
    for mistake in ("not sent", "length", "unknown", "shape", "NaN", "seed"):
        values, options, message = MISTAKES[mistake]
        with pytest.raises(ValueError, match=message):
            device.train(values, batches(1), **options)
    with pytest.raises(ValueError, match="a batch has no 'labels'"):
        device.train(initial(), [{"x": np.zeros((2, 3), np.float32)}])


@needs_training_package
def test_an_application_sets_values_by_name_through_the_api_alone(tmp_path):
    """The calls that C++ has as UpdateParameter and GetParameter."""
    files = export(tmp_path / "device")
    application = Device(files)
    state = application._checkpoint
    for name, value in initial(1).items():
        state.copy_parameter_from(name, onnxruntime.OrtValue.ortvalue_from_numpy(value)._ortvalue)
    for batch in batches(3):
        application.step(batch | {"group_mask": np.array([True, True])})
    expected = OnDeviceClient(tmp_path / "device", threads=1).train(initial(1), batches(3))
    same({n: state.get_parameter(n).data.numpy() for n in SHAPES}, expected.values)


@needs_training_package
@KINDS
def test_an_application_sets_trained_parameters_in_one_buffer(native, tmp_path):
    """In the order of `parameters` in graphopt.json: all that Java, C# and JavaScript have."""
    files = export(tmp_path / "device", native=native)
    application = Device(files)
    names = json.loads(files.description.read_text())["parameters"]
    assert names.keys() == SHAPES.keys()
    buffer = np.concatenate([initial(1)[name].ravel() for name in names])
    assert application.module.get_parameters_size(True) == buffer.size
    given = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
    application.module.copy_buffer_to_parameters(given._ortvalue, True)
    same({name: application.state[name] for name in names}, initial(1))
    taken = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(buffer))
    application.module.copy_parameters_to_buffer(taken._ortvalue, True)
    np.testing.assert_array_equal(taken.numpy(), buffer)


@pytest.mark.skipif(HAS_TRAINING_PACKAGE, reason="the training package is there")
def test_without_the_training_package_an_error_says_what_to_do(tmp_path):
    export(tmp_path / "device")
    with pytest.raises(ImportError, match=r"and train with a SessionClient, or install graphopt\["):
        OnDeviceClient(tmp_path / "device")


def test_the_two_models_are_valid():
    for made in (model(), normalized()):
        onnx.checker.check_model(made, full_check=True)
