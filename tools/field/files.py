"""Real ONNX files that packages ship, fine-tuned: their last layers, and all of them.

``python -m tools.field.files`` downloads the packages into build/field, and writes
bench/files.json. A file is trained back to what it was: weights are disturbed, and the labels are
the outputs of the file as it came.
"""

import json
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import graphopt
from graphopt.forward import read_forward
from graphopt.graph import TrainingGraph
from graphopt.graphs import proto_graphs
from graphopt.inspection.verification.runnable import NotRunError
from tools.field.exact import exact_output
from tools.field.gradients import Values, gradients, probe

_ROOT = Path(__file__).parents[2]
_FOLDER = _ROOT / "build" / "field"
_RESULTS = _ROOT / "bench" / "files.json"
STEPS = 30
_LAST = 4
_NOISE = 0.3
_TRAINED = ("last layers", "all")
_IN_DOUBLE = (1e-4, 1e-6, 1e-8)  # the steps of differences, as parts of the loss
_IN_SINGLE = (0.3, 0.1, 0.03, 0.01, 0.003, 1e-3, 3e-4)


@dataclass(frozen=True)
class File:
    """A file of a package.

    Attributes:
        package: The package and its version, as pip calls them.
        path: Where the file lies in it.
        producer: What wrote it.
        inputs: Gives its inputs.
        output: The value that the loss reads.
        rate: The learning rate.
        only: A pattern of the names that are trained.
        fixed: Whether the shapes of what is fed are declared, and whole numbers are constants.
    """

    package: str
    path: str
    producer: str
    inputs: Callable[[np.random.Generator], Values]
    output: str
    rate: float = 3e-4
    only: str = "*"
    fixed: bool = False


@dataclass(frozen=True)
class FineTuned:
    """What was found.

    Attributes:
        package: That of the file.
        file: Its name.
        producer: What wrote it.
        trained: "last layers" or "all".
        parameters: How many tensors are trained.
        refused: The error, if it could not be trained.
        forward: The largest difference of the graph's output from the file's, over its largest.
        derivative: The relative difference of the gradient, along itself, from differences of
            the file's own loss.
        double: Whether the nodes of the file computed these in float64.
        before: The loss of the first step.
        after: That of the last one.
        seconds: What it took.
    """

    package: str
    file: str
    producer: str
    trained: str
    parameters: int = 0
    refused: str | None = None
    forward: float | None = None
    derivative: float | None = None
    double: bool = False
    before: float | None = None
    after: float | None = None
    seconds: float = 0.0


def _floats(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], Values]:
    return lambda rng: {k: rng.standard_normal(v, np.float32) for k, v in shapes.items()}


def _silero(rng: np.random.Generator) -> Values:
    return {
        "input": 0.1 * rng.standard_normal((2, 576), np.float32),
        "state": np.zeros((2, 2, 128), np.float32),
        "sr": np.array(16000, np.int64),
    }


FILES = (
    File(
        "basic-pitch==0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "tf2onnx",
        _floats(**{"serving_default_input_2:0": (2, 43844, 1)}),
        "StatefulPartitionedCall:2",
    ),
    File(
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        "tf2onnx",
        lambda rng: {"bytes": rng.integers(0, 256, (4, 2048)).astype(np.int32)},
        "target_label",
        rate=1e-5,
    ),
    File(
        "nudenet==3.4.2", "nudenet/320n.onnx", "PyTorch", _floats(images=(1, 3, 96, 96)), "output0"
    ),
    File(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "PaddlePaddle",
        _floats(x=(1, 3, 32, 32)),
        "p2o.Add.281",  # before the sigmoid, which is 0 or 1 for noise
        rate=1e-5,
    ),
    File(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "PaddlePaddle",
        _floats(x=(2, 3, 48, 32)),
        "p2o.Add.277",  # before the softmax
        rate=1e-5,
    ),
    File(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "PaddlePaddle",
        _floats(x=(2, 3, 48, 96)),
        "save_infer_model/scale_0.tmp_1",
        rate=1e-5,
    ),
    File(
        "ddddocr==1.6.1",
        "ddddocr/common_det.onnx",
        "PyTorch",
        _floats(images=(1, 3, 416, 416)),
        "output",
    ),
    File("ddddocr==1.6.1", "ddddocr/common.onnx", "PyTorch", _floats(input1=(1, 1, 64, 64)), "387"),
    File(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        "PyTorch",
        lambda rng: {
            "input": 0.1 * rng.standard_normal((4, 576), np.float32),
            "h": np.zeros((1, 1, 128), np.float32),
            "c": np.zeros((1, 1, 128), np.float32),
        },
        "speech_probs",
    ),
    File(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
        "PyTorch",
        _silero,
        "output",
        only="If_0_then*",
        fixed=True,
    ),
    File(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k_op15.onnx",
        "PyTorch",
        _silero,
        "output",
        fixed=True,
    ),
    File(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_op18_ifless.onnx",
        "PyTorch",
        _silero,
        "output",
        only="model.*",
    ),
    File(
        "onnx-asr==0.12.0",
        "onnx_asr/preprocessors/data/nemo80_conv.onnx",
        "onnxscript",
        lambda rng: {
            "waveforms": 0.1 * rng.standard_normal((2, 4000), np.float32),
            "waveforms_lens": np.array([4000, 3600]),
        },
        "features",
        rate=1e-5,
        only="stft*",  # filters below 0 have no logarithm
    ),
)


