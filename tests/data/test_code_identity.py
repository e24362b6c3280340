"""Identities of steps: names, comments and formatting do not count; code and versions do."""

import functools
import importlib
import inspect
import json
import pkgutil
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import t5x_lite.data
import t5x_lite.suites
from t5x_lite.data import code_identity
from t5x_lite.data.code_identity import NOT_IDENTITY, describe, source_digest, versioned
from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import plan_path
from t5x_lite.data.tasks import preprocessors, task_providers, text_formats
from t5x_lite.errors import ConfigError
from t5x_lite.suites.mt5 import Multilingual
from t5x_lite.suites.rank_classification import StudyOptions
from t5x_lite.suites.t5 import Study

STEPS = """
import dataclasses
import functools
import re

import numpy as np

MARKS = {"question": "?", "end": "."}
SPACES = re.compile(" +")


def squeeze(text):
    return SPACES.sub(" ", text)


def with_mark(text, kind="end", *, count=2):
    return squeeze(text) + MARKS[kind] * count


def make_suffix(suffix):
    def add(text):
        return text + suffix
    return add


def countdown(number):
    return [] if number == 0 else [number, *countdown(number - 1)]


class Lower:
    def __init__(self, times):
        self.times = times

    def __call__(self, text):
        return squeeze(text.lower()) * self.times


@dataclasses.dataclass(frozen=True)
class Cut:
    length: int

    def __call__(self, text):
        return text[: self.length]


suffixed = make_suffix("!")
first, second = (lambda x: x[0]), (lambda x: x[1])
floored = functools.cache(lambda x: np.floor(x))
"""
NAMES = ("with_mark", "suffixed", "countdown", "Lower", "first", "second", "floored")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Import a module from its text: module("name", text), below a directory of the user's."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name, text):
        path = Path(tmp_path, *name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        for known in (name, name.partition(".")[0]):
            sys.modules.pop(known, None)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    before = set(sys.modules)
    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


def of(made):
    """The description of every step of a module."""
    found = {name: describe(getattr(made, name)) for name in NAMES}
    return found | {"lower": describe(made.Lower(2)), "cut": describe(made.Cut(3))}


def commented(text):
    """The same code with comments, docstrings, blank lines, and other line breaks and quotes."""
    text = re.sub(r"(?m)^( *)(return .*)$", r"\1# Now the result.\n\n\1\2  # here", text)
    text = re.sub(r"(?m)^(def .*:|class .*:)$", r'# A comment.\n\1\n    """Some words."""\n', text)
    text = text.replace('kind="end", *, count=2', "kind='end',\n    *,\n    count: int = 2,\n")
    return '"""What this module is for."""\n' + text.replace("x[0]", "(\n    x[0]\n)")


def test_moved_commented_and_reformatted_code_is_the_same(module):
    before = module("steps", STEPS)
    after = module("another.place_for_steps", commented(STEPS))
    assert inspect.getsource(after) != inspect.getsource(before)
    assert after.with_mark("a  b", "question") == before.with_mark("a  b", "question") == "a b??"
    assert of(after) == of(before)
    assert "steps" not in json.dumps(of(before))


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("* count", "* count * 2", {"with_mark"}),
        ("count=2", "count=3", {"with_mark"}),
        ('kind="end"', 'kind="question"', {"with_mark"}),
        ('"?"', '"!"', {"with_mark"}),
        ('compile(" +")', 'compile(" ")', {"with_mark", "lower", "Lower"}),
        ('sub(" ", text)', 'sub("", text)', {"with_mark", "lower", "Lower"}),
        ("text + suffix", "suffix + text", {"suffixed"}),
        ('make_suffix("!")', 'make_suffix("?")', {"suffixed"}),
        ("number - 1", "number - 2", {"countdown"}),
        ("text.lower()", "text.upper()", {"lower", "Lower"}),
        ("text[: self.length]", "text[self.length :]", {"cut"}),
        ("x[1]", "x[2]", {"second"}),
        ("np.floor", "np.ceil", {"floored"}),
    ],
)
def test_changed_code_changes_what_uses_it_and_nothing_else(old, new, changed, module):
    before = of(module("steps", STEPS))
    assert STEPS.count(old) == 1
    after = of(module("steps", STEPS.replace(old, new)))
    assert {name for name in before if before[name] != after[name]} == changed


