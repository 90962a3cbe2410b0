"""From a session back into the module that it came from."""

import json
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from graphopt import states
from graphopt.marks import UNUSED
from graphopt.session import Session

Arrays = dict[str, np.ndarray]


def load_state(module: torch.nn.Module, session: Session) -> None:
    """See `graphopt.torch.load_state`."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
    if not isinstance(session, Session):
        raise TypeError(f"session: got {type(session).__name__}, expected a graphopt.Session")
    tensors = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    state = session.state
    trained = {
        name: array
        for name, array in state.items()
        if states.split(name, state)[0] == "" and name not in states.COUNTERS
    }
    forward = _forward(session, trained)
    arrays = {
        name: array
        for name, array in ({} if forward is None else _initializers(forward)).items()
        if name in tensors
    } | trained
    faults = [
        *_unexpected(trained, tensors),
        *(() if forward is None else _missing(module, arrays, forward)),
        *_unfit({name: array for name, array in arrays.items() if name in tensors}, tensors),
    ]
    if faults:
        raise ValueError(
            "the session has not trained this module: " + "; ".join(faults) + ". "
            "Nothing has been written"
        )
    with torch.no_grad():
        for name, array in arrays.items():
            tensors[name].copy_(_as_tensor(array, tensors[name].dtype))


def _forward(session: Session, trained: Arrays) -> onnx.ModelProto | None:
    """The trained forward model; None where the graph is an update alone."""
    try:
        return session.graph.forward(trained)
    except ValueError:
        return None


def _initializers(forward: onnx.ModelProto) -> Arrays:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in forward.graph.initializer}


def _unexpected(trained: Arrays, tensors: dict[str, torch.Tensor]) -> list[str]:
    names = [f"'{name}'" for name in trained if name not in tensors]
    return [f"the module has no {', '.join(names)}"] if names else []


def _missing(module: torch.nn.Module, arrays: Arrays, forward: onnx.ModelProto) -> list[str]:
    noted = {entry.key: entry.value for entry in forward.metadata_props}.get(UNUSED, "[]")
    parameters = dict(module.named_parameters(remove_duplicate=False))
    known = {id(parameters[name]) for name in (*arrays, *json.loads(noted)) if name in parameters}
    names = [f"'{name}'" for name, tensor in parameters.items() if id(tensor) not in known]
    return [f"the session has no {', '.join(names)}"] if names else []


def _unfit(arrays: Arrays, tensors: dict[str, torch.Tensor]) -> list[str]:
    """What is wrong with shapes and dtypes; and tensors that would get two values."""
    faults = []
    writers: dict[int, str] = {}
    for name, array in arrays.items():
        tensor = tensors[name]
        got, expected = _described(array), _described(tensor)
        if got != expected:
            faults.append(f"'{name}' is {expected} in the module, and {got} in the session")
        other = writers.setdefault(id(tensor), name)
        if other != name and not np.array_equal(array, arrays[other]):
            faults.append(f"'{other}' and '{name}' are one tensor in the module, and two here")
    return faults


def _described(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _as_tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.bfloat16:  # which NumPy itself does not have
        return torch.from_numpy(array.view(np.uint16)).view(dtype)
    return torch.from_numpy(np.array(array))
