"""Metrics, added up in batches, against what their definitions give at once."""

import numpy as np
import pytest

from graphopt.evaluation import metric_of

pytestmark = pytest.mark.any_runtime

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(40, 5, 3)).astype(np.float32)
CLASSES = RNG.integers(0, 4, (40, 3))  # class 4 is no label
CLASSES[LOGITS.argmax(axis=1) == 2] = 2
FLAT, LABELS = LOGITS.transpose(0, 2, 1).reshape(-1, 5), CLASSES.reshape(-1)
FOUND = np.array([row.tolist().index(max(row)) for row in FLAT])


def in_batches(name, output, labels, size=7):
    metric = metric_of(name)
    for start in range(0, len(output), size):
        metric.add(output[start : start + size], labels[start : start + size])
    return metric.value()


def per_class(kind):
    values = []
    for label in range(5):
        both = sum(1 for f, y in zip(FOUND, LABELS, strict=True) if f == label == y)
        found, there = list(FOUND).count(label), list(LABELS).count(label)
        precision, recall = (both / n if n else 0.0 for n in (found, there))
        total = precision + recall
        f1 = 2 * precision * recall / total if total else 0.0
        if found or there:
            values.append({"precision": precision, "recall": recall, "f1": f1}[kind])
    return sum(values) / len(values)


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["precision", "recall", "f1"])
def test_mean_over_classes(kind):
    assert in_batches(kind, LOGITS, CLASSES) == pytest.approx(per_class(kind), rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top(k):
    right = [y in np.argsort(-row, kind="stable")[:k] for row, y in zip(FLAT, LABELS, strict=True)]
    assert in_batches(f"top{k}", LOGITS, CLASSES) == np.mean(right)
    if k == 1:
        assert in_batches("accuracy", LOGITS, CLASSES) == np.mean(right)


def test_top_of_equal_and_of_no_numbers():
    equal = np.zeros((3, 4), np.float32)
    assert in_batches("top2", equal, np.array([0, 1, 2])) == 2 / 3
    nothing = np.full((3, 4), np.nan, np.float32)
    assert in_batches("top3", nothing, np.array([0, 1, 2])) == 0
    some = np.array([[np.nan, 1.0, 0.0], [0.0, 1.0, 2.0]], np.float32)
    assert in_batches("accuracy", some, np.array([1, 2])) == 0.5


def test_logits_of_two_classes():
    output = np.array([[3.0, -1.0], [-2.0, 1.0], [0.5, -0.5]], np.float32)
    labels = np.array([[1, 1], [0, 1], [0, 0]], np.float32)
    assert in_batches("accuracy", output, labels, 2) == 4 / 6
    assert in_batches("precision", output, labels, 2) == pytest.approx((2 / 3 + 2 / 3) / 2)
    with pytest.raises(ValueError, match="top2: expected labels that are classes"):
        in_batches("top2", output, labels)


def test_errors_of_numbers():
    labels = 1e6 + RNG.normal(size=(50, 2))
    output = (labels + RNG.normal(size=(50, 2))).astype(np.float64)
    error = output - labels
    assert in_batches("mae", output, labels) == pytest.approx(np.abs(error).mean(), rel=1e-12)
    assert in_batches("rmse", output, labels) == pytest.approx(np.sqrt((error**2).mean()))
    r2 = 1 - (error**2).sum() / ((labels - labels.mean()) ** 2).sum()
    assert in_batches("r2", output, labels) == pytest.approx(r2, rel=1e-9)
    assert np.isnan(in_batches("r2", output, np.ones_like(labels)))


@pytest.mark.parametrize("name", ["accuracy", "f1", "mae"])
def test_labels_of_another_kind(name):
    with pytest.raises(ValueError, match=rf"{name}.*: got outputs \[2, 3\] and labels|top1: got"):
        metric_of(name).add(np.zeros((2, 3)), np.zeros((2, 4)))
    assert np.isnan(metric_of(name).value())


@pytest.mark.parametrize("name", ["accuracy", "top2", "f1"])
@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_are_no_classes(name, label):
    with pytest.raises(ValueError, match=rf"got label {label}, expected 0 to 2"):
        metric_of(name).add(np.zeros((2, 3)), np.array([0, label]))


def test_shapes_that_have_no_classes_on_axis_1():
    with pytest.raises(ValueError, match=r"got outputs \[2, 4, 3\] and labels int64\[2, 4\]"):
        metric_of("accuracy").add(np.zeros((2, 4, 3)), np.zeros((2, 4), np.int64))
    with pytest.raises(ValueError, match="top5: the output has no more than 3 classes"):
        metric_of("top5").add(np.zeros((2, 3)), np.array([0, 1]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "did you mean 'accuracy'"),
        ("top0", "got 'top0', did you mean 'top5'"),
        ("bleu", "expected accuracy, top5, precision, recall, f1, mae, rmse, r2"),
    ],
)
def test_there_is_no_such_metric(name, message):
    with pytest.raises(ValueError, match=message):
        metric_of(name)
