"""What the server does."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy

import graphopt
from digits_app.data import accuracy, test_batches
from digits_app.files import groups
from graphopt.examples import digits_cnn
from graphopt.federated import SessionClient, flower

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and write down the accuracy after each round."""
    config = context.run_config
    folder = Path(str(config["files"]))
    model = SessionClient(folder / "train.onnx")

    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        values = flower.values_of(arrays, model.values)
        return MetricRecord(model.evaluate(values, test_batches(), accuracy)[1])

    result = strategy(config).start(
        grid,
        flower.arrays_of(model.values),
        num_rounds=int(config["rounds"]),
        evaluate_fn=evaluate,
    )
    measured = result.evaluate_metrics_serverapp
    found = {**config, "accuracy": [measured[r]["accuracy"] for r in sorted(measured)]}
    (folder / str(config["results"])).write_text(json.dumps(found, indent=1) + "\n")


def strategy(config: dict[str, bool | float | int | str]) -> Strategy:
    """That of the configuration."""
    name, rate = str(config["strategy"]), float(config["learning-rate"])
    sampled = {"fraction_train": float(config["fraction-train"]), "fraction_evaluate": 0.0}
    if name == "FedAvg":
        return FedAvg(**sampled)
    if name == "FedAdam":
        return FedAdam(eta=rate, **sampled)
    optimizer = graphopt.RMSProp(
        groups(graphopt.parameters(digits_cnn.build())),
        learning_rate=rate,
        momentum=float(config["momentum"]),
        initial_mean_square=0.0,
        epsilon=1e-6,
    )
    mask = [False, True] if config["only-head"] else None
    return flower.FedRMSProp(optimizer, group_mask=mask, **sampled)
