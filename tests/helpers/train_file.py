"""Trains graphs and prints the losses of each: ``train_file.py TRAIN.onnx FEEDS.npz ...``.

A program, so that another environment can run what this one built.
"""

import json
import sys

import numpy as np

import graphopt


def losses(graph: str, feeds: str) -> list[float]:
    """Of one step for each batch."""
    session = graphopt.Session(graph)
    arrays = np.load(feeds)
    steps = len(next(iter(arrays.values())))
    return [
        float(session.step({name: array[step] for name, array in arrays.items()})["loss"])
        for step in range(steps)
    ]


if __name__ == "__main__":
    print(json.dumps([*map(losses, sys.argv[1::2], sys.argv[2::2])]))
