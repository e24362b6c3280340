"""Make a small corpus of English from the docstrings of installed packages, in C4's layout.

It allows training without a download. A corpus is a directory of JSON lines, gzipped or not:

    c4-train.00000-of-00004.json.gz     {"text": "...", "url": "https://...", "timestamp": "..."}

The embedded corpus consists of the docstrings of the standard library and of the dependencies of
this package, read from the source files without importing them, and of the language reference in
`pydoc_data.topics`. The same installed versions give the same bytes.
"""

import ast
import contextlib
import gc
import gzip
import hashlib
import importlib.util
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t5x_lite.data.sources.jsonl_and_tsv import read_records
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic, files
from t5x_lite.io.safe_files import read_json

STANDARD_LIBRARY = "python"
PACKAGES = (
    STANDARD_LIBRARY,
    *("absl", "beartype", "etils", "flax", "gin", "jax", "matplotlib", "mpl_toolkits", "numpy"),
    *("optax", "orbax", "PIL", "rich", "scipy", "seqio", "treescope"),
)
TRAIN_SHARDS, VALIDATION_SHARDS = 4, 1

_VALIDATION_PERCENT = 2
_MIN_CHARACTERS = 40
_MIN_LETTERS = (
    0.65  # of the characters that are not space: tables, formulas and listings have fewer
)
_SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "site-packages", "test", "tests", "testing"}
_DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_URL = "https://docs.invalid/"
_TIMESTAMP = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class CorpusSummary:
    """What a corpus contains.

    Attributes:
        train_documents: The number of documents of the train split.
        validation_documents: The number of documents of the validation split.
        characters: The number of characters of both splits.
        packages: The packages that the documents come from.
    """

    train_documents: int
    validation_documents: int
    characters: int
    packages: tuple[str, ...]


def write_embedded_corpus(
    directory: str | os.PathLike, packages: Sequence[str] = PACKAGES
) -> CorpusSummary:
    """Write the embedded corpus unless it exists, and return what it contains.

    Documents are ordered by a hash of their names, so that neighbors are unrelated. 2 % of them,
    chosen by the same hash, are the validation split. The directory appears when it is complete. An
    existing corpus is kept even if packages were updated, so that runs stay repeatable.

    Args:
        directory: Where the corpus is or will be.
        packages: The packages whose docstrings make the corpus.

    Raises:
        ConfigError: If the directory has the corpus of other packages.
    """
    directory = Path(directory)
    if not (directory / "corpus.json").exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic.new_directory(directory) as partial:
                _write_corpus(partial, packages)
        except OSError:
            # Another process may have been first: both write the same bytes.
            if not (directory / "corpus.json").exists():
                raise
    content = read_json(directory / "corpus.json")
    summary = CorpusSummary(**{**content, "packages": tuple(content["packages"])})
    if summary.packages != tuple(packages):
        raise ConfigError(
            f"{directory} holds the corpus of the packages {', '.join(summary.packages)}, expected "
            f"{', '.join(packages)}: use another directory",
            "EmbeddedCorpus.packages",
            "DATA_DIR",
        )
    return summary


