"""The architecture: layers of imports, length of modules, and no use of private names across modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fewshot_ad

PACKAGE = Path(fewshot_ad.__file__).parent
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
# Layers, from the top: a module imports modules of lower layers, or of its own package in the same layer.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["arguments"],
    ["options"],
    ["argument_types"],
    ["commands"],
    ["upkeep_commands"],
    ["map_files", "upkeep"],
    ["inputs", "evaluating"],
    ["tables", "coco", "outcome"],
    ["evaluation", "plotting", "report", "model_selection", "labelled", "distributed", "demo", "dicom_out"],
    ["report_curves"],
    ["draws"],
    ["detector"],
    ["attributes", "drift", "embedding", "student", "training"],
    ["files"],
    ["session"],
    ["scored"],
    ["explanation"],
    ["regions"],
    ["support_checks"],
    ["support"],
    ["history", "recipes", "settings"],
    ["method"],
    ["images"],
    ["data"],
    ["threads"],
    ["metrics", "cluster", "drawing", "rendered", "runtime"],
    ["exceptions"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LONGEST = {"detector": 1000}


def room(module: str) -> str:
    return module.split(".")[0]


def imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports, except for type annotations only."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    here = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    here = here[:-1] if MODULES[module].name == "__init__.py" else here
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or id(node) in for_types:
            continue
        base = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            for name in (".".join([*base, alias.name]), ".".join(base), ".".join([*base, "__init__"])):
                if name in MODULES:
                    found.add(name)
                    break
    return found - {"__init__", module}


def test_every_module_has_a_layer():
    assert {room(module) for module in MODULES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_downwards(module):
    if module == "__init__":  # public names, imported lazily
        return
    upwards = [
        name for name in imports(module) if room(name) != room(module) and FLOOR[room(name)] <= FLOOR[room(module)]
    ]
    assert not upwards


def test_no_circular_imports():
    left = {module: imports(module) for module in MODULES if module != "__init__"}
    while left:
        free = {module for module, needed in left.items() if not needed & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {module: needed for module, needed in left.items() if module not in free}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_are_short(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST.get(module, 400)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_private_names_are_not_used_across_modules(module):
    """Names with a leading underscore are only used on `self`, or in the module that defines them."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    touched = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and is_private(node.attr)
        and not is_self(node.value)
        and node.attr not in own
    }
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if is_private(alias.name)
    }
    assert not touched
    assert not imported


def is_private(name: str) -> bool:
    # `os._exit` and methods of named tuples are documented and public.
    return (
        name.startswith("_") and not name.startswith("__") and name not in ("_exit", "_asdict", "_fields", "_replace")
    )


def is_self(node: ast.expr) -> bool:
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_detectors_are_annotated(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                if argument.arg in ("det", "detector", "fitted", "session"):
                    assert argument.annotation is None or ast.unparse(argument.annotation) != "Any", node.name
