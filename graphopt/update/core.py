"""The update of a bucket as one ONNX function, composed of the stages in ``functions``.

Its name says what it is made of, for example ``RMSProp``, ``CenteredRMSPropMomentum`` or
``RMSPropWeightDecayUnscale``; a name always has the same inputs, outputs, attributes and body.

    inputs      w, g, s, a (Centered), m (Momentum, Nesterov), lr, f (Scale), k (WeightDecay),
                on (Mask)
    outputs     w1, s1, a1 (Centered), m1 (Momentum, Nesterov)
    attributes  decay, epsilon, momentum (Momentum, Nesterov), loss_scale (Unscale),
                clip_value (ClipValue)

with the parameters w, the gradients g, the mean square s, the mean gradient a, the moment m, the
learning rate lr, the factor f of the gradient, the factor of weight decay k and the bool on; the
last four are scalars, all others float32 and of one shape. ``Chunked`` before a name is the same,
row by row. ``Foreach3`` before a name is the same for three parameters: the inputs are w0, w1, w2,
g0, and so on, in any shapes with the same number of elements, then gate, a bool scalar for which
the writes wait. ``Float64`` behind a name is the same in float64, ``Float16`` that of parameters
that are float16, with states in float32.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import onnx

from graphopt.rmsprop import RMSProp, Rule
from graphopt.states import moved_by
from graphopt.update import functions

Momentum = Literal["", "Momentum", "Nesterov"]
WeightDecay = Literal["", "WeightDecay", "DecoupledWeightDecay"]


@dataclass(frozen=True)
class Variant:
    """What an update is made of.

    Attributes:
        centered: Subtract the square of the mean gradient under the root.
        momentum: How the step goes on in the direction of the last ones.
        epsilon_outside: Add epsilon to the root, not under it.
        rate_outside: Multiply by the learning rate after the moment, not before.
        weight_decay: Added to the gradient, or taken off the parameter before the update.
        unscale: Divide the gradient by the loss scale.
        mask: Keep everything as it is where the input ``on`` is False.
        chunked: The tensors are matrices, of which one row after the other is updated.
        tensors: For how many parameters, each with tensors of its own; 0: for a bucket.
        scale: Multiply the gradient by a factor of the step, before anything else.
        clip_value: Limit the elements of the gradient, after that.
        float64: Compute in float64, in which all tensors and scalars are then.
        float16: The parameters are float16, and the gradients that or float32; what is computed
            and all else is float32.
    """

    centered: bool = False
    momentum: Momentum = ""
    epsilon_outside: bool = False
    rate_outside: bool = False
    weight_decay: WeightDecay = ""
    unscale: bool = False
    mask: bool = False
    chunked: bool = False
    tensors: int = 0
    scale: bool = False
    clip_value: bool = False
    float64: bool = False
    float16: bool = False

    @property
    def name(self) -> str:
        """The name of the function."""
        parts = (
            f"Foreach{self.tensors}" if self.tensors else "",
            "Chunked" if self.chunked else "",
            "Centered" if self.centered else "",
            "RMSProp",
            self.momentum,
            "EpsilonOutside" if self.epsilon_outside else "",
            "RateOutside" if self.rate_outside else "",
            "Scale" if self.scale else "",
            "ClipValue" if self.clip_value else "",
            self.weight_decay,
            "Unscale" if self.unscale else "",
            "Mask" if self.mask else "",
            functions.FLOAT64 if self.float64 else "",
            functions.FLOAT16 if self.float16 else "",
        )
        return "".join(parts)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return (
            *self._of_each(("w", "g", *self._states)),
            *(["gate"] if self.tensors else []),
            "lr",
            *(["f"] if self.scale else []),
            *(["k"] if self.weight_decay else []),
            *(["on"] if self.mask else []),
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return self._of_each(self._new)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the attributes, which are those of the optimizer."""
        return (
            *("decay", "epsilon"),
            *(["momentum"] if self.momentum else []),
            *(["loss_scale"] if self.unscale else []),
            *(["clip_value"] if self.clip_value else []),
        )

    @property
    def text(self) -> str:
        """The function as ONNX text."""
        if self.float64:
            return functions.in_float64(replace(self, float64=False).text)
        if self.float16:
            lines = self._widening()
        elif self.tensors:
            lines = list(self._foreach())
        else:
            lines = self._scan() if self.chunked else list(self._stages())
        body = "\n".join(f"  {line}" for line in lines)
        return (
            f"{functions.HEADER}\n{self.name} <{', '.join(self.attributes)}> "
            f"({', '.join(self.inputs)}) => ({', '.join(self.outputs)})\n{{\n{body}\n}}\n"
        )

    def function(self, opset: int) -> onnx.FunctionProto:
        """The function, for a model of this opset."""
        if self.chunked and not self.float16:
            row = replace(self, chunked=False)
            return functions.load_chunked(self.text, row.text, opset)
        return functions.parse(self.text, opset)

    @property
    def one(self) -> "Variant":
        """The same for a bucket."""
        return replace(self, tensors=0)

    @property
    def wide(self) -> "Variant":
        """The same in float32."""
        return replace(self, float16=False)

    @property
    def _states(self) -> tuple[str, ...]:
        return tuple(state.symbol for state in moved_by(self))

    @property
    def _new(self) -> tuple[str, ...]:
        return ("w1", *(f"{state}1" for state in self._states))

    def _of_each(self, kinds: Iterable[str]) -> tuple[str, ...]:
        """The names of these tensors of all parameters."""
        if not self.tensors:
            return tuple(kinds)
        return tuple(f"{kind}_{index}" for kind in kinds for index in range(self.tensors))

    def _foreach(self) -> Iterator[str]:
        """One call a parameter, of which the gradient waits for the gate."""
        yield "flat = Constant <value_ints: ints = [-1]> ()"
        kinds = ("w", "g", *self._states)
        attributes = ", ".join(f"{name}: float = @{name}" for name in self.attributes)
        for index in range(self.tensors):
            yield f"held_{index} = Where (gate, g_{index}, g_{index})"
            for kind in kinds:
                source = f"held_{index}" if kind == "g" else f"{kind}_{index}"
                yield f"flat_{kind}_{index} = Reshape ({source}, flat)"
            given = [f"flat_{n}_{index}" if n in kinds else n for n in self.one.inputs]
            made = ", ".join(f"flat_{name}_{index}" for name in self._new)
            yield f"{made} = graphopt.{self.one.name} <{attributes}> ({', '.join(given)})"
            for old, new in zip(("w", *self._states), self._new, strict=True):
                yield f"shape_{old}_{index} = Shape ({old}_{index})"
                yield f"{new}_{index} = Reshape (flat_{new}_{index}, shape_{old}_{index})"

    def _widening(self) -> list[str]:
        """A call of the same in float32, between casts."""
        given = [f"wide_{name}" if name in ("w", "g") else name for name in self.inputs]
        made = ["wide_w1", *self.outputs[1:]]
        attributes = ", ".join(f"{name}: float = @{name}" for name in self.attributes)
        return [
            "wide_w = Cast <to: int = 1> (w)",
            "wide_g = Cast <to: int = 1> (g)",
            f"{', '.join(made)} = graphopt.{self.wide.name} <{attributes}> ({', '.join(given)})",
            "w1 = Cast <to: int = 10> (wide_w1)",
        ]

    def _scan(self) -> list[str]:
        """One call a row."""
        row = replace(self, chunked=False)
        rows = ("w", "g", *self._states)
        arguments = [f"{name}_row" if name in rows else name for name in row.inputs]
        attributes = ", ".join(f"{name}: float = @{name}" for name in row.attributes)
        given = ", ".join(f"float[N] {name}_row" for name in rows)
        made = ", ".join(f"float[N] {name}_row" for name in row.outputs)
        results = ", ".join(f"{name}_row" for name in row.outputs)
        return [
            f"{', '.join(self.outputs)} = Scan <num_scan_inputs: int = {len(rows)},",
            f"body: graph = row ({given}) => ({made})",
            "{",
            f"  {results} = graphopt.{row.name} <{attributes}> ({', '.join(arguments)})",
            f"}}> ({', '.join(rows)})",
        ]

    def _stages(self) -> Iterator[str]:
        w, g = "w", "g"
        if self.scale:
            yield f"factored = graphopt.Scale ({g}, f)"
            g = "factored"
        if self.clip_value:
            yield f"clipped = graphopt.ClipValue <clip_value: float = @clip_value> ({g})"
            g = "clipped"
        if self.weight_decay == "WeightDecay":
            yield f"decayed = graphopt.WeightDecay (w, {g}, k)"
            g = "decayed"
        elif self.weight_decay:
            yield "decayed = graphopt.DecoupledWeightDecay (w, lr, k)"
            w = "decayed"
        if self.unscale:
            yield f"unscaled = graphopt.Unscale <loss_scale: float = @loss_scale> ({g})"
            g = "unscaled"
        # A result that the mask may still replace is not the output yet.
        new = {name: f"{name}_new" if self.mask else f"{name}1" for name in ("w", *self._states)}
        yield f"gg = Mul ({g}, {g})"
        yield f"{new['s']} = graphopt.MovingAverage <decay: float = @decay> (s, gg)"
        variance = new["s"]
        if self.centered:
            yield f"{new['a']} = graphopt.MovingAverage <decay: float = @decay> (a, {g})"
            yield f"aa = Mul ({new['a']}, {new['a']})"
            yield f"variance = Sub ({new['s']}, aa)"
            variance = "variance"
        step = yield from self._step(variance, g, new)
        yield f"{new['w']} = Sub ({w}, {step})"
        if self.mask:
            for name in ("w", *self._states):
                yield f"{name}1 = graphopt.Mask (on, {name}, {new[name]})"

    def _step(self, variance: str, g: str, new: dict[str, str]) -> Generator[str, None, str]:
        """How far the parameters move; returns the name of it."""
        denominator = "DenominatorEpsilonOutside" if self.epsilon_outside else "Denominator"
        yield f"d = graphopt.{denominator} <epsilon: float = @epsilon> ({variance})"
        step = "u"
        if self.rate_outside:
            yield f"u = Div ({g}, d)"
        else:
            yield f"lg = Mul ({g}, lr)"
            yield "u = Div (lg, d)"
        if self.centered:
            # The moment needs a 0 where nothing moves.
            positive = "Positive" if self.momentum else "PositiveOrNaN"
            # An epsilon outside the root would hide that the variance is zero.
            yield f"moves = graphopt.{positive} ({variance if self.epsilon_outside else 'd'})"
            yield "guarded = graphopt.Guard (moves, u)"
            step = "guarded"
        if self.momentum:
            u, step = step, new["m"]
            moment = f"Moment <momentum: float = @momentum> (m, {u})"
            if self.centered:
                moment = f"GuardedMoment <momentum: float = @momentum> (moves, m, {u})"
            yield f"{step} = graphopt.{moment}"
            if self.momentum == "Nesterov":
                yield f"ahead = graphopt.Moment <momentum: float = @momentum> ({step}, {u})"
                step = "ahead"
        if self.rate_outside:
            yield f"scaled = Mul ({step}, lr)"
            step = "scaled"
        if self.momentum and self.centered:
            yield f"held = Mul ({step}, moves)"
            step = "held"
        return step


