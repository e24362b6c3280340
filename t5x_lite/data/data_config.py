"""The configuration of a run's data: which tasks, how they are tokenized, shuffled and packed."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from t5x_lite.data.stream.shuffle import Exhaustion
from t5x_lite.data.tasks.task_providers import TaskProvider
from t5x_lite.errors import ConfigError
from t5x_lite.io.urls import is_address
from t5x_lite.objectives.span_corruption import Objective, SpanCorruption
from t5x_lite.tokenizers.vocabularies import AnyVocabulary

Tokenizer = Literal["seqio", "sentencepiece"]
Tokenization = Literal["before_training", "while_training"]


@dataclass(frozen=True)
class Data:
    """What to train on.

    mixture_or_task_name: a seqio mixture or task, which one of `task_providers` or of the Python
    modules named in `modules` registers when it is imported.
    feature_lengths: tokens of "inputs" and "targets" in a row.
    data_dir: where corpora, vocabularies and token stores are made and found again.
    store_dir: an address, such as "gs://bucket/tokens", to which finished stores are moved and
        where they are read (`data.store.remote_store`).
    objective: what text tasks are turned into.
    vocabulary: one to use in place of the tasks' own.
    tokenizer: what tokenizes tasks that only rename and tokenize fields: "seqio", or, several times
        faster, "sentencepiece" (`data.tokenize.tokenize_file` tells how they differ).
    tokenization: what happens where a task's train store is missing: it is made "before_training",
    or
        "while_training", by other processes (their number: `processes`), so that the first step
        comes early. The first epoch then shuffles blocks of 16,384 examples, from the beginning of
        the source to its end, whether or not the store is there; later epochs shuffle all.
    pack: put several short examples in one row.
    max_text_tokens: train on the first so many tokens of each task of text alone, over and over
    (`data.stream.truncated_store`); None: on all.
    on_task_exhausted, num_epochs: what becomes of a task that was gone through so often: "repeat"
    it for
        ever, "stop" the run, or "renormalize": go on with the others until all were.
    seed: of the order of examples, the draws among tasks and the noise.
    splits: which to get ready; who only evaluates needs no "train".
    """

    mixture_or_task_name: str
    feature_lengths: Mapping[str, int]
    data_dir: str
    objective: Objective = dataclasses.field(default_factory=SpanCorruption)
    task_providers: tuple[TaskProvider, ...] = ()
    modules: tuple[str, ...] = ()
    vocabulary: AnyVocabulary | None = None
    tokenizer: Tokenizer = "seqio"
    tokenization: Tokenization = "before_training"
    processes: int = 1
    store_dir: str | None = None
    pack: bool = True
    max_text_tokens: int | None = None
    on_task_exhausted: Exhaustion = "repeat"
    num_epochs: int = 1
    seed: int = 0
    splits: tuple[str, ...] = ("train", "validation")

    def __post_init__(self):
        if self.tokenization not in get_args(Tokenization) or self.processes < 1:
            raise ConfigError(
                f"tokenization is {self.tokenization!r} in {self.processes} processes: it takes "
                f"{' or '.join(get_args(Tokenization))}, and 1 process or more",
                "Data.tokenization",
                "Data.processes",
            )
        if self.max_text_tokens is not None and (
            self.tokenization == "while_training" or self.max_text_tokens < 1
        ):
            raise ConfigError(
                f"max_text_tokens is {self.max_text_tokens}: it takes 1 token or more, of stores "
                "that are made before training",
                "Data.max_text_tokens",
                "Data.tokenization",
            )
        if self.store_dir is not None and (
            self.tokenization == "while_training" or not is_address(self.store_dir)
        ):
            raise ConfigError(
                f"store_dir is {self.store_dir!r}: it takes an address, such as "
                "gs://bucket/tokens, and stores that are made before training",
                "Data.store_dir",
                "Data.tokenization",
            )
