"""Trains a graph from a file and prints the losses: ``train_file.py TRAIN.onnx FEEDS.npz``.

A program, so that another environment can run what this one built.
"""

import json
import sys

import numpy as np

import graphopt

graph, feeds = sys.argv[1:]
session = graphopt.Session(graph)
arrays = np.load(feeds)
steps = len(next(iter(arrays.values())))
losses = [
    float(session.step({name: array[step] for name, array in arrays.items()})["loss"])
    for step in range(steps)
]
print(json.dumps(losses))
