"""What code does, as text that changes with the code but not with its name, file or comments.

Token stores and plans are kept under digests of all that decides their content. That includes the
functions that make the examples:

    @versioned("documents_to_pairs", 1)     a stable id and a version: nothing else counts
    def clean(dataset): ...                 no version: its code, and the code that it uses

Code is compared as a syntax tree without docstrings, comments, formatting and annotations. The
functions, classes and constants that it names are included, across modules, unless they belong to
an installed package or to the standard library: of those the name counts, and of a step itself also
the package's version. Moving or renaming a module changes nothing.

Some behavior cannot be seen: what depends on files or environment variables, attributes that are
looked up by computed names, and arguments that gin binds under a function's own name. Give such a
step a version, and raise it when its results change.
"""

import ast
import dataclasses
import enum
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import linecache
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from t5x_lite.errors import ConfigError

Target = TypeVar("Target", bound=Callable[..., Any])

# A dataclass field with this metadata is no part of its instance's description.
NOT_IDENTITY: Mapping[str, Any] = {"identity": False}

_OWN_PACKAGE = __name__.partition(".")[0]
_INSTALLED = {"site-packages", "dist-packages"}
_IDENTITY = "step_identity"
# Fields of the syntax tree that do not change what runs.
_IGNORED = {"returns", "type_comment", "type_params", "kind"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def versioned(name: str, version: int) -> Callable[[Target], Target]:
    """Give a function or class an identity that does not depend on its code.

        @versioned("documents_to_pairs", 1)
        def documents_to_pairs(dataset, make_pair): ...

    Args:
        name: Must never change, even if the function is renamed or moved.
        version: Must be raised whenever the results change. Token stores that were made by another
            version are then built again.

    Returns:
        A decorator, which returns the same function or class.
    """

    def decorate(target: Target) -> Target:
        setattr(target, _IDENTITY, f"{name} (version {version})")
        return target

    return decorate


def describe(value: Any) -> Any:
    """Return what decides how a value behaves, as JSON that is the same in every process.

        describe(functools.partial(format_examples, fields=("text",)))
        {"call": "format_examples (version 1)", "arguments": {"fields": ["text"]}}

    Args:
        value: A preprocessor, an argument of one, or anything inside an argument.

    Returns:
        Numbers and text as they are, functions and classes as text, instances as the description of
        their class and fields. Fields with the metadata `NOT_IDENTITY` are omitted.

    Raises:
        ConfigError: If a function has neither a version nor a readable source.
    """
    return _Describer().value(value)


def source_digest(name: str) -> str:
    """Return a digest of the code of a module, and of the user's modules that it imports.

    Comments, docstrings, formatting and the modules' names do not change it. Nothing is imported.

    Args:
        name: The module's name. One that cannot be found has no code.

    Returns:
        Hexadecimal digits.
    """
    trees, todo, seen = [], [name], set()
    while todo:
        module = todo.pop(0)
        if module in seen or (path := _file_of(module)) is None:
            continue
        seen.add(module)
        tree = ast.parse(path.read_bytes())
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        todo += _user_imports(tree, package)
        trees.append(_plain(tree))
    return _digest(trees)


class _Describer:
    """One description: remembers what it is inside of, so that recursive functions come to an end.

    Nothing is kept between two descriptions: a function that calls itself through others would be
    described differently depending on which of them came first.
    """

    def __init__(self) -> None:
        self._inside: list[Any] = []

    def value(self, value: Any) -> Any:
        """Describe any value."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if any(value is outer for outer in self._inside):
            return f"recursion {[value is outer for outer in self._inside].index(True)}"
        self._inside.append(value)
        try:
            return self._compound(value)
        finally:
            self._inside.pop()

    def _compound(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name}"
        if isinstance(value, Mapping):
            return {"mapping": [[self.value(k), self.value(v)] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        if isinstance(value, Set):
            return {"set": sorted((self.value(item) for item in value), key=json.dumps)}
        if isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            digest = _digest(array.tolist() if array.dtype == object else array.tobytes().hex())
            return f"array {array.dtype} {array.shape} {digest}"
        if isinstance(value, functools.partial):
            return self._partial(value)
        if _IDENTITY in getattr(value, "__dict__", ()):
            return getattr(value, _IDENTITY)
        if isinstance(value, type):
            return self._class(value)
        if inspect.ismethod(value):
            return {"method": value.__name__, "self": self.value(value.__self__)}
        if hasattr(value, "__code__"):
            return self._function(value)
        if hasattr(value, "__wrapped__"):  # such as functools.cache
            return self.value(value.__wrapped__)
        if callable(value) and hasattr(value, "__qualname__"):  # written in C
            return f"{value.__module__}.{value.__qualname__}"
        return self._instance(value)

    def _partial(self, value: functools.partial) -> Any:
        arguments: dict[str, Any] = {}
        function: Any = value
        while isinstance(function, functools.partial):
            positional = {str(number): argument for number, argument in enumerate(function.args)}
            arguments = {**positional, **function.keywords, **arguments}
            function = function.func
        described = {name: self.value(arguments[name]) for name in sorted(arguments)}
        return {"call": self.value(function), "arguments": described}

    def _instance(self, value: Any) -> Any:
        kind = type(value)
        identity, origin = vars(kind).get(_IDENTITY), _origin(kind.__module__)
        if identity is None and origin == "library":
            return _without_addresses(repr(value))
        if dataclasses.is_dataclass(value):
            kept = [f for f in dataclasses.fields(value) if f.metadata.get("identity", True)]
            state = {field.name: getattr(value, field.name) for field in kept}
        else:
            state = dict(getattr(value, "__dict__", {}))
        if identity is None:
            # Our own classes hold data; the functions that work on it have versions.
            identity = kind.__qualname__ if origin == "package" else self.value(kind)
        return {"class": identity, "fields": {name: self.value(state[name]) for name in state}}

    def _function(self, function: Any) -> Any:
        if _root(function.__globals__["__name__"]) == "gin":  # gin's wrapper of a configurable
            return self.value(function.__wrapped__)
        innermost = inspect.unwrap(function)
        if _origin(innermost.__module__) == "library":
            return _library_name(innermost)
        closure = inspect.getclosurevars(function).nonlocals
        outside = {
            "closure": {name: self.value(closure[name]) for name in sorted(closure)},
            "defaults": self.value(function.__defaults__),
            "keywords": self.value(function.__kwdefaults__),
        }
        if _origin(function.__globals__["__name__"]) == "library":  # a library's decorator
            return f"code {_digest([function.__code__.co_qualname, outside])}"
        node = _function_node(function)
        return self._code(node, function.__globals__, outside)

    def _class(self, kind: type) -> str:
        if _origin(kind.__module__) == "library":
            return _library_name(kind)
        module = sys.modules[kind.__module__]
        return self._code(_class_node(kind), vars(module), {})

    def _code(self, node: ast.AST, names: Mapping[str, Any], outside: Mapping[str, Any]) -> str:
        """Return the digest of a function or class, with all that it names."""
        package = names.get("__package__") or ""
        names = {**names, **_local_imports(node)}
        used = {name: self._named(value) for name, value in _uses(node, names)}
        # Modules of the user that are imported when the code runs: as text, since importing them
        # here could import TensorFlow before it is needed, if it is needed at all.
        modules = [source_digest(module) for module in _user_imports(node, package)]
        return f"code {_digest([_plain(node), outside, used, modules])}"

    def _named(self, value: Any) -> Any:
        """Describe what a name in a function's code stands for."""
        if isinstance(value, ModuleType):
            return f"module {value.__name__}" if _origin(value.__name__) == "library" else "module"
        is_plain = isinstance(value, re.Pattern | np.ndarray | functools.partial | Mapping)
        is_plain |= isinstance(value, list | tuple | Set | enum.Enum)
        if is_plain or callable(value) or _origin(type(value).__module__) != "library":
            return self.value(value)
        # Of a library's objects, such as a logger, only the type counts: their state may change.
        return _library_name(type(value))


class _Module(NamedTuple):
    """The functions of a source file by their first line, and its classes by qualified name."""

    functions: Mapping[int, list[ast.AST]]
    classes: Mapping[str, ast.ClassDef]


@functools.lru_cache(maxsize=256)
def _parsed(source: str) -> _Module:
    functions: dict[int, list[ast.AST]] = {}
    classes: dict[str, ast.ClassDef] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, _FUNCTIONS):
                decorators = getattr(child, "decorator_list", [])
                line = min([child.lineno, *(decorator.lineno for decorator in decorators)])
                functions.setdefault(line, []).append(child)
                inner = f"{prefix}{getattr(child, 'name', '<lambda>')}.<locals>."
            elif isinstance(child, ast.ClassDef):
                classes[f"{prefix}{child.name}"] = child
                inner = f"{prefix}{child.name}."
            visit(child, inner)

    visit(ast.parse(source), "")
    return _Module(functions, classes)


