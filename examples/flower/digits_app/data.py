"""Who has which digits, and the batches of a round."""

from collections.abc import Iterator, Mapping

import numpy as np

from graphopt.examples import digits

BATCH_SIZE = 16
CONCENTRATION = 0.3
"""That of the Dirichlet distribution of each digit over the clients: the lower, the less even."""


def shares(clients: int, seed: int) -> list[np.ndarray]:
    """The indices of the training samples of each client: of each digit, another part."""
    labels = digits.load().train.labels
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for digit in range(10):
        those = rng.permutation(np.flatnonzero(labels == digit))
        ends = np.cumsum(rng.dirichlet([CONCENTRATION] * clients)) * len(those)
        for part, taken in zip(parts, np.split(those, ends[:-1].astype(int)), strict=True):
            part.append(taken)
    return [np.concatenate(part) for part in parts]


def batches(
    client: int, clients: int, server_round: int, seed: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """What a client trains on in a round: its samples once, in another order each time."""
    samples = digits.load().train
    rng = np.random.default_rng([seed, client, server_round])
    order = rng.permutation(shares(clients, seed)[client])
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        yield {"x": samples.x[chosen], "labels": samples.labels[chosen]}


def test_batches() -> list[Mapping[str, np.ndarray]]:
    """What nobody trains on."""
    samples = digits.load().test
    return [{"x": samples.x, "labels": samples.labels}]


def accuracy(
    outputs: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The share of the digits that are recognized."""
    return {"accuracy": float(np.mean(outputs["logits"].argmax(axis=1) == batch["labels"]))}
