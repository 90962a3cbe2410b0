"""What a client does."""

from functools import cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from digits_app.data import accuracy, batches
from graphopt.federated import Client, OnDeviceClient, SessionClient, flower

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on what the client has."""
    own = batches(*_who(context), message.content["config"]["server-round"], _seed(context))
    return flower.train(message, context, _client(context), own)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure on what the client has."""
    own = batches(*_who(context), 0, _seed(context))
    return flower.evaluate(message, _client(context), own, accuracy)


def _who(context: Context) -> tuple[int, int]:
    """Which client it is, of how many."""
    return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])


def _seed(context: Context) -> int:
    return int(context.run_config["seed"])


def _client(context: Context) -> Client:
    on_device = _who(context)[0] < int(context.run_config["on-devices"])
    return _loaded(str(context.run_config["files"]), on_device)


@cache
def _loaded(folder: str, on_device: bool) -> Client:
    """Once in each process, which is that of several clients in a simulation."""
    if on_device:
        return OnDeviceClient(Path(folder) / "device", threads=1)
    return SessionClient(Path(folder) / "train.onnx", deterministic=True)
