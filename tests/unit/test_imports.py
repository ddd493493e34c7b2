"""What importing a part of bluedit loads: the tables of methods and strategies are light, and names are loaded on use."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import bluedit

SOURCE = Path(bluedit.__file__).parent
STUBS = sorted(SOURCE.rglob("__init__.pyi"))
HEAVY = ("transformers", "accelerate", "matplotlib")


def loaded_by(statement: str) -> set[str]:
    """The modules in a fresh interpreter after the statement."""
    code = f"{statement}; import sys; print('\\n'.join(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(process.stdout.split())


@pytest.mark.parametrize("statement", ["import bluedit.methods", "import bluedit.strategies", "from bluedit import METHODS"])
def test_the_tables_load_no_model_code(statement: str) -> None:
    modules = loaded_by(statement)
    assert not [name for name in modules if name in HEAVY or name == "bluedit.models" or name.startswith("bluedit.models.")]


@pytest.mark.parametrize("module", ["bluedit", "bluedit.cli.main", "bluedit.strategies", "bluedit.models.embedded"])
def test_what_needs_no_tensor_loads_no_torch(module: str) -> None:
    assert "torch" not in loaded_by(f"import {module}")


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: str(path.parent.relative_to(SOURCE.parent)))
def test_a_package_offers_what_its_stub_lists(stub: Path) -> None:
    package = import_module(".".join(stub.parent.relative_to(SOURCE.parent).parts))
    listed: list[str] = next(
        ast.literal_eval(node.value)
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    )
    assert sorted(listed) == package.__all__
    assert all(getattr(package, name) is not None for name in listed)


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: str(path.parent.relative_to(SOURCE.parent)))
def test_no_name_that_a_package_offers_is_also_one_of_its_modules(stub: Path) -> None:
    """Importing the module would put it in the name's place."""
    names = {
        alias.name for node in ast.walk(ast.parse(stub.read_text())) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    modules = {path.stem for path in stub.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not names & modules
