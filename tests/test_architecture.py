"""The structure of the package: imports, names, words and docstrings.

One test for each property that ARCHITECTURE.md promises. `python tests/test_architecture.py` writes
the tree of modules into ARCHITECTURE.md.
"""

import ast
import collections
import functools
import graphlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "t5x_lite"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

# From bottom to top. A module belongs to its longest prefix in this table; it may import modules of
# its own room and of lower floors, never of another room on its own floor.
FLOORS = (
    ("errors", "tree_paths", "command", "console"),
    ("partitioning", "io"),
    (
        *("log_setup", "distributed", "decoding", "objectives", "metrics", "hardware"),
        "data.code_identity",
    ),
    ("models.kernels", "tokenizers", "data.sources", "data.store"),
    ("models", "data.stream", "data.formats"),
    ("checkpoints", "convert", "data.tasks", "data.c4"),
    ("suites", "data.data_config"),
    ("data.registry",),
    ("data.tokenize",),
    ("data",),
    ("training",),
    ("reporting",),
    ("inference",),
    ("evaluation", "import_export", "planning"),
    ("trainer", "doctor", "sweep"),
    ("debugging",),
    ("debugging.fault_injection",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MAX_FILES_IN_A_FOLDER = 20

HEAVY = {"flax", "jax", "optax", "orbax", "seqio", "tensorflow", "tensorflow_datasets"}
# Packages that a room never imports, neither at the top of a file nor inside a function.
FORBIDDEN = {
    "models": {"seqio", "optax", "orbax", "tensorflow", "tensorflow_datasets"},
    "data": {"flax", "optax", "orbax"},
    "decoding": {"flax", "seqio", "optax", "orbax", "tensorflow"},
    "errors": HEAVY | {"numpy"},
    "command": HEAVY | {"numpy"},
}
NAMES_WITHOUT_SUBJECT = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}

# Words that a reader from the field would not expect, with what to write in their place.
UNPLAIN_WORDS = {
    r"t(?:ell|ells|old|elling)\b(?! apart|\()": "report, name, show",
    r"at hand": "current, available",
    r"(?:go|goes|gone|going|went) on\b": "resume, continue",
    r"so (?:many|often)\b": "the number of, how often",
    r"dearest|dearer": "most expensive",
    r"borne": "tolerated",
    r"held (?:against|to)\b": "compared with, checked against",
    r"(?:left|leave|leaves|leaving) out": "omitted, excluded",
    r"the wish": "the request",
    r"in peace": "cleanly",
    r"what (?:becomes|became|comes|came) of": "the result of",
    r"anew": "again",
    r"over there": "there",
    r"to the bit": "bit-exact, bit for bit",
    r"whoever|whomever": "anyone who",
    r"hear(?:s|ing)?\b": "receive",
    r"in the place of": "instead of",
    r"for ever\b": "forever, indefinitely",
    r"for good": "permanently",
    r"gets? ready": "prepare",
}
BRITISH = re.compile(
    r"\b\w*(?:(?:token|normal|initial|optim|recogn|serial|organ|summar|final|minim|maxim)is(?:e|ed|es"
    r"|ing|er|ation)|colour|neighbour|behaviour|favour|honour)\w*\b",
    re.IGNORECASE,
)


def module_name(path):
    """The dotted name inside the package: "training.step"; a folder's __init__ is the folder."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@functools.cache
def tree_of(module):
    return ast.parse(MODULES[module].read_text("utf-8"))


def room(module):
    """The entry of FLOORS that a module belongs to."""
    parts = module.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    entry = next((prefix for prefix in prefixes if prefix in FLOOR_OF), None)
    assert entry is not None, f"{module} has no floor: add its folder to FLOORS"
    return entry


def imports(module):
    """All imports of a file, also in functions and under TYPE_CHECKING: (name, is at the top)."""

    def visit(node, at_top):
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", at_top) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            type_checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            inside = isinstance(node, ast.FunctionDef) or type_checking
            yield from visit(child, at_top and not inside)

    return list(visit(tree_of(module), True))


def own_imports(module):
    """The package's modules that a module imports."""
    for name, _ in imports(module):
        parts = name.split(".")
        if parts[0] == PACKAGE:
            prefixes = [".".join(parts[1:length]) for length in range(len(parts), 0, -1)]
            imported = next(prefix for prefix in prefixes if prefix in MODULES)
            if imported not in ("", module):
                yield imported


def public_definitions(module):
    """Top-level public functions and classes, and public methods of public classes."""
    for node in tree_of(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


def texts(module):
    """Strings and comments of a module that a person may read, each with its line."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for number, line in enumerate(MODULES[module].read_text("utf-8").splitlines(), 1):
        if match := re.search(r"(?:^|\s)# (.*)", line):
            yield number, match[1]


def test_imports_never_form_a_circle():
    graph = {module: set(own_imports(module)) for module in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"imports form a circle: {' -> '.join(error.args[1])}") from None


def test_imports_point_to_lower_floors_or_stay_in_the_room():
    wrong = [
        f"{module} imports {imported}"
        for module in MODULES
        for imported in own_imports(module)
        if module
        if room(imported) != room(module)
        if FLOOR_OF[room(imported)] >= FLOOR_OF[room(module)]
    ]
    assert wrong == []


def test_rooms_keep_to_the_packages_they_may_know():
    wrong = []
    for module in filter(None, MODULES):
        top_folder = module.split(".")[0]
        for name, at_top in imports(module):
            package = name.split(".")[0]
            if package in FORBIDDEN.get(top_folder, ()):
                wrong.append(f"{module} imports {name}")
            if top_folder == "objectives":
                own = name.startswith((f"{PACKAGE}.objectives", f"{PACKAGE}.errors"))
                if not own and package not in {"numpy", *sys.stdlib_module_names}:
                    wrong.append(f"{module} imports {name}; objectives know NumPy alone")
            if package in {"gin", "absl"} and top_folder != "cli":
                wrong.append(f"{module} imports {name}; gin belongs to the command line")
            if package in {"seqio", "tensorflow", "tensorflow_datasets"} and at_top:
                wrong.append(f"{module} imports {name} at the top, which takes seconds")
            if package == "jax" and top_folder == "data" and module != "data.stream.prefetch":
                wrong.append(f"{module} imports jax; only data.stream.prefetch knows devices")
    assert wrong == []


def test_no_folder_is_a_corridor():
    count = collections.Counter(path.parent for path in FILES if path.stem != "__init__")
    crowded = {folder.name: number for folder, number in count.items()}
    assert {k: v for k, v in crowded.items() if v > MAX_FILES_IN_A_FOLDER} == {}


def test_no_module_name_is_used_twice():
    names = collections.Counter(path.stem for path in FILES)
    twice = [name for name, number in names.items() if number > 1]
    assert sorted(set(twice) - {"__init__", "command"}) == []


def test_modules_are_named_after_a_subject():
    words = {part for module in MODULES for part in module.split(".")}
    assert sorted(words & NAMES_WITHOUT_SUBJECT) == []


def test_no_public_class_name_is_used_twice():
    where = collections.defaultdict(list)
    for module in MODULES:
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}


def unplain_words(text):
    """The words of a text that a reader from the field would not expect, each with a hint."""
    for word, use in UNPLAIN_WORDS.items():
        if match := re.search(rf"\b(?:{word})", text, re.IGNORECASE):
            yield f"{match[0]!r}; write for example: {use}"
    if match := BRITISH.search(text):
        yield f"{match[0]!r} is British spelling"


def test_strings_docstrings_and_comments_use_plain_words():
    wrong = [
        (module, f"line {line}: {problem}")
        for module in MODULES
        for line, text in texts(module)
        for problem in unplain_words(text)
    ]
    assert wrong == []


def test_documents_gin_files_and_scripts_use_plain_words():
    """All lines of the texts that people read outside the package, code included."""
    wrong = []
    for path in documents():
        text = path.read_text("utf-8")
        if path.name == "CHANGELOG.md":  # the first column of a table has names that are no more
            text = re.sub(r"^\| `[^|]*\|", "|", text, flags=re.MULTILINE)
        if path.name == "ARCHITECTURE.md":  # the tree is checked where it comes from
            text = re.sub(rf"^```\n{PACKAGE}/\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        wrong += [
            f"{path.relative_to(ROOT)}: {line.strip()[:60]}: {problem}"
            for line in text.splitlines()
            for problem in unplain_words(line)
        ]
    assert not wrong, "\n".join(wrong)


def documents():
    """Documents, gin files, launch files and benchmarks; not what programs have written."""
    patterns = ("*.md", "docs/**/*.md", "benchmarks/*", "gin_configs/**/*.gin", "launch/**/*")
    generated = {ROOT / "docs/explore/report.md", *ROOT.glob("launch/docker/requirements-*.txt")}
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)} - generated):
        if path.is_file() and path.suffix not in (".json", ".pyc"):
            yield path


def test_public_functions_and_classes_have_docstrings():
    bare = [
        f"{module}.{name}"
        for module in MODULES
        for name, node in public_definitions(module)
        if ast.get_docstring(node) is None and not _is_short_method(name, node)
    ]
    assert bare == []


def _is_short_method(name, node):
    """A property or an override whose body is a line or two needs no docstring of its own."""
    return "." in name and node.end_lineno - node.lineno < 4


def test_what_gin_can_call_describes_every_parameter():
    bindings = gin_names()
    wrong = []
    for module in MODULES:
        for node in tree_of(module).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in bindings:
                continue
            described = ast.get_docstring(node) or ""
            parameters = _parameters(node)
            missing = [
                name
                for name in parameters
                if not re.search(rf"^\s+\*{{0,2}}{name}(?: \(.*\))?:", described, re.MULTILINE)
            ]
            if missing:
                wrong.append((module, node.name, missing))
    assert wrong == []


def gin_names():
    """Functions and classes that the shipped gin files bind or refer to."""
    names = set()
    for path in (ROOT / "gin_configs").rglob("*.gin"):
        text = re.sub(r"#.*", "", path.read_text("utf-8"))
        names |= set(re.findall(r"@(?:\w+[./])*(\w+)", text))
        names |= set(re.findall(r"^(?:\w+[./])*(\w+)(?:\.\w+ *=|:)", text, re.MULTILINE))
    return names


def _parameters(node):
    """The parameters of a function, or the fields of a dataclass."""
    if isinstance(node, ast.FunctionDef):
        arguments = node.args
        return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    fields = [
        n.target.id
        for n in node.body
        if isinstance(n, ast.AnnAssign) and not ast.unparse(n.annotation).startswith("ClassVar")
    ]
    return [name for name in fields if not name.startswith("_")]


def test_the_tree_in_the_architecture_document_is_that_of_the_package():
    document = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    assert module_tree() in document, "run `python tests/test_architecture.py` to write it"


def module_tree():
    """The folders and modules with the first sentence of each, as a block of Markdown."""
    lines = ["```", f"{PACKAGE}/"]

    def summary(path):
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        return text.split("\n\n")[0].replace("\n", " ").rstrip(".")

    def show(folder, indent):
        for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), p.name)):
            if path.is_dir() and (path / "__init__.py").exists():
                lines.append(
                    f"{indent}{path.name + '/':<{26 - len(indent)}} {summary(path / '__init__.py')}"
                )
                show(path, indent + "  ")
            elif path.suffix == ".py" and path.stem != "__init__":
                lines.append(f"{indent}{path.name:<{26 - len(indent)}} {summary(path)}")

    show(ROOT / PACKAGE, "  ")
    return "\n".join([*lines, "```"])


def write_module_tree():
    path = ROOT / "ARCHITECTURE.md"
    before = path.read_text("utf-8")
    pattern = re.compile(rf"^```\n{PACKAGE}/\n.*?^```", re.MULTILINE | re.DOTALL)
    after, number = pattern.subn(lambda _: module_tree(), before)
    assert number == 1, "ARCHITECTURE.md has no block that begins with t5x_lite/"
    path.write_text(after, "utf-8")


if __name__ == "__main__":
    write_module_tree()
