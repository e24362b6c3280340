"""`t5x_lite infer`: apply a model to each line of a file and write the results as JSON lines."""

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
_REQUIRED_FIELDS = {
    "generate": ("inputs",),
    "embed": ("inputs",),
    "fill": ("inputs",),
    "score": ("inputs", "targets"),
}
_BLOCK_BATCHES = 8  # batches that are sorted by length, computed and written together


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
    """Write a JSON line of results for each line of `inputs`, in their order.

    If the command is killed, the same command resumes it. Several processes share the rows of each
    batch; all of them read `inputs`, and the first one writes.

    Args:
        model_dir: Directory of a run, an import or a Hugging Face model.
        inputs: File with the inputs; "-" is standard input. Fields of JSON objects are copied to
            the results.
        outputs: File of JSON lines to write; "-" is standard output.
        mode: What to compute. "generate": texts. "fill": texts for the sentinels of each input.
            "embed": the mean of the encoder's output over the tokens. "score": the log-likelihood
            of "targets", given "inputs".
        generation: How texts are generated.
        prefix: Text before each input, such as "summarize: ".
        input_format: "json" for a JSON object per line with "inputs" (and "targets" for scores),
            "text" for a text per line. "auto" is "json" for names that end in .jsonl or .json.
        batch_size: Rows of a batch, over all devices.
        mesh: Sizes of the mesh axes by name; None is one device, or all devices of several
            processes.
        step: Checkpoint of the run; None is the newest.
        vocabulary: The vocabulary of a directory that has none.
        dtype: Type of activations; None is float32 on a CPU, else bfloat16.
        max_input_length: Tokens of an input, EOS included; the end of longer inputs is cut and
            marked in the results. The default is that of T5's pretraining.
        end_inputs: Whether inputs end with EOS; None: if the model has an encoder.
        cpu_devices: Number of simulated CPU devices; None uses the real devices.
        describe_config: Not used.

    Raises:
        ConfigError: A setting or a line is invalid, `outputs` has results of other settings, or
            `model_dir` has no model. Settings and lines are checked before the model is loaded.
    """
    if outputs == STANDARD:
        log_setup.use_stderr()
    console = Console(stderr=outputs == STANDARD, silent=not processes.is_first())
    _check_settings(mode, inputs, batch_size)
    lines = InputLines(inputs, input_format, _REQUIRED_FIELDS[mode])
    processes.simulate_devices(cpu_devices)
    step = _step_number(Path(model_dir), step)
    load_settings: dict[str, Any] = dict(
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
        **load_settings,
        **(dataclasses.asdict(generation) if mode in ("generate", "fill") else {}),
    }
    processes.check_same("the lines of INPUTS and the settings", settings)
    block = batch_size * _BLOCK_BATCHES
    output_lines = OutputLines(outputs, settings, block=block)
    if output_lines.complete:
        _LOG.info(f"nothing to do: {outputs} is complete, {count(lines.count, 'line')}")
        return
    with logged_wait(_LOG, f"loading {model_dir}"):
        model = load(model_dir, vocabulary=vocabulary, mesh=mesh, **load_settings)
    computation = LineInference(model, mode, generation, prefix)
    _write_results(lines, output_lines, computation, block, console)


def _step_number(directory: Path, step: int | None) -> int | None:
    """Return the step of the checkpoint to use; None for a directory that is not a run's.

    The number is part of the settings: a run may save a newer checkpoint before a killed command is
    resumed, and all results must come from the same one.
    """
    if not (directory / MODEL).exists():
        return step
    with Checkpointer(directory) as saved:
        return chosen_step(saved, step, "MODEL_DIR", "STEP")


def _check_settings(mode: str, inputs: str, batch_size: int) -> None:
    if mode not in _REQUIRED_FIELDS:
        raise ConfigError(
            f"mode is {mode!r}; expected one of {', '.join(_REQUIRED_FIELDS)}", "MODE"
        )
    check_batch_size(batch_size)
    if processes.count() > 1 and inputs == STANDARD:
        raise ConfigError(
            "several processes cannot share standard input; expected a file that all can read",
            "INPUTS",
        )


