"""The update of a parameter as formulas: in names, and with the numbers of one parameter."""

# ruff: noqa: RUF001  # formulas have minus signs and Greek letters

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graphopt import _words
from graphopt.inspection import words
from graphopt.inspection.facts import OptimizerFacts, ParameterFacts, Schedule

Line = tuple[str, str]
"""A line of a formula, and what it is."""

_CENTRALIZED = "g ← g − mean(g)"


@dataclass(frozen=True)
class _Terms:
    """How what an update multiplies, adds and divides by is written."""

    rate: str = "learning_rate"
    weight_decay: str = "weight_decay"
    loss_scale: str = "loss_scale"
    decay: str = "decay"
    rest: str = "(1 − decay)"
    momentum: str = "momentum"
    epsilon: str = "epsilon"
    clip_norm: str = "clip_norm"
    clip_value: str = "clip_value"


def formula(optimizer: OptimizerFacts, *, decays: bool, centralized: bool) -> tuple[str, ...]:
    r"""The update of a parameter w with the gradient g, line by line, in names.

    Args:
        optimizer: The optimizer.
        decays: Whether any parameter has weight decay.
        centralized: Whether any gradient is centralized.

    Example:
        >>> facts = OptimizerFacts("RMSProp", "graph", momentum=0.0, loss_scale=1.0)
        >>> print(*formula(facts, decays=False, centralized=False), sep="\n")
        s ← decay · s + (1 - decay) · g²
        w ← w - learning_rate · g / √(s + epsilon)
    """
    if optimizer.name == "SGD":
        return ("w ← w - learning_rate · g",)
    if optimizer.name != "RMSProp":
        return ()
    terms = _Terms()
    which = {_CENTRALIZED: "    convolution weights of some groups"}
    update = _update(optimizer, terms, decays=decays, centralized=centralized)
    lines = [line + which.get(line, "") for line, _ in update]
    if optimizer.centered and optimizer.guarded:
        lines.append(f"m and w stay where {_radicand(optimizer, terms)} is not greater than 0")
    if optimizer.skip_on_overflow:
        lines.append("nothing changes where a gradient is infinite or NaN")
    return tuple(line.replace("−", "-") for line in lines)


def update_lines(optimizer: OptimizerFacts, parameter: ParameterFacts) -> list[Line]:
    """The update of one parameter, with its numbers; a letter stands for one that is not known.

    Returns:
        Lines such as ``("m ← 0.9 · m + 0.1 · g / √(s + 1e-10)", "moment, starts at 0")``. Of an
        optimizer other than RMSProp its general formula, and then the numbers.
    """
    rate, decay = words.schedule(parameter.learning_rate), words.schedule(parameter.weight_decay)
    if optimizer.name != "RMSProp":
        numbers = {"learning rate": rate, "weight decay": decay}
        numbers |= {_words.shown(name): _words.number(n) for name, n in optimizer.others.items()}
        lines = [*optimizer.formula, *(f"{name} = {value}" for name, value in numbers.items())]
        return [(line, "") for line in lines]
    rest = None if optimizer.decay is None else 1 - optimizer.decay
    terms = _Terms(
        rate=_term(parameter.learning_rate, "η"),
        weight_decay=_term(parameter.weight_decay, "λ"),
        loss_scale=_term(optimizer.loss_scale, "loss_scale"),
        decay=_term(optimizer.decay, "ρ"),
        rest=_term(rest, "(1 − ρ)"),
        momentum=_term(optimizer.momentum, "β"),
        epsilon=_term(optimizer.epsilon, "ε"),
        clip_norm=_term(optimizer.clip_norm, "clip_norm"),
        clip_value=_term(optimizer.clip_value, "clip_value"),
    )
    return [
        *([(f"η ← {rate}", "learning rate of the step")] if terms.rate == "η" else []),
        *([(f"λ ← {decay}", "weight decay of the step")] if terms.weight_decay == "λ" else []),
        *_update(
            optimizer,
            terms,
            decays=parameter.weight_decay != 0,
            centralized=parameter.grad_centralization,
        ),
        *(
            [(f"only where group_mask[{parameter.group}] is true", "group mask")]
            if optimizer.group_mask and parameter.group is not None
            else []
        ),
        *(
            [("only where all gradients are finite", "else the step is skipped")]
            if optimizer.skip_on_overflow
            else []
        ),
    ]