def test_values_of_arguments_and_fields_count(module):
    steps = module("steps", STEPS)
    assert describe(steps.Cut(3)) != describe(steps.Cut(4))
    assert describe(steps.Lower(2)) != describe(steps.Lower(3))
    assert describe(steps.make_suffix("a")) != describe(steps.make_suffix("b"))
    bound = functools.partial(steps.with_mark, kind="question")
    assert describe(bound) != describe(functools.partial(steps.with_mark, kind="end"))
    assert describe(bound) == describe(functools.partial(steps.with_mark, kind="question"))
    assert describe(functools.partial(bound, count=1))["arguments"] == {
        "kind": "question",
        "count": 1,
    }
    assert describe(np.arange(3)) != describe(np.arange(4))
    assert describe({"b", "a"}) == describe({"a", "b"})
    # The order of a mapping can be that of the fields a model reads.
    assert describe({"a": 1, "b": 2}) != describe({"b": 2, "a": 1})


HELPERS = "def clean(text):\n    return text.strip()\n"
USES = {
    "from": "from helpers import clean\n\n\ndef step(text):\n    return clean(text)\n",
    "module": "import helpers\n\n\ndef step(text):\n    return helpers.clean(text)\n",
    "local": "def step(text):\n    from helpers import clean\n\n    return clean(text)\n",
}


@pytest.mark.parametrize("how", USES)
def test_code_of_other_modules_of_the_user_counts(how, module):
    def described(helpers):
        module("helpers", helpers)
        return describe(module("steps", USES[how]).step)

    before = described(HELPERS)
    assert described('"""Words."""\n\n' + HELPERS.replace("return", "# why\n    return")) == before
    assert described(HELPERS.replace("strip", "lstrip")) != before


def test_a_version_is_all_that_counts_of_versioned_code(module):
    text = """
    from t5x_lite.data.code_identity import versioned

    @versioned("clean", VERSION)
    def step(text):
        return text.strip()
    """
    first = describe(module("steps", text.replace("VERSION", "1")).step)
    other_code = text.replace("VERSION", "1").replace("strip", "lstrip").replace("step(", "step (")
    assert describe(module("elsewhere", other_code).step) == first == "clean (version 1)"
    assert describe(module("steps", text.replace("VERSION", "2")).step) != first


def test_a_subclass_does_not_inherit_a_version(module):
    @versioned("base", 1)
    class Base:
        pass

    class Derived(Base):
        pass

    assert describe(Base()) == {"class": "base (version 1)", "fields": {}}
    assert "base (version 1)" not in json.dumps(describe(Derived()))


def test_steps_of_packages_are_known_by_name_and_version():
    from seqio import preprocessors as of_seqio

    version = importlib.metadata.version("seqio")
    assert describe(of_seqio.tokenize) == f"seqio.preprocessors.tokenize (seqio {version})"
    rekey = functools.partial(of_seqio.rekey, key_map={"targets": "text"})
    assert describe(rekey)["call"] == f"seqio.preprocessors.rekey (seqio {version})"
    assert describe(re.sub) == "re.sub"


def test_a_function_inside_a_packages_decorator_counts(module):
    text = """
    import seqio

    @seqio.map_over_dataset
    def step(example):
        return {"targets": example["text"]}

    @seqio.map_over_dataset(num_seeds=1)
    def random_step(example, seed):
        return {"targets": example["text"]}
    """

    def described(name, text):
        made = module(name, text)
        return [describe(made.step), describe(made.random_step)]

    before = described("steps", text)
    assert described("other", "# moved\n" + textwrap.dedent(text)) == before
    changed = described("steps", text.replace('["text"]', '["title"]'))
    assert all(new != old for new, old in zip(changed, before, strict=True))
    assert described("steps", text.replace("num_seeds=1", "num_seeds=2"))[1] != before[1]


def test_code_that_cannot_be_read_needs_a_version():
    names = {"__name__": "made_up"}
    exec("def step(text):\n    return text\n", names)
    with pytest.raises(ConfigError, match=r"made_up\.step cannot be read.*give it a version"):
        describe(names["step"])
    assert describe(versioned("made_up", 1)(names["step"])) == "made_up (version 1)"


def test_fields_without_influence_are_omitted():
    import dataclasses

    @versioned("task", 1)
    @dataclasses.dataclass(frozen=True)
    class Task:
        name: str
        metrics: tuple = dataclasses.field(default=(), metadata=NOT_IDENTITY)

    assert describe(Task("a")) == describe(Task("a", (len,))) != describe(Task("b"))


