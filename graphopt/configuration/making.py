"""What a configuration says, as Python's functions take it."""

from typing import Any

from graphopt.configuration.groups import grouped, rule_of, trained
from graphopt.configuration.reading import GROUPS, Configuration
from graphopt.configuration.semantics import MINDSPORE, SEMANTICS
from graphopt.parameter import Parameter, Parameters
from graphopt.rmsprop import RMSProp

_ONLY_PLAIN = {
    "provider": "CPUExecutionProvider",
    "layout": "auto",
    "portable": True,
    "gradient_outputs": False,
}
"""What training graphs alone have, and what it is by default."""


def optimizer_of(configuration: Configuration, parameters: Parameters) -> RMSProp:
    """The optimizer that a configuration says.

    Args:
        configuration: It.
        parameters: Those of the model.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A pattern matches nothing, a parameter is in two groups or in none, or what
            `RMSProp` refuses; the error has the file and the key.
    """
    arguments = _optimizer_arguments(configuration)
    kept = trained(configuration, parameters)
    params: list[Any] = kept
    if configuration.groups:
        params = grouped(configuration, kept)
    elif _semantics(configuration) != MINDSPORE:
        params = [{"params": list(kept)}]  # in a group, no name is left out of weight decay
    with configuration.naming("optimizer"):
        return RMSProp(params, **arguments)


def graph_arguments(configuration: Configuration) -> dict[str, Any]:
    """The arguments of `training_graph`, but for model and optimizer."""
    return {"loss": None, **configuration.section("graph")}


def device_arguments(configuration: Configuration) -> dict[str, Any]:
    """The arguments of `export_on_device`, but for model, optimizer and directory.

    Raises:
        ValueError: There is something that such files do not have.
    """
    graph = dict(configuration.section("graph"))
    for name, default in _ONLY_PLAIN.items():
        if graph.pop(name, default) != default:
            raise ValueError(
                f"'{configuration.file}': graph.{name}: is of training graphs alone, files for "
                "on-device training have none; leave it out"
            )
    return {"loss": None, **graph, **configuration.section("on_device")}


def checked_alone(configuration: Configuration) -> None:
    """Refuse what no model could be trained with; patterns are not looked at.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: One is out of range, or two exclude each other.
    """
    arguments = _optimizer_arguments(configuration)
    groups: list[Any] = [
        {"params": [Parameter(f"{GROUPS}[{index}]", (1,))], **rule_of(group)}
        for index, group in enumerate(configuration.groups)
    ]
    with configuration.naming("optimizer"):
        RMSProp(groups or [Parameter("parameter", (1,))], **arguments)


def left_to_the_command(configuration: Configuration) -> list[str]:
    """What the section for training lacks, if there is one: options that must stand beside it."""
    train = configuration.sections.get("train")
    if train is None:
        return []
    needs = {
        "data": True,
        "epochs": True,
        "export": train.get("export_best", False),
        "keep_best": train.get("export_best", False),
        "log": "log_every" in train,
    }
    return [name for name, needed in needs.items() if needed and not train.get(name)]


def _semantics(configuration: Configuration) -> str:
    return str(configuration.section("optimizer").get("semantics", MINDSPORE))


def _optimizer_arguments(configuration: Configuration) -> dict[str, Any]:
    """The arguments of `RMSProp`, but for parameters.

    Raises:
        ValueError: There is no learning rate, and none by default.
    """
    semantics = _semantics(configuration)
    arguments = {**SEMANTICS[semantics], **configuration.section("optimizer")}
    arguments.pop("semantics", None)
    if arguments.get("learning_rate", 0) is None:
        raise ValueError(
            f"'{configuration.file}': optimizer.learning_rate: is missing, {semantics} has no "
            "default for it"
        )
    return arguments