class LineInference:
    """Computes the results of lines, and counts the inputs that were truncated.

    Args:
        model: The model.
        mode: What to compute (`infer`).
        generation: How texts are generated.
        prefix: Text before each input.

    Attributes:
        truncated: Number of inputs that were truncated so far.
        room: Tokens of an input at most.

    Raises:
        ConfigError: The mode is "fill" and the vocabulary has no sentinels.
    """

    def __init__(self, model: TextModel, mode: Mode, generation: Generation, prefix: str):
        self._model, self._mode = model, mode
        self._generation, self._prefix = generation, prefix
        self.truncated, self.room = 0, model.max_input_length
        if mode == "fill" and not model.vocabulary.sentinels.count:
            raise ConfigError(
                f"the vocabulary {model.vocabulary.path} has no sentinels (<extra_id_0> ...); they "
                f"are needed to fill texts",
                "MODE",
                "MODEL_DIR",
            )

    def results(self, records: Sequence[Record], *, first: int) -> list[Record]:
        """Compute the result of each record.

        Args:
            records: Objects with "inputs", and with "targets" for scores.
            first: The number of the first record in the file, from 0. The random samples of a
                record depend on its number.

        Returns:
            The records with the fields of their results; "truncated" marks inputs that were cut.
        """
        encoded = [self._model.encode(self._prefix + record["inputs"]) for record in records]
        rows = [{"inputs": text.ids, "number": first + i} for i, text in enumerate(encoded)]
        self.truncated += sum(text.truncated for text in encoded)
        results = getattr(self, f"_{self._mode}")(rows, records)
        cut = ({"truncated": True} if text.truncated else {} for text in encoded)
        return [
            {**record, **result, **mark}
            for record, result, mark in zip(records, results, cut, strict=True)
        ]

    def _generate(self, rows: list[Record], _: Sequence[Record]) -> Iterator[Record]:
        for best, *others in self._model.generate_from_ids(rows, self._generation):
            result: Record = {"output": best.text, "score": round(best.score, 5)}
            if others:
                result["alternatives"] = [
                    {"output": other.text, "score": round(other.score, 5)} for other in others
                ]
            yield result

    def _fill(self, rows: list[Record], records: Sequence[Record]) -> Iterator[Record]:
        generated = self._model.generate_ids(rows, self._generation)
        for record, (tokens, scores) in zip(records, generated, strict=True):
            filled = self._model.fill_sentinels(record["inputs"], tokens[0], float(scores[0]))
            yield {
                "output": filled.text,
                "spans": filled.spans,
                "score": round(filled.score, 5),
            }

    def _embed(self, rows: list[Record], _: Sequence[Record]) -> Iterator[Record]:
        for vector in self._model.embed_ids(rows):
            yield {"embedding": [round(float(x), 6) for x in vector]}

    def _score(self, rows: list[Record], records: Sequence[Record]) -> Iterator[Record]:
        targets = [self._model.encode_target(record["targets"]) for record in records]
        pairs = [{**row, "targets": ids} for row, ids in zip(rows, targets, strict=True)]
        for total, ids in zip(self._model.score_ids(pairs), targets, strict=True):
            yield {"score": round(total, 5), "target_tokens": len(ids)}


def _write_results(
    lines: InputLines,
    output_lines: OutputLines,
    computation: LineInference,
    block: int,
    console: Console,
) -> None:
    """Write the missing results, show the progress and log the number of truncated inputs."""
    with output_lines, console.line():
        if output_lines.done:
            _LOG.info(f"resuming after {output_lines.done:,} of {count(lines.count, 'line')}")
        start, first = time.perf_counter(), output_lines.done
        for records in _blocks(lines, first, block):
            output_lines.write(computation.results(records, first=output_lines.done))
            speed = (output_lines.done - first) / (time.perf_counter() - start)
            console.update(
                f"{output_lines.done:,}/{lines.count:,} lines | {speed:,.1f} lines/s | "
                f"{duration((lines.count - output_lines.done) / speed)} left"
            )
        output_lines.finish()
    where = "standard output" if output_lines.path == STANDARD else output_lines.path
    _LOG.info(f"wrote {count(lines.count, 'line')} to {where}")
    if computation.truncated:
        _LOG.warning(
            f"truncated {count(computation.truncated, 'input')} longer than "
            f"{computation.room:,} tokens (MAX_INPUT_LENGTH)"
        )


def _blocks(lines: InputLines, done: int, size: int) -> Iterator[list[Record]]:
    """Yield the records after the first `done`, in lists of `size`."""
    rest: Iterator[Any] = itertools.islice(lines, done, None)
    while block := list(itertools.islice(rest, size)):
        yield block
