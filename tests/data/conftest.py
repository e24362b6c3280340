import json

import numpy as np
import pytest

from t5x_lite.data.store.token_store import TokenStore


class MemoryStore:
    """A store whose features are lists of token lists."""

    def __init__(self, **features):
        self._features = {
            name: [np.asarray(example, np.uint16) for example in examples]
            for name, examples in features.items()
        }

    @property
    def num_examples(self):
        return len(next(iter(self._features.values())))

    @property
    def features(self):
        return tuple(self._features)

    def tokens(self, feature):
        return np.concatenate([np.zeros(0, np.uint16), *self._features[feature]])

    def offsets(self, feature):
        return np.cumsum([0, *map(len, self._features[feature])])

    def groups(self, feature):
        return None


@pytest.fixture(scope="session")
def memory_store():
    """Make a store in memory, as in `memory_store(inputs=[[5, 6]], targets=[[7]])`."""
    return MemoryStore


@pytest.fixture(scope="session")
def disk_store():
    """Write the same to a directory and open it, as in `disk_store(path, targets=[[7]])`."""

    def write(directory, **features):
        store, described = MemoryStore(**features), {}
        for name in store.features:
            tokens = store.tokens(name)
            tokens.astype("<u2").tofile(directory / f"{name}.tokens.bin")
            np.save(directory / f"{name}.offsets.npy", store.offsets(name))
            described[name] = {"tokens": len(tokens), "dtype": "<u2"}
        manifest = {"format": 1, "num_examples": store.num_examples, "features": described}
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return TokenStore.open(directory)

    return write
