"""Which parameters are updated together, and in which shape."""

import json
import math
import re
from typing import get_args

import pytest
from onnx import parser

import graphopt
from graphopt import Parameter
from graphopt.update import layout as layouts
from graphopt.update.layout import plan

ALONE = 64 * 1024  # elements of the largest parameter that shares a bucket
MOST = 64  # parameters of a bucket of several
CHUNK = 256 * 1024  # elements of a row, about
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PLANS = ["chunks", "buckets"]


def rules(params, **settings):
    opt = graphopt.RMSProp(params, **settings)
    return zip(opt.params, opt.rules, strict=True)


def buckets(rules, layout="buckets", provider=CPU):
    return plan(rules, layout, provider).buckets


def params(*sizes, dtype="float32", name="p"):
    return [Parameter(f"{name}{i}", (size,), dtype) for i, size in enumerate(sizes)]


def sizes(buckets):
    return [[parameter.size for parameter in bucket.parameters] for bucket in buckets]


LIMITS = {
    "one": ([1], [[1]]),
    "together": ([3, 2, 1], [[3, 2, 1]]),
    "as large as may be": ([ALONE, 1], [[ALONE, 1]]),
    "too large": ([ALONE + 1, 1], [[ALONE + 1], [1]]),
    "just full": ([ALONE, ALONE], [[ALONE, ALONE]]),
    "full and one": ([ALONE, ALONE, 1], [[ALONE, ALONE], [1]]),
    "two just fit": ([ALONE, ALONE - 1, 1], [[ALONE, ALONE - 1, 1]]),
    "one does not fit": ([ALONE, ALONE - 1, 2], [[ALONE, ALONE - 1], [2]]),
    "no way back": ([ALONE, ALONE - 1, 2, 1], [[ALONE, ALONE - 1], [2, 1]]),
    "large between": ([1, ALONE + 1, 2], [[1, 2], [ALONE + 1]]),
    "two large": ([ALONE + 1, ALONE + 2], [[ALONE + 1], [ALONE + 2]]),
    "most": ([1] * MOST, [[1] * MOST]),
    "one more": ([1] * (MOST + 1), [[1] * MOST, [1]]),
    "three times": ([2] * (3 * MOST), [[2] * MOST] * 3),
    "halves": ([ALONE // 2] * 5, [[ALONE // 2] * 4, [ALONE // 2]]),
}


@pytest.mark.parametrize("layout", PLANS)
@pytest.mark.parametrize(("given", "expected"), LIMITS.values(), ids=LIMITS)
def test_limits(given, expected, layout):
    found = buckets(rules(params(*given)), layout)
    assert sizes(found) == expected
    rows = {"chunks": 1, "buckets": None}[layout]
    assert all(bucket.rows == rows and not bucket.separate for bucket in found)


@pytest.mark.parametrize("count", [1, 64, 65, 150])
def test_order_is_kept(count):
    given = params(*range(1, count + 1))
    placed = [parameter for bucket in buckets(rules(given)) for parameter in bucket.parameters]
    assert placed == given


def test_order_is_kept_within_a_bucket():
    given = params(5, ALONE + 1, 4, ALONE + 2, 3)
    first, *large = buckets(rules(given))
    assert first.parameters == (given[0], given[2], given[4])
    assert [bucket.parameters for bucket in large] == [(given[1],), (given[3],)]


def test_dtypes_are_not_mixed():
    given = [Parameter(f"p{i}", (i + 1,), ("float32", "float16")[i % 2]) for i in range(6)]
    found = buckets(rules(given))
    assert [bucket.dtype for bucket in found] == ["float32", "float16"]
    assert sizes(found) == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize(("weight_decay", "expected"), [(0.0, [[1, 2, 3]]), (0.1, [[1, 3], [2]])])
def test_rules_are_not_mixed(weight_decay, expected):
    """A parameter that is excluded from a weight decay has another rule."""
    given = [Parameter("a", (1,)), Parameter("beta", (2,)), Parameter("b", (3,))]
    found = buckets(rules(given, weight_decay=weight_decay))
    assert sizes(found) == expected
    for bucket in found:
        for parameter, rule in rules(given, weight_decay=weight_decay):
            assert parameter not in bucket.parameters or rule == bucket.rule


def test_offsets():
    given = [
        Parameter("a", (2, 3)),
        Parameter("b", ()),
        Parameter("c", (1, 1)),
        Parameter("d", (5,)),
    ]
    (bucket,) = buckets(rules(given))
    assert list(bucket.offsets()) == list(zip(given, [0, 6, 7, 8], strict=True))
    assert bucket.size == 13
    assert bucket.shape == (13,)


def test_names_differ():
    given = [*params(*[1] * 130), *params(ALONE + 1, ALONE + 1, name="large")]
    names = [bucket.name for bucket in buckets(rules(given))]
    assert len(set(names)) == len(names) == 5


@pytest.mark.parametrize("name", ["bucket0", "bucket1", "bucket2"])
def test_a_parameter_may_be_called_like_a_bucket(name):
    given = [Parameter(name, (ALONE + 1,)), *params(1, 1), Parameter("z", (ALONE + 1,))]
    names = [bucket.name for bucket in buckets(rules(given))]
    assert len(set(names)) == len(names) == 3


@pytest.mark.parametrize("layout", get_args(layouts.LayoutName))
def test_nothing(layout):
    assert buckets([], layout) == ()


# Chunks.


@pytest.mark.quick
@pytest.mark.parametrize(
    ("size", "rows"),
    [
        (ALONE + 1, 1),
        (CHUNK, 1),
        (2 * CHUNK - 1, 1),
        (2 * CHUNK, 1),
        (2 * CHUNK + 1, 3),
        (2 * CHUNK + 2, 2),
        (524291, 1),  # 29 * 101 * 179: none of its divisors fits
        (3 * CHUNK, 3),
        (4 * CHUNK, 4),
        (1024 * CHUNK, 1024),
        (1280 * 320, 1),
        (1000 * 1280, 5),
        (24 * 1024 * 1024, 96),
        (262147, 1),  # a prime
        (1000003, 1),  # a prime
        (2 * 524309, 1),  # halves of it are larger than two chunks
        (2 * 1000003, 1),
        (2 * 262147, 2),
        (50257 * 768, 128),
    ],
)
def test_rows(size, rows):
    (bucket,) = buckets(rules(params(size)), "chunks")
    assert bucket.rows == rows
    assert bucket.shape == (rows, size // rows)
    assert math.prod(bucket.shape) == bucket.size == size


def test_rows_are_the_closest_to_the_chunk():
    """Of all divisors, for every size up to a hundred chunks."""
    chunk = 16
    for size in range(1, 100 * chunk):
        rows = layouts._rows(size, chunk)
        lengths = [length for length in range(8, 33) if size % length == 0]
        if size <= 2 * chunk or not lengths:
            assert rows == 1, size
        else:
            assert size % rows == 0, size
            distance = {length: abs(math.log2(length / chunk)) for length in lengths}
            assert distance[size // rows] == min(distance.values()), size


def test_every_bucket_is_a_matrix_of_chunks():
    given = params(3, 4 * CHUNK, 5, ALONE + 1, 1000003)
    found = buckets(rules(given), "chunks")
    assert sizes(found) == [[3, 5], [4 * CHUNK], [ALONE + 1], [1000003]]
    assert [bucket.shape for bucket in found] == [(1, 8), (4, CHUNK), (1, ALONE + 1), (1, 1000003)]


def test_large_parameters_stay_whole_in_buckets():
    given = [Parameter("w", (4, CHUNK)), Parameter("v", (1000, 1280))]
    found = buckets(rules(given), "buckets")
    assert [bucket.shape for bucket in found] == [(4 * CHUNK,), (1280000,)]
    assert {bucket.rows for bucket in found} == {None}


# Layouts.


def test_separate():
    given = [Parameter("a", (2, 3)), Parameter("b", ()), Parameter("c", (4, CHUNK), "float16")]
    planned = plan(rules(given, weight_decay=0.1), "separate", CPU)
    assert planned.name == "separate"
    assert [bucket.parameters for bucket in planned.buckets] == [(each,) for each in given]
    assert [bucket.name for bucket in planned.buckets] == ["a", "b", "c"]
    assert all(bucket.separate and bucket.rows is None for bucket in planned.buckets)
    assert [bucket.dtype for bucket in planned.buckets] == ["float32", "float32", "float16"]
    for bucket, (_, rule) in zip(planned.buckets, rules(given, weight_decay=0.1), strict=True):
        assert bucket.rule == rule


@pytest.mark.parametrize(
    ("layout", "provider", "expected"),
    [
        ("auto", CPU, "chunks"),
        ("auto", CUDA, "foreach"),
        ("auto", "CoreMLExecutionProvider", "buckets"),
        *(
            (layout, provider, layout)
            for layout in (*PLANS, "separate", "foreach")
            for provider in (CPU, CUDA)
        ),
    ],
)
def test_name_of_a_layout(layout, provider, expected):
    given = params(1, 2, 4 * CHUNK)
    planned = plan(rules(given), layout, provider)
    assert planned == plan(rules(given), expected, CPU)
    assert planned.name == expected
    graph = graphopt.update_graph(graphopt.RMSProp(given), layout=layout, provider=provider)
    assert graph.layout["name"] == expected
    assert [bucket["name"] for bucket in graph.layout["buckets"]] == [
        bucket.name for bucket in planned.buckets
    ]


def test_auto_is_what_a_graph_has_by_default():
    graph = graphopt.update_graph(graphopt.RMSProp(params(1, 2)))
    assert graph.layout["name"] == "chunks"


ALLOWED = "'auto' or 'chunks' or 'buckets' or 'separate' or 'foreach'"
MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }"""


@pytest.mark.parametrize(
    ("layout", "error"),
    [
        ("flat", ValueError),
        ("Chunks", ValueError),
        ("", ValueError),
        (None, TypeError),
        (1, TypeError),
        (True, TypeError),
        (["auto"], TypeError),
    ],
)
def test_wrong_layout(layout, error):
    message = f"^layout: got {re.escape(repr(layout))}.* expected {ALLOWED}$"
    opt = graphopt.RMSProp([Parameter("w", (2, 1))])
    with pytest.raises(error, match=message):
        graphopt.update_graph(opt, layout=layout)
    with pytest.raises(error, match=message):
        graphopt.training_graph(parser.parse_model(MODEL), "mse", opt, layout=layout)


def test_layout_in_metadata():
    given = [Parameter("a", (2, 3)), Parameter("w", (2, CHUNK * 2)), Parameter("b", ())]
    groups = [{"params": given[:1]}, {"params": given[1:], "weight_decay": 0.1}]
    graph = graphopt.update_graph(graphopt.RMSProp(groups, momentum=0.9), layout="chunks")
    assert graph.layout == {
        "name": "chunks",
        "buckets": [
            {
                "name": "a",
                "function": "ChunkedRMSPropMomentum",
                "shape": [1, 6],
                "group": 0,
                "parameters": ["a"],
            },
            {
                "name": "w",
                "function": "ChunkedRMSPropMomentumWeightDecay",
                "shape": [4, CHUNK],
                "group": 1,
                "parameters": ["w"],
            },
            {
                "name": "b",
                "function": "ChunkedRMSPropMomentumWeightDecay",
                "shape": [1, 1],
                "group": 1,
                "parameters": ["b"],
            },
        ],
    }
    metadata = {entry.key: entry.value for entry in graph.model.metadata_props}
    assert json.loads(metadata["graphopt.layout"]) == graph.layout
    shapes = {value.input: list(value.shape) for value in graph.carried}
    for bucket in graph.layout["buckets"]:
        assert shapes[f"moment.{bucket['name']}"] == bucket["shape"]
