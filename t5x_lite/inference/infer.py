"""`t5x_lite infer`: a file of texts to JSON lines of what a model makes of them."""

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from t5x_lite import log_setup
from t5x_lite.checkpoints.checkpointer import Checkpointer, chosen_step
from t5x_lite.checkpoints.run_directory import MODEL
from t5x_lite.console import Console, count, duration, logged_wait
from t5x_lite.decoding.generation import Generation
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.inference.jsonl_io import STANDARD, Format, InputLines, OutputLines, Record
from t5x_lite.inference.text_model import TextModel, check_batch_size, load
from t5x_lite.tokenizers.vocabularies import AnyVocabulary

_LOG = logging.getLogger(__name__)
Mode = Literal["generate", "embed", "fill", "score"]
_NEEDED = {
    "generate": ("inputs",),
    "embed": ("inputs",),
    "fill": ("inputs",),
    "score": ("inputs", "targets"),
}
_BLOCK_BATCHES = 8  # so many batches are sorted by length, computed and written together


def infer(
    *,
    model_dir: str,
    inputs: str,
    outputs: str,
    mode: Mode = "generate",
    generation: Generation = Generation(),  # noqa: B008  (frozen)
    prefix: str = "",
    input_format: Format = "auto",
    batch_size: int = 8,
    mesh: Mapping[str, int] | None = None,
    step: int | None = None,
    vocabulary: AnyVocabulary | None = None,
    dtype: str | None = None,
    max_input_length: int = 512,
    end_inputs: bool | None = None,
    cpu_devices: int | None = None,
    describe_config: Callable[[], str] = str,
) -> None:
    """Write a JSON line for each line of `inputs`, in order; a killed one goes on where it was.

    Several processes share the rows of each batch; all of them read `inputs`, the first writes.

    mode: "generate" texts; "fill" the sentinels of each; "embed" with the encoder, mean over
    tokens; "score": log p of "targets" behind "inputs". prefix: put before each input, such as
    "summarize: ". inputs, outputs: a path, or "-" for standard input and output. Other arguments
    are those of `text_model.load`. JSON lines keep the fields that they came with.
    """
    if outputs == STANDARD:
        log_setup.use_stderr()
    console = Console(stderr=outputs == STANDARD, silent=not processes.is_first())
    _check(mode, inputs, batch_size)
    lines = InputLines(inputs, input_format, _NEEDED[mode])
    processes.simulate_devices(cpu_devices)
    step = _step_of(Path(model_dir), step)
    reading: dict[str, Any] = dict(
        step=step,
        batch_size=batch_size,
        dtype=dtype,
        max_input_length=max_input_length,
        end_inputs=end_inputs,
    )
    settings = {
        "model_dir": str(Path(model_dir).absolute()),
        "what": mode,  # the key of output files of earlier versions, which can be continued
        "prefix": prefix,
        "inputs_sha256": lines.fingerprint,
        **reading,
        **(dataclasses.asdict(generation) if mode in ("generate", "fill") else {}),
    }
    processes.check_same("the lines of INPUTS and the settings", settings)
    block = batch_size * _BLOCK_BATCHES
    written = OutputLines(outputs, settings, block=block)
    if written.complete:
        _LOG.info(f"nothing to do: {outputs} is complete, {count(lines.count, 'line')}")
        return
    with logged_wait(_LOG, f"loading {model_dir}"):
        model = load(model_dir, vocabulary=vocabulary, mesh=mesh, **reading)
    _write_all(lines, written, InferenceWork(model, mode, generation, prefix), block, console)


def _step_of(directory: Path, step: int | None) -> int | None:
    """The checkpoint of a run, by its number: a run may save more before a killed one goes on."""
    if not (directory / MODEL).exists():
        return step
    with Checkpointer(directory) as saved:
        return chosen_step(saved, step, "MODEL_DIR", "STEP")


def _check(mode: str, inputs: str, batch_size: int) -> None:
    if mode not in _NEEDED:
        raise ConfigError(f"mode is {mode!r}; expected one of {', '.join(_NEEDED)}", "MODE")
    check_batch_size(batch_size)
    if processes.count() > 1 and inputs == STANDARD:
        raise ConfigError(
            "several processes cannot share standard input; wanted a file that all of them see",
            "INPUTS",
        )


