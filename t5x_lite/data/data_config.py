"""The configuration of a run's data: which tasks, how they are tokenized, shuffled and packed."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from t5x_lite.data.stream.shuffle import Exhaustion
from t5x_lite.data.tasks.task_providers import TaskProvider
from t5x_lite.errors import ConfigError
from t5x_lite.io.urls import is_url
from t5x_lite.objectives.objective import Objective
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.tokenizers.vocabularies import AnyVocabulary

Tokenizer = Literal["seqio", "sentencepiece"]
Tokenization = Literal["before_training", "while_training"]


@dataclass(frozen=True)
class Data:
    """The configuration of a run's data.

    Args:
        mixture_or_task_name: A seqio mixture or task that one of `task_providers` registers, or one
            of the Python modules named in `modules` when it is imported.
        feature_lengths: Tokens of "inputs" and "targets" in a row.
        data_dir: Directory of corpora, vocabularies and token stores.
        objective: The training objective of text tasks.
        task_providers: What registers tasks and mixtures.
        modules: Name of a Python module that registers tasks when it is imported, or several names.
        vocabulary: Replaces the vocabularies of the tasks.
        use_cached: Require finished token stores (`t5x_lite cache`) instead of making the missing
            ones. T5X's parameter of this name requires the files of `seqio_cache_tasks`, which are
            not read here.
        tokenizer: What tokenizes tasks that only rename and tokenize fields: "seqio", or
            "sentencepiece", several times faster (`data.tokenize.tokenize_file` lists how the
            results differ).
        tokenization: When a missing train store is made: "before_training", or "while_training" by
            `processes` other processes, so that the first step comes early. The first epoch then
            shuffles blocks of 16,384 examples in the order of the source, whether or not the
            store exists; later epochs shuffle all examples.
        processes: Number of processes that tokenize while training.
        store_dir: An address, such as "gs://bucket/tokens", to which finished stores are moved and
            from which they are read (`data.store.remote_store`).
        pack: Put several short examples in one row.
        max_text_tokens: Train on only the first tokens of each text task, repeated
            (`data.stream.truncated_store`); None: on all tokens.
        on_task_exhausted: After `num_epochs` epochs of a task: "repeat" it without end, "stop" the
            run, or "renormalize" the rates and continue with the other tasks.
        num_epochs: Epochs of a task after which it is exhausted.
        seed: Seed of the order of examples, the draws among tasks and the noise.
        splits: The splits to prepare; evaluation alone needs no "train".

    Raises:
        ConfigError: If values contradict each other or are out of range.
    """

    mixture_or_task_name: str
    feature_lengths: Mapping[str, int]
    data_dir: str
    objective: Objective = dataclasses.field(default_factory=SpanCorruption)
    task_providers: tuple[TaskProvider, ...] = ()
    modules: str | Sequence[str] | None = ()
    vocabulary: AnyVocabulary | None = None
    use_cached: bool = False
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

    @property
    def module_names(self) -> tuple[str, ...]:
        """`modules` as a tuple, empty where there is none."""
        if isinstance(self.modules, str):
            return (self.modules,)
        return tuple(self.modules or ())

    def __post_init__(self):
        if self.use_cached and self.tokenization == "while_training":
            raise ConfigError(
                "use_cached requires token stores that were made before, but tokenization is "
                "'while_training', which makes them during the run; set one of the two",
                "Data.use_cached",
                "Data.tokenization",
            )
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
            self.tokenization == "while_training" or not is_url(self.store_dir)
        ):
            raise ConfigError(
                f"store_dir is {self.store_dir!r}: it takes an address, such as "
                "gs://bucket/tokens, and stores that are made before training",
                "Data.store_dir",
                "Data.tokenization",
            )
