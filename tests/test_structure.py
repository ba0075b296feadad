"""The rooms of the package: which stands on which, that none is entered from below, and how large they may be."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "opmix_ray"
# From the lowest to the highest: a module imports from its own line, from its own room, and from lines above it here.
ORDER = """
harmless
errors version signals node paths
mixture plugins yaml_file numerics
remote
storage draw
exchange
config
laws
counts overlap
sources
data
model
output trials
cluster train
decision
strategies
report trackers
runner
compare fit init
pile
commands
api
cli
__init__
__main__ spot
"""
LEVEL = {room: level for level, line in enumerate(ORDER.split("\n")) for room in line.split()}
LINES, FILES, LONGEST = 3000, 200, 490  # at most: lines of a room, files of the package, lines of a file


def _modules() -> dict[str, Path]:
    """Every module by its dotted name inside the package; the package itself is `__init__`."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        inner = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(inner) or "__init__"] = file
    return found


MODULES = _modules()


def _room(module: str) -> str:
    return module.partition(".")[0]


def _named(node: ast.AST) -> Iterator[str]:
    """Full names that an import statement asks for."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imported(module: str) -> set[str]:
    """Modules of the package that one imports: at its top, inside functions, or for its types only."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        for name in _named(node):
            head, _, inner = name.partition(".")
            if head != "opmix_ray":
                continue
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            found.add(inner or "__init__")
    return found - {module}


IMPORTS = {module: _imported(module) for module in MODULES}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that each need all others of their group."""

    def needed(module: str) -> set[str]:
        seen: set[str] = set()
        left = [module]
        while left:
            new = imports[left.pop()] - seen
            seen |= new
            left += new
        return seen

    reach = {module: needed(module) for module in imports}
    groups = {tuple(sorted(other for other in reach[module] if module in reach[other])) for module in imports}
    return [list(group) for group in sorted(groups) if group]


def test_every_room_has_its_place() -> None:
    rooms = {_room(module) for module in MODULES}
    assert rooms == set(LEVEL)


def test_no_module_needs_itself() -> None:
    assert circles(IMPORTS) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_from_lower_rooms_only(module: str) -> None:
    here = _room(module)
    higher = {
        other for other in IMPORTS[module]
        if _room(other) != here and LEVEL[_room(other)] >= LEVEL[here]
    }  # fmt: skip
    assert not higher, f"{module} is below what it imports"


def test_actors_that_serve_a_driver_import_nothing_of_ours() -> None:
    """Each of their processes imports the module of its class, and with it all that this one imports."""
    assert IMPORTS["node"] == set()


def test_configurations_are_made_from_others_in_one_place() -> None:
    """`Section.but`: nobody else rewrites one on its way."""
    rewriting = {
        module for module, file in MODULES.items() if "model_copy(" in file.read_text(encoding="utf-8")
    }
    assert rewriting == {"config.section"}


@pytest.mark.seconds
def test_a_run_is_made_from_another_in_few_places() -> None:
    """What a run reads is resolved before it begins: by its file and command, its strategy, and for each stage."""
    places = Counter(
        module for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "config.but"
    )  # fmt: skip
    assert places == {"config.load": 2, "runner.plan": 2, "strategies.base": 1}


def test_no_room_is_too_large() -> None:
    lines: Counter[str] = Counter()
    longest = 0
    for module, file in MODULES.items():
        length = len(file.read_text(encoding="utf-8").splitlines())
        lines[_room(module)] += length
        longest = max(longest, length)
    assert max(lines.values()) <= LINES, lines.most_common(3)
    assert len(MODULES) <= FILES
    assert longest <= LONGEST
