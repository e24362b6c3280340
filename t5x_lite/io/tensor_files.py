"""safetensors on disk: one file, or shards with an index. Reading them never runs code."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"


class TensorFiles:
    """The tensors of a directory by name. Shapes are read at once, values by `read`.

    Args:
        directory: Holds model.safetensors, or shards and model.safetensors.index.json.

    Attributes:
        directory: The same.
        shapes: The shape of every tensor by its name.

    Raises:
        ConfigError: Files are missing, not safetensors, or outside the directory.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        for path in self._files():
            try:
                with safe_open(path, "np") as file:
                    for name in file.keys():  # noqa: SIM118 the file is no mapping
                        self.shapes[name] = tuple(file.get_slice(name).get_shape())
                        self._file_of[name] = path
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{path} cannot be read as safetensors: {error}") from error

    def read(self, name: str) -> np.ndarray:
        """Return the values of a tensor, as float32."""
        with safe_open(self._file_of[name], "np") as file:
            return np.asarray(file.get_tensor(name), np.float32)

    def _files(self) -> list[Path]:
        single, index = self.directory / SINGLE, self.directory / INDEX
        if index.is_file():
            names = sorted(set(read_json_object(index).get("weight_map", {}).values()))
            paths = [self._shard_file(name) for name in names]
        else:
            paths = [single]
        if missing := [path.name for path in paths if not path.is_file()]:
            present = sorted(path.name for path in self.directory.glob("*")) or "nothing"
            raise ConfigError(
                f"{self.directory} has no {', '.join(missing)}; it holds {present} (weights must "
                f"be safetensors: other formats can run code when they are read)"
            )
        return paths

    def _shard_file(self, name: Any) -> Path:
        """Return the path of a shard; raise ConfigError if its name is more than a file name."""
        if not isinstance(name, str) or name in ("", ".", "..") or PurePath(name).name != name:
            raise ConfigError(f"{self.directory / INDEX} names {name!r}; expected plain file names")
        path = self.directory / name
        if "\\" in name or path.resolve().parent != self.directory.resolve():
            raise ConfigError(
                f"{self.directory / INDEX} names {name!r}, which leaves the directory"
            )
        return path


def write_tensors(
    directory: Path, tensors: Iterator[tuple[str, np.ndarray]], *, max_shard_bytes: int
) -> None:
    """Write tensors as one file, or as shards with an index.

    The files appear one by one: write into a directory of `atomic.new_directory`.

    Args:
        directory: An existing directory without tensors.
        tensors: Pairs of name and array. They may be computed one by one: only one shard is in
            memory at a time.
        max_shard_bytes: The most bytes of tensors in a file. A larger tensor has its own shard.
    """
    shards: list[list[str]] = []
    size, total, pending = 0, 0, {}
    for name, array in tensors:
        if pending and size + array.nbytes > max_shard_bytes:
            shards.append(_write_shard(directory, len(shards), pending))
            size, pending = 0, {}
        pending[name] = np.ascontiguousarray(array)
        size += array.nbytes
        total += array.nbytes
    shards.append(_write_shard(directory, len(shards), pending))
    if len(shards) == 1:
        _shard_path(directory, 0).rename(directory / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(shards):
        final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        _shard_path(directory, number).rename(directory / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    atomic.write_json(directory / INDEX, index)


def _write_shard(directory: Path, number: int, tensors: Mapping[str, np.ndarray]) -> list[str]:
    # transformers accepts only files whose metadata names a format.
    path = _shard_path(directory, number)
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors creates files that only their owner may read
    return list(tensors)


def _shard_path(directory: Path, number: int) -> Path:
    return directory / f"shard-{number}.safetensors"