def _source(file: str, names: Mapping[str, Any]) -> str:
    linecache.checkcache(file)
    return "".join(linecache.getlines(file, dict(names)))


def _function_node(function: Any) -> ast.AST:
    """Return the syntax tree of a function, which its code object's position leads to."""
    code: CodeType = function.__code__
    source = _source(code.co_filename, function.__globals__)
    nodes = _parsed(source).functions.get(code.co_firstlineno, [])
    nodes = [node for node in nodes if getattr(node, "name", "<lambda>") == code.co_name]
    if len(nodes) > 1:  # lambdas of one line: the innermost that spans all of the code
        nodes = sorted((node for node in nodes if _spans(node, code)), key=_length)
    if not nodes:
        raise _unreadable(function)
    return nodes[0]


def _class_node(kind: type) -> ast.AST:
    module = sys.modules.get(kind.__module__)
    source = _source(getattr(module, "__file__", None) or "", vars(module) if module else {})
    if kind.__qualname__ not in (classes := _parsed(source).classes):
        raise _unreadable(kind)
    return classes[kind.__qualname__]


def _spans(node: Any, code: CodeType) -> bool:
    start, end = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
    positions = [p for p in code.co_positions() if None not in p and p[3] != 0]
    return all(start <= (p[0], p[2]) and (p[1], p[3]) <= end for p in positions)


