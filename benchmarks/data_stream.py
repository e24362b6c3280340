"""Measure the data stream: tokens per second and core, packing, resumption, the first batch.

    python benchmarks/data_stream.py --directory=/tmp/data_stream [--seqio_python=t5env/bin/python]

All rates are per CPU second of the process (user and system, all threads), medians of `--repeats`
with the smallest and the largest value. `--seqio_python` is a Python that has t5 0.9.4 with
seqio. data_stream.md has the results.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

from t5x_lite.data.store.token_store import TokenStore
from t5x_lite.data.stream import numba_loader
from t5x_lite.data.stream.packing import best_fit_decreasing
from t5x_lite.data.stream.stream import Stream, StreamTask
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption

LENGTHS = {"inputs": 512, "targets": 114}
RAW = 568
BATCH = 128
SENTINELS = Sentinels(32_099, 100)
DOCUMENTS, PAIRS = 80_000, 100_000
# Median tokens of inputs and targets, and share, of three kinds of short tasks; lognormal.
MIX = {"class": (60, 4, 0.40), "question": (180, 12, 0.35), "summary": (330, 60, 0.25)}

FIRST_BATCH = """
import sys, time
from t5x_lite.data.store.token_store import TokenStore
from t5x_lite.data.stream.stream import Stream, StreamTask
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption
task = StreamTask("text", TokenStore.open(sys.argv[1]), 1.0, SpanCorruption())
stream = Stream([task], feature_lengths={"inputs": 512, "targets": 114}, batch_size=128, seed=0,
                sentinels=Sentinels(32099, 100), pack=False)
