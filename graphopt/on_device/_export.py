"""The files of on-device training."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from graphopt import _checks, _runtime
from graphopt._file_sets import write_together
from graphopt._files import PathLike, about as about_file
from graphopt._outputs import check_outputs
from graphopt.accumulation import Accumulation, checked_accumulation
from graphopt.build import checked_optimizer
from graphopt.carried import Array
from graphopt.differentiated import differentiated
from graphopt.dtypes import dtype_of
from graphopt.eval_model import eval_model
from graphopt.fingerprint import Fingerprint
from graphopt.forward import ForwardModel, read_with_files, with_weights
from graphopt.gradients import MEMORY, Memory
from graphopt.half import Precision, check_precision
from graphopt.large_models import save_model
from graphopt.losses import LABELS, LossFunction
from graphopt.manifest import Manifest
from graphopt.on_device import tensor_names
from graphopt.on_device._fitting import momentums
from graphopt.on_device._optimizer_model import optimizer_model as native_update
from graphopt.on_device._training_model import TrainingModel, with_gradients, with_update
from graphopt.on_device.checkpoint import OnDeviceCheckpoint, OptimizerState, write
from graphopt.on_device.session_state import GRAPH, Arrangement, from_state, read_stored
from graphopt.random_numbers import checked_seed
from graphopt.requirement import requirements
from graphopt.rmsprop import RMSProp
from graphopt.schedules.base import Fixed
from graphopt.soundness.errors import about, naming

_VERSION = 1
_TRAINING = "training_model.onnx"
_EVAL = "eval_model.onnx"
_OPTIMIZER = "optimizer_model.onnx"
_CHECKPOINT = "checkpoint"
_NOMINAL = "nominal_checkpoint"
_DESCRIPTION = "graphopt.json"
_MODELS = (_TRAINING, _EVAL, _OPTIMIZER)
_NAMES = (
    *_MODELS,
    *(str(Path(name).with_suffix(".ort")) for name in _MODELS),
    _CHECKPOINT,
    _NOMINAL,
    _DESCRIPTION,
)


@dataclass(frozen=True)
class Artifacts:
    """The files that `export_on_device` wrote.

    Attributes:
        training_model: What ``TrainStep`` runs.
        eval_model: What ``EvalStep`` runs.
        optimizer_model: What ``OptimizerStep`` runs; None where ``TrainStep`` updates.
        checkpoint: The parameters, and what else is carried from step to step.
        nominal_checkpoint: Names and dtypes of the same, without values; None if not asked for.
        description: What the files are, as JSON.
    """

    training_model: Path
    eval_model: Path
    optimizer_model: Path | None
    checkpoint: Path
    nominal_checkpoint: Path | None
    description: Path


def export_on_device(
    model: ForwardModel,
    loss: str | LossFunction,
    optimizer: RMSProp,
    directory: PathLike,
    *,
    optimizer_model: bool = False,
    gradient_accumulation: bool = False,
    group_mask: bool = False,
    nominal_checkpoint: bool = False,
    ort_format: bool = False,
    loss_output: str | None = None,
    labels: str = LABELS,
    outputs: Sequence[str] = (),
    state: Mapping[str, Array] | PathLike | None = None,
    straight_through: bool = False,
    memory: Memory = "fast",
    precision: Precision | None = None,
    accumulation: int | Accumulation | None = None,
    seed: int | None = 0,
    output: str | None = None,
) -> Artifacts:
    """Write the files with which ONNX Runtime's on-device training API trains.

    ``training_model.onnx``, ``eval_model.onnx`` and ``checkpoint`` are what it calls them, in every
    language that it has; ``graphopt.json`` describes them. Every ``TrainStep`` is a whole training
    step: it computes the gradients and writes parameters and states in place. ``OptimizerStep`` and
    ``LazyResetGrad`` are not needed. ONNX Runtime's own calls save and load the state, and export
    the trained model.

    With ``optimizer_model=True``, ``TrainStep`` adds gradients up, as in any application of that
    API, and ``optimizer_model.onnx`` is the update, for its ``OptimizerStep``. An application that
    trains with AdamW needs no other change than this file. There, the application sets the learning
    rate, by ``SetLearningRate`` or one of ONNX Runtime's schedulers: it stands for that of the
    optimizer, and groups keep their ratio to it.

    The parameters must be float32. The files need no value of the model twice: parameters and
    states stand in the checkpoint alone.

    Args:
        model: The forward model; see `training_graph`.
        loss: The loss; see `training_graph`.
        optimizer: Whose parameters are trained.
        directory: The folder for the files, which is made if its parent exists. Files of these
            names in it are replaced.
        optimizer_model: Write the update as a model of its own. Centered with momentum, and
            learning rates that are schedules or lists, do not fit in there.
        gradient_accumulation: Add the input ``update``, bool [1], after the labels: where it is
            False, the step only adds its gradients to those before; where it is True, their sum
            updates, as a sum of losses would. ``optimizer_model=True`` always can. Neither goes
            with a loss scale that is not constant, skipped steps, clipping or averages.
        group_mask: Add the input ``group_mask``, bool [groups]; see `training_graph`.
        nominal_checkpoint: Write ``nominal_checkpoint`` too: the checkpoint without values, for an
            application that gets them from elsewhere.
        ort_format: Write the models in ONNX Runtime's own format too, as ``.ort``, which is
            larger, but loaded two to three times as fast, and by builds that read no ONNX. Needs
            onnxruntime-training.
        loss_output: The output that the loss applies to, where the model has several.
        labels: The name of the input that a built-in loss reads.
        outputs: Outputs of the forward model that both models report after ``loss``.
        state: What to start from instead of the values of the model: `Session.state`, or a
            checkpoint of a session or of on-device training.
        straight_through: Train through quantization; see `training_graph`.
        memory: What the backward pass computes again rather than keep, "fast", "balanced" or
            "low"; see `training_graph`.
        precision: "float16" or "bfloat16", in which the safe part of the model is computed; see
            `training_graph`. What the files carry is float32.
        accumulation: After how many steps there is an update; see `training_graph`. What is added
            up is part of the state.
        seed: What random numbers begin with; see `training_graph`.
        output: The older name of ``loss_output``.

    Raises:
        FileNotFoundError: A path does not exist.
        ImportError: ``ort_format=True``, and onnxruntime-training is not installed.
        TypeError: An argument has the wrong type.
        ValueError: As in `training_graph`; a parameter is not float32; arguments that exclude each
            other; an unknown output; ``optimizer_model=True`` with what does not fit in there; the
            state is not one of this model and optimizer.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }''')
        >>> opt = RMSProp(parameters(model), learning_rate=0.01)
        >>> export_on_device(model, "mse", opt, "device").checkpoint
        PosixPath('device/checkpoint')
    """
    optimizer = checked_optimizer(optimizer).accumulating(checked_accumulation(accumulation))
    seed = checked_seed(seed)
    loss_output = _checks.renamed("loss_output", loss_output, "output", output)
    _checks.one_of("memory", memory, MEMORY)
    check_precision(precision, _runtime.CPU)
    flags = {
        "optimizer_model": optimizer_model,
        "gradient_accumulation": gradient_accumulation,
        "group_mask": group_mask,
        "nominal_checkpoint": nominal_checkpoint,
        "ort_format": ort_format,
    }
    for name, flag in flags.items():
        _checks.boolean(name, flag)
    for name in ("gradient_accumulation", "group_mask"):
        if optimizer_model and flags[name]:
            raise ValueError(
                f"{name}: got True with optimizer_model=True, whose inputs are those of ONNX "
                "Runtime's own optimizers; leave out one of them"
            )
    _check_options(optimizer, optimizer_model=optimizer_model, adds_up=gradient_accumulation)
    if ort_format:
        _runtime.training_package("ort_format=True", "for models in ONNX")
    proto, files = read_with_files(model)
    check_outputs(
        [("directory", Path(directory, name)) for name in _NAMES],
        [("the file of the model", file) for file in files],
    )
    # What a function of the user's raises is not about the model.
    with about_file(directory), naming(model) if isinstance(loss, str) else nullcontext():
        with about(model):
            forward = with_weights(proto, [p.name for p in optimizer.params])
        _check_outputs(forward, outputs)
        _check_float32({parameter.name: parameter.dtype for parameter in optimizer.params})
        update = native_update(optimizer) if optimizer_model else None
        built = differentiated(
            forward,
            loss,
            optimizer,
            loss_output=loss_output,
            labels=labels,
            straight_through=straight_through,
            memory=memory,
            precision=precision,
            seed=seed,
        )
        _check_float32({name: array.dtype.name for name, array in built.initial.items()})
        with about(model):
            if update is None:
                training = with_update(
                    built,
                    optimizer,
                    outputs=outputs,
                    group_mask=group_mask,
                    accumulate=gradient_accumulation,
                )
            else:
                training = with_gradients(built, optimizer, outputs=outputs)
            manifest = replace(Manifest.of(optimizer), loss=built.loss)
            graph = Fingerprint.of(manifest, forward, frozenset(built.initial), {}).entry
        evaluation = eval_model(
            forward,
            loss,
            training.trainable | training.frozen,
            loss_output=loss_output,
            labels=labels,
            outputs=outputs,
        )
    with about_file(directory):
        checkpoint = _checkpoint(training, optimizer, own_optimizer=update is not None)
        properties = {**checkpoint.properties, GRAPH: json.dumps(graph)}
        checkpoint = replace(checkpoint, properties=properties)
        if state is not None:
            values = state if isinstance(state, Mapping) else read_stored(state).state
            checkpoint = from_state(values, checkpoint)
    models = {_TRAINING: training.model, _EVAL: evaluation, _OPTIMIZER: update}
    checkpoints = {
        _CHECKPOINT: checkpoint,
        _NOMINAL: replace(checkpoint, nominal=True) if nominal_checkpoint else None,
    }
    with about_file(directory), naming(model):
        return _write(Path(directory), models, checkpoints, ort_format=ort_format)


def _check_options(optimizer: RMSProp, *, optimizer_model: bool, adds_up: bool) -> None:
    """Refuse what gradients in the buffers of ONNX Runtime have no place for."""
    if not (optimizer_model or adds_up):
        return
    defaults = dict.fromkeys(("accumulation", "clip_norm", "clip_value", "average"))
    defaults |= {"skip_on_overflow": False}
    chosen = {name: getattr(optimizer, name) for name in defaults}
    names = [name for name, value in chosen.items() if value != defaults[name]]
    if not isinstance(optimizer.loss_scale, float):
        names.insert(0, "loss_scale")
    if not names:
        return
    why = (
        "optimizer_model=True, whose OptimizerStep is given gradients and ONNX Runtime's own "
        "states alone; leave one of them out"
        if optimizer_model
        else "gradient_accumulation=True, which adds gradients up in ONNX Runtime's buffers as "
        "they are; pass accumulation=graphopt.Accumulation(None, 'sum') instead, which has an "
        "input update too"
    )
    raise ValueError(f"{names[0]}: got {getattr(optimizer, names[0])} with {why}")


def _check_outputs(forward: onnx.ModelProto, outputs: Sequence[str]) -> None:
    known = [value.name for value in forward.graph.output]
    if isinstance(outputs, str) or not all(isinstance(name, str) for name in outputs):
        raise TypeError(f"outputs: got {outputs!r}, expected a list of names")
    for name in outputs:
        if name not in known:
            raise ValueError(
                f"outputs: got '{name}', expected outputs of the model "
                f"({', '.join(repr(name) for name in known)})"
            )
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"outputs: got {list(outputs)}, expected each name once")


def _check_float32(tensors: Mapping[str, str]) -> None:
    """ONNX Runtime's operators that write in place know no other dtype."""
    for name, dtype in tensors.items():
        if dtype != "float32":
            raise ValueError(
                f"'{name}' is {dtype}, and ONNX Runtime's on-device training writes float32 only; "
                "export the model in float32"
            )


def _checkpoint(
    training: TrainingModel, optimizer: RMSProp, *, own_optimizer: bool
) -> OnDeviceCheckpoint:
    """What training starts from."""
    arrangement, state = Arrangement(), None
    if own_optimizer:
        kinds = momentums(optimizer)
        arrangement = Arrangement(kinds, optimizer.initial_mean_square)
        rate = optimizer.groups[0].learning_rate
        assert isinstance(rate, Fixed)  # other ones do not fit into the optimizer model
        state = OptimizerState(step=0, learning_rate=rate.constant)
    return OnDeviceCheckpoint(
        training.trainable, training.frozen, state, properties=arrangement.property()
    )


def _write(
    directory: Path,
    models: Mapping[str, onnx.ModelProto | None],
    checkpoints: Mapping[str, OnDeviceCheckpoint | None],
    *,
    ort_format: bool,
) -> Artifacts:
    """Write all files, or none; those that are None are removed, and so are older ones."""
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"cannot write to '{directory}': it is a file")
    if not directory.parent.is_dir():
        raise FileNotFoundError(
            f"cannot make '{directory}': the folder '{directory.parent}' does not exist; "
            "create it first"
        )
    directory.mkdir(exist_ok=True)
    in_ort_format = {name: Path(name).with_suffix(".ort").name for name in models}

    def fill(folder: Path) -> None:
        for name, model in models.items():
            if model is not None:
                with about_file(directory / name):
                    save_model(model, folder / name)
                if ort_format:
                    with about_file(directory / in_ort_format[name]):
                        _runtime.save_in_ort_format(folder / name, folder / in_ort_format[name])
        for name, checkpoint in checkpoints.items():
            if checkpoint is not None:
                with about_file(directory / name):
                    write(folder / name, checkpoint)
        description = _describe(folder, models, checkpoints[_CHECKPOINT])
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")

    names = (*models, *in_ort_format.values(), *checkpoints, _DESCRIPTION)
    write_together(directory, fill, names, last=_TRAINING)
    return Artifacts(
        training_model=directory / _TRAINING,
        eval_model=directory / _EVAL,
        optimizer_model=None if models[_OPTIMIZER] is None else directory / _OPTIMIZER,
        checkpoint=directory / _CHECKPOINT,
        nominal_checkpoint=None if checkpoints[_NOMINAL] is None else directory / _NOMINAL,
        description=directory / _DESCRIPTION,
    )


def _describe(
    folder: Path,
    models: Mapping[str, onnx.ModelProto | None],
    checkpoint: OnDeviceCheckpoint | None,
) -> dict[str, Any]:
    """What is in the files, for programs."""
    assert checkpoint is not None
    files = sorted(folder.iterdir())
    fed = {*checkpoint.trainable, *checkpoint.frozen, tensor_names.RESET}
    fed.update(tensor_names.gradient_buffer(name) for name in checkpoint.trainable)
    described = {}
    for name, model in models.items():
        if model is None:
            continue
        entry: dict[str, Any] = {"requirements": asdict(requirements(model))}
        if name != _OPTIMIZER:  # whose inputs are ONNX Runtime's
            entry["inputs"] = [_value(v) for v in model.graph.input if v.name not in fed]
            entry["outputs"] = [
                _value(v)
                for v in model.graph.output
                if not v.name.endswith(tensor_names.ACCUMULATED_OUT)
            ]
        described[name] = entry
    return {
        "version": _VERSION,
        "update": _TRAINING if models[_OPTIMIZER] is None else _OPTIMIZER,
        "models": described,
        "parameters": {name: list(array.shape) for name, array in checkpoint.trainable.items()},
        "state": {name: list(array.shape) for name, array in checkpoint.frozen.items()},
        "bytes": {path.name: path.stat().st_size for path in files},
        "sha256": {path.name: _digest(path) for path in files},
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": dtype_of(value),
        "shape": [dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
    }
