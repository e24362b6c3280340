"""Measure the memory of tokenizing and of streaming, which must not grow with the corpus.

    python benchmarks/data_memory.py --directory=/tmp/data_memory --text_mb=10,100 --store_gb=10

Every size runs in a process of its own. `text_mb`: JSON lines with random documents of the embedded
corpus are tokenized by SentencePiece into a store; peak memory of the process. `store_gb`: a
synthetic store of tokens is opened and read for 2,000 shuffled batches; private memory of the
process before and after, without mapped pages. All files are removed at the end. data_stream.md has
the results.
"""

import argparse
import itertools
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FILES = 32


def held_mib() -> float:
    """Private memory of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def tokenize(directory: Path, megabytes: int) -> None:
    """Write a corpus of the given size in 8 files, tokenize it, print the peak."""
    from t5x_lite.data.sources import embedded_corpus
    from t5x_lite.data.store.token_store import TokenStore
    from t5x_lite.data.tasks.lazy_seqio import import_seqio
    from t5x_lite.data.tasks.task_providers import JsonLinesText
    from t5x_lite.data.tokenize.build_store import build_token_store
    from t5x_lite.tokenizers.vocabularies import Vocabulary, train_vocabulary

    texts = list(embedded_corpus.embedded_documents().values())
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
    random = np.random.default_rng(0)
    for number in range(FILES):
        with open(directory / f"c4-train.{number:05d}-of-{FILES:05d}.json", "wb") as file:
            while file.tell() < megabytes * 1_000_000 / FILES:
                file.writelines(lines[n] for n in random.integers(0, len(lines), 500))
    model = directory / "unigram.model"
    train_vocabulary(texts, model, vocab_size=8000, max_lines=50_000)
    del texts, lines
    import_seqio()
    import seqio

    JsonLinesText("memory", str(directory), Vocabulary(str(model))).register("")
    task = seqio.TaskRegistry.get("memory")
    before, cpu = held_mib(), time.process_time()
    build_token_store(task, "train", directory / "store", tokenizer="sentencepiece")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpu = time.process_time() - cpu
    tokens = len(TokenStore.open(directory / "store").tokens("targets"))
    print(
        f"| tokenizing {megabytes:,} MB, {tokens:,} tokens | held {before:,.0f} MiB before, "
        f"{held_mib():,.0f} MiB after | peak {peak:,.0f} MiB | {cpu:,.0f} s CPU |",
        flush=True,
    )
    began = time.perf_counter()
    build_token_store(task, "train", directory / "store", tokenizer="sentencepiece")
    print(f"| the same again | {time.perf_counter() - began:.2f} s | nothing is tokenized |")


def stream(directory: Path, gigabytes: int) -> None:
    """Write a store of the given size, read 2,000 batches, print the private memory."""
    from t5x_lite.data.store.token_store import TokenStore
    from t5x_lite.data.stream.stream import Stream, StreamTask
    from t5x_lite.objectives.sentinels import Sentinels
    from t5x_lite.objectives.span_corruption import SpanCorruption

    count, length = gigabytes * 500_000_000, 400
    part = np.random.default_rng(0).integers(3, 32_000, 10_000_000).astype("<u2").tobytes()
    with open(directory / "targets.tokens.bin", "wb") as file:
        for _ in range(count // 10_000_000):
            file.write(part)
    offsets = np.lib.format.open_memmap(
        directory / "targets.offsets.npy", "w+", np.int64, (count // length + 1,)
    )
    for first in range(0, len(offsets), 1 << 20):
        last = min(first + (1 << 20), len(offsets))
        offsets[first:last] = np.arange(first, last) * length
    del offsets
    described = {"targets": {"tokens": count, "dtype": "<u2"}}
    manifest = {"format": 1, "num_examples": count // length, "features": described}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    began, before = time.perf_counter(), held_mib()
    task = StreamTask("text", TokenStore.open(directory), 1.0, SpanCorruption())
    settings = dict(batch_size=128, seed=0, sentinels=Sentinels(32_099, 100), pack=False)
    lengths = {"inputs": 512, "targets": 114}
    batches = Stream([task], feature_lengths=lengths, **settings)
    iterator = batches.batches(batches.start())
    next(iterator)
    first, seconds = held_mib(), time.perf_counter() - began
    for _ in itertools.islice(iterator, 2000):
        pass
    print(
        f"| a store of {gigabytes:,} GB | first batch after {seconds:.1f} s, {before:,.0f} -> "
        f"{first:,.0f} MiB | after 2,000 batches {held_mib():,.0f} MiB |",
    )


def main() -> None:
    """Run every size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--text_mb", default="")
    parser.add_argument("--store_gb", default="")
    options = parser.parse_args()
    for name, work in (("text_mb", "tokenize"), ("store_gb", "stream")):
        for size in filter(None, getattr(options, name).split(",")):
            options.directory.mkdir(parents=True)
            program = (
                "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
                f"import data_memory; data_memory.{work}(Path(sys.argv[2]), {int(size)})"
            )
            arguments = [str(Path(__file__).parent), str(options.directory)]
            try:
                subprocess.run([sys.executable, "-c", program, *arguments], check=True)
            finally:
                shutil.rmtree(options.directory)


if __name__ == "__main__":
    main()
