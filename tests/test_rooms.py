"""docs/architecture.md holds: imports go down its table of rooms only, in no circle, and numerics are plain PyTorch."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/consistency_models"
FLOORS = {
    room: int(floor)
    for floor, room in re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
}
FACES = ("data", "evaluation", "export", "losses", "methods", "networks", "noise", "optim", "pretrained", "sampling")
FACES = (*FACES, "storage")
NUMERICS = ("noise", "losses", "sampling", "optim", "networks")


def module_of(path):
    """The dotted name of a file below the package, without the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(path):
    """The modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: its import cannot be read here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if head == "consistency_models":
                yield rest if rest in MODULES else rest.rpartition(".")[0]


IMPORTS = {module: set(imported(path)) for module, path in MODULES.items()}


def test_every_room_is_in_the_table():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(FLOORS)


def room_of(module):
    """The room of a module; the package's own __init__ is the door."""
    return module.split(".")[0] or "door"


def test_imports_go_down_only():
    floors = FLOORS | {"door": max(FLOORS.values()) + 1}
    wrong = {
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if room_of(module) != room_of(other) and floors[room_of(other)] >= floors[room_of(module)]
    }
    assert not wrong


def test_no_circle():
    """Of modules; `graphlib.CycleError` names them."""
    assert len(list(TopologicalSorter(IMPORTS).static_order())) == len(IMPORTS)


@pytest.mark.parametrize("room", FACES)
def test_a_face_has_what_it_lists(room):
    face = import_module(f"consistency_models.{room}")
    assert face.__all__
    assert all(getattr(face, name) is not None for name in face.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        face.no_such_name  # noqa: B018 (a lazy face must not answer for any name)


def test_numerics_import_no_lightning_hydra_or_wandb():
    heavy = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb", "diffusers", "peft", "transformers"}
    code = (
        "import sys, consistency_models\n"
        "assert 'torch' not in sys.modules, 'import consistency_models imports torch'\n"
        "import consistency_models.files, consistency_models.storage.moved_names\n"
        "assert 'torch' not in sys.modules, 'the check of a command would import torch'\n"
        f"import {', '.join(f'consistency_models.{room}' for room in NUMERICS)}\n"
        f"found = {heavy} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["src/consistency_models", "src/hydra_plugins/consistency_models"])
def test_every_package_says_what_it_is(package):
    for path in (ROOT / package).rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert len(said.split()) >= 4, f"{path}: {said!r}"
