"""The house: which package and which wing may import which, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

FOLDERS = {
    "armlet_runtime": "runtime",
    "armlet_train": "train",
    "armlet_bridge": "firmware_bridge",
    "armlet_export": "export",
}
BELOW = {
    "armlet_runtime": set[str](),
    "armlet_train": {"armlet_runtime"},
    "armlet_bridge": {"armlet_runtime"},
    "armlet_export": {"armlet_runtime", "armlet_train"},
}
"""Package to those that it may import."""

WORDS = ("arrays", "errors", "log", "printable", "files", "machine", "metrics", "modalities", "windows", "decisions")
ORDER = {
    "armlet_runtime": (
        *WORDS, "wearables", "engines", "signals", "bluetooth", "bundle", "formats", "model", "install", "live",
        "checks", "views", "api", "commands", "cli", "__main__",
    ),
    "armlet_train": (
        "recipes", "distributed", "data.datasets", "data", "models", "methods", "engine", "fewshot", "evaluation",
        "commands",
    ),
    "armlet_export": (
        "tool_log", "quantise", "backends", "streaming", "bundle", "proof", "choose_precision", "pipeline", "explain",
        "demo", "commands",
    ),
    "armlet_bridge": ("radio", "virtual", "boards", "commands"),
}  # fmt: skip
"""The wings of a package, and the modules beside them, from the ground up; each may import those before it."""


class Arrow(NamedTuple):
    """One import: from a module, to a module or a face, and the names that it takes."""

    source: str
    target: str
    names: tuple[str, ...]


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name; a package by that of its folder."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder / package).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def arrows() -> Iterator[Arrow]:
    """Every import of one of our modules by another."""
    for name, path in MODULES.items():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] in FOLDERS:
                        yield Arrow(name, alias.name, ())
            if isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
                if target.split(".")[0] in FOLDERS:
                    yield Arrow(name, target, tuple(alias.name for alias in node.names))


ARROWS = list(arrows())


def wing_of(module: str) -> tuple[str, str]:
    """The package and the wing, or the module beside the wings, that a module belongs to."""
    package, _, inside = module.partition(".")
    places = [wing for wing in ORDER[package] if inside == wing or inside.startswith(f"{wing}.")]
    return package, max(places, key=len, default="")


def is_wing(module: str) -> bool:
    return MODULES[module].stem == "__init__" and "." in module


def ends(arrow: Arrow) -> list[str]:
    """The modules that an import names: of ``from wing import module`` the module."""
    return [f"{arrow.target}.{name}" if f"{arrow.target}.{name}" in MODULES else arrow.target for name in arrow.names]


@pytest.mark.parametrize("package", FOLDERS)
def test_every_module_has_its_place_in_the_order(package: str) -> None:
    lost = [name for name in MODULES if name.startswith(f"{package}.") and not wing_of(name)[1]]
    assert lost == [], "enter it in ORDER, where it may import what stands before it"


def test_no_package_imports_one_that_is_not_below_it() -> None:
    wrong = [
        arrow
        for arrow in ARROWS
        if (source := arrow.source.split(".")[0]) != (target := arrow.target.split(".")[0])
        and target not in BELOW[source]
    ]
    assert wrong == []


def test_no_wing_imports_one_above_it() -> None:
    wrong = []
    for arrow in ARROWS:
        package, source = wing_of(arrow.source)
        for end in ends(arrow) or [arrow.target]:
            other, target = wing_of(end)
            # The package's own face hands on what stands in a wing, and imports it when it is asked for.
            if package == other and source and target and source != target:
                order = ORDER[package]
                if order.index(target) > order.index(source):
                    wrong.append(arrow)
    assert wrong == []


def test_no_import_goes_past_a_face() -> None:
    wrong = []
    for arrow in ARROWS:
        mine, theirs = wing_of(arrow.source), wing_of(arrow.target)
        face = ".".join(theirs)
        if mine != theirs and theirs[1] and is_wing(face) and arrow.target != face:
            wrong.append(arrow)
    assert wrong == []


@pytest.mark.parametrize("wing", [name for name in MODULES if is_wing(name)])
def test_what_others_take_from_a_wing_stands_on_its_face(wing: str) -> None:
    face = ast.parse(MODULES[wing].read_text())
    (shown,) = [
        ast.literal_eval(node.value)
        for node in face.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ] or [[]]
    taken = {
        name
        for arrow in ARROWS
        if arrow.target == wing and wing_of(arrow.source) != wing_of(wing)
        for name in arrow.names
    }
    assert taken <= set(shown)
    assert len((ast.get_docstring(face) or "").splitlines()) <= 5, "a face says in a few lines what its wing is for"


def test_no_circle_of_modules() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for arrow in ARROWS:
        graph[arrow.source].update(end for end in ends(arrow) or [arrow.target] if not is_face(end))
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def is_face(module: str) -> bool:
    return MODULES.get(module, Path()).stem == "__init__"


VERBS_AND_FILLERS = {"found", "none", "of", "one", "ones", "said", "says", "there", "told"}
"""Words that name no thing, so that no variable and no argument is called so."""


@pytest.mark.parametrize("package", FOLDERS)
def test_names_of_variables_are_nouns(package: str) -> None:
    wrong = []
    for module, path in MODULES.items():
        if module.split(".")[0] != package:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) if name in VERBS_AND_FILLERS:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    # A field of a report that was published as JSON.
    assert [place for place in wrong if "bench_specialists.py" not in place] == []
