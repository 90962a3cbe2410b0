"""One file trains alike in today's ONNX Runtime and in the oldest that is supported."""

import json
import subprocess

import numpy as np
import pytest

import graphopt
from models.zoo import ZOO
from tests.helpers.environments import OTHER_PYTHON, needs_other_runtime
from tests.helpers.zoo import zoo_graph

pytestmark = pytest.mark.any_runtime

STEPS, BATCH = 10, 4


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The losses of each network, here and there."""
    here, files = {}, []
    for name, entry in ZOO.items():
        folder = tmp_path_factory.mktemp(name)
        graph, feeds = folder / "train.onnx", folder / "feeds.npz"
        zoo_graph(name).save(graph)
        rng = np.random.default_rng(0)
        batches = [entry.feeds(rng, BATCH) for _ in range(STEPS)]
        np.savez(feeds, **{key: np.stack([batch[key] for batch in batches]) for key in batches[0]})
        session = graphopt.Session(graph)
        here[name] = [float(session.step(batch)["loss"]) for batch in batches]
        files += [graph, feeds]
    return here, dict(zip(ZOO, losses_there(files), strict=True))


def losses_there(files):
    done = subprocess.run(
        [OTHER_PYTHON, "-m", "tests.helpers.train_file", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.quick
@needs_other_runtime
@pytest.mark.parametrize("name", ZOO)
def test_the_same_file_trains_to_the_same_losses(both, name):
    here, there = (losses[name] for losses in both)
    assert len(there) == STEPS
    np.testing.assert_allclose(here, there, rtol=0, atol=1e-5)
