"""Which module may import which: the packages stand on floors, and imports only go down."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.helpers.floors import FLOORS
from tests.helpers.folders import ROOT

pytestmark = pytest.mark.any_runtime


@cache
def modules():
    """The file of each module of the package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / "graphopt").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path):
    """What a file imports of the package, wherever it does: module, and name or None."""
    return list(_imports(path, modules()))


def _imports(path, known):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                if f"{node.module}.{alias.name}" in known:
                    yield f"{node.module}.{alias.name}", None
                elif node.module in known:
                    yield node.module, alias.name


def loaded(source, target):
    """What an import runs: the module and the packages around it that do not hold the source."""
    parts = target.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        if name == target or not f"{source}.".startswith(f"{name}."):
            yield name


@cache
def graph():
    """The modules that each module imports."""
    return {
        source: {
            name for target, _ in imports(path) for name in loaded(source, target) if name != source
        }
        for source, path in modules().items()
    }


@cache
def place(module):
    """The longest beginning of a module's name that the floors know."""
    parts = module.split(".")[1:]
    beginnings = [".".join(parts[:length]) for length in range(len(parts), -1, -1)]
    known = {room for floor in FLOORS for room in floor if room or not parts}
    return next((name for name in beginnings if name in known), None)


@cache
def floor(module):
    """The number of the floor that a module stands on."""
    (number,) = (number for number, rooms in enumerate(FLOORS) if place(module) in rooms)
    return number


def hidden(name):
    """Whether a name is one for its own module or package only."""
    return name.startswith("_") and not name.startswith("__")


def test_imports_are_found_wherever_they_stand(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import graphopt.cli\n"
        "if TYPE_CHECKING:\n    from graphopt.graph import TrainingGraph\n"
        "def late():\n    from graphopt import build as other\n"
    )
    found = [("graphopt.cli", None), ("graphopt.graph", "TrainingGraph"), ("graphopt.build", None)]
    assert sorted(imports(file), key=str) == sorted(found, key=str)


def test_every_module_stands_on_a_floor():
    places = {module: place(module) for module in modules()}
    assert [module for module, room in places.items() if room is None] == []
    rooms = [room for rooms in FLOORS for room in rooms]
    assert sorted(rooms) == sorted(set(places.values())), "each on one floor, none that is empty"


def test_no_module_imports_upward():
    upward = [
        f"{source} imports {target}"
        for source, targets in graph().items()
        for target in sorted(targets)
        if floor(target) > floor(source)
    ]
    assert upward == []


@pytest.mark.quick
def test_no_modules_import_each_other():
    try:
        list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_hidden_module_is_imported_from_outside_its_package():
    outside = [
        f"{source} imports {target}"
        for source, targets in graph().items()
        for target in sorted(targets)
        for package, _, name in [target.rpartition(".")]
        if hidden(name) and not f"{source}.".startswith(f"{package}.")
    ]
    assert outside == []


def test_no_hidden_name_is_imported():
    taken = [
        f"{source} imports {name} of {target}"
        for source, path in modules().items()
        for target, name in imports(path)
        if name is not None and hidden(name)
    ]
    assert taken == []
