"""From PyTorch to a forward model that is to be trained, and back.

PyTorch is imported when one of the two verbs is called, not before.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from graphopt.session import Session


def export(
    module: "torch.nn.Module",
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
) -> "ir.Model":
    """The forward model of a PyTorch module, as it should be for training.

    What the module computes is exported as it is: nothing is folded, merged or left out.

    - Parameters and buffers have their names of ``state_dict``. A parameter that has several names,
      because modules share it, is one initializer under the first of them.
    - Parameters with ``requires_grad=False``, buffers and other constants are frozen:
      `graphopt.parameters` leaves them out. The running statistics of batch normalization are
      carried by the training graph.
    - Each submodule is exported in the mode that it is in. In training mode, Dropout drops and
      batch normalization normalizes by the batch and moves its running statistics; in evaluation
      mode Dropout does nothing, and batch normalization uses its running statistics, which stay as
      they are, while its weight and bias are trained.
    - No gradient flows through ``detach()`` and out of ``torch.no_grad()``.
    - A loss that the module returns is an output, whose name is the ``loss`` of `training_graph`.

    The module is left as it is: its mode, values, gradients, and PyTorch's random numbers.

    Args:
        module: The module; call ``train()`` before, unless it shall be trained as in evaluation.
        args: Example inputs, a tuple, as the module is called. Only their shapes and dtypes matter.
            Numbers, bools, strings and None become part of the model; tensors may be nested in
            lists, tuples and dicts.
        kwargs: Further example inputs by name.
        input_names: Names of the tensors among the inputs, in order; by default those of the
            arguments of ``forward``.
        output_names: Names of the outputs, in order.
        dynamic_batch: Let the batch have any size: the first axis of the first tensor, and of
            those that have as many rows. Where the module works with one size only, the batch is
            fixed, and a warning says why. False fixes all sizes.
        dynamic_shapes: Which axes may have any size, said as for ``torch.export.export``, where a
            string is a name for a size: ``{"x": {0: "batch", 1: "time"}}``; it takes the place of
            ``dynamic_batch``.

    Returns:
        The model, which `graphopt.parameters`, `graphopt.training_graph` and
        `graphopt.export_on_device` take. ``onnx_ir.save(model, path)`` writes it to a file. Its
        values are its own: what the module learns later does not change them.

    Raises:
        ImportError: PyTorch or onnxscript is not installed.
        TypeError: An argument has the wrong type.
        ValueError: The module cannot be exported, or not so that it would be trained as in PyTorch:
            the message says why, and where in the module. Among these are control flow that
            depends on data, a ``torch.autograd.Function`` whose gradient is not that of its forward
            pass, and buffers that the forward pass changes, other than running statistics.

    Example:
        >>> import graphopt, torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU())
        >>> model = graphopt.torch.export(network, (torch.randn(8, 3),), input_names=["x"])
        >>> [p.name for p in graphopt.parameters(model)]
        ['0.weight', '0.bias']
        >>> model.graph.inputs[0].shape
        Shape([SymbolicDim('batch'), 3])
    """
    _require()
    from graphopt.torch import _export

    return _export.export(
        module,
        args,
        kwargs,
        input_names=input_names,
        output_names=output_names,
        dynamic_batch=dynamic_batch,
        dynamic_shapes=dynamic_shapes,
    )


def load_state(module: "torch.nn.Module", session: "Session") -> None:
    """Write what a session has trained back into the module that it came from.

    Trained parameters and running statistics go by name, bit for bit, into the tensors that the
    module has: also under the other names of a parameter that modules share, and on the device on
    which they are. Afterwards the module computes what `Session.export` writes.

    Frozen parameters and buffers are those of the graph, too. What the graph does not have stays
    as it is: parameters that the forward pass does not use, and ``num_batches_tracked``, which
    counts batches and is read nowhere.

    Args:
        module: The module that was exported, or another one of its class.
        session: A `graphopt.Session` of the training graph.

    Raises:
        ImportError: PyTorch is not installed.
        TypeError: An argument has the wrong type.
        ValueError: The module lacks names of the graph, has parameters that the graph lacks, or
            tensors have other shapes or dtypes. All are named, and nothing has been written.

    Example:
        >>> import graphopt, torch
        >>> network = torch.nn.Linear(3, 1)
        >>> model = graphopt.torch.export(network, (torch.randn(4, 3),), input_names=["x"])
        >>> opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01)
        >>> session = graphopt.Session(graphopt.training_graph(model, "mse", opt))
        >>> feeds = {"x": np.ones((4, 3), np.float32), "labels": np.zeros((4, 1), np.float32)}
        >>> outputs = session.step(feeds)
        >>> graphopt.torch.load_state(network, session)
        >>> bool((network.weight.detach().numpy() == session.state["weight"]).all())
        True
    """
    _require()
    from graphopt.torch import _load

    _load.load_state(module, session)


def _require() -> None:
    """Raise ImportError where PyTorch or its exporter's package is not installed."""
    try:
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"graphopt.torch needs PyTorch and onnxscript ({error}): pip install 'graphopt[torch]'"
        ) from error
