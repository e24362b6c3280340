"""What docs/launch/beam.md hands to Beam: options that Beam knows, and a tokenizing pipeline."""

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "launch" / "beam.md"


def commands():
    """The commands of the page that hand options to Beam, with those options."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for word in shlex.split(line, comments=True):
            name, _, value = word.partition("=")
            if name in ("--gin.cache.beam_flags", "--gin.c4.beam_options"):
                yield shlex.split(line)[:2], list(ast.literal_eval(value))


def test_the_page_has_a_command_of_both_kinds_for_every_runner():
    runners = {(*command, flags[0]) for command, flags in commands()}
    wanted = ("--runner=DataflowRunner", "--runner=FlinkRunner", "--runner=SparkRunner")
    for command in ("cache", "c4"):
        assert {("t5x_lite", command, runner) for runner in wanted} <= runners


@pytest.mark.parametrize("flags", [flags for _, flags in commands()], ids=lambda f: f[0])
def test_beam_knows_every_option_of_the_page(flags):
    pytest.importorskip("apache_beam")
    from apache_beam.options.pipeline_options import PipelineOptions

    given = {flag[2:].partition("=")[0] for flag in flags}
    known = PipelineOptions(flags).get_all_options(drop_default=True)
    assert given <= set(known), given - set(known)


def test_a_pipeline_of_beam_tokenizes_what_training_finds(tmp_path):
    if importlib.util.find_spec("apache_beam") is None:
        pytest.skip("apache-beam is not installed: pip install 't5x_lite[beam]'")
    from t5x_lite.data.cache import cache
    from t5x_lite.data.data_config import Data
    from t5x_lite.data.prepare import load_plan
    from t5x_lite.data.tasks.task_providers import JsonLinesText
    from t5x_lite.tokenizers.vocabularies import ByteVocabulary

    for split, shards in (("train", 3), ("validation", 1)):
        for number in range(shards):
            lines = [json.dumps({"text": f"trees grow {number} {n}"}) for n in range(4)]
            name = f"c4-{split}.{number:05d}-of-{shards:05d}.json"
            (tmp_path / name).write_text("\n".join(lines) + "\n")
    declared = JsonLinesText("trees", str(tmp_path), ByteVocabulary())
    lengths = {"inputs": 64, "targets": 32}
    data = Data("trees", lengths, str(tmp_path / "data"), task_providers=(declared,))
    cache(data=data, beam_flags=["--runner=DirectRunner"])
    plan = load_plan(data)
    assert plan is not None
    assert plan.train_tasks()[0].store.num_examples == 12
