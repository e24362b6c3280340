import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.stream.pair_trimming import PairTrimming
from t5x_lite.data.stream.seqio_pipeline import SeqioPipeline
from t5x_lite.data.tasks.mixing_rates import Mixture
from t5x_lite.data.tasks.task_providers import EmbeddedCorpus, JsonLinesText
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.language_models import FullLM, LMAdaptation
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.tokenizers.vocabularies import Vocabulary

pytest.importorskip("seqio")

LENGTHS = {"inputs": 64, "targets": 20}
CORPUS = EmbeddedCorpus(vocab_size=500, packages=("optax",))
NAMES = ["embedded_name", "embedded_summarize", "embedded_text"]

MODULE = """
import functools, seqio
from t5x_lite.data.sources.seqio_sources import JsonLinesSource
from t5x_lite.data.stream.pair_trimming import PairTrimming
from t5x_lite.data.tasks import preprocessors as late, task_providers as tasks
from t5x_lite.objectives.language_models import FullLM
from t5x_lite.tokenizers.vocabularies import Vocabulary

source = JsonLinesSource({corpus!r})
vocabulary = Vocabulary({model!r})
steps = late.pair_steps(tasks.name_pair)
tasks.add_task("mine", source, steps, vocabulary)
tasks.add_task("eval_only", source, steps, vocabulary)
tasks.add_task("half_size", source, steps, Vocabulary({other_model!r}))
tasks.add_task("trimmed", source, [*steps, seqio.preprocessors.truncate_inputs_left], vocabulary)
tasks.add_task("bare", source, steps[:2], vocabulary)
trim = late.TrimPairs(PairTrimming(keep_last_tokens=2))
tasks.add_task("ended", source, [*steps[:-1], trim], vocabulary)
tasks.add_task("own", source, late.text_steps(FullLM()), vocabulary)
for name, rates in {{
    "mine_mix": [("mine", 3.0), ("eval_only", 0.0)],
    "nested_mix": [("mine_mix", 1.0), ("mine", 2.0)],
    "mixed_vocabularies": [("mine", 1.0), ("half_size", 1.0)],
}}.items():
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, rates)
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A directory in which the small embedded mixture has been prepared once."""
    directory = str(tmp_path_factory.mktemp("data"))
    prepare(embedded(directory))
    return directory


@pytest.fixture
def own_copy(data_dir, tmp_path):
    """A prepared directory that a test may spoil."""
    shutil.copytree(data_dir, tmp_path / "data")
    return str(tmp_path / "data")


@pytest.fixture(scope="module")
def my_module(data_dir, tmp_path_factory):
    """The name of a module of a user's own, which registers tasks when it is imported."""
    other = EmbeddedCorpus(vocab_size=400, packages=("optax",))
    other.register(data_dir)
    folder = tmp_path_factory.mktemp("modules")
    embedded_dir = Path(data_dir, "embedded")
    source = MODULE.format(
        corpus=str(embedded_dir / "corpus"),
        model=str(embedded_dir / "unigram.500.model"),
        other_model=str(embedded_dir / "unigram.400.model"),
    )
    (folder / "my_tasks.py").write_text(source)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield "my_tasks"
    sys.path.remove(str(folder))
    del sys.modules["my_tasks"]


def embedded(data_dir, **changes):
    settings = {"mixture_or_task_name": "embedded_mix", "task_providers": (CORPUS,), **changes}
    return Data(feature_lengths=LENGTHS, data_dir=data_dir, **settings)


def mine(data_dir, module, name):
    return Data(name, LENGTHS, data_dir, modules=(module,))


def test_a_plan_opens_every_store_of_the_mixture(data_dir):
    plan = prepare(embedded(data_dir))
    train, validation = plan.train_tasks(), plan.validation_tasks()
    assert [task.name for task in train] == [task.name for task in validation] == NAMES
    assert [task.objective for task in train] == [None, None, SpanCorruption()]
    assert all(task.rate > 0 and task.store.num_examples > 0 for task in train + validation)
    assert {task.store.manifest["split"] for task in validation} == {"validation"}
    assert plan.vocabulary() == Vocabulary(f"{data_dir}/embedded/unigram.500.model", 100)


