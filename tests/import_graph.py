"""Who imports whom in this repository, read from the sources.

    python tests/import_graph.py            # rooms from the bottom up, what each imports, levels, circles
    python tests/import_graph.py --modules  # the same for every module

Every import counts alike: at the top of a file, inside a function, under TYPE_CHECKING, relative, or by the name of a
module in a string ("pipeline.runs.longcat", "pipeline.engine.child:named"), which is how packages hand names on lazily.
`tests/test_laws.py` holds the laws that this graph has to keep.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("app.py", "bsa", "pipeline", "ui", "training", "benchmarks")
_NAMED = re.compile(r"((?:[a-z_]\w*\.)+[a-z_]\w*)(?::\w+)?")


@dataclass(frozen=True, slots=True)
class Import:
    """One line that brings in a module, ours or another's.

    runs: with the importing module ("at import"), when a function is called ("later"), or never ("typing").
    """

    importer: str
    imported: str
    path: Path
    line: int
    runs: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.importer} imports {self.imported}"


@dataclass(frozen=True)
class Graph:
    modules: dict[str, Path]  # by name; paths below the root
    imports: list[Import]

    def edges(self, *, runs: Iterable[str] = ("at import", "later", "typing")) -> dict[str, set[str]]:
        """Imports among our own modules."""
        found: dict[str, set[str]] = {name: set() for name in self.modules}
        for one in self.imports:
            if one.imported in self.modules and one.runs in runs:
                found[one.importer].add(one.imported)
        return found

    def line(self, importer: str, imported: str) -> Import:
        """The first line that makes this edge."""
        return next(one for one in self.imports if (one.importer, one.imported) == (importer, imported))

    def at_import(self, start: str) -> Iterator[list[Import]]:
        """All that ``import start`` brings in, ours and others': for each the lines that lead to it, shortest first.

        Python runs the packages that a module is in before the module.
        """
        ahead: list[tuple[str, list[Import]]] = [(name, []) for name in _with_packages(start)]
        seen = {name for name, _ in ahead}
        for name, lines in ahead:  # breadth first; the list grows while it is read
            for one in self.imports:
                if one.importer == name and one.runs == "at import":
                    yield [*lines, one]
                    for new in _with_packages(one.imported):
                        if new in self.modules and new not in seen:
                            seen.add(new)
                            ahead.append((new, [*lines, one]))


def _with_packages(name: str) -> list[str]:
    """a.b.c as a, a.b and a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def read(root: Path = ROOT, parts: Iterable[str] = PARTS) -> Graph:
    """The graph of the files and folders named. A folder without ``__init__.py`` holds scripts, which import their
    neighbours by bare name."""
    paths = [path for part in parts for path in _sources(root / part)]
    modules = {_name(path.relative_to(root)): path.relative_to(root) for path in paths}
    imports = [one for name, path in modules.items() for one in _imports(root, name, path, modules)]
    return Graph(modules, imports)


