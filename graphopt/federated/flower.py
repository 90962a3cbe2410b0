"""Federated training with Flower: what a ``ClientApp`` does, and a strategy for a ``ServerApp``.

Of graphopt this alone needs Flower: ``pip install 'graphopt[flower]'``.
"""

from collections.abc import Iterable, Mapping, Sequence
from logging import getLogger
from typing import Any

import numpy as np

from graphopt._files import PathLike
from graphopt.carried import Array
from graphopt.checkpoint import file_of, read_stored
from graphopt.federated.client import Batch, Client, Metrics
from graphopt.federated.server import FederatedServer, check_server_optimizer
from graphopt.federated.updates import ClientUpdate, lost_of
from graphopt.finite import lost_in
from graphopt.manifest import Manifest
from graphopt.random_numbers import SEEDS
from graphopt.rmsprop import RMSProp

try:
    from flwr import app
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg
except ImportError as error:
    raise ImportError(
        f"graphopt.federated.flower needs Flower ({error}): pip install 'graphopt[flower]'"
    ) from error

EXAMPLES = "num-examples"
"""The metric that is the weight of a client, as in Flower's own strategies."""
GROUP_MASK = "group-mask"
"""The entry of the configuration by which the server says which groups are trained."""
REFUSED = "refused-clients"
"""The metric of a round that says how many clients were left out of the mean."""

_ROUND, _STATE, _METRICS, _LOSS = "server-round", "graphopt", "metrics", "loss"
_LOGGER = getLogger("flwr")


def arrays_of(values: Mapping[str, Array]) -> "app.ArrayRecord":
    """Values by name, as Flower sends them.

    Example:
        >>> arrays_of({"w": np.zeros(3, np.float32)})["w"].dtype
        'float32'
    """
    return app.ArrayRecord({name: app.Array(array) for name, array in values.items()})


