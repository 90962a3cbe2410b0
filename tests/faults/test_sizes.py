"""What asks for more memory than there is: refused as any other damaged file is."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import parser

import graphopt
from graphopt import RMSProp, limits
from graphopt.operators import _convolution_weight, pooling
from graphopt.samples import tables
from tests.helpers.folders import ROOT
from tests.helpers.little_memory import NAMES

pytestmark = pytest.mark.any_runtime
IR = '<ir_version: 8, opset_import: ["": 17]>'


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came of each, in a process that may take 64 MiB more than it has."""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits of memory are Linux's")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.helpers.little_memory"],
        cwd=tmp_path_factory.mktemp("files"),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "panicked" not in ran.stderr  # a library in Rust
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_refused_by_name_where_there_is_no_memory(name, found):
    kind, message = found[name]
    assert kind == "TooLargeError", (kind, message)
    assert issubclass(limits.TooLargeError, ValueError)
    file = name.partition(":")[0]
    assert f"{file}' asks for more memory than there is" in message
    assert "run this where there is more" in message


def test_everything_is_looked_at(found):
    assert list(found) == NAMES


def test_a_limit_of_the_process_is_a_limit(monkeypatch):
    monkeypatch.delenv("GRAPHOPT_MEMORY_LIMIT", raising=False)
    kinds = {limits.resource.RLIMIT_AS: 5000, limits.resource.RLIMIT_DATA: -1}
    monkeypatch.setattr(limits.resource, "getrlimit", lambda kind: (kinds[kind], -1))
    assert limits.memory_limit() == 5000
    with pytest.raises(ValueError, match=r"more memory than the .* KiB that are allowed"):
        limits.check_memory(5001, "x")
    limits.check_memory(5000, "x")


@pytest.mark.parametrize(("text", "limit"), [("7000\n", 7000), ("max\n", None), (None, None)])
def test_a_limit_of_a_container_is_a_limit(text, limit, monkeypatch, tmp_path):
    monkeypatch.delenv("GRAPHOPT_MEMORY_LIMIT", raising=False)
    whole = limits.memory_limit()
    file = tmp_path / "memory.max"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(limits, "_OF_CONTAINERS", (file,))
    assert limits.memory_limit() == limit if limit else limits.memory_limit() >= whole


def pooled(operator, size):
    model = parser.parse_model(f"""{IR}
        m (float[1,1,{size}] x) => (float[1,1,S] y) <float[1] w = {{1}}> {{
            z = Mul (x, w)
            y = {operator} (z)
        }}""")
    return graphopt.training_graph(model, "mse", RMSProp([graphopt.Parameter("w", (1,))]))


@pytest.mark.parametrize(
    "operator",
    [
        "AveragePool <kernel_shape = [2], pads = [1, 1]>",
        "AveragePool <kernel_shape = [1000000000], strides = [3]>",
    ],
)
def test_a_table_that_no_file_holds_is_refused_before_it_is_made(operator):
    with pytest.raises(ValueError, match=r"table of .* [GT]iB, and an ONNX file holds less than"):
        pooled(operator, 10**12)


def test_no_table_of_a_huge_image_is_made():
    """It was one of 8 GiB: a number for each element."""
    graph = pooled("MaxPool <kernel_shape = [2], strides = [2]>", 2**31)
    assert graph.model.ByteSize() < 10**5


def steps(build, monkeypatch, changed):
    monkeypatch.setattr(*changed)
    session = graphopt.Session(build())
    rng = np.random.default_rng(0)
    feeds = {
        feed.name: rng.normal(size=[2 if n == "N" else n for n in feed.shape]).astype("f")
        for feed in session.inputs
    }
    session.step(feeds)
    return session.state["w"]


def network(layers):
    model = parser.parse_model(f"{IR} m (float[N,2,6,6] x) => (float[N,2,h,v] y) {{ {layers} }}")
    values = np.random.default_rng(1).normal(size=(2, 1, 3, 3)).astype("f")
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    model = onnx.shape_inference.infer_shapes(model)
    return graphopt.training_graph(model, "mse", RMSProp(graphopt.parameters(model)))


@pytest.mark.parametrize(
    ("module", "name", "layers"),
    [
        (
            pooling,
            "_MOST_NUMBERS",
            """z = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w)
                y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (z)""",
        ),
        (_convolution_weight, "_WIDEST", "y = Conv <group = 2> (x, w)"),
        (graphopt.gradients._for_cpu, "_MOST_ELEMENTS", "y = Conv <group = 2> (x, w)"),
    ],
)
def test_what_is_computed_otherwise_because_of_its_size_is_the_same(
    module, name, layers, monkeypatch
):
    usual, other = (
        steps(lambda: network(layers), monkeypatch, (module, name, most))
        for most in (getattr(module, name), 0)
    )
    np.testing.assert_allclose(other, usual, rtol=1e-5, atol=1e-6)


def test_a_picture_of_a_table_that_cannot_be_decoded_is_named():
    """Rows of Hugging Face raise whatever decodes them."""

    class Rows:
        def __getitem__(self, rows):
            raise SyntaxError("broken PNG file")

    samples = object.__new__(tables.HuggingFace)
    samples._name, samples._rows = "hf:x", Rows()
    with pytest.raises(ValueError, match="cannot read 'hf:x': broken PNG file"):
        samples.take(np.arange(2))
