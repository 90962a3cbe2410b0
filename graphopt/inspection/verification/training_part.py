"""The part of a training graph that computes the loss and the gradients, ready to run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt import _runtime
from graphopt._runtime_session import runtime_session
from graphopt._words import shown
from graphopt.builder import GraphBuilder
from graphopt.carried import filled
from graphopt.feeds import Feeds, check_fed, is_value
from graphopt.forward import to_ir
from graphopt.graph import TrainingGraph
from graphopt.graphs import operands, without_functions
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.verification.batches import PARAMETER, Array
from graphopt.inspection.verification.graph_update import fed_scale, gradient_of, slots
from graphopt.inspection.verification.interpreter import Interpreter, as_double, in_double
from graphopt.inspection.verification.runnable import GraphFailsError, NotRunError, in_a_line
from graphopt.operators import of
from graphopt.shapes.in_place import infer_shapes

_FATAL = 4  # ONNX Runtime's level of severity
_SMALLEST_NOISE = 0.05  # of a parameter of zeros
_NOISE = 0.1
_SCALES = (2.0, 8.0, 64.0)  # of the loss, where the graph does not say it

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """A parameter, where the graph carries it, and its gradient.

    Attributes:
        name: Its name.
        input: The input of the graph that holds it.
        offset: Where it begins there, in elements.
        shape: Its dimensions.
        gradient: The value of the graph that has the elements of its gradient, in their order.
    """

    name: str
    input: str
    offset: int
    shape: tuple[int, ...]
    gradient: str

    def of(self, array: Array) -> Array:
        """Its part of the array of the input, in its shape; they share memory."""
        size = int(np.prod(self.shape, dtype=np.int64))
        return array.reshape(-1)[self.offset : self.offset + size].reshape(self.shape)


class TrainingPart:
    """What a training graph computes before its update.

    Attributes:
        graph: The training graph.
        parameters: The parameters.
        loss: The name of the loss.
        scale_input: The input that holds the loss scale; None where that is a number.
        outputs: The names of the outputs that are floating point, the loss first.
        feeds: What a step is fed.
        gradients: The names of the gradients.
        providers: The execution providers.
        held: The part as a model of its own, which is fed what the graph draws at random.
        drawn: The names of what it draws.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        reading: Reading,
        nodes: Recovered,
        providers: Sequence[str],
    ) -> None:
        """Find it.

        Raises:
            NotRunError: There is none, or its values before the first step are not declared.
        """
        self.graph, self.providers = graph, providers
        proto = graph.model
        self.parameters = list(_parameters(reading, nodes))
        made = {name for node in proto.graph.node for name in node.output}
        for parameter in self.parameters:
            if parameter.gradient not in made:
                raise NotRunError("the gradients are fed, nothing computes them")
        carried = {value.input for value in self.graph.carried}
        new = {value.output for value in self.graph.carried}
        self.feeds = self.graph.inputs
        reported = [v for v in proto.graph.output if v.name not in new and _is_float(v)]
        self.loss = _loss(reported)
        self.outputs = list(dict.fromkeys((self.loss, *(value.name for value in reported))))
        claimed = nodes.optimizer if reading.described is None else reading.described.optimizer
        self._scale = claimed.constant_loss_scale
        scale = fed_scale(nodes.trained)
        self.scale_input = None if scale is None else scale.name
        self.gradients = [parameter.gradient for parameter in self.parameters]
        self.held = self._held()
        self._read = {str(value.name) for value in self.held.graph.inputs}
        self._start = {
            value.input: value.initial if isinstance(value.initial, np.ndarray) else filled(value)
            for value in self.graph.carried
            if not isinstance(value.initial, str | None)
        }
        self._start |= {
            value.input: self._start[value.initial].reshape(value.shape).astype(value.dtype)
            for value in self.graph.carried
            if isinstance(value.initial, str) and value.initial in self._start
        }
        if missing := carried - self._start.keys():
            raise NotRunError(f"it holds no value of '{shown(min(missing))}' to start from")

    def checked(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """What a caller feeds, as a session takes it, with what may be left out.

        Raises:
            TypeError: A feed has the wrong dtype.
            ValueError: One is missing, unknown, of the wrong shape, or holds what it must not.
        """
        optional = {"group_mask": np.bool_(1), self.scale_input: np.float32(_SCALES[0])}
        defaults = {
            feed.name: np.full(
                [dim for dim in feed.shape or () if isinstance(dim, int)],
                optional[feed.name],
                feed.dtype,
            )
            for feed in self.feeds
            if feed.name in optional
        }
        arrays: dict[str, Any] = dict(Feeds(self.feeds, defaults).checked(feeds))
        values = {name: v.numpy() if is_value(v) else v for name, v in arrays.items()}
        graph = self.graph
        scale = graph.fed_loss_scale
        check_fed(values, labels=graph.class_labels, rates=graph.fed_rates, scale=scale)
        return values

    def point(self, random: np.random.Generator, noise: float = _NOISE) -> dict[str, Array]:
        """What is carried, with parameters near those before the first step.

        Parameters often start at a kink, such as a bias of zero, or at a point where gradients
        vanish.
        """
        values = {name: np.array(array) for name, array in self._start.items()}
        for parameter in self.parameters:
            array = parameter.of(values[parameter.input])
            root = float(np.sqrt(np.mean(as_double(array) ** 2))) if array.size else 0.0
            moved = random.standard_normal(array.shape) * noise * max(root, _SMALLEST_NOISE)
            array[...] = (as_double(array) + moved).astype(array.dtype)
        if self.scale_input is not None:
            dtype = next((f.dtype for f in self.feeds if f.name == self.scale_input), "float32")
            values[self.scale_input] = np.array(random.choice(_SCALES), dtype)
        return values

    def scale(self, values: Values) -> float:
        """What the gradients are those of: the loss times this."""
        return self._scale if self.scale_input is None else float(values[self.scale_input])

    def as_trained(self, values: Values) -> dict[str, Any]:
        """The outputs, the gradients and what was drawn, as a session computes them."""
        return run(self._trained, [*self.outputs, *self.gradients, *self.drawn], values)

    def given(self, values: Values, drawn: Values) -> dict[str, Any]:
        """What `held` is fed: what the graph was fed, and what it drew."""
        known = {name: value for name, value in values.items() if name in self._read}
        known |= {name: drawn[name] for name in self.drawn if name in self._read}
        for factor, (mask, kept, dtype) in self._factors_of.items():
            known[factor] = (np.asarray(drawn[mask]) / kept).astype(dtype)
        return known

    def plain(self, given: Values, wanted: Sequence[str]) -> dict[str, Any]:
        """Values without optimizations of the runtime."""
        return run(self._plain, list(wanted), given)

    def exact(self, ends: float) -> Interpreter:
        """What computes the values in float64."""
        model = to_ir(ir.to_proto(self.held))
        in_double(model)
        return Interpreter(model, ends)

    def exposing(self, names: Iterable[str]) -> Any:
        """A session that also gives inner values."""
        graph = onnx.ModelProto()
        graph.CopyFrom(self.graph.model)
        there = {value.name for value in graph.graph.output}
        graph.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in there
        )
        made = TrainingGraph(graph, self.graph.carried)
        try:
            return runtime_session(made, self.providers, None, kernels=True)[0]
        except ValueError as error:
            raise NotRunError(in_a_line(error)) from None

    def load(self) -> None:
        """Prepare the session that runs it.

        Raises:
            GraphFailsError: ONNX Runtime does not take the graph.
            NotRunError: It does not give its gradients.
        """
        try:
            self._trained  # noqa: B018 - prepared when it is first read
        except NotRunError:
            try:
                runtime_session(self.graph, self.providers, None, kernels=True)
            except ValueError as error:
                raise GraphFailsError(in_a_line(error)) from None
            raise

    @cached_property
    def _trained(self) -> Any:
        return self.exposing([*self.gradients, *self.drawn])

    @cached_property
    def _plain(self) -> Any:
        return session_without_optimizations(ir.to_proto(self.held))

    def _held(self) -> ir.Model:
        """The part as a model of its own."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.graph.model)
        del proto.training_info[:], proto.metadata_props[:]
        model = _cut(to_ir(proto), [*self.outputs, *self.gradients])
        if any(node.domain in {name[0] for name in model.functions} for node in model.graph):
            model = to_ir(without_functions(ir.to_proto(model)))
        model.functions.clear()
        infer_shapes(model)
        self.drawn: list[str] = []
        self._factors_of: dict[str, tuple[str, float, np.dtype[Any]]] = {}
        for node in list(model.graph.all_nodes()):
            if of(node).is_random and not _drops_nothing(node):
                self._hold(model.graph, node)
        model.graph.sort()
        return _cut(model, [*self.outputs, *self.gradients])

    def _hold(self, graph: ir.Graph, node: ir.Node) -> None:
        """Feed what a node draws."""
        if node.graph is not graph:
            raise NotRunError(f"'{shown(node.name or node.op_type)}' draws numbers inside a loop")
        op = GraphBuilder(graph)
        drawn = node.outputs[1] if node.op_type == "Dropout" else node.outputs[0]
        name = str(drawn.name)
        self.drawn.append(name)
        if node.op_type == "Dropout":
            x, ratio = node.inputs[0], node.inputs[1]
            known = None if ratio is None else ir.convenience.get_const_tensor(ratio)
            if x is None or (ratio is not None and known is None):
                raise NotRunError(f"the ratio of '{shown(node.name or name)}' is not a constant")
            kept = 1.0 - (0.5 if known is None else float(known.numpy().item()))
            dtype = x.dtype or ir.DataType.FLOAT
            factor = ir.val(op.fresh_name(f"{name}/factor"), dtype)
            graph.inputs.append(factor)
            self._factors_of[str(factor.name)] = (name, kept, dtype.numpy())
            replaced = op.Mul(x, factor)
            old = node.outputs[0]
            old.replace_all_uses_with(replaced, replace_graph_outputs=True)
            old.name, replaced.name = f"{old.name}/dropped", old.name
        drawn.name = f"{name}/drawn"
        value = ir.val(name, drawn.dtype, drawn.shape)
        drawn.replace_all_uses_with(value, replace_graph_outputs=True)
        graph.inputs.append(value)
        graph.remove(node)


def session_without_optimizations(model: onnx.ModelProto) -> Any:
    """A session of the CPU that runs the nodes as they are.

    Raises:
        NotRunError: ONNX Runtime does not run the model.
    """
    runtime = _runtime.onnxruntime()
    options = _runtime.session_options(runtime)
    options.log_severity_level = _FATAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        data = model.SerializeToString()
        return runtime.InferenceSession(data, options, providers=[_runtime.CPU])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's
        raise NotRunError(in_a_line(error)) from None


def run(session: Any, wanted: Sequence[str], values: Values) -> dict[str, Any]:
    """Values that a session gives, by name.

    Raises:
        NotRunError: It fails.
    """
    names = list(dict.fromkeys(wanted))
    known = {value.name: values[value.name] for value in session.get_inputs()}
    try:
        return dict(zip(names, session.run(names, known), strict=True))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's
        raise NotRunError(in_a_line(error)) from None


def _cut(model: ir.Model, wanted: Sequence[str]) -> ir.Model:
    """Leave what some values of a model need, in place."""
    graph = model.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    values |= {str(value.name): value for value in graph.inputs}
    graph.outputs[:] = [values[name] for name in dict.fromkeys(wanted)]
    passes.RemoveUnusedNodesPass()(model)
    used = {value for node in graph for value in operands(node)} | set(graph.outputs)
    graph.inputs[:] = [value for value in graph.inputs if value in used]
    return model


def _parameters(reading: Reading, nodes: Recovered) -> Iterable[Trained]:
    places = [slot for slot in slots(nodes, reading.carried) if slot.kind == PARAMETER]
    for trained, slot in zip(nodes.trained, places, strict=True):
        name = gradient_of(trained).name
        yield Trained(slot.name, slot.input.name, slot.offset, slot.shape, name)


def _loss(reported: Sequence[onnx.ValueInfoProto]) -> str:
    """The output that is the loss: called so, or the only number."""
    if any(value.name == "loss" for value in reported):
        return "loss"
    numbers = [v.name for v in reported if not v.type.tensor_type.shape.dim]
    if len(numbers) != 1:
        raise NotRunError("no output of the graph is known to be its loss")
    return numbers[0]


def _is_float(value: onnx.ValueInfoProto) -> bool:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    return value.type.tensor_type.elem_type in (*floats, onnx.TensorProto.BFLOAT16)


def _drops_nothing(node: ir.Node) -> bool:
    return node.op_type == "Dropout" and (len(node.inputs) < 3 or node.inputs[2] is None)
