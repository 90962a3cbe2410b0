"""The update as formulas."""

from graphopt.inspection.facts import OptimizerFacts


def formula(optimizer: OptimizerFacts, *, decays: bool, centralized: bool) -> tuple[str, ...]:
    r"""The update of a parameter w with the gradient g, line by line.

    Args:
        optimizer: The optimizer.
        decays: Whether any parameter has weight decay.
        centralized: Whether any gradient is centralized.

    Example:
        >>> facts = OptimizerFacts("RMSProp", "graph", decay=0.9, momentum=0.0, epsilon=1e-10)
        >>> print(*formula(facts, decays=False, centralized=False), sep="\n")
        s ← decay · s + (1 - decay) · g²
        w ← w - learning_rate · g / √(s + epsilon)
    """
    if optimizer.name == "SGD":
        return ("w ← w - learning_rate · g",)
    if optimizer.name != "RMSProp":
        return ()
    lines = []
    scaled = optimizer.loss_scale not in (None, 1.0)
    decoupled = decays and optimizer.decoupled_weight_decay
    if decays and not decoupled:
        lines.append(f"g ← g + w · weight_decay{' · loss_scale' if scaled else ''}")
    if centralized:
        lines.append("g ← g - mean(g)    convolution weights of some groups")
    if scaled:
        lines.append("g ← g / loss_scale")
    lines.append("s ← decay · s + (1 - decay) · g²")
    variance = "s"
    if optimizer.centered:
        lines.append("a ← decay · a + (1 - decay) · g")
        variance = "s - a²"
    root = _root(variance, optimizer)
    if decoupled:
        lines.append("w ← w - learning_rate · weight_decay · w")
    lines += _step(optimizer, root)
    if optimizer.centered and optimizer.guarded:
        lines.append(f"m and w stay where {root} is not greater than 0")
    return tuple(lines)


def _root(variance: str, optimizer: OptimizerFacts) -> str:
    """What the gradient is divided by."""
    plain = f"√{variance}" if variance == "s" else f"√({variance})"
    if optimizer.epsilon == 0:
        return plain
    if optimizer.epsilon_inside_root is False:
        return f"({plain} + epsilon)"
    return f"√({variance} + epsilon)"


def _step(optimizer: OptimizerFacts, root: str) -> list[str]:
    if not optimizer.momentum:
        return [f"w ← w - learning_rate · g / {root}"]
    inside = optimizer.learning_rate_inside_moment is not False
    u = f"learning_rate · g / {root}" if inside else f"g / {root}"
    rate = "" if inside else "learning_rate · "
    if optimizer.nesterov:
        return [f"u ← {u}", "m ← momentum · m + u", f"w ← w - {rate}(momentum · m + u)"]
    return [f"m ← momentum · m + {u}", f"w ← w - {rate}m"]
