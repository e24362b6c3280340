"""Token stores under an address such as "gs://bucket/stores", read by the stretch.

A store there is the same files as on disk (`data.store.token_store`), each cut into objects of 64
MiB:

    targets.tokens.bin/00000, 00001 ...    targets.offsets.npy/00000 ...    manifest.json, put last

TensorStore reads and writes them, so that neither TensorFlow nor a whole file is needed: a batch
asks for the stretches of tokens that it holds, all at once.
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

from t5x_lite.data.store.token_store import TokenStore, check_same_source
from t5x_lite.errors import ConfigError

_OBJECT_BYTES = 1 << 26
_HEADER_BYTES = 128  # of NumPy's file, as `data.tokenize.build_store` writes it
_BLOCK_ITEMS = 1 << 16  # that are read together where items are asked for one by one
_BLOCKS_KEPT = 256
_LOG = logging.getLogger(__name__)


class ObjectStore:
    """The objects below an address, by name."""

    def __init__(self, address: str):
        import tensorstore as ts

        self.address = address.rstrip("/") + "/"
        with _as_config_error(self.address):
            self._store = ts.KvStore.open(self.address).result()

    def read(self, name: str) -> bytes | None:
        """Return an object, None where there is none."""
        with _as_config_error(self.address + name):
            found = self._store.read(name).result()
        return found.value if found.state == "value" else None

    def write(self, name: str, content: bytes) -> None:
        """Put an object in its place, as a whole or not at all."""
        with _as_config_error(self.address + name):
            self._store.write(name, content).result()

    def names(self, prefix: str) -> set[str]:
        """Return the names that begin so."""
        import tensorstore as ts

        with _as_config_error(self.address + prefix):
            found = self._store.list(ts.KvStore.KeyRange(prefix, prefix + "\x7f")).result()
        return {name.decode() for name in found}

    def read_ranges(self, ranges: list[tuple[str, int, int]]) -> list[bytes]:
        """Return parts of objects, from a byte to before another, all asked for at once."""
        with _as_config_error(self.address):
            asked = [
                self._store.read(name, byte_range=slice(first, last))
                for name, first, last in ranges
            ]
            found = [each.result() for each in asked]
        missing = [name for (name, _, _), each in zip(ranges, found, strict=True) if not each.value]
        if missing:
            raise ConfigError(f"{self.address}{missing[0]} is gone", "Data.store_dir")
        return [each.value for each in found]


class RemoteArray:
    """Numbers that lie end to end in the objects of a file, after its first `skipped` bytes."""

    def __init__(
        self, objects: ObjectStore, file: str, dtype: Any, count: int, *, skipped: int = 0
    ):
        self._objects, self._file, self._skipped = objects, file, skipped
        self.dtype, self._count = np.dtype(dtype), count
        self._blocks: OrderedDict[int, NDArray[Any]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def fetch(
        self, starts_n: NDArray[np.int64], lengths_n: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return stretches end to end, and where each begins there."""
        ranges = []
        for start, length in zip(starts_n.tolist(), lengths_n.tolist(), strict=True):
            first = self._skipped + start * self.dtype.itemsize
            ranges += _cut(self._file, first, first + length * self.dtype.itemsize)
        content = b"".join(self._objects.read_ranges(ranges))
        lengths_n = np.asarray(lengths_n, np.int64)
        return np.frombuffer(content, self.dtype), np.cumsum(lengths_n) - lengths_n

    def __getitem__(self, place: Any) -> Any:
        """Return an item, a slice, or the items at an array of places."""
        if isinstance(place, slice):
            first, last, step = place.indices(self._count)
            whole, _ = self.fetch(np.array([first]), np.array([max(last - first, 0)]))
            return whole[::step]
        places = np.asarray(place, np.int64)
        places = np.where(places < 0, places + self._count, places)
        found = np.empty(places.shape, self.dtype)
        for block in np.unique(places // _BLOCK_ITEMS).tolist():
            own = places // _BLOCK_ITEMS == block
            found[own] = self._block(block)[places[own] % _BLOCK_ITEMS]
        return found if found.ndim else found[()]

    def _block(self, number: int) -> NDArray[Any]:
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
    """A finished store under an address; it reads like a `TokenStore`."""

    objects: ObjectStore
    manifest: Mapping[str, Any]
    _arrays: dict[str, RemoteArray] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, address: str, expected: Mapping[str, Any] | None = None) -> "RemoteStore":
        """Open a store; raises ConfigError as `TokenStore.open` does."""
        objects = ObjectStore(address)
        if (content := objects.read("manifest.json")) is None:
            raise ConfigError(f"there is no token store in {address}", "Data.store_dir")
        manifest = json.loads(content)
        check_same_source(manifest, expected, address)
        return cls(objects, manifest)

    @property
    def num_examples(self) -> int:
        """How many examples the store holds."""
        return self.manifest["num_examples"]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the stored features."""
        return tuple(self.manifest["features"])

    def tokens(self, feature: str) -> Any:
        """Return all tokens of a feature, end to end, as a `RemoteArray`."""
        described = self.manifest["features"][feature]
        return self._array(f"{feature}.tokens.bin", described["dtype"], described["tokens"], 0)

    def offsets(self, feature: str) -> Any:
        """Return where each example begins and, last, where the last ends, as a `RemoteArray`."""
        return self._array(f"{feature}.offsets.npy", "<i8", self.num_examples + 1, _HEADER_BYTES)

    def groups(self, feature: str) -> NDArray[np.int64] | None:
        """Return the number and the start of every 128th document with tokens, if they are kept."""
        if (count := self.manifest["features"][feature].get("groups")) is None:
            return None
        table = self._array(f"{feature}.groups.npy", "<i8", 2 * count, _HEADER_BYTES)
        return table[:].reshape(count, 2)

    def _array(self, file: str, dtype: str, count: int, skipped: int) -> RemoteArray:
        """Return the array of a file, the same one each time, with what it has read."""
        made = RemoteArray(self.objects, file, dtype, count, skipped=skipped)
        return self._arrays.setdefault(file, made)


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


def _cut(file: str, first: int, last: int) -> list[tuple[str, int, int]]:
    """Return the parts of objects that hold some bytes of a file."""
    found = []
    while first < last:
        number, place = divmod(first, _OBJECT_BYTES)
        end = min(place + last - first, _OBJECT_BYTES)
        found.append((f"{file}/{number:05d}", place, end))
        first += end - place
    return found


@contextlib.contextmanager
def _as_config_error(address: str) -> Iterator[None]:
    """Say which address cannot be used; TensorStore has no kind of error of its own."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).split(" [", 1)[0]
        raise ConfigError(f"{address} cannot be used: {reason}", "Data.store_dir") from error