def _length(node: Any) -> tuple[int, int]:
    return node.end_lineno - node.lineno, node.end_col_offset - node.col_offset


def _unreadable(target: Any) -> ConfigError:
    return ConfigError(
        f"the source code of {target.__module__}.{target.__qualname__} cannot be read, so changes "
        f"of it would go unnoticed: write it in a file, or give it a version: "
        f'@{__name__}.{versioned.__name__}("a_stable_name", 1)',
        "MIXTURE_OR_TASK_NAME",
    )


def _plain(node: Any, *, is_root: bool = True) -> Any:
    """Return a syntax tree as lists, without what does not change what runs.

    Dropped are docstrings, annotations of arguments and results, the name of the root, and which of
    the user's own modules an import names: what it imports is described by itself.
    """
    if isinstance(node, list):
        return [_plain(item, is_root=False) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in _IGNORED}
    if isinstance(node, ast.arg):
        del fields["annotation"]
    if isinstance(node, ast.ImportFrom) and (node.level or _origin(node.module or "") != "library"):
        del fields["module"], fields["level"]
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Module)) and not isinstance(
        node, ast.Lambda
    ):
        fields["body"] = _without_docstring(node.body)
    if is_root:
        fields.pop("name", None)
    parts = [
        [name, _plain(value, is_root=False)]
        for name, value in fields.items()
        if value is not None and value != []  # what newer versions of Python add is mostly empty
    ]
    return [type(node).__name__, *parts]


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body


