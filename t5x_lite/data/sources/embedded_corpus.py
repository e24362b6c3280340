"""Documents on disk in C4's layout, and a corpus of real English that every installation carries.

A corpus is a directory of JSON-lines shards, gzipped or plain, whose lines hold at least `text`:

    c4-train.00000-of-00004.json.gz     {"text": "...", "url": "https://...", "timestamp": "..."}

The embedded corpus is made of the docstrings of the standard library and of the packages that this
one depends on, read from the source files without importing any, and of the language reference in
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
_MIN_LETTERS = 0.65  # of what is not space: tables, formulae and listings fall below
_SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "site-packages", "test", "tests", "testing"}
_DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_URL = "https://docs.invalid/"
_TIMESTAMP = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class CorpusSummary:
    """What a corpus holds: documents of either split, characters in both, and whose they are."""

    train_documents: int
    validation_documents: int
    characters: int
    packages: tuple[str, ...]


def write_embedded_corpus(
    directory: str | os.PathLike, packages: Sequence[str] = PACKAGES
) -> CorpusSummary:
    """Write the embedded corpus, or leave the one that is there, and say what it holds.

    Documents are ordered by a hash of their names, so that neighbors are unrelated, and 2 % of the
    names, chosen by the same hash, are the validation split. The directory appears only when
    everything in it is complete. A corpus once written is kept although packages were updated: what
    was learned from it must stay repeatable. Raises ConfigError where it is that of other packages.
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
            f"{directory} holds the corpus of the packages {', '.join(summary.packages)}, asked "
            f"for are {', '.join(packages)}: use another directory",
            "EmbeddedCorpus.packages",
            "DATA_DIR",
        )
    return summary


def embedded_documents(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the texts of the embedded corpus by name, such as "numpy.linalg._linalg.svd".

    A package that is not installed is left out, and so is a text that another name has already.
    """
    texts: dict[str, str] = {}
    seen = set()
    with _garbage_left_alone():
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
    """Yield the documents of a split, shard after shard."""
    pattern = shard_pattern(directory, split)
    shards = files.matching(pattern)
    if not shards:
        raise ConfigError(f"no file matches {pattern}", "DATA_DIR")
    for shard in shards:
        yield from read_records(shard, ("text",))


def document_name(document: Mapping[str, Any]) -> str:
    """Return the name that the address of a document ends in: "json.loads" of ".../json.loads"."""
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
    """Write a gzip file whose bytes depend on the lines alone: no name, no time."""
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        packed.writelines(lines)


@contextlib.contextmanager
def _garbage_left_alone() -> Iterator[None]:
    """Stop cyclic garbage collection for a while.

    Syntax trees have no cycles, but so many nodes that Python keeps searching all that is loaded
    for some: with TensorFlow loaded that doubles the time of reading source files.
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
    """Yield the name and the cleaned text of every document, repeated ones too."""
    for package in packages:
        for root, prefix in _roots(package):
            for path in _source_files(root):
                parts = prefix + path.relative_to(root).with_suffix("").parts
                module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                texts = _topics(path) if module == "pydoc_data.topics" else _docstrings(path)
                for name, text in texts:
                    text = _clean(text)
                    if len(text) >= _MIN_CHARACTERS and _share_of_letters(text) >= _MIN_LETTERS:
                        yield module + name, text


def _roots(package: str) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the folders of an importable package, without importing it, and their names' start."""
    if package == STANDARD_LIBRARY:
        return [(Path(sysconfig.get_path("stdlib")), ())]
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    return [(Path(folder), (package,)) for folder in folders]


def _source_files(root: Path) -> Iterator[Path]:
    """Yield the Python files under a folder in alphabetic order, those of test suites left out."""
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

    What is defined inside a function is left out.
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
    """Parse a source file; what has no docstring or is not Python 3 is an empty module."""
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return ast.Module([], [])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escape sequences
            return ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _clean(text: str) -> str:
    """Return a text without its interpreter sessions and what no one can read."""
    text = text.encode("utf-8", "ignore").decode()  # half surrogates
    text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f]+", " ", text)
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(part for part in paragraphs if ">>>" not in part).strip()


def _share_of_letters(text: str) -> float:
    """Return how many of the characters that are not space are letters, from 0 to 1."""
    characters = "".join(text.split())
    return sum(map(str.isalpha, characters)) / max(len(characters), 1)