next(stream.batches(stream.start()))
print(time.process_time())
"""


def write_store(directory: Path, **features: list[np.ndarray] | tuple[np.ndarray, np.ndarray]):
    """Write a store of (tokens, lengths) by feature, and open it."""
    directory.mkdir(parents=True, exist_ok=True)
    described = {}
    for name, (tokens, lengths) in features.items():
        tokens.astype("<u2").tofile(directory / f"{name}.tokens.bin")
        np.save(directory / f"{name}.offsets.npy", np.cumsum([0, *lengths]))
        described[name] = {"tokens": len(tokens), "dtype": "<u2"}
    manifest = {"format": 1, "num_examples": len(lengths), "features": described}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return TokenStore.open(directory)


def text_store(directory: Path) -> TokenStore:
    """Documents as long as those of English web text: lognormal, 390 tokens on average."""
    if directory.exists():
        return TokenStore.open(directory)
    random = np.random.default_rng(0)
    lengths = np.maximum(random.lognormal(5.5, 0.95, DOCUMENTS).astype(np.int64), 5)
    return write_store(directory, targets=(random.integers(3, 32_000, lengths.sum()), lengths))


def mixed_stores(directory: Path) -> list[StreamTask]:
    """The tasks of `MIX`."""
    tasks = []
    random = np.random.default_rng(1)
    for name, (inputs, targets, share) in MIX.items():
        features = {}
        for feature, median in (("inputs", inputs), ("targets", targets)):
            scale = np.exp(0.5 * random.standard_normal(PAIRS))
            lengths = np.clip(np.round(median * scale), 1, LENGTHS[feature]).astype(np.int64) - 1
            features[feature] = (random.integers(3, 32_000, lengths.sum()), lengths)
        tasks.append(StreamTask(name, write_store(directory / name, **features), share, None))
    return tasks


def rates(work, repeats: int) -> tuple[float, float, float]:
    """Median, smallest and largest of `work()`, units done, per CPU second."""
    work()  # compiles, maps files
    found = []
    for _ in range(repeats):
        began = time.process_time()
        done = work()
        found.append(done / (time.process_time() - began))
    return statistics.median(found), min(found), max(found)


def show(what: str, numbers: tuple[float, float, float], unit: str, scale: float = 1.0) -> None:
    """Print a line of the table."""
    median, low, high = (number / scale for number in numbers)
    print(f"| {what} | {median:,.2f} {unit} | {low:,.2f} to {high:,.2f} |", flush=True)


def stream_of(tasks, **changed) -> Stream:
    """A stream over tasks with the settings of the benchmark."""
    settings = dict(feature_lengths=LENGTHS, batch_size=BATCH, seed=0, sentinels=SENTINELS)
    return Stream(tasks, **(settings | {"pack": False} | changed))


def measure_text(tasks, repeats: int, label: str, batches: int) -> None:
    """Shuffled, corrupted, batched."""
    for pack in (False, True):
        stream = stream_of(tasks, pack=pack)
        iterator = stream.batches(stream.start())

        def work(iterator=iterator, stream=stream):
            before = stream.examples_seen(next(iterator)[1])["text"]
            positions = [position for _, position in itertools.islice(iterator, batches)]
            return (stream.examples_seen(positions[-1])["text"] - before) * RAW

        kind = "packed" if pack else "one a row"
        show(f"text to batches, {kind}, {label}", rates(work, repeats), "M raw tokens/s", 1e6)


def measure_packing(tasks, repeats: int, label: str, batches: int) -> None:
    """Rows a second and how full they are."""
    stream = stream_of(tasks, pack=True)
    iterator = stream.batches(stream.start())
    filled = []

    def work():
        for batch, _ in itertools.islice(iterator, batches):
            filled.append(np.mean(batch["encoder_segment_ids"] > 0))
        return batches * BATCH

    numbers = rates(work, repeats)
    show(f"packed rows of the short mix, {label}", numbers, "k rows/s", 1e3)
    print(f"| their inputs are filled, {label} | {np.mean(filled):.2%} | |")
    lengths = np.concatenate(
        [np.stack([np.diff(t.store.offsets(f))[:2000] + 1 for f in LENGTHS], axis=1) for t in tasks]
    )
    lengths = np.random.default_rng(0).permutation(lengths)[:1024]

    def plan():
        for _ in range(20):
            rows = best_fit_decreasing(lengths, (512, 114)).max() + 1
        return 20 * rows

    show(f"best fit alone, {label}", rates(plan, repeats), "k rows/s", 1e3)


def measure_resumption(tasks) -> None:
    """The size of a position, and reaching a far one."""
    names = [f"task_{n}" for n in range(100)]
    many = [StreamTask(name, tasks[0].store, 1.0, None) for name in names]
    size = len(json.dumps(next(stream_of(many, pack=True).batches(stream_of(many).start()))[1]))
    print(f"| position of a mixture of 100 tasks, as JSON | {size:,} bytes | |")
    stream = stream_of(tasks, pack=True)
    next(stream.batches(stream.start()))
    position = dict(stream.start(), window=10**9 // 400, row=100)
    position["drawn"] = dict.fromkeys(position["drawn"], 10**9)
    seconds = []
    for _ in range(9):
        began = time.process_time()
        next(stream.batches(position))
        seconds.append(time.process_time() - began)
    print(
        f"| seek to row 10^9, first batch in hand | {statistics.median(seconds) * 1e3:.1f} ms | |"
    )


def measure_first_batch(store: Path, of: str = "") -> None:
    """A fresh process: imports, opening, one batch."""
    for label, extra in (("numba", ""), ("NumPy", "import sys; sys.modules['numba'] = None\n")):
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", extra + FIRST_BATCH, str(store)],
                capture_output=True,
                text=True,
                check=True,
            )
            seconds.append((float(done.stdout), time.perf_counter() - began))
        cpu, wall = (statistics.median(each) for each in zip(*seconds, strict=True))
        print(f"| first batch of a fresh process{of}, {label} | {cpu:.2f} s CPU, {wall:.2f} s | |")


def measure_c4_size(directory: Path) -> None:
    """The first batch of a store with as many documents as C4 has; what is not read is a hole."""
    documents, tokens, group = 364_868_892, 156_000_000_000, 128
    directory.mkdir(parents=True, exist_ok=True)
    groups = -(-documents // group)
    table = np.arange(groups)[:, None] * [group, tokens // documents * group]
    np.save(directory / "targets.groups.npy", table)
    for name, size in (("tokens.bin", 2 * tokens), ("offsets.npy", 128 + 8 * (documents + 1))):
        with open(directory / f"targets.{name}", "wb") as file:
            file.truncate(size)
    offsets = np.lib.format.open_memmap(
        directory / "targets.offsets.npy", "w+", np.int64, (documents + 1,)
    )
    offsets[-1] = tokens
    del offsets
    described = {"targets": {"tokens": tokens, "dtype": "<u2", "groups": groups}}
    manifest = {"format": 1, "num_examples": documents, "features": described}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    measure_first_batch(directory, " of as many documents as C4 has")
    shutil.rmtree(directory)


def measure_huggingface(store: TokenStore, repeats: int) -> None:
    """The collator of Hugging Face's example, over pieces that are cut already."""
    from huggingface_peer import collate

    tokens = np.asarray(store.tokens("targets")[: 20 * BATCH * RAW], np.int32)
    batches = tokens.reshape(20, BATCH, RAW)
    made = collate(batches[0], SENTINELS.first + 1)
    assert made["input_ids"].shape[1] == 512
    assert made["labels"].shape[1] == 114

    def work():
        for batch in batches:
            collate(batch, SENTINELS.first + 1)
        return batches.size

    show("Hugging Face's collator, one a row", rates(work, repeats), "M raw tokens/s", 1e6)


