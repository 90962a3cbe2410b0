"""Cases of ONNX's backend tests, and their slopes by differences in float64."""

import math
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

RIGHT, BESIDE, ZERO, REFUSED, WRONG = "right", "right beside a kink", "zero", "refused", "wrong"
OTHERWISE = "computed otherwise by the runtime"
NOT_RUN, NO_ORACLE, NOT_FINITE = "not run by the runtime", "no oracle", "not finite"
NO_INPUT, NO_OUTPUT = "no float input", "no float output"
ALONE = "run without its gradients"
SETTING = "a setting, no parameter"
FINE = (RIGHT, SETTING, BESIDE, ZERO, NO_INPUT, NO_OUTPUT)
FLOATS: dict[int, float] = {
    onnx.TensorProto.FLOAT: 1e-4,
    onnx.TensorProto.DOUBLE: 1e-6,
    onnx.TensorProto.FLOAT16: 3e-2,
    onnx.TensorProto.BFLOAT16: 2e-1,
}
DIRECTIONS = 3
_STEP = 1e-6
_COARSE_STEP, _COARSE = 1e-2, 5e-3  # where the evaluator calculates in float32
_AT_A_KINK = " at a kink"
_SHORT_STEP = 0.3  # where it rounds to float16


@dataclass(frozen=True)
class Verdict:
    """What became of one float input of a case.

    Attributes:
        case: The name of the case.
        operator: Its operator.
        input: The index of the input; -1 for the case as a whole.
        kind: One of the words above.
        detail: The message of an error, or how far off the gradient is.
    """

    case: str
    operator: str
    input: int
    kind: str
    detail: str = ""


@dataclass
class Case:
    """One case of a node.

    Attributes:
        name: Its name.
        operator: Its operator; those of other domains begin with their domain and "::".
        model: The model: usually one node.
        feeds: Its inputs.
        floats: The element types of those that are float tensors.
        places: Which inputs of the node the inputs are.
    """

    name: str
    operator: str
    model: onnx.ModelProto
    feeds: dict[str, Any]
    floats: dict[str, int]
    places: dict[str, int]


def is_float(info: onnx.ValueInfoProto) -> bool:
    """Whether an input or output is a float tensor."""
    return info.type.HasField("tensor_type") and info.type.tensor_type.elem_type in FLOATS


def scale(array: np.ndarray) -> float:
    """The mean of the absolute elements, if that is not 0."""
    finite = np.abs(array)[np.isfinite(array)]
    return max(float(finite.mean()), 1e-3) if finite.size else 1.0


class OtherShapeError(Exception):
    """A small change of an input gives a result of another shape."""


