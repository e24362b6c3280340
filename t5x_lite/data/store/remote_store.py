"""Read and write token stores in a bucket, under a URL such as "gs://bucket/stores".

A remote store has the files of a store on disk (`data.store.token_store`), each cut into objects of
64 MiB:

    targets.tokens.bin/00000, 00001 ...    targets.offsets.npy/00000 ...    manifest.json, last

TensorStore reads and writes the objects, so that neither TensorFlow nor a local copy is needed: the
ranges of tokens of a batch are requested all at once.
"""

import contextlib
import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.store.token_store import HEADER_BYTES, TokenStore, check_same_source
from t5x_lite.errors import ConfigError

_OBJECT_BYTES = 1 << 26
_BLOCK_ITEMS = 1 << 16  # read and cached together where single items are requested: 512 KiB
_BLOCKS_KEPT = 256
_LOG = logging.getLogger(__name__)


class ObjectStore:
    """The objects below a URL, by name.

    Args:
        address: a URL that TensorStore knows, such as "gs://bucket/stores" or "file:///stores".

    Raises:
        ConfigError: if it cannot be used; so do all methods.
    """

    def __init__(self, address: str):
        import tensorstore as ts

        self.address = address.rstrip("/") + "/"
        with _as_config_error(self.address):
            self._store = ts.KvStore.open(self.address).result()

    def read(self, name: str) -> bytes | None:
        """Return the content of an object, None if there is no such object."""
        with _as_config_error(self.address + name):
            result = self._store.read(name).result()
        return result.value if result.state == "value" else None

    def write(self, name: str, content: bytes) -> None:
        """Write an object, which appears complete or not at all."""
        with _as_config_error(self.address + name):
            self._store.write(name, content).result()

    def names(self, prefix: str) -> set[str]:
        """Return the names of the objects that start with a prefix."""
        import tensorstore as ts

        with _as_config_error(self.address + prefix):
            # "\x7f" sorts after every character of our names.
            names = self._store.list(ts.KvStore.KeyRange(prefix, prefix + "\x7f")).result()
        return {name.decode() for name in names}

    def read_ranges(self, ranges: list[tuple[str, int, int]]) -> list[bytes]:
        """Return byte ranges of objects, all requested at once.

        Args:
            ranges: name, first byte, and the byte after the last.

        Raises:
            ConfigError: if an object does not exist.
        """
        with _as_config_error(self.address):
            futures = [
                self._store.read(name, byte_range=slice(first, last))
                for name, first, last in ranges
            ]
            results = [future.result() for future in futures]
        for (name, _, _), result in zip(ranges, results, strict=True):
            if not result.value:
                raise ConfigError(f"{self.address}{name} does not exist", "Data.store_dir")
        return [result.value for result in results]