# ------------------------------------------------------------------------------ our own steps


def own_modules():
    for package in (t5x_lite.data, t5x_lite.suites):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith(("numba_kernels", "c4.beam")):
                yield importlib.import_module(found.name)


def test_no_two_of_our_steps_have_the_same_id():
    ids = {}
    for own in own_modules():
        for target in vars(own).values():
            if identity := getattr(target, "__dict__", {}).get("step_identity"):
                ids.setdefault(identity.partition(" (version")[0], set()).add(target)
    assert len(ids) > 30
    assert {name: targets for name, targets in ids.items() if len(targets) > 1} == {}


@pytest.mark.parametrize(
    "provider", [Study(), Multilingual(), StudyOptions(), task_providers.EmbeddedCorpus()]
)
def test_all_of_our_steps_have_versions(provider):
    described = json.dumps(describe([provider, getattr(provider, "contents", None)]))
    assert "(version 1)" in described
    assert "code " not in described
    assert t5x_lite.__name__ not in described


@pytest.mark.parametrize("own", [preprocessors, text_formats, task_providers, code_identity])
def test_a_module_of_ours_may_move_and_be_commented(own, module):
    text = Path(own.__file__).read_text()
    copy = module(f"copies.{own.__name__.rpartition('.')[2]}", "# A comment.\n\n" + text)
    names = [
        name
        for name, value in vars(copy).items()
        if inspect.isfunction(value) and value.__module__ == copy.__name__
    ]
    assert names
    for name in names:
        if "step_identity" in vars(getattr(own, name)):
            assert describe(getattr(copy, name)) == describe(getattr(own, name))


# ----------------------------------------------------------------------------- plans of a run

TASKS = """
import seqio

import parts


def clean(text):
    return parts.strip(text)


seqio.TaskRegistry.add("a_task", seqio.FunctionDataSource(clean, ["train"]), clean)
"""


def test_a_plan_keeps_its_name_when_modules_move_and_not_when_their_code_changes(tmp_path, module):
    def path(name, tasks, parts):
        for text, stem in ((parts, "parts"), (tasks, name)):
            target = Path(tmp_path, *stem.split(".")).with_suffix(".py")
            target.parent.mkdir(exist_ok=True)
            target.write_text(text)
        importlib.invalidate_caches()
        code_identity._origin_of_root.cache_clear()
        data = Data(
            mixture_or_task_name="a_task",
            feature_lengths={"inputs": 8, "targets": 8},
            data_dir=str(tmp_path),
            modules=name,
        )
        return plan_path(data)

    module("unrelated", "")  # puts the directory on Python's path
    parts = "def strip(text):\n    return text.strip()\n"
    before = path("tasks", TASKS, parts)
    assert path("tasks", '"""Words."""\n# A comment.\n' + TASKS, parts + "\n\n# End.\n") == before
    assert path("moved.my_tasks", TASKS, parts) == before
    assert path("tasks", TASKS.replace("strip(", "lstrip("), parts) != before
    assert path("tasks", TASKS, parts.replace("strip()", "lstrip()")) != before
    assert "parts" not in sys.modules  # nothing of the user's is imported


def test_a_module_that_is_not_there_has_a_digest():
    assert source_digest("no_such_module.at_all") == source_digest("nor_this_one")


PROVIDER = """
import dataclasses


@dataclasses.dataclass(frozen=True)
class Provider:
    name: str

    @property
    def names(self):
        return (self.name,)

    @property
    def contents(self):
        return {"rate": 1.0}

    def register(self, data_dir, report):
        report("registered")
"""


def test_a_users_provider_is_known_by_its_code_fields_and_contents(tmp_path, module):
    def path(text, where="providers", **fields):
        provider = module(where, text).Provider(**{"name": "a_task", **fields})
        data = Data(
            mixture_or_task_name="a_task",
            feature_lengths={"inputs": 8, "targets": 8},
            data_dir=str(tmp_path),
            task_providers=(provider,),
        )
        return plan_path(data)

    before = path(PROVIDER)
    assert path(commented(PROVIDER), "elsewhere.providers") == before
    assert path(PROVIDER, name="another") != before
    assert path(PROVIDER.replace("1.0", "2.0")) != before
    assert path(PROVIDER.replace('"registered"', '"done"')) != before
