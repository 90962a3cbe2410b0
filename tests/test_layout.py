"""Which parameters are updated together."""

import pytest

import graphopt
from graphopt import Parameter
from graphopt.update.layout import plan

LARGEST, MOST = 64 * 1024, 64  # elements and parameters of a bucket of several


def rules(params, **settings):
    opt = graphopt.RMSProp(params, **settings)
    return zip(opt.params, opt.rules, strict=True)


def params(*sizes, dtype="float32", name="p"):
    return [Parameter(f"{name}{i}", (size,), dtype) for i, size in enumerate(sizes)]


def sizes(buckets):
    return [[parameter.size for parameter in bucket.parameters] for bucket in buckets]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1], [[1]]),
        ([3, 2, 1], [[3, 2, 1]]),
        ([LARGEST], [[LARGEST]]),
        ([LARGEST + 1], [[LARGEST + 1]]),
        ([LARGEST - 1, 1], [[LARGEST - 1, 1]]),
        ([LARGEST - 1, 2], [[LARGEST - 1], [2]]),
        ([LARGEST, 1], [[LARGEST], [1]]),
        ([1, LARGEST], [[1], [LARGEST]]),
        ([1, LARGEST + 1, 2], [[1, 2], [LARGEST + 1]]),
        ([LARGEST + 1, LARGEST + 2], [[LARGEST + 1], [LARGEST + 2]]),
        ([1] * MOST, [[1] * MOST]),
        ([1] * (MOST + 1), [[1] * MOST, [1]]),
        ([2] * (3 * MOST), [[2] * MOST] * 3),
        ([LARGEST // 2] * 5, [[LARGEST // 2] * 2, [LARGEST // 2] * 2, [LARGEST // 2]]),
    ],
    ids=[
        "one",
        "together",
        "just full",
        "too large",
        "two just fit",
        "two do not fit",
        "full and one",
        "one and full",
        "large between",
        "two large",
        "most",
        "one more",
        "three times",
        "halves",
    ],
)
def test_limits(given, expected):
    assert sizes(plan(rules(params(*given)))) == expected


@pytest.mark.parametrize("count", [1, 64, 65, 150])
def test_order_is_kept(count):
    given = params(*range(1, count + 1))
    placed = [parameter for bucket in plan(rules(given)) for parameter in bucket.parameters]
    assert placed == given


def test_order_is_kept_within_a_bucket():
    given = params(5, LARGEST + 1, 4, LARGEST + 2, 3)
    first, *large = plan(rules(given))
    assert first.parameters == (given[0], given[2], given[4])
    assert [bucket.parameters for bucket in large] == [(given[1],), (given[3],)]


def test_dtypes_are_not_mixed():
    given = [Parameter(f"p{i}", (i + 1,), ("float32", "float16")[i % 2]) for i in range(6)]
    buckets = plan(rules(given))
    assert [bucket.dtype for bucket in buckets] == ["float32", "float16"]
    assert sizes(buckets) == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize(("weight_decay", "expected"), [(0.0, [[1, 2, 3]]), (0.1, [[1, 3], [2]])])
def test_rules_are_not_mixed(weight_decay, expected):
    """A parameter that is excluded from a weight decay has another rule."""
    given = [Parameter("a", (1,)), Parameter("beta", (2,)), Parameter("b", (3,))]
    buckets = plan(rules(given, weight_decay=weight_decay))
    assert sizes(buckets) == expected
    for bucket in buckets:
        for parameter, rule in rules(given, weight_decay=weight_decay):
            assert parameter not in bucket.parameters or rule == bucket.rule


def test_offsets():
    given = [
        Parameter("a", (2, 3)),
        Parameter("b", ()),
        Parameter("c", (1, 1)),
        Parameter("d", (5,)),
    ]
    (bucket,) = plan(rules(given))
    assert list(bucket.offsets()) == list(zip(given, [0, 6, 7, 8], strict=True))
    assert bucket.size == 13


def test_names_differ():
    given = [*params(*[1] * 130), *params(LARGEST + 1, LARGEST + 1, name="large")]
    names = [bucket.name for bucket in plan(rules(given))]
    assert len(set(names)) == len(names) == 5


@pytest.mark.parametrize("name", ["bucket0", "bucket1", "bucket2"])
def test_a_parameter_may_be_called_like_a_bucket(name):
    given = [Parameter(name, (LARGEST + 1,)), *params(1, 1), Parameter("z", (LARGEST + 1,))]
    names = [bucket.name for bucket in plan(rules(given))]
    assert len(set(names)) == len(names) == 3


def test_nothing():
    assert plan([]) == []