def test_a_task_keeps_an_objective_of_its_own_at_every_start(data_dir, log_lines):
    corpus, model = f"{data_dir}/embedded/corpus", f"{data_dir}/embedded/unigram.500.model"
    of_run, own = (
        JsonLinesText(name, corpus, Vocabulary(model), objective=objective)
        for name, objective in (("of_run", None), ("of_its_own", LMAdaptation()))
    )
    mixture = Mixture("two_objectives", {"of_run": 1.0, "of_its_own": 2.0})
    data = embedded(
        data_dir, mixture_or_task_name="two_objectives", task_providers=(of_run, own, mixture)
    )
    for _ in range(2):
        objectives = {task.name: task.objective for task in prepare(data).train_tasks()}
        assert objectives == {"of_run": SpanCorruption(), "of_its_own": LMAdaptation()}
    assert log_lines.count("importing seqio and TensorFlow ...") == 1
    another = dataclasses.replace(own, objective=FullLM())
    changed = dataclasses.replace(data, task_providers=(of_run, another, mixture))
    objectives = {task.name: task.objective for task in prepare(changed).train_tasks()}
    assert objectives["of_its_own"] == FullLM()


def test_what_a_users_module_says_of_its_tasks_survives_a_second_start(
    data_dir, my_module, log_lines
):
    """An objective is not written down: the module, which knows it, is then asked again."""
    for _ in range(2):
        [ended] = prepare(mine(data_dir, my_module, "ended")).train_tasks()
        assert (ended.objective, ended.trimming) == (None, PairTrimming(keep_last_tokens=2))
    assert log_lines.count("importing seqio and TensorFlow ...") == 1
    for _ in range(2):
        [own] = prepare(mine(data_dir, my_module, "own")).train_tasks()
        assert (own.objective, own.trimming) == (FullLM(), None)
    assert log_lines.count("importing seqio and TensorFlow ...") == 3


def test_what_takes_long_is_logged_and_nothing_is_printed(tmp_path, capfd, log_lines):
    data = embedded(str(tmp_path), mixture_or_task_name="embedded_name")
    prepare(data)
    assert log_lines == [
        "importing seqio and TensorFlow ...",
        "collecting the embedded corpus from installed packages ...",
        "training a vocabulary of 500 pieces ...",
        "tokenizing embedded_name/train ...",
        "tokenizing embedded_name/validation ...",
    ]
    prepare(data)
    assert len(log_lines) == 5
    assert capfd.readouterr() == ("", "")


def test_a_second_start_imports_neither_seqio_nor_tensorflow(data_dir):
    program = f"""
import sys
from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.tasks.task_providers import EmbeddedCorpus
corpus = EmbeddedCorpus(vocab_size=500, packages=("optax",))
plan = prepare(Data("embedded_mix", {LENGTHS}, {data_dir!r}, task_providers=(corpus,)))
assert plan.vocabulary().decode(plan.train_tasks()[0].store.tokens("inputs")[:3].tolist())
assert not {{"seqio", "tensorflow", "jax", "flax"}} & set(sys.modules), "heavy imports"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["stores/embedded_text", "embedded/unigram.500.model"])
def test_what_was_deleted_is_made_again(own_copy, what):
    before = prepare(embedded(own_copy))
    counts = [task.store.num_examples for task in before.train_tasks()]
    path = Path(own_copy, what)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = prepare(embedded(own_copy))
    assert [(task.name, task.rate) for task in again.tasks] == [
        (task.name, task.rate) for task in before.tasks
    ]
    assert again.vocabulary() == before.vocabulary()
    assert [task.store.num_examples for task in again.train_tasks()] == counts


def test_settings_of_the_stream_do_not_make_another_plan(data_dir, log_lines):
    objective = SpanCorruption(noise_density=0.25)
    longer = {"inputs": 64, "targets": 32}
    other = embedded(data_dir, objective=objective, seed=5, pack=False)
    plan = prepare(dataclasses.replace(other, feature_lengths=longer))
    assert log_lines == []
    assert plan.train_tasks()[2].objective == objective


def test_a_changed_shard_makes_new_stores(tmp_path, data_dir):
    shard = tmp_path / "c4-train.00000-of-00001.json"
    shard.write_text('{"text": "Trees grow."}\n')
    declared = JsonLinesText("trees", str(tmp_path), prepare(embedded(data_dir)).vocabulary())
    data = Data("trees", LENGTHS, str(tmp_path / "data"), task_providers=(declared,))
    assert prepare(data).train_tasks()[0].store.num_examples == 1
    shard.write_text('{"text": "Trees grow."}\n{"text": "Slowly."}\n')
    assert prepare(data).train_tasks()[0].store.num_examples == 2
    shard.unlink()  # a store needs its source no more
    plan = prepare(data)
    assert plan.train_tasks()[0].store.num_examples == 2
    assert plan.validation_tasks() == []


def test_a_changed_declaration_makes_another_plan(own_copy):
    cooler = dataclasses.replace(CORPUS, temperature=1.0)
    rates = {
        corpus.temperature: [task.rate for task in plan.train_tasks()]
        for corpus in (CORPUS, cooler)
        for plan in [prepare(embedded(own_copy, task_providers=(corpus,)))]
    }
    assert rates[1.0] == pytest.approx([rate**2 for rate in rates[2.0]])


def test_a_prepared_directory_can_be_moved(own_copy, tmp_path, log_lines):
    moved = shutil.move(own_copy, tmp_path / "moved")
    plan = prepare(embedded(str(moved)))
    assert log_lines == []
    assert plan.vocabulary().path == f"{moved}/embedded/unigram.500.model"
    assert all(task.store.directory.is_relative_to(moved) for task in plan.train_tasks())


def test_a_name_that_nobody_registers_is_answered_with_the_nearest(data_dir):
    with pytest.raises(ConfigError) as caught:
        prepare(embedded(data_dir, mixture_or_task_name="embeded_txt"))
    assert "no task or mixture is named 'embeded_txt'" in str(caught.value)
    assert "embedded_text" in str(caught.value)
    assert caught.value.names == ("MIXTURE_OR_TASK_NAME",)


def test_a_wrong_name_is_refused_before_seqio_is_imported(tmp_path):
    program = f"""
