"""A file imports only from floors below its own; siblings meet only in their table."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "addnorm"
FLOORS = {
    "checks": 0, "plain": 0, "rng": 0, "words": 0, "clock": 0, "plot": 0, "progress": 0, "as_json": 0,
    "call": 1, "cuda_clock": 1, "norms": 1,
    "arguments": 2, "outputs": 2, "reference": 2, "checked": 3, "backends": 3, "machine": 4, "again": 4,
    "ops": 5, "functional": 6, "modules": 7,
    "placements": 8, "stack": 9, "fusing": 9, "xray": 10, "claims": 10, "bench": 10, "demo": 10, "comparison": 10,
    "doctor": 11, "report": 11, "cli": 12,
}  # fmt: skip
MAY_MEET = ("table", "__init__")  # the files of a folder that import its members
SHARED = ("base", "native")  # the files of a folder that its members import


def floor(module: str) -> int:
    return FLOORS[module.split(".")[1]]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path, package: Path = PACKAGE) -> Iterator[str]:
    """The modules of this package that a file imports anywhere, by full name."""
    here = list(path.relative_to(package.parent).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "addnorm")
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            if module.split(".")[0] == "addnorm":
                folder = package.parent.joinpath(*module.split("."))
                for alias in node.names:
                    is_module = (folder / f"{alias.name}.py").exists() or (folder / alias.name).is_dir()
                    yield f"{module}.{alias.name}" if is_module else module


def violations(package: Path = PACKAGE) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts in (("__init__",), ("__main__",)):
            continue  # the public names
        for target in imports(path, package):
            goal = target.split(".")[1:]
            if not goal:
                found.append(f"{'.'.join(parts)} imports the whole package")
            elif goal[0] != parts[0]:
                if FLOORS[goal[0]] >= FLOORS[parts[0]]:
                    found.append(f"{'.'.join(parts)} (floor {FLOORS[parts[0]]}) imports {target}")
            elif goal[1:2] == list(parts[1:2]):
                continue  # within one member, which may be a folder
            elif FLOORS[parts[0]] <= 3 and parts[-1] not in MAY_MEET and goal[1:2] and goal[1] not in SHARED:
                found.append(f"{'.'.join(parts)} imports its sibling {target}")
    return found


def test_every_file_has_a_floor() -> None:
    unknown = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")} - set(FLOORS)
    assert unknown <= {"__init__", "__main__"}


def test_imports_go_down() -> None:
    assert violations() == []


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("call.py", "from .ops import forward", "call (floor 1) imports addnorm.ops"),
        ("norms/rms.py", "from .layer import Layer", "norms.rms imports its sibling addnorm.norms.layer"),
        (
            "norms/rms.py",
            "def f():\n    from ..reference import forward",
            "norms.rms (floor 1) imports addnorm.reference",
        ),
        ("ops.py", "import addnorm.functional", "ops (floor 5) imports addnorm.functional"),
        ("ops.py", "import addnorm", "ops imports the whole package"),
        ("rng.py", "from . import call", "rng (floor 0) imports addnorm.call"),
    ],
)
def test_the_check_finds(file: str, text: str, complaint: str, tmp_path: Path) -> None:
    package = tmp_path / "addnorm"
    for path in PACKAGE.rglob("*.py"):
        copy = package / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("")
    (package / file).write_text(text)
    assert violations(package) == [complaint]


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_is_lean() -> None:
    """`import addnorm` loads torch and nothing that torch alone would not."""
    extra = loaded_after("import addnorm") - loaded_after("import torch")
    assert extra == {"addnorm"}


def test_import_loads_no_heavy_part() -> None:
    heavy = {"triton", "transformers", "rich", "jinja2", "plotly", "onnx", "onnxruntime", "hypothesis"}
    assert not loaded_after("import addnorm") & heavy


def test_only_one_file_speaks_to_torch_library() -> None:
    speakers = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "torch.library." in path.read_text()
    }
    assert speakers == {"ops.py"}