def variant(
    optimizer: RMSProp,
    rule: Rule,
    *,
    mask: bool = False,
    chunked: bool = False,
    tensors: int = 0,
    float16: bool = False,
) -> Variant:
    """What the update of parameters with this rule is made of.

    What comes before weight decay, and that, is left out where gradients are centralized, because
    all of it comes before that; a factor also where each parameter has one of its own.
    """
    alone = optimizer.clip_norm_per == "parameter"
    momentum: Momentum = (
        "Nesterov" if optimizer.nesterov else "Momentum" if optimizer.momentum else ""
    )
    weight_decay: WeightDecay = ""
    if rule.decays and optimizer.decoupled_weight_decay:
        weight_decay = "DecoupledWeightDecay"
    elif rule.decays and not rule.grad_centralization:
        weight_decay = "WeightDecay"
    return Variant(
        centered=optimizer.centered,
        momentum=momentum,
        epsilon_outside=not optimizer.epsilon_inside_root,
        rate_outside=bool(momentum) and not optimizer.learning_rate_inside_moment,
        weight_decay=weight_decay,
        scale=optimizer.unscales_first and not (alone or rule.grad_centralization),
        clip_value=optimizer.clip_value is not None and not rule.grad_centralization,
        unscale=optimizer.carried_loss_scale != 1,
        mask=mask,
        chunked=chunked,
        tensors=tensors,
        float64=optimizer.dtype == "float64",
        float16=float16,
    )


def functions_of(
    variants: Iterable[Variant], stages: Iterable[str], opset: int
) -> list[onnx.FunctionProto]:
    """The functions of these variants, these stages, and the stages that either calls, by name."""
    each = [one for variant in variants for one in (variant, variant.one, variant.wide)]
    called = [variant.function(opset) for variant in dict.fromkeys(each)]
    return functions.with_stages(called, stages, opset)
