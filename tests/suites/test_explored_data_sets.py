"""The rows of explore/data_sets.gin read the data sets that they name, where TFDS has them."""

import dataclasses
import itertools
import json
from pathlib import Path

import gin
import pytest

from t5x_lite.cli import gin_config, main
from t5x_lite.data.prepare import prepare
from t5x_lite.sweep.explore import explore
from t5x_lite.sweep.grid import Planner
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

SEARCH = ["", str(Path(__file__).resolve().parents[2] / "gin_configs")]
TEXT = {"text": "text", "url": "text"}
DATA_SETS = {
    "C4": "c4/en:2.2.0",
    "C4, unfiltered": "c4/en.noclean:2.2.0",
    "RealNews-like": "c4/realnewslike:2.2.0",
    "WebText-like": "c4/webtextlike:2.2.0",
    "Wikipedia": "wikipedia/20190301.en:1.0.0",
}


def documents(name):
    return [{"text": f"{name}, document {number} of it.", "url": ""} for number in range(10)]


@pytest.fixture(scope="module")
def pretrainings():
    """What the rows pass to `train`, by name."""
    files = ["explore/data_sets.gin"]
    gin_config.clear()
    gin_config.parse(files, [], SEARCH)
    given = gin.get_bindings(explore)

    def read(command, text):
        return main.read_command(command, text, SEARCH)

    found = {}
    for row in Planner(given["study"], given["scales"]["base"], "base", read).rows([0]):
        stage = row.stages[0][0]
        found[row.row.name] = read("train", stage.text({stage.key: "x"}))[0]
    yield found
    gin_config.clear()


def test_every_row_reads_the_text_that_it_is_named_after(pretrainings, write_data_sets, tmp_path):
    write_data_sets(
        tmp_path / "tfds", {tfds: (TEXT, documents(row)) for row, tfds in DATA_SETS.items()}
    )
    books = tmp_path / "books"
    books.mkdir()
    lines = [json.dumps(document) + "\n" for document in documents("Books")]
    (books / "c4-train.00000-of-00001.json").write_text("".join(lines))
    vocabulary = ByteVocabulary()
    for row, given in pretrainings.items():
        assert given["data"].feature_lengths == {"inputs": 512, "targets": 192}
        task_providers = []
        for declared in given["data"].task_providers:
            own = {"vocabulary": vocabulary, "directory": str(books)}
            own |= {"tfds_data_dir": str(tmp_path / "tfds")}
            known = {field.name for field in dataclasses.fields(declared)}
            kept = {name: value for name, value in own.items() if name in known}
            task_providers.append(dataclasses.replace(declared, **kept))
        data = dataclasses.replace(
            given["data"],
            task_providers=tuple(task_providers),
            data_dir=str(tmp_path / "data"),
            splits=("train",),
        )
        tasks = {task.name: task for task in prepare(data).train_tasks()}
        rates = {name: task.rate for name, task in tasks.items()}
        read = set()
        for task in tasks.values():
            tokens, ends = task.store.tokens("targets"), task.store.offsets("targets")
            texts = [tokens[low:high] for low, high in itertools.pairwise(ends)]
            read |= {bytes(int(t) - 3 for t in text).decode().split(", doc")[0] for text in texts}
        if row == "Wikipedia + TBC":
            assert read == {"Wikipedia", "Books"}
            assert sorted(rates.values()) == [4.0, 16.0]
        else:
            assert read == {row}
