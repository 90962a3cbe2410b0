"""Gradients of all cases of ONNX's own backend tests, against differences in float64.

``python -m tools.backend_sweep`` runs all cases, and ``python -m tools.backend_sweep Conv Gather``
those of some operators. Each case becomes a model whose float inputs are initializers, and whose
loss is a weighted sum of its float outputs. ONNX Runtime computes the gradients that graphopt
derives; the oracle is ONNX's reference evaluator on float64, in random directions.
"""

import json
import pkgutil
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import typer
from onnx import helper, numpy_helper

from graphopt.builder import GraphBuilder
from graphopt.gradients import differentiate, prepare
from graphopt.operators import of
from tools.backend_oracle import (
    ALONE,
    BESIDE,
    DIRECTIONS,
    FINE,
    FLOATS,
    NO_INPUT,
    NO_ORACLE,
    NO_OUTPUT,
    NOT_FINITE,
    NOT_RUN,
    REFUSED,
    RIGHT,
    SETTING,
    WRONG,
    ZERO,
    Case,
    Oracle,
    OtherShapeError,
    Verdict,
    is_float,
    scale,
)
from tools.backend_reviewed import REVIEWED

app = typer.Typer(add_completion=False)

_CASES = "onnx.backend.test.case.node"
_JITTERS = (0.0, 1e-2, -1e-2, 0.3)


def collect(*operators: str, expanded: bool = False) -> list[Case]:
    """The cases of these operators; of all if none is named.

    Args:
        operators: Their names, without a domain.
        expanded: Those too in which the operator is written out by its definition.
    """
    cases = []
    for test in _tests(operators):
        name = test.name.removeprefix("test_")
        if test.model is None or ("_expanded" in name and not expanded):
            continue
        if operators and all(n.op_type not in operators for n in test.model.graph.node):
            continue
        cases.append(_case(name, test.model, (test.data_sets or [([], [])])[0][0]))
    return cases


def _tests(operators: Sequence[str]) -> list[Any]:
    """The cases of these operators, and maybe others; those of all are slow to compute."""
    package = import_module(_CASES)
    wanted = {operator.lower() for operator in operators}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not operators:
            return list(package.collect_testcases(None))
        for module in pkgutil.iter_modules(package.__path__):
            name = module.name.removeprefix("ai_onnx_ml_")
            if not wanted.isdisjoint((name, name.replace("_", ""))):
                import_module(f"{_CASES}.{module.name}")
        return list(vars(package)["_NodeTestCases"])


def _case(name: str, model: onnx.ModelProto, given: Sequence[Any]) -> Case:
    node = model.graph.node[0]
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    feeds: dict[str, Any] = {}
    floats: dict[str, int] = {}
    for info, value in zip(model.graph.input, given, strict=False):
        array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        feeds[info.name] = array
        kind = info.type.tensor_type.elem_type if info.type.HasField("tensor_type") else 0
        if kind in FLOATS and isinstance(array, np.ndarray | np.generic) and array.size:
            floats[info.name] = kind
    places = {input_name: at for at, input_name in enumerate(node.input)}
    return Case(name, operator, model, feeds, floats, places)


def judge(case: Case) -> list[Verdict]:
    """A verdict for each float input, or one for the case."""

    def verdict(kind: str, detail: str = "", at: int = -1) -> Verdict:
        return Verdict(case.name, case.operator, at, kind, detail)

    if not case.floats:
        return [verdict(NO_INPUT)]
    if not any(is_float(info) for info in case.model.graph.output):
        return [verdict(NO_OUTPUT)]
    try:
        together = _compared(case, list(case.floats))
    except OtherShapeError:
        together = SETTING, ""
    if isinstance(together, dict):
        return [verdict(*together[name], case.places[name]) for name in case.floats]
    verdicts = []
    for name in case.floats:
        try:
            alone = _compared(case, [name])
        except OtherShapeError:
            alone = SETTING, "the shape of the result depends on it"
        kind, detail = alone[name] if isinstance(alone, dict) else alone
        at = case.places[name]
        if kind == REFUSED and at in of(case.model.graph.node[0]).settings:
            kind = SETTING
        verdicts.append(verdict(kind, detail, at))
    return verdicts


def _compared(case: Case, names: Sequence[str]) -> dict[str, tuple[str, str]] | tuple[str, str]:
    """What is found for each of these inputs, or for all of them."""
    found: dict[str, tuple[str, str]] = {}
    for jitter in _JITTERS:
        feeds = {**case.feeds, **_moved(case, names, jitter)}
        oracle = Oracle(case, feeds)
        if oracle.error:
            return NO_ORACLE, oracle.error
        computed = _gradients(case, names, feeds, oracle.weights)
        if isinstance(computed[0], str):
            kind, detail = computed
            if kind == REFUSED and len(names) == 1 and "no gradient of the loss reaches" in detail:
                if not any(oracle.slope(names[0], at)[0] for at in range(DIRECTIONS)):
                    return ZERO, detail
                if jitter != _JITTERS[-1]:
                    continue
            return kind, detail
        gradients, loss = computed
        found = {name: oracle.compare(name, gradients[name], loss) for name in names}
        if jitter:
            found = {
                name: (BESIDE, detail) if kind == RIGHT else (kind, detail)
                for name, (kind, detail) in found.items()
            }
        if not any(kind in (WRONG, NOT_FINITE) for kind, _ in found.values()):
            break
    return found


def _moved(case: Case, names: Sequence[str], jitter: float) -> dict[str, np.ndarray]:
    """The inputs with some noise, without infinite numbers and without those that are none."""
    random = np.random.default_rng(zlib.crc32(case.name.encode()))
    moved = {}
    for name in names if jitter else ():
        array = case.feeds[name]
        x = array.astype(np.float64)
        x = np.where(np.isfinite(x), x, random.normal(size=x.shape))
        noise = jitter * (0.5 + random.random(x.shape))
        moved[name] = (x + noise * scale(x)).astype(array.dtype)
    return moved