class Oracle:
    """The loss of a case in float64, and its slopes.

    Attributes:
        weights: What each float output is multiplied by; None for other outputs.
        error: Why there is no oracle, or nothing.
    """

    def __init__(self, case: Case, feeds: Mapping[str, Any]) -> None:
        self.weights: list[np.ndarray | None] = []
        self.error = ""
        self._step, self._random = _STEP, zlib.crc32(case.name.encode())
        self._tolerance = max(FLOATS[kind] for kind in case.floats.values())
        try:
            self._evaluator = ReferenceEvaluator(known(case.model))
            outputs = self._first_run(case, feeds)
        except Exception as error:  # noqa: BLE001 - whatever the evaluator's operators raise
            self.error = f"{type(error).__name__}: {error}"
            return
        for at, (info, output) in enumerate(zip(case.model.graph.output, outputs, strict=True)):
            random = np.random.default_rng([self._random, at])
            counts = is_float(info)
            self.weights.append(random.normal(size=np.shape(output)) if counts else None)
            if counts and np.asarray(output).dtype != np.float64:
                kind = helper.np_dtype_to_tensor_dtype(np.asarray(output).dtype)
                is_short = kind == onnx.TensorProto.FLOAT16
                self._step = _SHORT_STEP if is_short else _COARSE_STEP
                self._tolerance = max(self._tolerance, _COARSE, FLOATS.get(kind, 0))
        self.loss = self._loss(self._feeds)

    def _first_run(self, case: Case, feeds: Mapping[str, Any]) -> list[Any]:
        """In float64; in the dtypes of the case, where constants in it forbid that."""
        for dtype in (np.float64, None):
            self._feeds = {
                name: array.astype(dtype or array.dtype) if name in case.floats else array
                for name, array in feeds.items()
            }
            try:
                return self._run(self._feeds)
            except Exception:
                if dtype is None:
                    raise
        raise AssertionError

    def _run(self, feeds: Mapping[str, Any]) -> list[Any]:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return list(self._evaluator.run(None, dict(feeds)))

    def _loss(self, feeds: Mapping[str, Any]) -> float:
        outputs = self._run(feeds)
        if any(
            w is not None and np.shape(o) != w.shape
            for o, w in zip(outputs, self.weights, strict=True)
        ):
            raise OtherShapeError
        terms = (
            np.sum(np.asarray(output, np.float64) * weight)
            for output, weight in zip(outputs, self.weights, strict=True)
            if weight is not None
        )
        with np.errstate(all="ignore"):
            return float(sum(terms))

    def _direction(self, name: str, at: int) -> np.ndarray:
        key = [self._random, at, zlib.crc32(name.encode())]
        direction = np.random.default_rng(key).normal(size=self._feeds[name].shape)
        return np.asarray(direction, self._feeds[name].dtype)

    def slope(self, name: str, at: int) -> tuple[float, bool]:
        """The slope in a random direction, and whether there is a kink."""
        x, direction = self._feeds[name], self._direction(name, at)
        step = x.dtype.type(self._step * scale(x))
        here = self._loss(self._feeds)
        ahead = self._loss({**self._feeds, name: x + step * direction})
        behind = self._loss({**self._feeds, name: x - step * direction})
        sides = (ahead - here) / step, (here - behind) / step
        slope = (ahead - behind) / (2 * step)
        is_kink = abs(sides[0] - sides[1]) > 1e-3 * (abs(slope) + 1e-3)
        return slope, is_kink

    def compare(self, name: str, gradient: np.ndarray, loss: float) -> tuple[str, str]:
        """The verdict on the gradient of an input."""
        gradient = gradient.astype(np.float64)
        is_finite = math.isfinite(loss) and math.isfinite(self.loss)
        if is_finite and not math.isclose(loss, self.loss, rel_tol=1e-2, abs_tol=1e-2):
            return OTHERWISE, f"the loss is {loss:.6g} instead of {self.loss:.6g}"
        worst = 0.0
        for at in range(DIRECTIONS):
            kind, detail, error = self._compare_slope(name, at, gradient)
            if kind == WRONG and self._step == _STEP and _AT_A_KINK in detail:
                # Or a rounding: the evaluator calculates some operators in float32.
                self._step, self._tolerance = _COARSE_STEP, max(self._tolerance, _COARSE)
                kind, detail, error = self._compare_slope(name, at, gradient)
            if kind != RIGHT:
                return kind, detail
            worst = max(worst, error)
        return RIGHT, f"{worst:.1e}"

    def _compare_slope(self, name: str, at: int, gradient: np.ndarray) -> tuple[str, str, float]:
        slope, is_kink = self.slope(name, at)
        with np.errstate(invalid="ignore"):
            got = float(np.sum(gradient * self._direction(name, at)))
        if not (math.isfinite(slope) and math.isfinite(got)):
            return NOT_FINITE, f"{got:.4g} instead of {slope:.4g}", math.inf
        noise = 0.05 * max(abs(self.loss), 1)  # of float32, times the tolerance
        error = abs(got - slope) / max(float(np.sqrt(np.sum(gradient**2))), abs(slope), noise)
        if error > self._tolerance:
            where = _AT_A_KINK if is_kink else ""
            return WRONG, f"{got:.6g} instead of {slope:.6g}{where}", error
        return RIGHT, "", error


def known(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with names of operators that the reference evaluator has."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    for node in known.graph.node:
        if node.op_type == "Scatter":
            node.op_type = "ScatterElements"
            known.opset_import[0].version = 11
    return known