def fine_tune(file: File, trained: str) -> FineTuned:
    """Train the last layers of a file, or all."""
    start = time.perf_counter()
    named = FineTuned(file.package, Path(file.path).name, file.producer, trained)
    rng = np.random.default_rng(0)
    model = onnx.load(_downloaded(file))
    feeds = file.inputs(rng)
    if file.fixed:
        feeds = _fixed(model, feeds)
    if all(value.name != file.output for value in model.graph.output):
        shaped = onnx.shape_inference.infer_shapes(model).graph.value_info
        model.graph.output.extend(value for value in shaped if value.name == file.output)
    target = _run(model, feeds, file.output)
    labelled = {**feeds, "labels": target}
    try:
        chosen = _without_norms(model, graphopt.parameters(model).matching(file.only))
        if trained == "last layers":
            chosen = _last(model, chosen)
        graph = _graph(model, file, probe(chosen))
        state = graphopt.Session(graph).state
        values = {p.name: _disturbed(state[p.name], rng) for p in chosen}
        session = graphopt.Session(graph, parameters=values)
        outputs, found = gradients(session, labelled)
        optimizer = graphopt.RMSProp(
            chosen,
            learning_rate=file.rate,
            decay=0.9,
            epsilon=1e-12,
            epsilon_inside_root=False,
            initial_mean_square=0.0,
        )
        session = graphopt.Session(_graph(model, file, optimizer), parameters=values)
        losses = [float(session.step(labelled)["loss"]) for _ in range(STEPS)]
    except Exception as error:  # noqa: BLE001 - it is what the table shows
        refused = f"{type(error).__name__}: {error}"
        return replace(named, refused=refused, seconds=time.perf_counter() - start)
    started = _run(_with(model, values), feeds, file.output)
    derivative, double = _derivative(model, values, found, feeds, target, file.output)
    return replace(
        named,
        parameters=len(chosen),
        forward=float(abs(outputs[file.output] - started).max() / abs(started).max()),
        derivative=derivative,
        double=double,
        before=losses[0],
        after=losses[-1],
        seconds=time.perf_counter() - start,
    )


def _graph(model: onnx.ModelProto, file: File, optimizer: graphopt.RMSProp) -> TrainingGraph:
    return graphopt.training_graph(model, "mse", optimizer, loss_output=file.output)


def _downloaded(file: File) -> Path:
    path = _FOLDER / file.path
    if not path.exists():
        _FOLDER.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary"]
        subprocess.run([*pip, ":all:", "--dest", _FOLDER, file.package], check=True)
        for wheel in _FOLDER.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(_FOLDER, [n for n in archive.namelist() if n.endswith(".onnx")])
            wheel.unlink()
    return path


def _without_norms(model: onnx.ModelProto, parameters: graphopt.Parameters) -> graphopt.Parameters:
    """Without those of batch normalization, which stays as the file has it."""
    nodes = read_forward(model).graph.all_nodes()
    read = {
        value.name
        for node in nodes
        if node.op_type == "BatchNormalization"
        for value in node.inputs[1:3]
        if value is not None
    }
    return graphopt.Parameters(p for p in parameters if p.name not in read)