def _gradients(
    case: Case,
    names: Sequence[str],
    feeds: Mapping[str, Any],
    weights: Sequence[np.ndarray | None],
) -> tuple[dict[str, np.ndarray], float] | tuple[str, str]:
    """The gradients of these inputs and the loss, or why there are none."""
    model, fed = _model(case, feeds, weights)
    try:
        prepared, statistics = prepare(model, names)
        built = differentiate(prepared, names, prepared.graph.outputs[-1], statistics)
    except Exception as error:  # noqa: BLE001 - an error that is no ValueError is reported too
        if not isinstance(error, ValueError):
            return REFUSED, f"{type(error).__name__}: {error}"
        return REFUSED, str(error)
    outputs = []
    op = GraphBuilder(built.model.graph)
    for value in built.gradients.values():  # of bfloat16, NumPy knows nothing
        outputs.append(f"sweep/{value.name}")
        op.output(op.Cast(value, to=int(ir.DataType.DOUBLE)), outputs[-1])
    proto = ir.to_proto(built.model)
    inputs = {name: feeds[name] for name in (*fed, *names)}
    inputs |= {name: feeds[name] for name in built.statistics if name in feeds}
    inputs = {name: np.asarray(v) if np.isscalar(v) else v for name, v in inputs.items()}
    try:
        session = _session(proto)
        loss, *results = session.run(["sweep/loss", *outputs], inputs)
    except Exception as error:  # noqa: BLE001 - the runtime's
        if "Numpy_type" in str(error):
            return NOT_RUN, "NumPy has no such numbers to feed"
        try:
            _session(model).run(None, {name: feeds[name] for name in fed})
        except Exception as forward:  # noqa: BLE001 - the runtime's
            return NOT_RUN, f"{error}; the model itself: {forward}"
        return ALONE, str(error)
    return dict(zip(built.gradients, results, strict=True)), float(loss)


def _session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _model(
    case: Case, feeds: Mapping[str, Any], weights: Sequence[np.ndarray | None]
) -> tuple[onnx.ModelProto, list[str]]:
    """The case with tensors as initializers and its loss; and the inputs that are left."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    if not any(entry.domain in ("", "ai.onnx") for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", 17))
    graph, fed = model.graph, []
    for info in list(graph.input):
        if info.type.HasField("tensor_type"):
            array = np.asarray(feeds[info.name])
            graph.initializer.append(_tensor(array, info))
            graph.input.remove(info)
        else:
            fed.append(info.name)
    parts = []
    for info, weight in zip(list(graph.output), weights, strict=True):
        if weight is None:
            continue
        name = info.name
        kind = info.type.tensor_type.elem_type
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        graph.initializer.append(
            numpy_helper.from_array(weight.astype(dtype), f"sweep/{name}/weight")
        )
        graph.node.append(
            helper.make_node("Mul", [name, f"sweep/{name}/weight"], [f"sweep/{name}/w"])
        )
        graph.node.append(
            helper.make_node("ReduceSum", [f"sweep/{name}/w"], [f"sweep/{name}/sum"], keepdims=0)
        )
        graph.node.append(
            helper.make_node(
                "Cast", [f"sweep/{name}/sum"], [f"sweep/{name}/part"], to=onnx.TensorProto.FLOAT
            )
        )
        parts.append(f"sweep/{name}/part")
    graph.node.append(helper.make_node("Sum", parts, ["sweep/loss"]))
    graph.output.append(helper.make_tensor_value_info("sweep/loss", onnx.TensorProto.FLOAT, []))
    return model, fed


def _tensor(array: np.ndarray, info: onnx.ValueInfoProto) -> onnx.TensorProto:
    kind = info.type.tensor_type.elem_type
    if array.dtype.kind in "OUS":
        texts: list[Any] = [str(text) for text in array.flat]
        return helper.make_tensor(info.name, kind, array.shape, texts)
    return numpy_helper.from_array(array, info.name)


def sweep(cases: Sequence[Case]) -> Iterator[Verdict]:
    """The verdicts on all cases."""
    for case in cases:
        yield from judge(case)


def reviewed(verdict: Verdict) -> str | None:
    """Why a case is not right, if that has been looked at."""
    for (operator, part), reason in REVIEWED.items():
        if operator in ("", verdict.operator) and part in verdict.case:
            return reason
    return None


@app.command()
def main(
    operators: Annotated[list[str] | None, typer.Argument(help="Only these operators")] = None,
    expanded: Annotated[bool, typer.Option(help="Also definitions written out")] = False,
    out: Annotated[Path | None, typer.Option("--json", help="Write the verdicts there")] = None,
) -> None:
    """Print what is not right, and how many there are of each kind; 1 if one is not reviewed."""
    verdicts, surprises = [], 0
    for verdict in sweep(collect(*(operators or ()), expanded=expanded)):
        verdicts.append(verdict)
        if verdict.kind in FINE:
            continue
        reason = reviewed(verdict)
        surprises += reason is None
        where = f"{verdict.case}[{verdict.input}]"
        print(
            f"{verdict.kind:10} {where:60} {reason or f'NOT REVIEWED: {verdict.detail[:200]}'}",
            flush=True,
        )
    if out is not None:
        out.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
    for kind, count in Counter(verdict.kind for verdict in verdicts).most_common():
        print(f"{count:5} {kind}")
    raise typer.Exit(int(surprises > 0))


if __name__ == "__main__":
    app()
