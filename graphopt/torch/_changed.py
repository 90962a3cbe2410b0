"""What a forward pass changes, and a training graph would have to carry."""

from collections.abc import Collection

import onnx_ir as ir
import torch

from graphopt.torch._names import shared_names


def check_changed(graph: ir.Graph, module: torch.nn.Module, changed: Collection[str]) -> None:
    """Refuse changes that would be lost.

    A training graph carries parameters and the running statistics of batch normalization. Counters
    that the model does not read, such as ``num_batches_tracked``, are left out.

    Raises:
        ValueError: Something else is changed.
    """
    tensors = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    first = shared_names(module)
    statistics = {
        value.name
        for node in graph
        if node.op_type == "BatchNormalization"
        and bool(node.attributes.get_int("training_mode", 0))
        for value in node.inputs[3:]
        if value is not None
    }
    lost = [
        name
        for name in sorted(changed)
        if first[name] not in statistics
        and (first[name] in graph.initializers or tensors[name].is_floating_point())
    ]
    if lost:
        raise ValueError(
            f"the forward pass changes {', '.join(repr(name) for name in lost)}, which a training "
            "graph does not carry from step to step: it carries parameters and the running "
            "statistics of batch normalization"
        )
