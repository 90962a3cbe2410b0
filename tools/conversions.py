"""State conversions against the frameworks themselves: 20 steps there and 20 here, and 40 there.

``python -m tools.conversions torch``, in an environment that has it, also ``timm`` or
``mindspore``: parameters get the same gradients here and there, and the state is handed over in the
middle, in both directions. ``--write DIR`` keeps the checkpoints; the tests read those of
MindSpore, which is too large for their environments.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import graphopt
from graphopt import conversion

Arrays = dict[str, np.ndarray]
Framework = Callable[[Mapping[str, Any], Arrays, Path | None, int, int, Path], Arrays]

SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (5, 7), "fc.bias": (5,)}
HALF, WHOLE = 20, 40

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "torch": {
        "plain": {"lr": 0.01, "alpha": 0.99, "eps": 1e-8},
        "momentum": {"lr": 0.01, "alpha": 0.95, "eps": 1e-6, "momentum": 0.9, "weight_decay": 1e-3},
        "centered": {"lr": 0.002, "alpha": 0.9, "eps": 1e-3, "momentum": 0.5, "centered": True},
    },
    "timm": {
        "plain": {"lr": 0.01},
        "momentum": {"lr": 0.01, "eps": 1e-3, "momentum": 0.9, "weight_decay": 1e-3},
        "decoupled": {
            "lr": 0.01,
            "alpha": 0.95,
            "momentum": 0.9,
            "weight_decay": 0.01,
            "decoupled_decay": True,
            "lr_in_momentum": False,
            "centered": True,
            "eps": 1e-3,
        },
    },
    "mindspore": {
        "plain": {"learning_rate": 0.01},
        "momentum": {"learning_rate": 0.01, "decay": 0.95, "momentum": 0.9, "weight_decay": 1e-3},
        "centered": {"learning_rate": 0.002, "momentum": 0.5, "centered": True, "epsilon": 1e-3},
        "listed": {"learning_rate": [0.01 / (step + 1) for step in range(WHOLE)]},
    },
}


def start() -> Arrays:
    """What the parameters start from."""
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients(begin: int, end: int) -> Iterator[Arrays]:
    """The gradients of some steps."""
    for step in range(begin, end):
        rng = np.random.default_rng([2, step])
        yield {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def optimizer(framework: str, case: Mapping[str, Any]) -> graphopt.RMSProp:
    """What does the same here."""
    names = {"lr": "learning_rate", "alpha": "decay", "eps": "epsilon"}
    names |= {"decoupled_decay": "decoupled_weight_decay"}
    names |= {"lr_in_momentum": "learning_rate_inside_moment"}
    arguments = {names.get(name, name): value for name, value in case.items()}
    if framework == "torch":
        arguments |= {"epsilon_inside_root": False, "initial_mean_square": 0.0}
        arguments |= {"learning_rate_inside_moment": False}
    groups = [{"params": [graphopt.Parameter(name, shape) for name, shape in SHAPES.items()]}]
    return graphopt.RMSProp(groups, **arguments)


def here(session: graphopt.Session, begin: int, end: int) -> None:
    """Take some steps."""
    for step in gradients(begin, end):
        session.step({f"{name}_grad": gradient for name, gradient in step.items()})


def torch_there(
    case: Mapping[str, Any], values: Arrays, source: Path | None, begin: int, end: int, save: Path
) -> Arrays:
    """Steps of ``torch.optim.RMSprop``."""
    import torch

    return _torch_steps(torch.optim.RMSprop, case, values, source, begin, end, save)


def timm_there(
    case: Mapping[str, Any], values: Arrays, source: Path | None, begin: int, end: int, save: Path
) -> Arrays:
    """Steps of timm's ``RMSpropTF``."""
    from timm.optim import RMSpropTF

    return _torch_steps(RMSpropTF, case, values, source, begin, end, save)