def embedded_documents(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the texts of the embedded corpus by name, such as "numpy.linalg._linalg.svd".

    Packages that are not installed are omitted, and so are texts that another name has already.
    """
    texts: dict[str, str] = {}
    seen = set()
    with _without_garbage_collection():
        for name, text in _all_documents(packages):
            fingerprint = hashlib.sha256(" ".join(text.lower().split()).encode()).digest()
            if name not in texts and fingerprint not in seen:
                texts[name] = text
                seen.add(fingerprint)
    return texts


def shard_pattern(directory: str | os.PathLike, split: str) -> str:
    """Return the pattern of a split's shards, gzipped or plain."""
    return os.path.join(os.fspath(directory), f"c4-{split}.*.json*")


def read_documents(directory: str | os.PathLike, split: str) -> Iterator[dict[str, Any]]:
    """Yield the documents of a split, one shard after another."""
    pattern = shard_pattern(directory, split)
    shards = files.matching(pattern)
    if not shards:
        raise ConfigError(f"no file matches {pattern}", "DATA_DIR")
    for shard in shards:
        yield from read_records(shard, ("text",))


def document_name(document: Mapping[str, Any]) -> str:
    """Return the name at the end of a document's URL: "json.loads" of ".../json.loads"."""
    return str(document.get("url", "")).rsplit("/", 1)[-1]


def _write_corpus(directory: Path, packages: Sequence[str]) -> None:
    texts = embedded_documents(packages)
    splits: dict[str, list[bytes]] = {"train": [], "validation": []}
    for name in sorted(texts, key=_hash):
        document = {"text": texts[name], "url": _URL + name, "timestamp": _TIMESTAMP}
        in_validation = int.from_bytes(_hash(name)[-4:]) % 100 < _VALIDATION_PERCENT
        split = splits["validation" if in_validation else "train"]
        split.append(json.dumps(document, ensure_ascii=False).encode() + b"\n")
    for split, shards in (("train", TRAIN_SHARDS), ("validation", VALIDATION_SHARDS)):
        for shard in range(shards):
            name = f"c4-{split}.{shard:05d}-of-{shards:05d}.json.gz"
            first, last = (len(splits[split]) * edge // shards for edge in (shard, shard + 1))
            _write_gzip(directory / name, splits[split][first:last])
    summary = CorpusSummary(
        train_documents=len(splits["train"]),
        validation_documents=len(splits["validation"]),
        characters=sum(map(len, texts.values())),
        packages=tuple(packages),
    )
    (directory / "corpus.json").write_text(json.dumps(asdict(summary)) + "\n", "utf-8")


def _write_gzip(path: Path, lines: Iterable[bytes]) -> None:
    """Write a gzip file whose bytes depend on the lines alone: without a name and a time."""
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        packed.writelines(lines)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable cyclic garbage collection in the `with` block.

    Syntax trees have no cycles, but their many nodes trigger collections over all loaded objects.
    With TensorFlow loaded, that doubles the time of reading source files.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _all_documents(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the cleaned text of every document, duplicates included."""
    for package in packages:
        for root, prefix in _roots(package):
            for path in _source_files(root):
                parts = prefix + path.relative_to(root).with_suffix("").parts
                module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                texts = _topics(path) if module == "pydoc_data.topics" else _docstrings(path)
                for name, text in texts:
                    text = _clean(text)
                    if len(text) >= _MIN_CHARACTERS and _letter_fraction(text) >= _MIN_LETTERS:
                        yield module + name, text


def _roots(package: str) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the folders of a package, without importing it, and the prefix of their modules."""
    if package == STANDARD_LIBRARY:
        return [(Path(sysconfig.get_path("stdlib")), ())]
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    return [(Path(folder), (package,)) for folder in folders]


def _source_files(root: Path) -> Iterator[Path]:
    """Yield the Python files under a folder in alphabetic order, except those of test suites."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        for file in sorted(names):
            if file.endswith(".py") and not file.startswith("test_") and file[-8:] != "_test.py":
                yield Path(folder, file)


def _topics(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the articles of the language reference, which are the values of one dictionary."""
    for statement in _parse(path).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for topic, text in ast.literal_eval(statement.value).items():
                yield f".{topic}", text


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("", the module's docstring), (".Class.method", its docstring) ... of a source file.

    What is defined inside a function is omitted.
    """

    def visit(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Module | _DEFINITIONS) and (text := ast.get_docstring(node)):
            yield name, text
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        for field in ("body", "orelse", "handlers", "finalbody"):
            for child in getattr(node, field, ()):
                inner = f"{name}.{child.name}" if isinstance(child, _DEFINITIONS) else name
                yield from visit(child, inner)

    yield from visit(_parse(path), "")


def _parse(path: Path) -> ast.Module:
    """Parse a source file; one without docstrings, or not in Python 3, gives an empty module."""
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return ast.Module([], [])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escape sequences in others' code
            return ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _clean(text: str) -> str:
    """Return a text without interpreter sessions and unreadable characters."""
    text = text.encode("utf-8", "ignore").decode()  # half surrogates
    text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f]+", " ", text)
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(part for part in paragraphs if ">>>" not in part).strip()


def _letter_fraction(text: str) -> float:
    """Return how many of the characters that are not space are letters, from 0 to 1."""
    characters = "".join(text.split())
    return sum(map(str.isalpha, characters)) / max(len(characters), 1)
