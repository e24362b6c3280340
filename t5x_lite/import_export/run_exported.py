"""Run a text model that was exported as StableHLO.

An exported directory has a copy as run.py. It needs only jax, numpy, and sentencepiece (or
tokenizers, if the directory has tokenizer.json).

    python run.py "a text" "another"        # or texts as lines of standard input
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import jax.export
import numpy as np


class Exported:
    """The model of an exported directory.

    Args:
        directory: The directory, with about.json, weights.npz, programs and vocabulary.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.about = json.loads((self.directory / "about.json").read_text())
        with np.load(self.directory / "weights.npz") as archive:
            self.weights = jax.device_put({name: archive[name] for name in archive.files})
        self._programs: dict[int, Any] = {}
        self._pieces, self._tokenizer, vocabulary = None, None, self.about["vocabulary"]
        if vocabulary == "tokenizer.json":
            # Imported by name, so that type checkers do not need this optional dependency.
            tokenizers: Any = importlib.import_module("tokenizers")
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self.directory / vocabulary))
            self._tokenizer.enable_truncation(self.about["input_lengths"][-1])
        elif vocabulary != "bytes":
            import sentencepiece

            path = str(self.directory / vocabulary)
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=path)

    def generate(self, texts: list[str]) -> list[dict[str, Any]]:
        """Generate texts.

        Args:
            texts: The inputs; the end of one that is longer than the largest input length is cut.

        Returns:
            For each input "texts" and "scores", best first, and "tokens" [returns, length].
        """
        size, results = self.about["batch_size"], []
        for first in range(0, len(texts), size):
            rows = [self._encode(text) for text in texts[first : first + size]]
            out = self._run(rows, first)
            for tokens, scores in zip(out["tokens"][: len(rows)], out["scores"], strict=False):
                results.append(
                    {
                        "texts": [self._decode(row.tolist()) for row in tokens],
                        "scores": [float(score) for score in scores],
                        "tokens": tokens,
                    }
                )
        return results

    def _run(self, rows: list[list[int]], first: int) -> dict[str, np.ndarray]:
        """Run the shortest program that fits a batch; `first` is the index of its first input."""
        about, lengths = self.about, self.about["input_lengths"]
        start = [about["start"]] if about["decoder_only"] and about["start"] is not None else []
        longest = max(len(start + row) for row in rows)
        length = next((n for n in lengths if n >= longest), lengths[-1])
        max_ids = length - len(start) - about["end_inputs"]
        tokens = np.zeros((about["batch_size"], length), np.int32)
        padding = np.zeros(about["batch_size"], np.int32)
        for i, row in enumerate(rows):
            whole = start + row[:max_ids] + [about["end"]] * about["end_inputs"]
            if about["decoder_only"]:  # prompts end in the last column
                padding[i] = length - len(whole)
                tokens[i, padding[i] :] = whole
            else:
                tokens[i, : len(whole)] = whole
        count = np.arange(about["batch_size"])
        batch = {"numbers": (count + first).astype(np.uint32), "active": count < len(rows)}
        if about["decoder_only"]:
            batch |= {"prompts": tokens, "padding": padding}
        else:
            batch |= {"inputs": tokens}
        if length not in self._programs:
            path = self.directory / f"program_{length}.stablehlo"
            exported = jax.export.deserialize(bytearray(path.read_bytes()))
            self._programs[length] = jax.jit(exported.call)
        return jax.device_get(self._programs[length](self.weights, batch))

    def _encode(self, text: str) -> list[int]:
        if self._tokenizer is not None:
            return self._tokenizer.encode(text).ids
        if self._pieces is None:
            return [byte + 3 for byte in text.encode()]
        return self._pieces.encode(text)

    def _decode(self, ids: list[int]) -> str:
        end = self.about["end"]
        ids = ids[: ids.index(end)] if end in ids else ids
        if self._tokenizer is not None:
            return self._tokenizer.decode(ids, skip_special_tokens=True)
        ids = [i for i in ids if i]
        if self._pieces is None:
            return bytes(i - 3 for i in ids if 3 <= i < 259).decode(errors="ignore")
        size = self._pieces.get_piece_size()
        return self._pieces.decode([i if i < size else 2 for i in ids])


def main() -> None:
    """Print a JSON line of results for each text of the command line or of standard input."""
    exported = Exported(Path(__file__).resolve().parent)
    texts = sys.argv[1:] or [line.rstrip("\n") for line in sys.stdin]
    for text, result in zip(texts, exported.generate(texts), strict=True):
        record = {"inputs": text, "outputs": result["texts"], "scores": result["scores"]}
        print(json.dumps(record, ensure_ascii=False))


if __name__ == "__main__":
    main()
