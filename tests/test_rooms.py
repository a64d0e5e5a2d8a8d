"""The shape of the package: arrows between rooms point down, no circle of imports, short files.

Imports are read from the syntax trees, those under TYPE_CHECKING and inside functions included.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A room may import of its own level (if it is the same room) and of lower ones. A file or folder of
# cos_ext that is not named here is an error: say where it stands.
LEVELS = {
    "_images": 0,
    "_ops": 0,
    "_build": 1,
    "_files": 0,
    "_tables": 0,
    "_numbers": 0,
    "_batches": 0,
    "_fakes": 1,
    "_loops": 1,
    "surrogate": 1,
    "general": 1,
    "_functional": 2,
    "functional": 3,
    "qcfs": 3,
    "reference": 4,
    "_neuron": 4,
    "neuron": 5,
    "interop": 6,
    "data": 6,
    "models": 6,
    "network": 7,
    "methods": 8,
    "conversion": 9,
    "calibration": 10,
    "analysis": 10,
    "training": 10,
    "export": 10,
    "bench": 11,
    "_commands": 12,
    "cli": 13,
    "__init__": 14,
    "__main__": 14,
}
LIMIT = 400  # lines of a file


def modules(package: Path) -> dict[str, Path]:
    """The files of a package by dotted name; "__init__" of a folder is the folder's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)] = path
    return found


def imports(package: Path) -> dict[str, set[str]]:
    """For each module of a package the modules of the package that it imports."""
    files, found = modules(package), {}
    for name, path in files.items():
        folder = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        folder = [] if name == "__init__" else folder
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            bases = []
            if isinstance(node, ast.ImportFrom):
                if node.level:
                    start = folder[: len(folder) - node.level + 1]
                elif node.module and node.module.split(".")[0] == package.name:
                    start = []
                else:
                    continue
                rest = (node.module or "").split(".") if node.module else []
                rest = rest if node.level else rest[1:]
                bases = [[*start, *rest, alias.name] for alias in node.names]
            elif isinstance(node, ast.Import):
                names = (alias.name.split(".") for alias in node.names)
                bases = [name[1:] for name in names if name[0] == package.name]
            for base in bases:
                # The name may be a module, or something in the module before it.
                tries = (".".join(base), ".".join(base[:-1]))
                target = next((each for each in tries if each in files), "__init__")
                if target != name:
                    found[name].add(target)
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def upward(graph: dict[str, set[str]], levels: dict[str, int]) -> list[str]:
    """Arrows that go up, or from one room to another of its level."""

    def room(name: str) -> str:
        return name.split(".")[0]

    return [
        f"{name} -> {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if room(name) != room(other) and levels[room(name)] <= levels[room(other)]
    ]


def test_every_file_has_a_level():
    rooms = {name.split(".")[0] for name in modules(ROOT / "cos_ext")}
    assert rooms == set(LEVELS)


def test_no_circle_of_imports():
    assert circle(imports(ROOT / "cos_ext")) == []


def test_arrows_point_down():
    assert upward(imports(ROOT / "cos_ext"), LEVELS) == []


@pytest.mark.parametrize("folder", ["cos_ext", "csrc", "tests", "bench", "docs", "examples"])
def test_files_are_short(folder):
    endings = {".py", ".h", ".cpp", ".inc", ".cu", ".cuh"}
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in endings]
    assert files
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    long = {str(path.relative_to(ROOT)): n for path, n in lines.items() if n > LIMIT}
    assert long == {}


def test_the_checks_can_fail(tmp_path):
    package = tmp_path / "house"
    (package / "low").mkdir(parents=True)
    (package / "high").mkdir()
    (package / "__init__.py").write_text("")
    (package / "low" / "__init__.py").write_text("")
    (package / "high" / "__init__.py").write_text("from .b import x\n")
    (package / "low" / "a.py").write_text("def f():\n    from ..high import b\n")
    (package / "high" / "b.py").write_text("x = 1\n")
    levels = {"low": 0, "high": 1, "__init__": 2}
    graph = imports(package)
    assert graph["high"] == {"high.b"} and graph["low.a"] == {"high.b"}
    assert upward(graph, levels) == ["low.a -> high.b"] and circle(graph) == []
    (package / "high" / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.low.a import f\n"
    )
    assert circle(imports(package)) == ["high.b", "low.a", "high.b"]