def _torch_steps(
    kind: Any,
    case: Mapping[str, Any],
    values: Arrays,
    source: Path | None,
    begin: int,
    end: int,
    save: Path,
) -> Arrays:
    import torch

    held = {n: torch.nn.Parameter(torch.from_numpy(v.copy())) for n, v in values.items()}
    made = kind(list(held.values()), **case)
    if source is not None:
        found = torch.load(source, weights_only=True)
        for name, tensor in held.items():
            tensor.data.copy_(found["model"][name])
        made.load_state_dict(found["optimizer"])
    for step in gradients(begin, end):
        for name, tensor in held.items():
            tensor.grad = torch.from_numpy(step[name])
        made.step()
    weights = {name: tensor.detach() for name, tensor in held.items()}
    torch.save({"model": weights, "optimizer": made.state_dict()}, save)
    return {name: tensor.numpy() for name, tensor in weights.items()}


def mindspore_there(
    case: Mapping[str, Any], values: Arrays, source: Path | None, begin: int, end: int, save: Path
) -> Arrays:
    """Steps of ``mindspore.nn.RMSProp``."""
    import mindspore

    held = [mindspore.Parameter(v.copy(), name=name) for name, v in values.items()]
    made = mindspore.nn.RMSProp([{"params": held}], **case)
    if source is not None:
        left, _ = mindspore.load_param_into_net(made, mindspore.load_checkpoint(str(source)))
        assert set(left) <= {"learning_rate"}, left  # a list, which only the optimizer has
    for step in gradients(begin, end):
        made(tuple(mindspore.Tensor(step[parameter.name]) for parameter in held))
    save.unlink(missing_ok=True)
    mindspore.save_checkpoint(made, str(save))
    return {parameter.name: parameter.asnumpy() for parameter in held}


FRAMEWORKS: dict[str, Framework] = {
    "torch": torch_there,
    "timm": timm_there,
    "mindspore": mindspore_there,
}


def differences(framework: str, case: Mapping[str, Any], folder: Path) -> tuple[float, float]:
    """The largest differences after 40 steps: begun there and ended here, and the other way.

    Of a parameter, the difference is relative to its largest absolute value.
    """
    there = FRAMEWORKS[framework]
    whole = there(case, start(), None, 0, WHOLE, folder / "40.ckpt")
    there(case, start(), None, 0, HALF, folder / "20.ckpt")
    graph = graphopt.update_graph(optimizer(framework, case))
    names = list(SHAPES)
    session = graphopt.Session(graph, parameters=start())
    conversion.load_state(session, folder / "20.ckpt", names=names)
    here(session, HALF, WHOLE)
    ended_here = _largest(whole, session.state)
    session = graphopt.Session(graph, parameters=start())
    here(session, 0, HALF)
    conversion.save_state(session, folder / "ours.ckpt", framework, names=names)  # type: ignore[arg-type]
    zeros = {name: np.zeros_like(value) for name, value in whole.items()}
    ended = there(case, zeros, folder / "ours.ckpt", HALF, WHOLE, folder / "ended.ckpt")
    return ended_here, _largest(whole, ended)


def _largest(whole: Arrays, other: Mapping[str, np.ndarray]) -> float:
    return max(
        float(np.abs(value - other[name]).max() / np.abs(value).max())
        for name, value in whole.items()
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=list(FRAMEWORKS))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    for name, case in CASES[options.framework].items():
        with tempfile.TemporaryDirectory() as folder:
            ended_here, ended_there = differences(options.framework, case, Path(folder))
            print(f"{options.framework} {name}: there, here {ended_here:.1e}; ", end="")
            print(f"here, there {ended_there:.1e}")
            if options.write is not None:
                for number in ("20", "40"):
                    target = options.write / f"{options.framework}_{name}_{number}.ckpt"
                    target.write_bytes(Path(folder, f"{number}.ckpt").read_bytes())


if __name__ == "__main__":
    main()