class RemoteArray:
    """A one-dimensional array in the objects of a file.

    Args:
        objects: where the file is.
        file: its name.
        dtype: of the array.
        count: its length.
        skipped: how many bytes of the file come before it.
    """

    def __init__(
        self, objects: ObjectStore, file: str, dtype: Any, count: int, *, skipped: int = 0
    ):
        self._objects, self._file, self._skipped = objects, file, skipped
        self.dtype, self._count = np.dtype(dtype), count
        self._blocks: OrderedDict[int, NDArray[Any]] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return self._count

    def fetch(
        self, starts_n: NDArray[np.int64], lengths_n: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return ranges of the array one after another, and where each starts in the result.

        Args:
            starts_n: where each range starts [n].
            lengths_n: the length of each range [n].
        """
        ranges = []
        for start, length in zip(starts_n.tolist(), lengths_n.tolist(), strict=True):
            first = self._skipped + start * self.dtype.itemsize
            ranges += _object_ranges(self._file, first, first + length * self.dtype.itemsize)
        content = b"".join(self._objects.read_ranges(ranges))
        lengths_n = np.asarray(lengths_n, np.int64)
        return np.frombuffer(content, self.dtype), np.cumsum(lengths_n) - lengths_n

    def __getitem__(self, index: Any) -> Any:
        """Return an item, a slice, or the items at an array of indices."""
        if isinstance(index, slice):
            first, last, step = index.indices(self._count)
            whole, _ = self.fetch(np.array([first]), np.array([max(last - first, 0)]))
            return whole[::step]
        indices = np.asarray(index, np.int64)
        indices = np.where(indices < 0, indices + self._count, indices)
        items = np.empty(indices.shape, self.dtype)
        for block in np.unique(indices // _BLOCK_ITEMS).tolist():
            in_block = indices // _BLOCK_ITEMS == block
            items[in_block] = self._block(block)[indices[in_block] % _BLOCK_ITEMS]
        return items if items.ndim else items[()]

    def _block(self, number: int) -> NDArray[Any]:
        """Return a block of items, from the cache of those used last if it is there."""
        if number not in self._blocks:
            first = number * _BLOCK_ITEMS
            count = min(_BLOCK_ITEMS, self._count - first)
            self._blocks[number] = self.fetch(np.array([first]), np.array([count]))[0]
        self._blocks.move_to_end(number)
        if len(self._blocks) > _BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        return self._blocks[number]


@dataclass(frozen=True)
class RemoteStore:
    """A complete store under a URL, with the methods of a `TokenStore`.

    Attributes:
        objects: the objects of the store.
        manifest: what the store was made from and what it contains.
    """

    objects: ObjectStore
    manifest: Mapping[str, Any]
    _arrays: dict[str, RemoteArray] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, address: str, expected: Mapping[str, Any] | None = None) -> "RemoteStore":
        """Open a store.

        Args:
            address: the URL of the store.
            expected: what the store should be made from; None: anything.

        Raises:
            ConfigError: if there is no store, or it was made from other data.
        """
        objects = ObjectStore(address)
        if (content := objects.read("manifest.json")) is None:
            raise ConfigError(f"there is no token store in {address}", "Data.store_dir")
        manifest = json.loads(content)
        check_same_source(manifest, expected, address)
        return cls(objects, manifest)

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return self.manifest["num_examples"]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the stored features."""
        return tuple(self.manifest["features"])

    def tokens(self, feature: str) -> Any:
        """Return the tokens of a feature of all examples, one after another: [tokens]."""
        described = self.manifest["features"][feature]
        return self._array(f"{feature}.tokens.bin", described["dtype"], described["tokens"], 0)

    def offsets(self, feature: str) -> Any:
        """Return where each example starts and, last, where the last one ends: [examples + 1]."""
        return self._array(f"{feature}.offsets.npy", "<i8", self.num_examples + 1, HEADER_BYTES)

    def groups(self, feature: str) -> NDArray[np.int64] | None:
        """Return the index and the start of every 128th non-empty document: [groups, 2].

        None for a store that was made before this table existed.
        """
        if (count := self.manifest["features"][feature].get("groups")) is None:
            return None
        table = self._array(f"{feature}.groups.npy", "<i8", 2 * count, HEADER_BYTES)
        return table[:].reshape(count, 2)

    def _array(self, file: str, dtype: str, count: int, skipped: int) -> RemoteArray:
        """Return the array of a file, always the same one, so that its cached blocks are shared."""
        array = RemoteArray(self.objects, file, dtype, count, skipped=skipped)
        return self._arrays.setdefault(file, array)


def upload(directory: Path, address: str) -> None:
    """Copy a finished store to an address, without what an interrupted call has copied before."""
    TokenStore.open(directory)
    objects = ObjectStore(address)
    files = sorted(path for path in directory.iterdir() if path.name != "manifest.json")
    for path in files:
        _LOG.info(f"copying {path.name} to {address} ...")
        there = objects.names(f"{path.name}/")  # written as a whole, so not written again
        with open(path, "rb") as file:
            number = 0
            while content := file.read(_OBJECT_BYTES):
                name = f"{path.name}/{number:05d}"
                if name not in there:
                    objects.write(name, content)
                number += 1
    objects.write("manifest.json", (directory / "manifest.json").read_bytes())


def _object_ranges(file: str, first: int, last: int) -> list[tuple[str, int, int]]:
    """Return the ranges of objects that contain the bytes first ... last - 1 of a file."""
    ranges = []
    while first < last:
        number, offset = divmod(first, _OBJECT_BYTES)
        end = min(offset + last - first, _OBJECT_BYTES)
        ranges.append((f"{file}/{number:05d}", offset, end))
        first += end - offset
    return ranges


@contextlib.contextmanager
def _as_config_error(address: str) -> Iterator[None]:
    """Turn errors into ConfigError; TensorStore has no error class of its own."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).split(" [", 1)[0]
        raise ConfigError(f"{address} cannot be used: {reason}", "Data.store_dir") from error