def measure_tokenizing(directory: Path, tokenizer: str) -> None:
    """From gzipped JSON lines to a token store: the embedded corpus, a vocabulary of 8,000."""
    from t5x_lite.data.sources import embedded_corpus
    from t5x_lite.data.tasks.lazy_seqio import import_seqio
    from t5x_lite.data.tasks.task_providers import JsonLinesText
    from t5x_lite.data.tokenize.build_store import build_token_store
    from t5x_lite.tokenizers.vocabularies import Vocabulary, train_vocabulary

    import_seqio()
    import seqio

    corpus, model = directory / "corpus", directory / "unigram.model"
    embedded_corpus.write_embedded_corpus(corpus, embedded_corpus.PACKAGES)
    if not model.exists():
        texts = (document["text"] for document in embedded_corpus.read_documents(corpus, "train"))
        train_vocabulary(texts, model, vocab_size=8000, max_lines=50_000)
    JsonLinesText("bench_text", str(corpus), Vocabulary(str(model))).register("")
    task = seqio.TaskRegistry.get("bench_text")
    found = []
    for number in range(3):
        began = time.process_time()
        build_token_store(task, "train", directory / f"built_{number}", tokenizer=tokenizer)
        spent = time.process_time() - began
        store = TokenStore.open(directory / f"built_{number}")
        found.append(len(store.tokens("targets")) / spent)
        for path in store.directory.iterdir():
            path.unlink()
        store.directory.rmdir()
    show(
        f"JSON lines to tokens, {tokenizer}",
        (statistics.median(found), min(found), max(found)),
        "M tokens/s",
        1e6,
    )


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--seqio_python")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="stream,packing,resume,first,huggingface,text,seqio")
    options = parser.parse_args()
    only = options.only.split(",")
    store = text_store(options.directory / "text")
    text = [StreamTask("text", store, 1.0, SpanCorruption())]
    print(f"{os.cpu_count()} cores; NumPy {np.__version__}; {numba_loader.describe()}\n")
    print("| what | median | smallest to largest |\n|---|---|---|")
    both = [(numba_loader.describe(), numba_loader.kernels(), 300), ("NumPy", None, 50)]
    for label, compiled, batches in both:
        with mock.patch.object(numba_loader, "kernels", return_value=compiled):
            if "stream" in only:
                measure_text(text, options.repeats, label, batches)
            if "packing" in only:
                mixed = mixed_stores(options.directory / "mix")
                measure_packing(mixed, options.repeats, label, batches // 3)
    if "resume" in only:
        measure_resumption(mixed_stores(options.directory / "mix"))
    if "first" in only:
        measure_first_batch(store.directory)
        measure_c4_size(options.directory / "c4_size")
    if "huggingface" in only:
        measure_huggingface(store, options.repeats)
    if "text" in only:
        for tokenizer in ("sentencepiece", "seqio"):
            measure_tokenizing(options.directory, tokenizer)
    if "seqio" in only and options.seqio_python:
        script = Path(__file__).with_name("seqio_peer.py")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [options.seqio_python, str(script), str(options.directory / "text")]
        subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
