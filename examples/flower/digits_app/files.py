"""What is made once, before anybody trains: ``python -m digits_app.files build``."""

import sys
from pathlib import Path

import graphopt
from graphopt.examples import digits_cnn

HEAD = ("dense2.weight", "dense2.bias")


def groups(params: graphopt.Parameters) -> list[dict[str, list[graphopt.Parameter]]]:
    """The parameters of the body and those of the head, in this order on clients and server."""
    head = [parameter for parameter in params if parameter.name in HEAD]
    return [{"params": [p for p in params if p not in head]}, {"params": head}]


def write(folder: Path) -> None:
    """The training graph, and the files for devices."""
    folder.mkdir(parents=True, exist_ok=True)
    model = digits_cnn.build()
    optimizer = graphopt.RMSProp(
        groups(graphopt.parameters(model)),
        learning_rate=0.001,
        # A round is short: a mean square that starts at 1 would not come down in it.
        initial_mean_square=0.0,
        epsilon=1e-6,
    )
    graph = graphopt.training_graph(model, "cross_entropy", optimizer, group_mask=True)
    graph.save(folder / "train.onnx")
    graphopt.export_on_device(
        model,
        "cross_entropy",
        optimizer,
        folder / "device",
        group_mask=True,
        outputs=["logits"],
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