def _fixed(model: onnx.ModelProto, feeds: Values) -> Values:
    """Declare the shapes of what is fed, which a file may leave open; what remains to be fed.

    A whole number, such as a rate, becomes a constant, so that the branch is known that it takes.
    """
    graph, numbers = (
        model.graph,
        [n for n, v in feeds.items() if not v.ndim and v.dtype.kind == "i"],
    )
    kept = [value for value in graph.input if value.name not in numbers]
    for value in kept:
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in feeds[value.name].shape:
            shape.dim.add().dim_value = size
    del graph.input[:]
    graph.input.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(feeds[name], name) for name in numbers)
    return {value.name: feeds[value.name] for value in kept}


def _last(model: onnx.ModelProto, parameters: graphopt.Parameters) -> graphopt.Parameters:
    """Those that are read last."""
    order: dict[str | None, int] = {}
    for index, node in enumerate(read_forward(model).graph.all_nodes()):
        for value in node.inputs:
            if value is not None:
                order.setdefault(value.name, index)
    ordered = sorted(parameters, key=lambda p: order.get(p.name, -1))
    return graphopt.Parameters(ordered[-_LAST:])


def _disturbed(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(value.shape) * (value.std() if value.size > 1 else abs(value))
    return np.asarray(value + _NOISE * noise, value.dtype)


def _with(model: onnx.ModelProto, values: Values) -> onnx.ModelProto:
    """The file with other weights, which are initializers or constants, also in branches."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for graph in proto_graphs(changed.graph):
        for tensor in graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
        for node in graph.node:
            if node.op_type == "Constant" and node.output[0] in values:
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(values[node.output[0]]))
    return changed


def _run(model: onnx.ModelProto, feeds: Values, output: str) -> np.ndarray:
    """The output of a file, as nothing has optimized it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run([output], feeds)[0])


def _derivative(
    model: onnx.ModelProto,
    values: Values,
    gradients: Values,
    feeds: Values,
    target: np.ndarray,
    output: str,
) -> tuple[float, bool]:
    """How far the loss rises along the gradient, against the gradient's own length.

    Returns:
        The relative difference, the smallest of several steps: between what the loss is curved and
        its roundings, and between the kinks of a network of ReLUs. Whether it is in float64, as
        it is unless an operator has no kernel for that.
    """
    length = float(np.sqrt(sum(np.square(g, dtype="d").sum() for g in gradients.values())))

    def slopes(run: Callable[[Values], np.ndarray], parts: tuple[float, ...]) -> Iterator[float]:
        def loss(step: float) -> float:
            moved = {k: v + step / length * gradients[k].astype("d") for k, v in values.items()}
            return float(np.square(run(moved) - target, dtype="d").mean())

        start = loss(0.0)
        for part in parts:
            h = part * start / length
            yield (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)

    def rounded(moved: Values) -> np.ndarray:
        single = {name: value.astype("f") for name, value in moved.items()}
        return _run(_with(model, single), feeds, output)

    try:
        found, double = list(slopes(exact_output(model, feeds, output), _IN_DOUBLE)), True
    except NotRunError as error:
        print(error, file=sys.stderr)
        found, double = list(slopes(rounded, _IN_SINGLE)), False
    return min(abs(slope / length - 1) for slope in found), double


def main() -> None:
    """Fine-tune all files, or those whose name has a word that is an argument."""
    warnings.simplefilter("ignore")
    words = sys.argv[1:]
    known = json.loads(_RESULTS.read_text(encoding="utf-8")) if _RESULTS.exists() else []
    found = {(entry["file"], entry["trained"]): entry for entry in known}
    order = [(Path(file.path).name, trained) for file in FILES for trained in _TRAINED]
    for file in FILES:
        for trained in _TRAINED:
            key = (Path(file.path).name, trained)
            if not words or any(word in file.path for word in words):
                found[key] = asdict(fine_tune(file, trained))
                print(found[key], flush=True)
                text = json.dumps([found[key] for key in order if key in found], indent=1)
                _RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
