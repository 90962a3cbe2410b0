"""What a user finds: at the top level, in each package, and on the command line."""

import importlib.metadata
import inspect
import pkgutil
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

import graphopt
from graphopt.cli import app

pytestmark = pytest.mark.any_runtime

PACKAGES = [
    "graphopt",
    *(
        module.name
        for module in pkgutil.walk_packages(graphopt.__path__, "graphopt.")
        if module.ispkg
    ),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_nothing_in_a_package_hides_one_of_its_modules(name):
    """Else ``import package.module`` would give something else than a module."""
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(package.__path__):
        found = vars(package).get(module.name)
        assert found is None or isinstance(found, ModuleType), f"{name}.{module.name}"


@pytest.mark.quick
def test_the_top_level_has_verbs_and_what_users_construct():
    assert [name for name in graphopt.__all__ if not hasattr(graphopt, name)] == []
    results = {
        "Artifacts",
        "Feed",
        "GradientGraph",
        "Inspection",
        "Profile",
        "Requirements",
        "TrainingGraph",
    }
    assert not results & vars(graphopt).keys()
    modules = {name for name in graphopt.__all__ if isinstance(getattr(graphopt, name), ModuleType)}
    assert modules == {"conversion", "distributed", "inspection", "reference", "schedules", "torch"}


def test_one_version():
    assert CliRunner().invoke(app, ["--version"]).output == f"graphopt {graphopt.__version__}\n"
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"] == {
        "version": {"attr": "graphopt.versions.GRAPHOPT"}
    }
    assert importlib.metadata.version("graphopt") == graphopt.__version__


# The functions behind a command, and the options that are of the command line alone: files, what
# is chosen of a table, and patterns of names.
COMMANDS = {
    "build": (
        (graphopt.RMSProp, graphopt.training_graph),
        {"forward", "output", "config", "start", "freeze"},
    ),
    "export-on-device": (
        (graphopt.RMSProp, graphopt.export_on_device),
        {"forward", "config", "freeze", "outputs"},  # outputs: one of them each time
    ),
    "profile": ((graphopt.profile,), {"data", "rows", "depth", "json"}),
    "inspect": (
        (graphopt.inspect,),
        {
            "file",
            "json",
            "html",
            "name",
            "group",
            "sort",
            "rows",
            "all",
            "graph",
            "fail-on",
            "profile",
        },
    ),
    "average": ((graphopt.average_checkpoints,), {"output"}),
    "verify": ((graphopt.verify,), {"file", "data", "json"}),
    "convert": (
        (graphopt.conversion.load_state,),
        {"graph", "from", "output", "to", "names", "graph-order", "transposed"},
    ),
    "diff": ((graphopt.inspection.diff,), {"rows", "json", "html"}),
}
# An option that may be repeated, or that is completed, names one of what the argument has several.
ONE_OF = {"dim": "dims", "provider": "providers"}
CPU = "CPUExecutionProvider"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_and_python_have_one_name_and_default_for_one_thing(command):
    functions, alone = COMMANDS[command]
    arguments = {
        name: argument.default
        for function in functions
        for name, argument in inspect.signature(function).parameters.items()
    }
    for option in typer.main.get_command(app).commands[command].params:
        name = option.opts[0].removeprefix("--")
        if name in alone:
            continue
        name = name.replace("-", "_")
        name = name if name in arguments else ONE_OF[name]
        default = arguments[name]
        if name == "providers":
            assert (option.default, default) in [(CPU, None), (CPU, (CPU,))]
        elif name == "loss_scale":  # which may be a word there
            assert float(option.default) == default
        elif default is not inspect.Parameter.empty:
            assert option.default == default, option.opts


def test_the_older_name_of_an_option_is_not_shown():
    profile = typer.main.get_command(app).commands["profile"]
    named = [profile.make_context("profile", ["g", o, "3"]) for o in ("--rows", "--top")]
    assert [context.params["rows"] for context in named] == [3, 3]
    assert "--top" not in CliRunner().invoke(app, ["profile", "--help"]).output
