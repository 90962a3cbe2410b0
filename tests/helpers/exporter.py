"""PyTorch's own exporters, as tests use them: in silence."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from os import PathLike

import onnx
import pytest
import torch


@contextmanager
def silence() -> Iterator[None]:
    """They warn of the mode of training, and on their own account."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def legacy(module: torch.nn.Module, args: tuple, path: PathLike, **options) -> None:
    """Write a module as the older exporter does, in the mode of training and not folded."""
    options = {"opset_version": 17} | options
    with silence():
        torch.onnx.export(
            module,
            args,
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            **options,
        )


def dynamo(module: torch.nn.Module, args: tuple, **options) -> onnx.ModelProto:
    """A module as the newer exporter gives it; ``optimize`` is True, as by default there."""
    with silence():
        program = torch.onnx.export(module, args, dynamo=True, verbose=False, **options)
    return program.model_proto


@contextmanager
def one_registry() -> Iterator[None]:
    """Let the newer one do once what it does for each export.

    It reads the source of its 500 functions, and looks up all operators of PyTorch, 30 times.
    """
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry  # slow to import

    read = cache(ONNXRegistry.from_torchlib)

    def from_torchlib(opset_version: int) -> ONNXRegistry:
        registry = copy.copy(read(opset_version))
        registry.functions = {target: list(found) for target, found in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        patch.setattr(utils, "_materialize_cpp_cia_ops", cache(utils._materialize_cpp_cia_ops))
        yield
