"""Compile a traced program for a topology, and cache the result by a hash of the program."""

import contextlib
import gzip
import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json

MEMORY = ("argument", "output", "alias", "temp", "generated_code")
_NAME = re.compile(r'loc\("([^"]+)"\(')  # in a lowered program; source files have no parenthesis


class TooLarge(NamedTuple):
    """The compiler's error that a program does not fit.

    Attributes:
        used: Bytes that the program needs; None if the message has no number.
        limit: Bytes that are available; None if the message has no number.
        buffers: The largest arrays in the message, as (bytes, name).
    """

    used: float | None
    limit: float | None
    buffers: tuple[tuple[float, str], ...]


class Compiled(NamedTuple):
    """The result of a compilation.

    Attributes:
        text: Scheduled HLO; empty if the program does not fit, or if this version of JAX cannot
            read programs of this libtpu.
        memory: Bytes of a device by the names of `MEMORY`; empty if the program does not fit.
        seconds: Duration of the compilation, also if the result was cached.
        cached: Whether the result was cached.
        too_large: The compiler's error, if the program does not fit.
    """

    text: str
    memory: Mapping[str, int]
    seconds: float
    cached: bool
    too_large: TooLarge | None = None


def compiled(
    lowered: Any, *, target: str, directory: Path, options: Mapping[str, Any] = MappingProxyType({})
) -> Compiled:
    """Compile a program, or read the result from the cache.

    Results are cached by a hash of the program, its JAX names (`jax.named_scope`), the target and
    the options. Source files and line numbers are not part of the hash.

    Args:
        lowered: The result of `jax.jit(...).lower(...)`.
        target: Everything else that the result depends on: topology, order of devices, versions of
            the compiler.
        directory: The cache.
        options: XLA options by name.
    """
    target = f"{target} {sorted(options.items())}" if options else target
    names = sorted(set(_NAME.findall(lowered.as_text(debug_info=True))))
    key = hashlib.sha256(f"{target}\n{names}\n{lowered.as_text()}".encode()).hexdigest()[:24]
    text_file, facts_file = directory / f"{key}.hlo.gz", directory / f"{key}.json"
    if facts_file.exists():
        facts = read_json(facts_file)
        text = gzip.decompress(text_file.read_bytes()).decode()
        return _from_facts(facts, text, cached=True)
    start = time.perf_counter()
    text, memory, failure = "", {}, None
    try:
        with _without_jax_cache():
            program = lowered.compile(compiler_options=dict(options) or None)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        failure = str(error)
    else:
        stats = program.memory_analysis()
        with contextlib.suppress(Exception):  # JAX may not read programs of a newer libtpu
            text = program.as_text()
        memory = {name: getattr(stats, f"{name}_size_in_bytes") for name in MEMORY}
    facts = {
        "target": target,
        "memory": memory,
        "failure": failure,
        "seconds": time.perf_counter() - start,
    }
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(text_file, gzip.compress(text.encode()))
    atomic.write_json(facts_file, facts, indent=1)  # last: it marks the entry as complete
    return _from_facts(facts, text, cached=False)


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """Disable JAX's cache, which would fail to load a program for devices that do not exist."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX reads the setting only once, unless its cache is reset
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _from_facts(facts: Mapping[str, Any], text: str, *, cached: bool) -> Compiled:
    failure = facts["failure"] and parse_too_large(facts["failure"])
    return Compiled(text, facts["memory"], facts["seconds"], cached, failure)


def parse_too_large(message: str) -> TooLarge:
    """Parse the TPU compiler's error that a program exceeds the memory of the chip."""
    size = r"([\d.]+[KMGT]?)"
    used = re.search(rf"Used {size} of {size} hbm", message) or re.search(
        rf"\({size}\) exceeds available HBM \({size}\)", message
    )
    buffers = []
    for block in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = re.match(r"([\d.]+[KMGT]?)", block)
        operator = re.search(r'op_name="([^"]*)"', block)
        shape = re.search(r"Shape: (\S+)", block)
        name = " ".join(match[1] for match in (shape, operator) if match)
        if size:
            buffers.append((_bytes(size[1]), name))
    needed, limit = (_bytes(used[1]), _bytes(used[2])) if used else (None, None)
    return TooLarge(needed, limit, tuple(buffers))


def _bytes(text: str) -> float:
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(text.rstrip("KMGT")) * units.get(text[-1], 1)
