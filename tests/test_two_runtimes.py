"""One file trains alike in today's ONNX Runtime and in the oldest that is supported."""

import json
import subprocess

import numpy as np
import pytest

import graphopt
from models.zoo import ZOO
from tests.helpers.environments import OTHER_PYTHON, needs_other_runtime

pytestmark = pytest.mark.any_runtime

STEPS, BATCH = 10, 4


def losses_there(graph, feeds):
    done = subprocess.run(
        [OTHER_PYTHON, "-m", "tests.helpers.train_file", graph, feeds],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.quick
@needs_other_runtime
@pytest.mark.parametrize("name", ZOO)
def test_the_same_file_trains_to_the_same_losses(name, tmp_path):
    entry = ZOO[name]
    model = entry.build()
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.002, momentum=0.9)
    graph, feeds = tmp_path / "train.onnx", tmp_path / "feeds.npz"
    graphopt.training_graph(model, entry.loss, optimizer).save(graph)
    rng = np.random.default_rng(0)
    batches = [entry.feeds(rng, BATCH) for _ in range(STEPS)]
    np.savez(feeds, **{key: np.stack([batch[key] for batch in batches]) for key in batches[0]})
    session = graphopt.Session(graph)
    here = [float(session.step(batch)["loss"]) for batch in batches]
    there = losses_there(graph, feeds)
    assert len(there) == STEPS
    np.testing.assert_allclose(here, there, rtol=0, atol=1e-5)