def _uses(node: ast.AST, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a syntax tree names: global names, and attributes of the user's own modules."""
    skipped = {id(part) for annotation in _annotations(node) for part in ast.walk(annotation)}
    for part in ast.walk(node):
        if id(part) in skipped:
            continue
        if isinstance(part, ast.Name) and part.id in names:
            yield part.id, names[part.id]
        elif isinstance(part, ast.Attribute):
            owner = _resolved(part.value, names)
            is_followed = isinstance(owner, ModuleType) and _origin(owner.__name__) != "library"
            if is_followed and hasattr(owner, part.attr):
                yield ast.unparse(part), getattr(owner, part.attr)


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    for part in ast.walk(node):
        annotations = [getattr(part, "returns", None)]
        annotations += [part.annotation] if isinstance(part, ast.arg) else []
        yield from (annotation for annotation in annotations if annotation is not None)


def _resolved(node: ast.AST, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolved(node.value, names)
        return getattr(owner, node.attr, None) if isinstance(owner, ModuleType) else None
    return None


def _local_imports(node: ast.AST) -> dict[str, Any]:
    """Return what a function imports of this package when it runs, by the names it binds."""
    imported: dict[str, Any] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.ImportFrom) and _origin(part.module or "") == "package":
            for alias in part.names:
                module = importlib.import_module(part.module or "")
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{part.module}.{alias.name}")
                imported[alias.asname or alias.name] = getattr(module, alias.name)
    return imported


def _user_imports(node: ast.AST, package: str) -> list[str]:
    """Return which modules of the user the imports in some code may import."""
    modules: list[str] = []
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            modules += [alias.name for alias in part.names]
        elif isinstance(part, ast.ImportFrom):
            module = _absolute(part, package)
            modules += [module, *(f"{module}.{alias.name}" for alias in part.names)]
    return [module for module in modules if _origin(module) == "user"]


def _absolute(node: ast.ImportFrom, package: str) -> str:
    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*parents, *([node.module] if node.module else [])])


def _root(module: str) -> str:
    return module.partition(".")[0]


def _origin(module: str) -> str:
    """Return whether a module is of this "package", of the "user", or of a "library"."""
    return _origin_of_root(_root(module))


@functools.lru_cache(maxsize=1024)
def _origin_of_root(root: str) -> str:
    if root == _OWN_PACKAGE:
        return "package"
    if root in sys.stdlib_module_names:
        return "library"
    locations = _locations(root)
    is_installed = any(_INSTALLED & set(Path(location).parts) for location in locations)
    return "library" if is_installed else "user"


def _locations(root: str) -> list[str]:
    """Return the file of a top-level module, or the directories of a package, without importing."""
    if (module := sys.modules.get(root)) is not None:
        file = getattr(module, "__file__", None)
        return [file] if file else list(getattr(module, "__path__", []))
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    return [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])


def _file_of(module: str) -> Path | None:
    """Return the source file of a module, None if there is none; no package is imported."""
    for location in _locations(_root(module)):
        path = Path(location)
        directory = path.parent if path.suffix else path
        if "." not in module:
            return path if path.suffix == ".py" else None
        below = directory.joinpath(*module.split(".")[1:])
        for candidate in (below.with_suffix(".py"), below / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _library_name(target: Any) -> str:
    """Return the name of what a library holds, with its version if it is an installed package."""
    name = f"{target.__module__}.{target.__qualname__}"
    root = _root(target.__module__)
    if root in sys.stdlib_module_names or root == "builtins":
        return name
    distributions = _distributions().get(root)
    if not distributions:
        return name
    version = importlib.metadata.version(distributions[0])
    return f"{name} ({distributions[0]} {version})"


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return {
        name: sorted(set(of)) for name, of in importlib.metadata.packages_distributions().items()
    }


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
