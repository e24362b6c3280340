"""The house stays in order: imports point down, files have a subject, the README's tree is true."""

import ast
import re
import sys
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "t5x_lite"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
SOURCES = [path.relative_to(ROOT).as_posix() for path in FILES]

# The longest prefix of a module's name inside the package gives its level.
LEVELS = {
    "__main__": 5,
    "gin_files": 5,
    "gin_imports": 5,
    "run": 4,
    "checkpoints": 3,
    "convert": 3,
    "exploring": 3,
    "planning": 3,
    "training.state": 3,
    "training.step": 3,
    "models": 2,
    "data": 2,
    "suites": 3,
    "decoding": 2,
    "evaluation": 1,
    "reporting": 3,
    "training": 2,
    "objectives": 1,
    "partitioning": 0,
    "checksums": 0,
    "frozen": 1,
    "checkpoint_policy": 3,
    "checkpoint_shapes": 3,
    "appending": 0,
    "addresses": 1,
    "untrusted": 0,
    "local_pod": 1,
    "processes": 1,
    "pulse": 2,
    "roll_call": 1,
    "trees": 0,
    "errors": 0,
    "": 0,
}
HEAVY = {"flax", "jax", "optax", "orbax", "seqio", "tensorflow", "tensorflow_datasets"}
# Which of the packages on the left a part of the project may never import, top level or not.
FORBIDDEN = {
    "models": {"seqio", "optax", "orbax", "tensorflow", "tensorflow_datasets"},
    "data": {"flax", "optax", "orbax"},
    "decoding": {"flax", "seqio", "optax", "orbax", "tensorflow"},
    "errors": HEAVY | {"numpy"},
}
NAMES_WITHOUT_SUBJECT = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}


def module_name(source):
    """The name inside the package: "training.step"; a folder's __init__ is the folder's name."""
    parts = PurePosixPath(source).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def level(module):
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    known = next((prefix for prefix in prefixes if prefix in LEVELS), None)
    assert known is not None, f"{module} has no level: give it one in ARCHITECTURE.md and here"
    return LEVELS[known]


def folder(module):
    """The folder of the package a module stands in; "" for those outside all folders."""
    in_folder = (ROOT / PACKAGE / module.split(".")[0]).is_dir()
    return module.split(".")[0] if in_folder else ""


def is_for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(source):
    """Every (imported module, whether it happens when the file is imported) of a file."""
    found = []

    def visit(node, at_top):
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: relative import"
            found.extend((f"{node.module}.{alias.name}", at_top) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            runs = not isinstance(node, ast.FunctionDef) and not is_for_type_checkers(node)
            visit(child, at_top and runs)

    visit(ast.parse((ROOT / source).read_text()), at_top=True)
    return found


def own_modules(source):
    """The modules of the package that a file imports, by their names inside the package."""
    modules = {module_name(other) for other in SOURCES}
    for imported, _ in imports(source):
        if imported.split(".")[0] == PACKAGE:
            inside = imported.split(".")[1:]
            candidates = (".".join(inside[:n]) for n in range(len(inside), -1, -1))
            yield next(name for name in candidates if name in modules)


@pytest.mark.parametrize("source", SOURCES)
def test_imports_point_down_and_never_sideways(source):
    module = module_name(source)
    for imported in own_modules(source):
        lower = level(imported) < level(module)
        neighbor = folder(imported) == folder(module) and level(imported) == level(module)
        assert lower or neighbor, f"{module} ({level(module)}) imports {imported}"


@pytest.mark.parametrize("source", SOURCES)
def test_parts_keep_to_the_packages_they_may_know(source):
    module = module_name(source)
    for imported, at_top in imports(source):
        package = imported.split(".")[0]
        assert package not in FORBIDDEN.get(folder(module) or module, ()), imported
        if folder(module) == "objectives":
            own = imported.startswith((f"{PACKAGE}.objectives", f"{PACKAGE}.errors"))
            assert own or package in {"numpy", *sys.stdlib_module_names}, imported
        if package in {"gin", "absl"}:
            assert level(module) == 5, f"{imported} outside the command line"
        if package in {"seqio", "tensorflow", "tensorflow_datasets"}:
            assert not at_top, f"{imported} takes seconds to import: do it where it is needed"
        if package == "jax" and folder(module) == "data":
            assert module == "data.batches", "only data.batches knows devices"


@pytest.mark.parametrize("source", SOURCES)
def test_files_are_short_and_named_after_a_subject(source):
    assert len((ROOT / source).read_text().splitlines()) <= 350
    assert not set(PurePosixPath(source).with_suffix("").parts) & NAMES_WITHOUT_SUBJECT


def readme_tree():
    """The paths in the README's tree, each with its phrase.

    The tree is the fenced block that begins with a line `t5x_lite/`; indentation (or box drawing)
    makes the folders, two spaces part a name from its phrase.
    """
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"^```\w*\n(t5x_lite/.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no fenced block that begins with t5x_lite/"
    tree, parents = {}, []
    for line in block[1].splitlines():
        if not (entry := re.match(r"(?P<indent>[ │├└─]*)(?P<name>[\w./*-]+)(?P<phrase>.*)", line)):
            continue
        indent, name = len(entry["indent"]), entry["name"]
        parents = [parent for parent in parents if parent[0] < indent]
        path = "".join(part for _, part in parents) + name
        tree[path] = entry["phrase"].strip()
        if name.endswith("/"):
            parents.append((indent, name))
    return tree


def test_readme_tree_names_every_file_of_the_package():
    """The line of a folder stands for its __init__.py."""
    named = readme_tree()
    wanted = {source for source in SOURCES if not source.endswith("__init__.py")}
    wanted |= {source.removesuffix("__init__.py") for source in SOURCES} - wanted
    assert sorted(wanted - set(named)) == []


def test_readme_tree_names_nothing_that_does_not_exist():
    assert [path for path in readme_tree() if not list(ROOT.glob(path.rstrip("/")))] == []


def test_readme_tree_has_a_phrase_for_every_file():
    bare = [path for path, phrase in readme_tree().items() if not phrase]
    assert [path for path in bare if not path.endswith("/")] == []