import sys
from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.tasks.task_providers import EmbeddedCorpus
try:
    prepare(Data("embedded_mux", {LENGTHS}, {str(tmp_path)!r}, task_providers=(EmbeddedCorpus(),)))
except ValueError as error:
    assert "embedded_mix" in str(error)
    assert "seqio" not in sys.modules
    sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_declared_is_said():
    with pytest.raises(ConfigError, match="none are registered"):
        prepare(Data("c4", LENGTHS, "/nowhere"))


def test_features_too_short_are_refused_before_anything_is_tokenized(tmp_path, data_dir, log_lines):
    data = embedded(str(tmp_path), mixture_or_task_name="embedded_text")
    with pytest.raises(ConfigError, match="targets of 8 tokens are too short"):
        prepare(dataclasses.replace(data, feature_lengths={"inputs": 64, "targets": 8}))
    assert not [line for line in log_lines if "tokenizing" in line]


def test_pairs_may_have_any_lengths(data_dir):
    data = embedded(data_dir, mixture_or_task_name="embedded_name")
    plan = prepare(dataclasses.replace(data, feature_lengths={"inputs": 64, "targets": 2}))
    assert [task.name for task in plan.train_tasks()] == ["embedded_name"]
    assert plan.train_tasks()[0].rate == 1.0


def test_a_users_own_module_registers_tasks(data_dir, my_module):
    plan = prepare(mine(data_dir, my_module, "mine_mix"))
    assert [(task.name, task.rate) for task in plan.train_tasks()] == [("mine", 3.0)]
    assert [task.name for task in plan.validation_tasks()] == ["eval_only", "mine"]
    nested = prepare(mine(data_dir, my_module, "nested_mix"))
    assert {task.name: task.rate for task in nested.train_tasks()} == {"mine": 3.0}


@pytest.mark.parametrize("modules", ["{0}", ["{0}"], ("{0}", "json")])
def test_modules_are_one_name_or_several(data_dir, my_module, modules):
    names = [
        name.format(my_module) for name in ([modules] if isinstance(modules, str) else modules)
    ]
    given = names[0] if isinstance(modules, str) else type(modules)(names)
    plan = prepare(dataclasses.replace(mine(data_dir, my_module, "mine_mix"), modules=given))
    assert [task.name for task in plan.train_tasks()] == ["mine"]


def test_no_module_is_as_good_as_none(data_dir):
    assert prepare(embedded(data_dir, modules=None)) == prepare(embedded(data_dir))