def _sources(part: Path) -> list[Path]:
    return [part] if part.is_file() else sorted(part.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(root: Path, importer: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    scripts = path.parent.parts and not (root / path.parent / "__init__.py").exists()
    neighbours = {name.rpartition(".")[2]: name for name, other in modules.items() if other.parent == path.parent}
    seen = set()
    for node, runs in _walk(tree, "at import"):
        for name, when in _names(node, runs, package, modules):
            if scripts and name.partition(".")[0] in neighbours:
                name = neighbours[name.partition(".")[0]]
            if name != importer and (name, node.lineno) not in seen:  # import_module("a.b") is a call and a string
                seen.add((name, node.lineno))
                yield Import(importer, name, path, node.lineno, when)


def _walk(node: ast.AST, runs: str) -> Iterator[tuple[ast.AST, str]]:
    """Every node below, with when it runs."""
    for child in ast.iter_child_nodes(node):
        when = runs
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and runs == "at import":
            when = "later"
        elif isinstance(node, ast.If) and child in node.body and _is_type_checking(node.test):
            when = "typing"
        yield child, when
        yield from _walk(child, when)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _names(node: ast.AST, runs: str, package: str, modules: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """The modules that a node brings in, and when: of ours the module itself, of others as far as they are written."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, runs) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            yield (inner if inner in modules else base), runs
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
        if node.args and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value, runs
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        named = _NAMED.fullmatch(node.value)
        if named and named[1] in modules:
            yield named[1], "later"


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other, each as one round trip; the shortest first."""
    found = []
    for group in _components(edges):
        if len(group) > 1:
            start = min(group)
            found.append(_round_trip(edges, start, group))
    return sorted(found, key=lambda trip: (len(trip), trip))


def _components(edges: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected ones, by what each reaches: the graph is small."""
    reach = {name: _reachable(edges, name) for name in edges}
    groups, seen = [], set()
    for name in edges:
        if name not in seen:
            group = {name} | {other for other in reach[name] if name in reach[other]}
            seen |= group
            groups.append(group)
    return groups


def _reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        for name in edges[ahead.pop()] - found:
            found.add(name)
            ahead.append(name)
    return found


def _round_trip(edges: dict[str, set[str]], start: str, group: set[str]) -> list[str]:
    trips = [[start]]
    for trip in trips:  # breadth first; the list grows while it is read
        for name in sorted(edges[trip[-1]] & group):
            if name == start:
                return [*trip, start]
            if name not in trip:
                trips.append([*trip, name])
    raise AssertionError("a group of modules that reach each other has a round trip")


def levels(edges: dict[str, set[str]]) -> dict[str, int]:
    """0 for what imports none of the others, else one more than the highest that it imports. Modules of one circle
    share a level."""
    group_of = {name: frozenset(group) for group in _components(edges) for name in group}
    known: dict[frozenset[str], int] = {}

    def level(group: frozenset[str]) -> int:
        if group not in known:
            below = {group_of[other] for name in group for other in edges[name]} - {group}
            known[group] = 1 + max(map(level, below), default=-1)
        return known[group]

    return {name: level(group_of[name]) for name in edges}


# Rooms from the bottom up. A module is in the room with the longest prefix that fits, so a package by itself (its
# `__init__`, which hands out names) is above all that is in it.
ROOMS: dict[str, tuple[str, ...]] = {
    "bsa values": (
        *("bsa.grid", "bsa.selectors", "bsa.config", "bsa.block_selection", "bsa.layout", "bsa.cells", "bsa.variants"),
        "bsa.products",
    ),
    "bsa.kernels": ("bsa.kernels",),
    "bsa": ("bsa",),
    "pipeline._start": ("pipeline._start",),
    "pipeline.machine": ("pipeline.machine",),
    "pipeline.request": ("pipeline.request",),
    "pipeline.checkpoint": ("pipeline.checkpoint",),
    "pipeline.media": ("pipeline.media",),
    "pipeline.weights": ("pipeline.weights",),
    "pipeline.parallel": ("pipeline.parallel",),
    "pipeline.transformer": ("pipeline.transformer",),
    "pipeline.model": ("pipeline.model",),
    "pipeline.estimate": ("pipeline.estimate",),
    "pipeline.sweeps": ("pipeline.sweeps",),
    "pipeline.runs": ("pipeline.runs",),
    "pipeline.engine": ("pipeline.engine",),
    "pipeline.cli": ("pipeline.cli",),
    "pipeline": ("pipeline",),
    "training": ("training",),
    "benchmarks": ("benchmarks",),
    "ui.static": ("ui.static",),
    "ui.storage": ("ui.storage",),
    "ui.jobs": ("ui.jobs",),
    "ui.access": ("ui.access",),
    "ui.look": ("ui.look",),
    "ui.site": ("ui.site", "ui.premade", "ui.enhance"),
    "ui.form": ("ui.form",),
    "ui.tasks": ("ui.tasks",),
    "ui.views": ("ui.views",),
    "ui.api": ("ui.api",),
    "ui": ("ui",),
    "app": ("app",),
}
_ROOM_OF = {prefix: room for room, prefixes in ROOMS.items() for prefix in prefixes}


def room_of(module: str) -> str:
    return next(_ROOM_OF[prefix] for prefix in reversed(_with_packages(module)) if prefix in _ROOM_OF)


def between_rooms(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {room: set() for room in ROOMS if any(room_of(name) == room for name in edges)}
    for importer, others in edges.items():
        found[room_of(importer)] |= {room_of(other) for other in others} - {room_of(importer)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", action="store_true", help="modules instead of rooms")
    graph = read()
    edges = graph.edges()
    shown = edges if parser.parse_args().modules else between_rooms(edges)
    level = levels(shown)
    for name in sorted(shown, key=lambda name: (level[name], name)):
        print(f"{level[name]:>3}  {name:<18} -> {', '.join(sorted(shown[name])) or 'nothing of ours'}")
    loops = circles(edges)
    print(
        f"{len(edges)} modules, {sum(map(len, edges.values()))} imports among them, {1 + max(levels(edges).values())}"
        f" levels, {len(loops)} circles"
    )
    for loop in loops:
        print("  circle: " + " -> ".join(loop))


if __name__ == "__main__":
    main()
