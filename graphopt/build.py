"""The public verbs: a forward model and an optimizer go in, a training graph comes out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from graphopt import _checks, web_gpu
from graphopt._memory import give_back_models
from graphopt._slips import says_what_is_meant
from graphopt.accumulation import Accumulation, checked_accumulation
from graphopt.builder import GraphBuilder
from graphopt.differentiated import Differentiated, differentiated, self_differentiated
from graphopt.forward import ForwardModel
from graphopt.gradient_outputs import GradientOutputs, checked_names, report_gradients
from graphopt.gradients import MEMORY, GradientGraph, Memory
from graphopt.graph import TrainingGraph, assemble, manifest_of
from graphopt.half import Precision, check_precision
from graphopt.losses import LABELS, LossFunction
from graphopt.random_numbers import checked_seed
from graphopt.rmsprop import RMSProp
from graphopt.soundness.errors import about
from graphopt.update.emit import append_update
from graphopt.update.layout import LayoutName, check_layout
from graphopt.versions import IR_VERSION, MIN_OPSET


@says_what_is_meant
def training_graph(
    model: ForwardModel,
    loss: str | LossFunction | None,
    optimizer: RMSProp,
    *,
    gradients: Mapping[str, str] | None = None,
    loss_output: str | None = None,
    labels: str = LABELS,
    group_mask: bool = False,
    portable: bool = True,
    provider: str = "CPUExecutionProvider",
    layout: LayoutName = "auto",
    straight_through: bool = False,
    memory: Memory = "fast",
    gradient_outputs: GradientOutputs = False,
    accumulation: int | Accumulation | None = None,
    precision: Precision | None = None,
    seed: int | None = 0,
    output: str | None = None,
) -> TrainingGraph:
    """One graph that computes the loss, the gradients and the update.

    Its inputs are those of the forward model, the labels, and what it carries from step to step:
    the trained parameters under their own names, the optimizer's state, the running statistics of
    batch normalization and ``global_step``. Its outputs are those of the forward model, ``loss``
    (without the loss scale), ``updated`` (a bool scalar that is True) and the new carried values.
    Initializers that the optimizer does not have stay as they are.

    Batch normalization whose scale or bias is trained normalizes by the batch and moves its
    running statistics; any other one is used as it is.

    Args:
        model: The forward model: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; float
            initializers, static or dynamic batch.
        loss: "cross_entropy" (logits [N, C] or [N, C, ...], int64 labels), "mse", "l1", "huber"
            or "bce_with_logits" (labels like the output), each a mean; or the name of a scalar
            output of the model; or a function ``loss(op, *outputs)`` that appends nodes with a
            `GraphBuilder` and returns a scalar. None only with ``gradients``.
        optimizer: Whose parameters are trained.
        gradients: For a model that computes its gradients itself, whatever made it: the name of
            the tensor that holds the gradient of each parameter. The update is appended to it, and
            onnxruntime-training is not needed. ``loss`` may then be the name of a scalar output,
            or None. Parameters may be initializers or inputs of the model.
        loss_output: The output that the loss applies to, where the model has several.
        labels: The name of the new input that a built-in loss reads.
        group_mask: Add the input ``group_mask``, bool [groups]: in a step, a group whose entry is
            False keeps its parameters, their states and the running statistics of its batch
            normalizations bit for bit.
        portable: Compute the gradients in standard ONNX operators, by graphopt's own rules. False
            lets onnxruntime-training build them, with operators that only it can run.
        provider: The execution provider on which the graph shall be fast, as ONNX Runtime calls it:
            the gradients of convolutions are formulated for it, and the layout suits it. The graph
            runs on any.
        layout: What is updated together. "buckets": small parameters are carried as one flat
            tensor, a large one as one of its own; "chunks": the same, cut into chunks that stay in
            the processor's cache, the rows of a matrix; "separate": each parameter is an input of
            its own shape; "auto": chunks for the CPU, otherwise buckets. The results, the names in
            `Session.state` and checkpoints are the same.
        straight_through: Train through QuantizeLinear and DynamicQuantizeLinear as if they did not
            round: a gradient passes where the integer is within its range, and none flows to the
            scale, as with PyTorch's ``fake_quantize_per_tensor_affine``.
        memory: What the backward pass keeps of the forward pass. "fast": all that it reads, but for
            what follows on the CPU, at hardly any cost, from one value that it reads anyway, as
            sigmoid(x) does from x. "balanced": what elementwise operators, batch normalizations and
            those that only move elements gave is computed again from the rest, where it is needed.
            "low": whole blocks are computed again, from a few values between them, in about the
            memory of the square root of the number of layers, for nearly one more forward pass.
            The results are the same but for rounding; `inspect` shows what a step holds.
        gradient_outputs: Report the gradients of all parameters, or of those that are named, as
            outputs ``<parameter>_grad``: without the loss scale, before clipping and weight decay.
        accumulation: After how many steps there is an update, from the mean of their gradients;
            or an `Accumulation`. None: each step is one.
        precision: "float16" or "bfloat16": a float32 model is computed in that where it is safe,
            above all its products of matrices and its convolutions; normalization, softmax, sums,
            exponentials, the loss and the update in float32. Parameters, states, running statistics
            and what is reported stay float32. What ``provider`` does not run in it is computed in
            float32 and rounded. With "float16", gradients need a loss scale.
        seed: What the random numbers of Dropout and of the other operators that draw some begin
            with, an int >= 0 and < 2**31. They follow from the states ``random_seed`` and
            ``random_step``, so that a run that goes on from a checkpoint is the same bit for bit,
            and other ones in each step. None: the runtime draws them, others in each session.
        output: The older name of ``loss_output``.

    Raises:
        FileNotFoundError: The path does not exist.
        ImportError: ``portable=False``, and onnxruntime-training is not installed.
        TypeError: An argument has the wrong type.
        ValueError: The file is not an ONNX model; the loss is unknown or not a scalar; a parameter
            of the optimizer is not in the model, or no gradient reaches it; an operator has no
            gradient; a name is taken; an argument has no effect beside another.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }''')
        >>> opt = RMSProp(parameters(model), learning_rate=0.01)
        >>> graph = training_graph(model, loss="mse", optimizer=opt)
        >>> [value.name for value in graph.model.graph.output]
        ['y', 'loss', 'updated', 'w.next', 'mean_square.w.next', 'global_step.next']
    """
    optimizer = checked_optimizer(optimizer).accumulating(checked_accumulation(accumulation))
    _checks.boolean("portable", portable)
    _checks.boolean("straight_through", straight_through)
    _check_options(group_mask, provider, layout)
    _checks.one_of("memory", memory, MEMORY)
    check_precision(precision, provider)
    loss_output = _checks.renamed("loss_output", loss_output, "output", output)
    seed = checked_seed(seed)
    reported = checked_names(optimizer, gradient_outputs)
    if gradients is None:
        built = differentiated(
            model,
            loss,
            optimizer,
            loss_output=loss_output,
            labels=labels,
            portable=portable,
            provider=provider,
            straight_through=straight_through,
            memory=memory,
            precision=precision,
            seed=seed,
        )
    else:
        _checks.unused(
            "gradients, which says that the model computes them and its loss itself",
            loss_output=loss_output is not None,
            labels=labels != LABELS,
            portable=not portable,
            straight_through=straight_through,
            memory=memory != "fast",
            precision=precision is not None,
        )
        if not isinstance(loss, str | None):
            raise TypeError(
                f"loss: got {type(loss).__name__}, expected the name of a scalar output: with "
                "gradients=... the model computes its loss itself"
            )
        with about(model):
            if optimizer.dynamic_loss_scale is not None:
                raise ValueError(
                    f"loss_scale: got {optimizer.loss_scale}, but with gradients=... the model "
                    "computes its gradients itself, which do not carry it; leave it out, or let "
                    "graphopt build the gradients"
                )
            built = self_differentiated(model, loss, optimizer, gradients, seed)
    with about(model):
        computed = built.gradients
    op = GraphBuilder(computed.model.graph)
    report_gradients(op, optimizer, computed.gradients, reported)
    del computed, op
    graph = _updated(built, optimizer, group_mask, provider, layout)
    del built
    give_back_models(sum(value.bytes for value in graph.carried))
    return graph


@says_what_is_meant
def update_graph(
    optimizer: RMSProp,
    *,
    group_mask: bool = False,
    provider: str = "CPUExecutionProvider",
    layout: LayoutName = "auto",
    accumulation: int | Accumulation | None = None,
) -> TrainingGraph:
    """The update alone, for gradients that something else computes.

    Its inputs are the gradients, called ``<parameter>_grad``, the parameters, their states and
    ``global_step``; its outputs are ``updated`` (a bool scalar that is True) and the new values.
    The gradients are those of ``loss_scale * loss``.

    Args:
        optimizer: Whose parameters are updated.
        group_mask: Add the input ``group_mask``; see `training_graph`.
        provider: The execution provider on which the update shall be fast.
        layout: What is updated together; see `training_graph`.
        accumulation: After how many steps there is an update; see `training_graph`.

    Raises:
        TypeError: ``optimizer`` is not an optimizer, or an argument has the wrong type.

    Example:
        >>> graph = update_graph(RMSProp([Parameter("w", (3,))], learning_rate=0.01))
        >>> session = Session(graph, parameters={"w": np.zeros(3, np.float32)})
        >>> bool(session.step({"w_grad": np.ones(3, np.float32)})["updated"])
        True
        >>> session.state["w"]
        array([-0.01, -0.01, -0.01], dtype=float32)
    """
    optimizer = checked_optimizer(optimizer).accumulating(checked_accumulation(accumulation))
    _check_options(group_mask, provider, layout)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": MIN_OPSET}, name="update")
    op = GraphBuilder(graph)
    gradients = {p.name: op.input(f"{p.name}_grad", p.dtype, p.shape) for p in optimizer.params}
    values = {p.name: op.input(p.name, p.dtype, p.shape) for p in optimizer.params}
    model = ir.Model(graph, ir_version=IR_VERSION)
    built = Differentiated(GradientGraph(model, values, gradients, {}))
    return _updated(built, optimizer, group_mask, provider, layout)


def _updated(
    built: Differentiated,
    optimizer: RMSProp,
    group_mask: bool,
    provider: str,
    layout: LayoutName,
) -> TrainingGraph:
    """The same with the update; what is exported has all parameters, or there is nothing to."""
    graph, initial = built.gradients, built.initial
    optimizer = optimizer.drawing(built.seed)
    op = GraphBuilder(graph.model.graph)
    gradients = graph.gradients
    if built.forward is not None:  # a gradient that is an input has a name of its own
        gradients = {n: g if g.producer() else op.Identity(g) for n, g in gradients.items()}
    update = append_update(
        op,
        optimizer,
        graph.parameters,
        gradients,
        layout=layout,
        provider=provider,
        initial=initial,
        statistics=graph.statistics.values(),
        group_mask=group_mask,
    )
    if provider == web_gpu.PROVIDER:
        web_gpu.suit_web_gpu(GraphBuilder(graph.model.graph), graph.model)
    forward = built.forward if initial.keys() >= graph.parameters.keys() else None
    manifest = manifest_of(optimizer, update, built.class_labels, group_mask, built.loss)
    if built.forward is not None:
        batch = {name: value for name, (_, value) in graph.statistics.items()}
        read = {name: str(value.name) for name, value in {**gradients, **batch}.items()}
        manifest = replace(manifest, gradients=read)
    return assemble(graph.model, update, manifest, forward, files=built.files)


def checked_optimizer(optimizer: Any) -> RMSProp:
    """The optimizer, if it is one."""
    if not isinstance(optimizer, RMSProp):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected a graphopt.RMSProp")
    return optimizer


def _check_options(group_mask: Any, provider: Any, layout: Any) -> None:
    _checks.boolean("group_mask", group_mask)
    check_layout(layout)
    if not isinstance(provider, str):
        raise TypeError(f"provider: got {type(provider).__name__}, expected a string")
    if not provider.endswith("ExecutionProvider"):
        raise ValueError(
            f"provider: got '{provider}', expected the name of an execution provider, such as "
            f"'CPUExecutionProvider', 'CUDAExecutionProvider' or '{web_gpu.PROVIDER}'"
        )