def test_a_module_that_is_not_there_is_named(data_dir):
    with pytest.raises(ConfigError, match="module 'no_such_tasks': No module named") as caught:
        prepare(mine(data_dir, "no_such_tasks", "mine"))
    assert caught.value.names == ("Data.modules",)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("trimmed", r"has append_eos_after_trim, truncate_inputs_left after its seqio\.Cache"),
        ("bare", r"task 'bare' has no seqio\.CacheDatasetPlaceholder"),
    ],
)
def test_why_no_store_can_serve_a_task_is_said_once(
    data_dir, my_module, name, complaint, log_lines
):
    plan = prepare(mine(data_dir, my_module, name))
    [said] = [line for line in log_lines if "seqio's own pipeline" in line]
    assert re.search(complaint, said)
    assert not plan.stores()
    assert {type(task.store) for task in plan.train_tasks()} == {SeqioPipeline}


def test_tasks_of_different_vocabularies_are_refused(data_dir, my_module):
    complaint = r"different vocabularies: .*unigram\.400\.model.*unigram\.500\.model"
    with pytest.raises(ConfigError, match=complaint) as caught:
        prepare(mine(data_dir, my_module, "mixed_vocabularies"))
    assert caught.value.names == ("MIXTURE_OR_TASK_NAME",)


def test_a_vocabulary_can_take_the_place_of_the_tasks_own(data_dir, my_module):
    smaller = Vocabulary(f"{data_dir}/embedded/unigram.400.model")
    data = mine(data_dir, my_module, "mine")
    plan = prepare(dataclasses.replace(data, vocabulary=smaller))
    assert plan.vocabulary() == smaller
    [task], [usual] = plan.train_tasks(), prepare(data).train_tasks()
    assert task.store.num_examples == usual.store.num_examples
    assert task.store.tokens("inputs").max() < 400
    first = slice(*task.store.offsets("inputs")[:2])
    assert smaller.decode(task.store.tokens("inputs")[first].tolist()).startswith("name: ")


def test_a_vocabulary_that_is_not_there_is_named(data_dir):
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        prepare(embedded(data_dir, vocabulary=Vocabulary("/nowhere/unigram.model")))
    assert caught.value.names == ("VOCABULARY", "Vocabulary.path")


def test_a_missing_corpus_is_named_by_its_pattern(tmp_path, data_dir):
    declared = JsonLinesText("c4", f"{tmp_path}/c4/en", prepare(embedded(data_dir)).vocabulary())
    with pytest.raises(ConfigError, match=r"no file matches .*/c4/en/c4-train\.") as caught:
        prepare(Data("c4", LENGTHS, str(tmp_path), task_providers=(declared,)))
    assert caught.value.names == ("DATA_DIR",)


def test_an_empty_corpus_is_named(tmp_path, data_dir):
    (tmp_path / "c4-train.00000-of-00001.json").write_text("")
    declared = JsonLinesText("c4", str(tmp_path), prepare(embedded(data_dir)).vocabulary())
    with pytest.raises(ConfigError, match=rf"{tmp_path}.* holds no example") as caught:
        prepare(Data("c4", LENGTHS, str(tmp_path), task_providers=(declared,)))
    assert caught.value.names == ("DATA_DIR",)


def test_a_plan_is_json_that_names_stores_relative_to_its_directory(data_dir):
    plan = prepare(embedded(data_dir))
    written = [json.loads(path.read_text()) for path in Path(data_dir, "plans").glob("*.json")]
    stores = [task.stores for task in plan.tasks]
    assert stores in [[task["stores"] for task in content["tasks"]] for content in written]
    assert all(directory.startswith("stores/") for each in stores for directory in each.values())
    assert {content["vocabulary_path"] for content in written} >= {"embedded/unigram.500.model"}


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [("targets.tokens.bin", _flip), ("targets.offsets.npy", Path.unlink)],
    ids=["flipped", "deleted"],
)
def test_a_corrupt_store_is_quarantined_with_a_log_line_and_rebuilt_to_the_same_bytes(
    name, spoil, tmp_path, log_lines
):
    data = embedded(str(tmp_path), mixture_or_task_name="embedded_name")
    (task,) = prepare(data).tasks
    store = tmp_path / task.stores["train"]
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    spoil(store / name)
    (again,) = prepare(data).tasks
    assert again.stores == task.stores
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before
    assert len(list(store.parent.glob(f"quarantine-{store.name}.*"))) == 1
    assert [line for line in log_lines if re.search(rf"{store.name} is corrupt \({name}", line)]
    log_lines.clear()
    prepare(data)
    assert log_lines == []