def values_of(
    record: "app.ArrayRecord", like: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Values by name, as Flower has sent them.

    Args:
        record: What it has sent.
        like: Values in whose dtypes floating-point numbers are taken: some of Flower's strategies,
            such as ``FedAdam``, make float64 of float32.

    Example:
        >>> values_of(arrays_of({"w": np.zeros(3)}), {"w": np.ones(3, np.float32)})["w"].dtype
        dtype('float32')
    """
    values = {name: array.numpy() for name, array in record.items()}
    for name, wanted in (like or {}).items():
        if name in values and values[name].dtype.kind == wanted.dtype.kind == "f":
            values[name] = values[name].astype(wanted.dtype)
    return values


def train(
    message: "app.Message",
    context: "app.Context",
    client: Client,
    batches: Iterable[Batch],
    *,
    keep_state: bool = False,
) -> "app.Message":
    """Train as a message asks: what a function under ``@app.train()`` returns.

    The values of the message are taken in the dtypes of the client; see `values_of`. The reply has
    the values that the message has, by their names, without parameters of groups that were not
    trained; and the metrics ``num-examples`` and ``loss``. The configuration of the message may
    have ``group-mask``, a list of bools: which groups of the client's graph are trained. Random
    numbers of the graph begin with another seed for each client and round.

    Args:
        message: From the server, with one record of arrays.
        context: Of the client, in whose state that of its optimizer is kept.
        client: A `SessionClient` or an `OnDeviceClient`.
        batches: What it trains on.
        keep_state: Let the client's optimizer go on where it was when the client last trained, and
            its states were finite. By default each round starts without a past.

    Raises:
        ValueError: The message has none or several records of arrays; or as `SessionClient.train`.

    Example:
        >>> app = ClientApp()  # doctest: +SKIP
        >>> @app.train()  # doctest: +SKIP
        ... def train(message, context):
        ...     return flower.train(message, context, SessionClient("train.onnx"), batches(context))
    """
    key, values = _arrays_in(message, client.values)
    config = _config_in(message)
    kept = context.state.array_records.get(_STATE) if keep_state else None
    trained = client.train(
        values,
        batches,
        group_mask=config.get(GROUP_MASK),
        state=None if kept is None else values_of(kept),
        seed=_seed(context, config.get(_ROUND, 0)),
    )
    own = {n: array for n, array in trained.state.items() if n not in values}
    # One that is lost would keep the client from ever training again.
    if keep_state and not any(map(lost_in, own.values())):
        context.state[_STATE] = arrays_of(own)
    # Flower's strategies want the same metrics of all; without examples they do not count.
    metrics = app.MetricRecord({EXAMPLES: trained.examples, _LOSS: 0.0, **trained.metrics})
    content = app.RecordDict({key: arrays_of(trained.values), _METRICS: metrics})
    return app.Message(content=content, reply_to=message)


def evaluate(
    message: "app.Message", client: Client, batches: Iterable[Batch], metrics: Metrics
) -> "app.Message":
    """Evaluate as a message asks: what a function under ``@app.evaluate()`` returns.

    Args:
        message: From the server, with one record of arrays.
        client: A `SessionClient` or an `OnDeviceClient`.
        batches: What it evaluates on.
        metrics: Gets the outputs of the model and the batch, and returns means over the examples
            of the batch, by name.

    Raises:
        ValueError: As in `train`.
    """
    _, values = _arrays_in(message, client.values)
    examples, means = client.evaluate(values, batches, metrics)
    record = app.MetricRecord({EXAMPLES: examples, **means})
    return app.Message(content=app.RecordDict({_METRICS: record}), reply_to=message)


class FedRMSProp(FedAvg):
    """The strategy whose server updates the parameters of all by RMSProp.

    It is Flower's ``FedAvg``, but for what is made of the replies: `FederatedServer` says what.

    - Of a reply with NaN or infinite numbers, a warning names the node and the tensor, and the
      round goes on without it; the metric ``refused-clients`` counts them. If no other reply is
      left, the round changes nothing, and neither does one without any examples.
    - A reply with other names, shapes or dtypes ends the run: ValueError names the node.
    - Nodes that fail, or do not answer in the time that ``start`` gives them, are not waited for.

    Args:
        optimizer: Whose parameters the clients train: every hyperparameter but a loss scale, and
            learning rates that are fed. Its schedules count rounds.
        group_mask: Which groups of the optimizer are trained, by clients and server alike; their
            graphs have the same groups, and ``group_mask=True``. All by default.
        checkpoint: A file that is written after every round, atomically, with all of the state.
        min_replies: How many sound replies with examples a round needs to change anything.
        settings: What ``FedAvg`` is to be told besides, for example ``fraction_train=0.1``.

    Raises:
        TypeError: ``optimizer`` is not one.
        ValueError: The optimizer has a loss scale, or rates that are fed.

    Example:
        >>> opt = RMSProp([Parameter("w", (2,))], learning_rate=0.01, momentum=0.9)
        >>> strategy = FedRMSProp(opt, fraction_train=0.1, checkpoint="server.safetensors")
        >>> arrays = arrays_of({"w": np.zeros(2, np.float32)})
        >>> strategy.start(grid, arrays, num_rounds=100)  # doctest: +SKIP
    """

    def __init__(
        self,
        optimizer: RMSProp,
        *,
        group_mask: Sequence[bool] | None = None,
        checkpoint: PathLike | None = None,
        min_replies: int = 1,
        **settings: Any,
    ) -> None:
        """See the class."""
        super().__init__(**settings)
        self.optimizer = check_server_optimizer(optimizer)
        if fed := Manifest.of(optimizer).fed_rates():
            raise ValueError(
                f"'{fed[0]}' is fed to each update, but the strategy has nothing to feed; take a "
                "schedule whose step is the round"
            )
        self.group_mask = None if group_mask is None else [bool(flag) for flag in group_mask]
        self.checkpoint = checkpoint
        self.min_replies = min_replies
        self.server: FederatedServer | None = None
        self._before = 0  # rounds of the run that this one goes on from

    def resume(self, path: PathLike) -> "app.ArrayRecord":
        """Go on from a checkpoint of the strategy, bit for bit.

        Flower counts the rounds of a run from 1; clients are told those of the runs before too, so
        that they draw other random numbers than in these.

        Args:
            path: Of the file.

        Returns:
            What to start with: ``strategy.start(grid, strategy.resume(path))``.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not one of such a strategy.
        """
        self.server = FederatedServer.from_checkpoint(self.optimizer, path)
        self._before = int(read_stored(file_of(path)).note.get("round", self.server.rounds))
        return arrays_of(self.server.values)

    def summary(self) -> None:
        """Log what it is."""
        _LOGGER.info("\t├──> %r, group_mask=%s", self.optimizer, self.group_mask)
        super().summary()

    def configure_train(
        self,
        server_round: int,
        arrays: "app.ArrayRecord",
        config: "app.ConfigRecord",
        grid: Grid,
    ) -> Iterable["app.Message"]:
        """Say to the nodes of a round what they train, and from what."""
        if self.server is None:
            self.server = FederatedServer(self.optimizer, values_of(arrays))
        else:  # what a strategy around this one has made of them, which may be float64
            self.server.load_values(values_of(arrays, self.server.values))
        self.server.asked(self.group_mask)  # which checks it
        if self.group_mask is not None:
            config[GROUP_MASK] = self.group_mask
        messages: Iterable[app.Message] = super().configure_train(
            self._before + server_round, arrays, config, grid
        )
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable["app.Message"]
    ) -> tuple["app.ArrayRecord | None", "app.MetricRecord | None"]:
        """Update the parameters; None in their place where a round changes nothing."""
        assert self.server is not None  # configure_train comes before
        answered = self._answered(replies)
        updates = [_update_of(reply, self.weighted_by_key) for reply in answered]
        lost = {update.client: problem for update in updates if (problem := lost_of(update))}
        for problem in lost.values():
            _LOGGER.warning("\t> Left out of the mean: %s", problem)
        sound = [update for update in updates if update.client not in lost]
        counted = sum(update.examples > 0 for update in sound)
        if counted < max(self.min_replies, 1):
            _LOGGER.warning(
                "round %s changes nothing: %s sound replies with examples, expected %s at least",
                *(server_round, counted, max(self.min_replies, 1)),
            )
            return None, app.MetricRecord({REFUSED: len(lost)})
        outputs = self.server.apply(sound, group_mask=self.group_mask)
        if self.checkpoint is not None:
            self.server.save_checkpoint(
                self.checkpoint, note={"round": self._before + server_round}
            )
        kept = [
            reply.content
            for reply, update in zip(answered, updates, strict=True)
            if update.client not in lost and update.examples
        ]
        metrics = self.train_metrics_aggr_fn(kept, self.weighted_by_key)
        metrics[REFUSED] = len(lost)
        for name in outputs.keys() - {"updated"}:
            metrics[name] = float(outputs[name])
        return arrays_of(self.server.values), metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable["app.Message"]
    ) -> "app.MetricRecord | None":
        """The mean of what was measured, over the nodes that have examples."""
        counted = [
            reply
            for reply in self._answered(replies)
            if any(record.get(self.weighted_by_key) for record in _metrics_in(reply))
        ]
        result: app.MetricRecord | None = super().aggregate_evaluate(server_round, counted)
        return result

    def _answered(self, replies: Iterable["app.Message"]) -> list["app.Message"]:
        """The replies that have content; of the others it is logged why not."""
        answered = []
        for reply in replies:
            if reply.has_error():
                reason = reply.error.reason
                _LOGGER.info("\t> No reply of node %s: %s", reply.metadata.src_node_id, reason)
            else:
                answered.append(reply)
        return answered


def _arrays_in(
    message: "app.Message", like: Mapping[str, Array] | None = None
) -> tuple[str, dict[str, Array]]:
    """The one record of arrays that a message has, and its name."""
    records = message.content.array_records
    if len(records) != 1:
        raise ValueError(
            f"node {message.metadata.src_node_id}: got {len(records)} records of arrays, expected "
            "one"
        )
    ((key, record),) = records.items()
    return key, values_of(record, like)


def _config_in(message: "app.Message") -> dict[str, Any]:
    """The entries of all configurations of a message."""
    records = message.content.config_records.values()
    return {key: value for record in records for key, value in record.items()}


def _update_of(reply: "app.Message", weighted_by: str) -> ClientUpdate:
    """What a reply says."""
    name = f"node {reply.metadata.src_node_id}"
    _, values = _arrays_in(reply)
    said = [record for record in _metrics_in(reply) if weighted_by in record]
    if len(said) != 1:
        raise ValueError(
            f"{name}: got {len(said)} records of metrics with '{weighted_by}', its number of "
            "examples, expected one"
        )
    return ClientUpdate(name, values, said[0][weighted_by])


def _metrics_in(reply: "app.Message") -> list["app.MetricRecord"]:
    """The records of metrics of a reply."""
    return list(reply.content.metric_records.values())


def _seed(context: "app.Context", server_round: int) -> int:
    """Another one for each client and round, and the same in another run of a simulation."""
    client = int(context.node_config.get("partition-id", context.node_id))
    return int(np.random.default_rng([client, server_round]).integers(SEEDS))
