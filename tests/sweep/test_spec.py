"""What a gin file may say of a study, and what is refused."""

import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.sweep.spec import Scale, Sweep, SweepRow, at_scale, in_proportion, slug


def study(**changes):
    given = dict(name="s", baseline="one", rows={"one": [], "two, LM": ["models/x.gin"]})
    return Sweep(**{**given, **changes})


def test_a_row_is_a_list_of_changes_or_says_where_it_differs():
    rows = study(
        rows={
            "one": ["A.b = 1"],
            "longer": {"times": {"TRAIN_STEPS": 4}, "finetune_times": {"TRAIN_STEPS": 4}},
            "none": {"pretrain": None},
            "judged": {"finetune": None},
            "by task": {"pretrain_for": {"squad": ["A.b = 2"], "glue": []}},
            "four": {"ensemble": 4, "ensemble_of": "finetune"},
        }
    ).all_rows()
    assert rows[0] == SweepRow(name="one", pretrain=["A.b = 1"])
    assert rows[1].times == {"TRAIN_STEPS": 4}
    assert rows[2].pretrain is None
    assert rows[3].finetune is None
    assert rows[4].pretrain_for["squad"] == ["A.b = 2"]
    assert (rows[5].ensemble, rows[5].ensemble_of) == (4, "finetune")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a/b"}, "name must be letters, .* got 'a/b'"),
        ({"baseline": "three"}, "baseline must be one of the rows one, two, LM; got 'three'"),
        ({"matched": "time"}, "matched must be flops or steps; got 'time'"),
        ({"rows": {"one": {"pretrian": []}}}, "expected a list of changes, or a dict of some of"),
        ({"rows": {"one": "A.b = 1"}}, "expected a list of changes"),
        ({"rows": {"one": {"pretrain": "A.b = 1"}}}, "expected a list"),
        ({"rows": {"one": {"pretrain_for": {"squad": "A.b = 1"}}}}, "expected a list"),
        ({"rows": {"one": {"pretrain": None, "finetune": None}}}, "neither pretrained nor"),
        ({"rows": {"one": {"ensemble": 0}}}, "ensemble 0"),
        ({"rows": {"one": {"ensemble_of": "seeds"}}}, "an ensemble of 'seeds'"),
        ({"rows": {"one": [], "a b": [], "a, b": []}}, "the same in paths"),
    ],
)
def test_what_makes_no_study_is_said(changes, said):
    with pytest.raises(ConfigError, match=said):
        study(**changes)


def test_a_column_needs_a_task_that_is_fine_tuned_and_a_score():
    tasks = {"squad": ()}
    Scale(pretrain=(), finetune=(), tasks=tasks, columns={"SQuAD": ("squad", "squad_v010/em")})
    for column in (("glue", "glue/average"), ("squad", "em"), ("squad",)):
        with pytest.raises(ConfigError, match="expected one of squad"):
            Scale(pretrain=(), finetune=(), tasks=tasks, columns={"c": column})


def test_changes_may_be_of_one_scale():
    changes = ["A.b = 1", {"tiny": ["A.c = 2"], "base": ["A.c = 3"]}]
    assert at_scale(changes, "tiny") == ["A.b = 1", "A.c = 2"]
    assert at_scale(changes, "small") == ["A.b = 1"]


def test_names_become_parts_of_paths():
    assert slug("encoder-decoder, LM") == "encoder-decoder-LM"
    assert slug("15 %") == "15"


def test_lengths_keep_the_studys_proportions():
    assert in_proportion({"inputs": 512, "targets": 114}, 512) == {"inputs": 512, "targets": 114}
    assert in_proportion({"inputs": 1, "targets": 512}, 64) == {"inputs": 1, "targets": 64}
