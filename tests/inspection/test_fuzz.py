"""Damaged and hostile files: an inspection or a ValueError, in bounded time, and nothing else."""

import json
import signal
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from onnx import helper, inliner
from rich.console import Console

import graphopt
from graphopt import Parameter, RMSProp
from graphopt.examples import digits_cnn
from graphopt.inspection.comparison.differences import diff
from graphopt.inspection.reading.read_model import read as read_model
from graphopt.inspection.show.graph_tables import graph_tables
from graphopt.inspection.show.page import difference_page, page
from graphopt.schedules import CosineDecayLR, SequentialLR, WarmUpLR

pytestmark = pytest.mark.any_runtime

SECONDS = 30  # for one file; a whole one takes a tenth of a second
FILES = 100  # of each part
SHOWN = 5  # every so many that can be read: tables and a page take longer than the inspection


@contextmanager
def limited(seconds):
    """Ends what takes longer, with an error that nothing catches."""

    def give_up(*_):
        raise SystemExit(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Real files of every kind."""
    folder = tmp_path_factory.mktemp("device")
    model = digits_cnn.build()
    parameters = graphopt.parameters(model)
    conv = parameters.matching("conv*")
    warm_up = SequentialLR([WarmUpLR(0.1, 10), CosineDecayLR(0.0, 0.1, 90)], [10])
    opt = RMSProp(
        [
            {"params": conv, "grad_centralization": True, "weight_decay": 0.01},
            {"params": parameters.without(conv), "lr": warm_up},
        ],
        momentum=0.9,
        centered=True,
        loss_scale=8.0,
    )
    chunks = graphopt.training_graph(model, "cross_entropy", opt, group_mask=True).model
    separate = graphopt.training_graph(model, "cross_entropy", opt, layout="separate").model
    small = RMSProp([Parameter("w", (3, 2)), Parameter("b", (2,))], learning_rate=[0.1, 0.2])
    inside = graphopt.export_on_device(model, "cross_entropy", opt, folder / "inside")
    plain = RMSProp(parameters, momentum=0.9)
    native = graphopt.export_on_device(
        model, "cross_entropy", plain, folder / "native", optimizer_model=True
    )
    files = [inside.training_model, native.training_model, native.optimizer_model]
    return [
        chunks,
        separate,
        inliner.inline_local_functions(separate),
        graphopt.update_graph(small).model,
        graphopt.update_graph(small, layout="separate").model,
        *(onnx.load(file) for file in files),
        model,
    ]


def truncated(rng, model):
    data = model.SerializeToString()
    return data[: rng.integers(0, len(data))]


def flipped(rng, model):
    data = bytearray(model.SerializeToString())
    for place in rng.integers(0, len(data), rng.integers(1, 20)):
        data[place] ^= 1 << rng.integers(8)
    return bytes(data)


def flipped_outside_weights(rng, model):
    small = onnx.ModelProto()
    small.CopyFrom(model)
    for tensor in small.graph.initializer:
        if len(tensor.raw_data) > 64:
            tensor.ClearField("raw_data")
    return flipped(rng, small)


def spliced(rng, model):
    data = model.SerializeToString()
    start, end = np.sort(rng.integers(0, len(data), 2))
    end = min(end, start + 200)
    other = rng.bytes(rng.integers(0, 50)) if rng.random() < 0.5 else data[end : end + 300]
    return data[:start] + other + data[end:]


def random(rng, model):
    del model
    return rng.bytes(rng.integers(0, 2000))


def rewired(rng, model):
    """Sound protobuf that is no sound graph."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(rng.integers(1, 6)):
        rng.choice(CHANGES)(rng, changed)
    return changed.SerializeToString()


def some(rng, entries):
    return entries[rng.integers(len(entries))] if len(entries) else None


def any_nodes(rng, model):
    """The nodes of the graph or of a function."""
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    return some(rng, [body for body in bodies if len(body)]) or model.graph.node


def swap_inputs(rng, model):
    node, other = some(rng, any_nodes(rng, model)), some(rng, any_nodes(rng, model))
    if node.input and other.input:
        node.input[rng.integers(len(node.input))] = some(rng, other.input)


def use_any_value(rng, model):
    node = some(rng, any_nodes(rng, model))
    outputs = [name for other in any_nodes(rng, model) for name in other.output]
    if node.input and outputs:
        node.input[rng.integers(len(node.input))] = some(rng, outputs)


def drop_input(rng, model):
    node = some(rng, any_nodes(rng, model))
    if node.input:
        del node.input[rng.integers(len(node.input))]


def drop_output(rng, model):
    node = some(rng, any_nodes(rng, model))
    if node.output:
        del node.output[rng.integers(len(node.output))]


def drop_node(rng, model):
    nodes = any_nodes(rng, model)
    del nodes[rng.integers(len(nodes))]


def other_operator(rng, model):
    some(rng, any_nodes(rng, model)).op_type = some(rng, any_nodes(rng, model)).op_type


def drop_attributes(rng, model):
    del some(rng, any_nodes(rng, model)).attribute[:]


def other_attributes(rng, model):
    node, other = some(rng, any_nodes(rng, model)), some(rng, any_nodes(rng, model))
    del node.attribute[:]
    node.attribute.extend(other.attribute)


def other_numbers(rng, model):
    for attribute in some(rng, any_nodes(rng, model)).attribute:
        attribute.i = int(rng.choice([0, -1, 2**62, -(2**62), 3]))
        attribute.f = float(rng.choice([np.nan, np.inf, -1.0, 0.0]))
        for place in range(len(attribute.ints)):
            attribute.ints[place] = int(rng.choice([0, -1, 2**62, 7]))


def other_dimension(rng, model):
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    dims = some(rng, values).type.tensor_type.shape.dim
    if len(dims):
        some(rng, dims).dim_value = int(rng.choice([0, 1, 2**40, 7]))


def other_type(rng, model):
    value = some(rng, [*model.graph.input, *model.graph.output])
    value.type.tensor_type.elem_type = int(rng.integers(0, 30))


def other_tensor(rng, model):
    tensors = model.graph.initializer
    if len(tensors):
        target, source = some(rng, tensors), some(rng, tensors)
        name = target.name
        target.CopyFrom(source)
        target.name = name


def empty_tensor(rng, model):
    if len(model.graph.initializer):
        tensor = some(rng, model.graph.initializer)
        del tensor.dims[:]
        tensor.dims.append(0)
        tensor.ClearField("raw_data")


def drop_initializer(rng, model):
    if len(model.graph.initializer):
        del model.graph.initializer[rng.integers(len(model.graph.initializer))]


def other_binding(rng, model):
    for info in model.training_info:
        if len(info.update_binding):
            some(rng, info.update_binding).value = some(rng, model.graph.output).name
            some(rng, info.update_binding).key = some(rng, model.graph.input).name


def other_metadata(rng, model):
    if len(model.metadata_props):
        entry = some(rng, model.metadata_props)
        value = entry.value
        start = rng.integers(0, max(len(value), 1))
        entry.value = (
            value[:start]
            + str(rng.choice(["", "null", "-1e999", "[]", '"x"']))
            + (value[start + rng.integers(0, 8) :])
        )


def swap_metadata(rng, model):
    if len(model.metadata_props):
        some(rng, model.metadata_props).value = some(rng, model.metadata_props).value


def call_itself(rng, model):
    if len(model.functions):
        function = some(rng, model.functions)
        function.node.append(
            helper.make_node(function.name, function.input, ["again"], domain=function.domain)
        )


def call_another(rng, model):
    if len(model.functions):
        function = some(rng, model.functions)
        node = some(rng, model.graph.node)
        node.op_type, node.domain = function.name, function.domain


CHANGES: list[Callable] = [
    swap_inputs,
    use_any_value,
    drop_input,
    drop_output,
    drop_node,
    other_operator,
    drop_attributes,
    other_attributes,
    other_numbers,
    other_dimension,
    other_type,
    other_tensor,
    empty_tensor,
    drop_initializer,
    other_binding,
    other_metadata,
    swap_metadata,
    call_itself,
    call_another,
]
DAMAGES = [truncated, flipped, flipped_outside_weights, spliced, random, rewired, rewired, rewired]


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(4))
def test_damaged_files(part, originals, tmp_path):
    """A hundred files: each is inspected and compared, every fifth shown, or refused by name."""
    rng = np.random.default_rng(part)
    sound = graphopt.inspect(originals[3])
    read, refused = 0, []
    for index in range(FILES):
        damage = DAMAGES[index % len(DAMAGES)]
        data = damage(rng, originals[rng.integers(len(originals))])
        path = tmp_path / "model.onnx"
        path.write_bytes(data)
        with limited(SECONDS):
            try:
                found = graphopt.inspect(path, steps=100, target="onnxruntime==1.19")
            except ValueError as error:
                refused.append((index, damage, str(error)))
                continue
            read += 1
            assert len(json.dumps(found.to_dict())) > 100
            diff(found, sound)
            if read % SHOWN == 0:
                show(found, read_model(path))
    assert [refusal for refusal in refused if str(path) not in refusal[-1]] == []
    assert min(read, len(refused)) > 10


def show(found, reading):
    console = Console(width=100, record=True, quiet=True)
    for part in graph_tables(found):
        console.print(part)
    assert page(found, reading).startswith("<!doctype html>")
    difference = difference_page(diff(found, found), (found, reading), (found, reading))
    assert difference.startswith("<!doctype html>")


@pytest.mark.parametrize("part", range(4))
def test_verify_takes_them_too(part, originals, tmp_path):
    rng = np.random.default_rng(100 + part)
    originals = originals[3:6]
    verified, refused = 0, []
    for _ in range(60):
        path = tmp_path / "model.onnx"
        path.write_bytes(rewired(rng, originals[rng.integers(len(originals))]))
        with limited(SECONDS):
            try:
                found = graphopt.verify(path, steps=1)
            except ValueError as error:
                refused.append(str(error))
                continue
            verified += found.verified
            assert found.verified or found.differences
    assert refused
    assert [reason for reason in refused if str(path) not in reason] == []
    assert verified
