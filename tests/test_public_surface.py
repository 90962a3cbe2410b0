"""What a user finds: at the top level, in each package, and on the command line."""

import importlib.metadata
import pkgutil
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
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


def test_the_top_level_has_verbs_and_what_users_construct():
    assert [name for name in graphopt.__all__ if not hasattr(graphopt, name)] == []
    results = {"Artifacts", "Feed", "Inspection", "Profile", "Requirements", "TrainingGraph"}
    assert not results & vars(graphopt).keys()
    modules = {name for name in graphopt.__all__ if isinstance(getattr(graphopt, name), ModuleType)}
    assert modules == {"inspection", "reference", "schedules"}


def test_one_version():
    assert CliRunner().invoke(app, ["--version"]).output == f"graphopt {graphopt.__version__}\n"
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "graphopt.__version__"}}
    assert importlib.metadata.version("graphopt") == graphopt.__version__
