"""What users get wrong at first, and the message that each of these mistakes gives."""

import functools
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import graphopt
from graphopt import RMSProp, Session
from models.zoo import ZOO

pytestmark = pytest.mark.any_runtime
NO_WEIGHT = """<ir_version: 8, opset_import: ["": 17]>
nothing (float[N] x) => (float[N] y) { y = Relu(x) }"""
mlp = ZOO["mlp"].build()
params = graphopt.parameters(mlp)
P = list(params)
net = torch.nn.Linear(2, 2)
feeds = ZOO["mlp"].feeds(np.random.default_rng(0), 4)


def tg(**arguments):
    return graphopt.training_graph(mlp, "cross_entropy", RMSProp(P), **arguments)


@functools.cache
def trained():
    return tg()


@functools.cache
def session():
    return Session(trained())


def used_generator():
    generator = (parameter for parameter in P)
    list(generator)
    return RMSProp(generator)


def builder():
    return graphopt.GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": 17}))


MISTAKES = {
    "eps=": (
        lambda: RMSProp(P, eps=1e-8),
        TypeError,
        "RMSProp: there is no argument 'eps'; did you mean 'epsilon'?",
    ),
    "lr=": (
        lambda: RMSProp(P, lr=0.1),
        TypeError,
        "RMSProp: there is no argument 'lr'; did you mean 'learning_rate'?",
    ),
    "alpha=": (
        lambda: RMSProp(P, alpha=0.9),
        TypeError,
        "RMSProp: there is no argument 'alpha'; did you mean 'decay'?",
    ),
    "rho=": (
        lambda: RMSProp(P, rho=0.9),
        TypeError,
        "RMSProp: there is no argument 'rho'; did you mean 'decay'?",
    ),
    "clipnorm=": (
        lambda: RMSProp(P, clipnorm=1.0),
        TypeError,
        "RMSProp: there is no argument 'clipnorm'; did you mean 'clip_norm'?",
    ),
    "max_grad_norm=": (
        lambda: RMSProp(P, max_grad_norm=1.0),
        TypeError,
        "RMSProp: there is no argument 'max_grad_norm'; did you mean 'clip_norm'?",
    ),
    "wd=": (
        lambda: RMSProp(P, wd=0.1),
        TypeError,
        "RMSProp: there is no argument 'wd'; did you mean 'weight_decay'?",
    ),
    "weight decay l2=": (
        lambda: RMSProp(P, l2=0.1),
        TypeError,
        "RMSProp: there is no argument 'l2'; did you mean 'weight_decay'?",
    ),
    "group eps": (
        lambda: RMSProp([{"params": P, "eps": 0.1}]),
        KeyError,
        "; 'epsilon' is the same for all groups: an argument of RMSProp",
    ),
    "group momentum": (
        lambda: RMSProp([{"params": P, "momentum": 0.1}]),
        KeyError,
        "params[0]: unknown key 'momentum', expected params, lr, learning_rate,",
    ),
    "group param": (
        lambda: RMSProp([{"param": P}]),
        KeyError,
        "params[0]: unknown key 'param', did you mean 'params'?",
    ),
    "parameters['x']": (
        lambda: params["nope"],
        KeyError,
        "no parameter is called 'nope'; there are dense1.weight, dense1.bias, dense2.weight,",
    ),
    "torch params": (
        lambda: RMSProp(net.parameters()),
        TypeError,
        "params[0]: got a torch.nn.parameter.Parameter (export its module first, with",
    ),
    "torch params list": (
        lambda: RMSProp(list(net.parameters())),
        TypeError,
        "params[0]: got a torch.nn.parameter.Parameter (export its module first, with",
    ),
    "named params": (
        lambda: RMSProp(net.named_parameters()),
        TypeError,
        "params[0]: got a torch.nn.parameter.Parameter (export its module first, with",
    ),
    "names": (
        lambda: RMSProp([p.name for p in P]),
        TypeError,
        "params[0]: got the str 'dense1.weight' (its Parameter is",
    ),
    "one Parameter": (
        lambda: RMSProp(P[0]),
        TypeError,
        "params: got Parameter, expected a list of Parameter or of groups",
    ),
    "model": (
        lambda: RMSProp(mlp),
        TypeError,
        "params: got ModelProto, expected a list of Parameter or of groups",
    ),
    "dict of arrays": (
        lambda: RMSProp({"w": np.zeros(3)}),
        TypeError,
        "params: got dict, expected a list of Parameter or of groups",
    ),
    "lr negative": (
        lambda: RMSProp(P, -0.1),
        ValueError,
        "learning_rate: got -0.1 (float), expected a finite number >= 0",
    ),
    "lr str": (
        lambda: RMSProp(P, "0.1"),
        ValueError,
        "learning_rate: got '0.1', expected a number, a list of numbers, a 0-D or 1-D array,",
    ),
    "momentum None": (
        lambda: RMSProp(P, momentum=None),
        TypeError,
        "momentum: got None (NoneType), expected a float",
    ),
    "centered 1": (
        lambda: RMSProp(P, centered=1),
        TypeError,
        "centered: got 1 (int), expected True or False",
    ),
    "loss_scale 0": (
        lambda: RMSProp(P, loss_scale=0),
        ValueError,
        "loss_scale: got 0.0 (float), expected a finite number > 0",
    ),
    "loss_scale 'dynamic'": (
        lambda: RMSProp(P, loss_scale="dynamic"),
        TypeError,
        "loss_scale: got 'dynamic' (str), expected an int or a float",
    ),
    "average True": (
        lambda: RMSProp(P, average=True),
        TypeError,
        "average: got True (bool), expected a ParameterAverage, its decay or None",
    ),
    "training graph as forward": (
        lambda: graphopt.training_graph(
            trained().model, "cross_entropy", RMSProp(graphopt.parameters(trained().model))
        ),
        ValueError,
        "the model is a training graph already; give the forward model that it was made",
    ),
    "training graph parameters": (
        lambda: graphopt.parameters(trained().model),
        ValueError,
        "the model is a training graph already; give the forward model that it was made",
    ),
    "training_graph obj": (
        lambda: graphopt.training_graph(trained(), "cross_entropy", RMSProp(P)),
        TypeError,
        "model: got a TrainingGraph (its forward model is graph.forward({})), expected a",
    ),
    "torch module as model": (
        lambda: graphopt.training_graph(net, "cross_entropy", RMSProp(P)),
        TypeError,
        "model: got torch.nn.modules.linear.Linear (export it first, with",
    ),
    "state_dict": (
        lambda: graphopt.parameters(net.state_dict()),
        TypeError,
        "model: got OrderedDict, expected a path, an onnx.ModelProto or an onnx_ir.Model",
    ),
    "module parameters": (
        lambda: graphopt.parameters(net),
        TypeError,
        "model: got torch.nn.modules.linear.Linear (export it first, with",
    ),
    "loss name wrong": (
        lambda: graphopt.training_graph(mlp, "crossentropy", RMSProp(P)),
        ValueError,
        "loss: got 'crossentropy', expected 'cross_entropy', 'mse', 'huber',",
    ),
    "loss CE torch": (
        lambda: graphopt.training_graph(mlp, torch.nn.CrossEntropyLoss(), RMSProp(P)),
        TypeError,
        "loss: got torch.nn.modules.loss.CrossEntropyLoss, expected 'cross_entropy', 'mse',",
    ),
    "optimizer class": (
        lambda: graphopt.training_graph(mlp, "cross_entropy", RMSProp),
        TypeError,
        "optimizer: got type, expected a graphopt.RMSProp",
    ),
    "optimizer torch": (
        lambda: graphopt.training_graph(
            mlp, "cross_entropy", torch.optim.RMSprop(net.parameters())
        ),
        TypeError,
        "optimizer: got RMSprop, expected a graphopt.RMSProp",
    ),
    "args swapped": (
        lambda: graphopt.training_graph(mlp, RMSProp(P), "cross_entropy"),
        TypeError,
        "optimizer: got str, expected a graphopt.RMSProp",
    ),
    "provider cuda": (
        lambda: tg(provider="cuda"),
        ValueError,
        "provider: got 'cuda', expected the name of an execution provider, such as",
    ),
    "memory True": (
        lambda: tg(memory=True),
        TypeError,
        "memory: got True (bool), expected 'fast' or 'balanced' or 'low'",
    ),
    "memory 'lo'": (
        lambda: tg(memory="lo"),
        ValueError,
        "memory: got 'lo' (str), expected 'fast' or 'balanced' or 'low'",
    ),
    "accumulation '4'": (
        lambda: tg(accumulation="4"),
        TypeError,
        "accumulation: got '4' (str), expected a number of steps, an Accumulation or None",
    ),
    "accumulation 0": (
        lambda: tg(accumulation=0),
        ValueError,
        "accumulation: got 0 (int), expected an int >= 1",
    ),
    "feed float64": (
        lambda: session().step(
            {**feeds, "x": feeds["x"].astype(np.float64)}
            if "x" in feeds
            else {k: v.astype(np.float64) for k, v in feeds.items()}
        ),
        TypeError,
        "feed 'x': got dtype float64, expected float32; convert it, for example with",
    ),
    "feed list": (
        lambda: session().step({k: v.tolist() for k, v in feeds.items()}),
        TypeError,
        "feed 'x': got dtype float64, expected float32; convert it, for example with",
    ),
    "labels one-hot": (
        lambda: session().step({**feeds, "labels": np.eye(10, dtype=np.float32)[feeds["labels"]]}),
        TypeError,
        "feed 'labels': got dtype float32, expected int64; convert it, for example with",
    ),
    "labels int32": (
        lambda: session().step({**feeds, "labels": feeds["labels"].astype(np.int32)}),
        TypeError,
        "feed 'labels': got dtype int32, expected int64; convert it, for example with",
    ),
    "labels 2d": (
        lambda: session().step({**feeds, "labels": feeds["labels"][:, None]}),
        ValueError,
        "feed 'labels': got shape [4, 1], expected ['batch']",
    ),
    "labels out of range": (
        lambda: session().step({**feeds, "labels": feeds["labels"] + 100}),
        ValueError,
        "feed 'labels': got label 108, expected classes 0 to 9",
    ),
    "missing labels": (
        lambda: session().step({k: v for k, v in feeds.items() if k != "labels"}),
        ValueError,
        "feeds: 'labels' is missing; expected 'x', 'labels'",
    ),
    "typo feed": (
        lambda: session().step({**feeds, "lables": feeds["labels"]}),
        ValueError,
        "feeds: 'lables' is not a feed; expected 'x', 'labels'",
    ),
    "session of forward": (
        lambda: Session(mlp),
        ValueError,
        "the model is not a training graph: it declares no values that are carried from step",
    ),
    "session of optimizer": (
        lambda: Session(RMSProp(P)),
        TypeError,
        "graph: got RMSProp, expected a TrainingGraph, an onnx.ModelProto or the path of a",
    ),
    "providers str": (
        lambda: Session(trained(), providers="CPUExecutionProvider"),
        TypeError,
        ("providers: got 'CPUExecutionProvider', expected a list such as ['CPUExecutionProvider']"),
    ),
    "session params positional list": (
        lambda: Session(trained(), parameters=P),
        TypeError,
        "parameters: got list, expected a dict of arrays by name",
    ),
    "session().run": (
        lambda: session().run(None, feeds),
        AttributeError,
        "Session has no attribute 'run'; step runs a training step",
    ),
    "session().train": (
        lambda: session().train(),
        AttributeError,
        ("Session has no attribute 'train'; export writes a model for inference, step trains"),
    ),
    "session().save": (
        lambda: session().save("x"),
        AttributeError,
        ("Session has no attribute 'save'; save_checkpoint writes the state, export the model"),
    ),
    "graphopt.Adam": (
        lambda: graphopt.Adam(P),
        AttributeError,
        "graphopt has no optimizer but RMSProp, got 'Adam'",
    ),
    "graphopt.RMSprop": (
        lambda: graphopt.RMSprop(P),
        AttributeError,
        "graphopt has no attribute 'RMSprop'; did you mean 'RMSProp'?",
    ),
    "graphopt.optim": (
        lambda: graphopt.optim.RMSProp(P),
        AttributeError,
        "graphopt has no attribute 'optim'",
    ),
    "schedule float list": (
        lambda: RMSProp(P, [0.1, 0.2, "x"]),
        ValueError,
        "learning_rate[2]: got 'x', expected a number",
    ),
    "torch.export tensor": (
        lambda: graphopt.torch.export(net, torch.zeros(1, 2)),
        TypeError,
        "args: got a tensor, expected a tuple of example inputs: write (x,)",
    ),
    "a used generator": (
        used_generator,
        ValueError,
        "(a generator gives what it has once only: make it a list before)",
    ),
    "a misspelled operator": (
        lambda: builder().ReduceMeann,
        AttributeError,
        "ONNX has no operator 'ReduceMeann'; did you mean 'ReduceMean'?",
    ),
    "a misspelled argument": (
        lambda: tg(acumulation=2),
        TypeError,
        "training_graph: there is no argument 'acumulation'; did you mean 'accumulation'?",
    ),
    "a provider that is not installed": (
        lambda: Session(trained(), providers=["RocketExecutionProvider"]),
        ValueError,
        "providers: 'RocketExecutionProvider' is not available, onnxruntime ",
    ),
    "one provider": (
        lambda: Session(trained(), provider="CPUExecutionProvider"),
        TypeError,
        "Session: there is no argument 'provider'; did you mean 'providers'?",
    ),
    "a file that is not there": (
        lambda: graphopt.inspect("nope.onnx"),
        FileNotFoundError,
        "there is no file 'nope.onnx' (current folder: ",
    ),
    "a folder": (
        lambda: graphopt.parameters("/"),
        IsADirectoryError,
        "'/' is a folder, expected a file",
    ),
    "PyTorch's scheduler": (
        lambda: RMSProp(
            P, torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net.parameters(), 0.1), 1)
        ),
        TypeError,
        "(StepLR), expected a number, a list of numbers, a 0-D or 1-D array, or a",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_message(name):
    make, error, message = MISTAKES[name]
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_there_are_many():
    assert len(MISTAKES) >= 60


def test_a_tensor_of_pytorch_is_a_learning_rate():
    assert RMSProp(P, torch.tensor(0.5)).groups[0].learning_rate.value(0) == 0.5


def test_a_parameter_by_its_name():
    assert params["dense1.bias"].shape == params[1].shape == (64,)
    assert [p.name for p in params[:2]] == ["dense1.weight", "dense1.bias"]


def test_operators_for_type_checkers():
    """On a failure, write the names that are missing into the module."""
    source = Path(graphopt.builder.__file__).with_name("_operator_methods.py")
    named = set(re.findall(r"^    (\w+): _Append$", source.read_text(), re.MULTILINE))
    assert graphopt.builder.operator_names() - named == set()


def test_a_fault_of_a_file_names_it(tmp_path):
    """In what its parameters are, too, not only in how it is read."""
    path = tmp_path / "empty.onnx"
    onnx.save(onnx.parser.parse_model(NO_WEIGHT), path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        graphopt.parameters(path)
    trained().save(tmp_path / "train.onnx")
    with pytest.raises(ValueError, match=r"train\.onnx.*is a training graph already"):
        graphopt.parameters(tmp_path / "train.onnx")
