"""docs/models.md says what the gin files say."""

import re
from pathlib import Path

import pytest

from t5x_lite.convert.huggingface import FAMILIES
from t5x_lite.models.transformer import num_parameters

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "models.md").read_text()
ROWS = {
    file: int(count.replace(",", ""))
    for count, file in re.findall(r"\| ([\d,]+) \| `([\w/]+)\.gin` \|", TEXT)
}


@pytest.mark.parametrize("file", ROWS)
def test_the_table_has_the_number_of_weights_of_each_file(file, shipped):
    assert num_parameters(shipped(file)) == ROWS[file]


def test_the_table_has_every_shipped_size():
    models = ROOT / "gin_configs" / "models"
    files = {path.relative_to(models).with_suffix("").as_posix() for path in models.glob("*/*.gin")}
    assert set(ROWS) == files


def test_every_model_type_that_can_be_imported_is_named():
    named = re.search(r"of the model types (.*?)\. It", TEXT, re.DOTALL)
    assert set(re.findall(r"\w+", named[1])) - {"and"} == set(FAMILIES)
