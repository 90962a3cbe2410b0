"""What the head of a test run says, and the option of a quick run."""

import gc
import os
from collections import defaultdict

import pytest

from graphopt import _runtime, kernels

pytest.register_assert_rewrite("tests.helpers")

from tests.helpers.environments import HAS_TRAINING_PACKAGE, needs_training_package  # noqa: E402
from tests.helpers.one_thread import sessions_take_one_thread  # noqa: E402 - rewritten before
from tests.helpers.own_kernels import own_kernels  # noqa: E402 - rewritten before

_FEW = 6  # cases of a test that are all run on both runtimes


def pytest_configure():
    gc.disable()  # until all tests are collected, of which nothing is garbage
    os.fsync = os.fstat  # no test cuts the power, and the disk takes longer than what is tested
    sessions_take_one_thread()


def pytest_report_header():
    used = kernels.library() if kernels.names() else "none built, the ONNX functions' bodies run"
    return [f"onnxruntime: {_runtime.onnxruntime().__version__}", f"graphopt kernels: {used}"]


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="run the first case of each test that is marked quick"
    )
    parser.addoption("--exhaustive", action="store_true", help="run what is marked exhaustive too")


def pytest_pycollect_makeitem(collector, obj):
    if collector.config.option.quick and getattr(obj, "__code__", None) is not None:
        marks = getattr(obj, "pytestmark", [])
        return None if any(mark.name == "quick" for mark in marks) else []
    return None


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config, items):
    if HAS_TRAINING_PACKAGE:
        mark_what_is_alike(items)
    if config.option.quick:
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        items[:] = reversed(first.values())
    elif not config.option.exhaustive:
        rare = [item for item in items if item.get_closest_marker("exhaustive")]
        if rare:
            config.hook.pytest_deselected(items=rare)
            items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


def mark_what_is_alike(items):
    """Of the many cases of a test, `make test` runs all on today's runtime, a third on the other.

    But for those that run on the other one alone. `make exhaustive` runs the rest.
    """
    tables = defaultdict(list)
    for item in items:
        alone = needs_training_package.mark in item.iter_markers()
        if not (alone or item.get_closest_marker("any_runtime")):
            tables[item.nodeid.partition("[")[0]].append(item)
    for table in tables.values():
        if len(table) > _FEW:
            for item in (item for at, item in enumerate(table) if at % 3):
                item.add_marker("exhaustive")


def pytest_collection_finish():
    """What has been imported and collected stays: no search for garbage goes through it again.

    Models are made of many small objects, which seldom become garbage one by one.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def kernels_of_a_module():
    """Sessions have what this module has wanted, not what all before it have."""
    with own_kernels():
        yield


@pytest.fixture(scope="session")
def one_registry():
    """Lets many exports by PyTorch take less time."""
    from tests.helpers import exporter  # which imports PyTorch

    with exporter.one_registry():
        yield