def _term(value: Schedule, letter: str) -> str:
    """A number as text, or the letter that stands for what is none."""
    return letter if value is None or isinstance(value, Mapping) else _words.number(value)


def _update(
    optimizer: OptimizerFacts, terms: _Terms, *, decays: bool, centralized: bool
) -> Iterator[Line]:
    """The update by RMSProp."""
    scales = optimizer.loss_scale != 1
    if optimizer.unscales_first and scales:
        yield f"g ← g / {terms.loss_scale}", "loss scale"
        scales = False
    yield from _clipped(optimizer, terms)
    if decays and optimizer.decoupled_weight_decay:
        yield f"w ← w − {terms.rate} · {terms.weight_decay} · w", "decoupled weight decay"
    elif decays:
        scale = f" · {terms.loss_scale}" * scales
        yield f"g ← g + {terms.weight_decay}{scale} · w", "weight decay"
    if centralized:
        yield _CENTRALIZED, "centralization: mean over all axes but the first"
    if scales:
        yield f"g ← g / {terms.loss_scale}", "loss scale"
    start = optimizer.initial_mean_square
    starts = "" if start is None else f", starts at {_words.number(start)}"
    yield f"s ← {terms.decay} · s + {terms.rest} · g²", f"mean square{starts}"
    if optimizer.centered:
        yield f"a ← {terms.decay} · a + {terms.rest} · g", "mean gradient, starts at 0"
    yield from _step(optimizer, terms)


def _clipped(optimizer: OptimizerFacts, terms: _Terms) -> Iterator[Line]:
    """What limits the gradient."""
    if optimizer.clip_norm is not None:
        share = f"{terms.clip_norm} / (‖g‖ + 1e-06)"
        yield f"g ← g · min(1, {share})", f"norm of {words.norms(optimizer.clip_norm_per)}"
    if optimizer.clip_value is not None:
        limit = terms.clip_value
        yield f"g ← max(−{limit}, min({limit}, g))", "clipped"


def _step(optimizer: OptimizerFacts, terms: _Terms) -> Iterator[Line]:
    """The moment and the new parameter."""
    root = _root(optimizer, terms)
    moves = "step"
    if optimizer.centered and optimizer.guarded is not False:
        moves = f"where {_radicand(optimizer, terms)} > 0"
    outside = optimizer.learning_rate_inside_moment is False
    rate = f"{terms.rate} · "
    if optimizer.momentum == 0:
        yield f"w ← w − {rate}g / {root}", moves
        return
    step, ahead = f"{'' if outside else rate}g / {root}", "m"
    if optimizer.nesterov:
        yield f"u ← {step}", ""
        step, ahead = "u", f"({terms.momentum} · m + u)"
    yield f"m ← {terms.momentum} · m + {step}", "moment, starts at 0"
    yield f"w ← w − {rate if outside else ''}{ahead}", moves


def _radicand(optimizer: OptimizerFacts, terms: _Terms) -> str:
    """What stands under the root."""
    variance = "s − a²" if optimizer.centered else "s"
    is_inside = optimizer.epsilon_inside_root is not False and optimizer.epsilon != 0
    return f"{variance} + {terms.epsilon}" if is_inside else variance


def _root(optimizer: OptimizerFacts, terms: _Terms) -> str:
    """What the gradient is divided by."""
    radicand = _radicand(optimizer, terms)
    root = f"√{radicand}" if radicand == "s" else f"√({radicand})"
    is_outside = optimizer.epsilon_inside_root is False and optimizer.epsilon != 0
    return f"({root} + {terms.epsilon})" if is_outside else root