class InferenceWork:
    """What is made of each record, and how many inputs were cut."""

    def __init__(self, model: TextModel, mode: Mode, generation: Generation, prefix: str):
        self._model, self._mode = model, mode
        self._generation, self._prefix = generation, prefix
        self.truncated, self.room = 0, model.max_input_length
        if mode == "fill" and not model.vocabulary.sentinels.count:
            raise ConfigError(
                f"the vocabulary {model.vocabulary.path} has no sentinels (<extra_id_0> ...) to be "
                f"filled",
                "MODE",
                "MODEL_DIR",
            )

    def results(self, records: Sequence[Record], *, first: int) -> list[Record]:
        """A result for each record; `first` is the number of the first, from 0."""
        encoded = [self._model.encode(self._prefix + record["inputs"]) for record in records]
        rows = [
            {"inputs": text.ids, "number": first + i} for i, text in enumerate(encoded)
        ]  # numbers: each line's draws are its own
        self.truncated += sum(text.truncated for text in encoded)
        results = getattr(self, f"_{self._mode}")(rows, records)
        cut = ({"truncated": True} if text.truncated else {} for text in encoded)
        return [
            {**record, **result, **mark}
            for record, result, mark in zip(records, results, cut, strict=True)
        ]

    def _generate(self, rows: list[Record], _: Sequence[Record]) -> Iterator[Record]:
        for best, *others in self._model.outputs(rows, self._generation):
            found: Record = {"output": best.text, "score": round(best.score, 5)}
            if others:
                found["alternatives"] = [
                    {"output": other.text, "score": round(other.score, 5)} for other in others
                ]
            yield found

    def _fill(self, rows: list[Record], records: Sequence[Record]) -> Iterator[Record]:
        written = self._model.written(rows, self._generation)
        for record, (tokens, scores) in zip(records, written, strict=True):
            filled = self._model.filled(record["inputs"], tokens[0], float(scores[0]))
            yield {
                "output": filled.text,
                "spans": filled.spans,
                "score": round(filled.score, 5),
            }

    def _embed(self, rows: list[Record], _: Sequence[Record]) -> Iterator[Record]:
        for vector in self._model.embeddings(rows):
            yield {"embedding": [round(float(x), 6) for x in vector]}

    def _score(self, rows: list[Record], records: Sequence[Record]) -> Iterator[Record]:
        targets = [self._model.encode_target(record["targets"]) for record in records]
        pairs = [{**row, "targets": ids} for row, ids in zip(rows, targets, strict=True)]
        for total, ids in zip(self._model.scores(pairs), targets, strict=True):
            yield {"score": round(total, 5), "target_tokens": len(ids)}


def _write_all(
    lines: InputLines, written: OutputLines, work: InferenceWork, block: int, console: Console
) -> None:
    """Write what is missing; show the progress, and at the end how many inputs were truncated."""
    with written, console.line():
        if written.done:
            _LOG.info(f"resuming after {written.done:,} of {count(lines.count, 'line')}")
        began, first = time.perf_counter(), written.done
        for records in _blocks(lines, first, block):
            written.write(work.results(records, first=written.done))
            speed = (written.done - first) / (time.perf_counter() - began)
            console.update(
                f"{written.done:,}/{lines.count:,} lines | {speed:,.1f} lines/s | "
                f"{duration((lines.count - written.done) / speed)} left"
            )
        written.finish()
    where = "standard output" if written.path == STANDARD else written.path
    _LOG.info(f"wrote {count(lines.count, 'line')} to {where}")
    if work.truncated:
        _LOG.warning(
            f"truncated {count(work.truncated, 'input')} longer than {work.room:,} tokens "
            f"(MAX_INPUT_LENGTH)"
        )


def _blocks(lines: InputLines, done: int, size: int) -> Iterator[list[Record]]:
    rest: Iterator[Any] = itertools.islice(lines, done, None)
    while block := list(itertools.islice(rest, size)):
        yield block
