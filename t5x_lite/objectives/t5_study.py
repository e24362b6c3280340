"""The objectives of the T5 study: a mask, what replaces noise in the inputs, what in the targets.

The examples show the paper's own sentence, "Thank you for inviting me to your party last week .",
with M the mask token and X, Y, Z sentinels.

Source: Raffel et al. 2020 (T5), sections 3.3 and table 3; the T5 library's preprocessors, whose
bits these are; Song et al. 2019 (MASS).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import require_field
from t5x_lite.objectives import masks, noise, philox
from t5x_lite.objectives.feature_lengths import check_targets, length_of
from t5x_lite.objectives.noise import Replacement
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import EosAfter
from t5x_lite.objectives.spans import Rows

MaskName = Literal["iid", "regular", "suffix", "block", "all"]


@dataclass(frozen=True)
class Denoising:
    """Any combination of a mask with what replaces noise in the inputs and text in the targets.

    mask: "iid", "regular" (spans), "suffix" (all after a random prefix), "block" (one), "all".
    inputs: what noise becomes in the inputs. targets: what the rest becomes in the targets, or
    "nothing" for the whole text. See `noise` for the ten.
    borrow_pieces: mark spans beyond the vocabulary's sentinels with its last pieces, as the T5
    library does: the number of spans of an i.i.d. mask is random, and at 25 % and 50 % above 100.

    A piece is one token shorter than the inputs. The length of the targets is random for "iid" and
    "regular" masks: they must hold the average and are cut beyond, as in the study (of 512 inputs
    at 15 % with sentinels: 144 on average; the study took 192).
    """

    mask: MaskName = "iid"
    inputs: Replacement = "sentinels"
    targets: Replacement = "sentinels"
    noise_density: float = 0.15
    documents_per_group: int = 128
    borrow_pieces: bool = True

    eos_after: ClassVar[EosAfter] = "pieces"

    def __post_init__(self):
        """Refuse settings that no text could be corrupted by."""
        density = self.noise_density
        if self.mask in ("suffix", "all"):
            most = {"suffix": 0.5, "all": 1.0}[self.mask]
            require_field(self, "noise_density", 0 < density <= most, f"in (0, {most:g}]")
        else:
            require_field(self, "noise_density", 0 < density < 1, "in (0, 1)")
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many tokens of text fill the inputs: one less than they hold."""
        name = type(self).__name__
        inputs_length = length_of(feature_lengths, "inputs", least=3, objective=name)
        length_of(feature_lengths, "targets", least=1, objective=name)
        check_targets(
            feature_lengths,
            self._targets_length(inputs_length - 1),
            made_by=f"{name} of inputs of {inputs_length} tokens",
            average=self.mask in ("iid", "regular") and self.targets in _SHORTENING,
        )
        return inputs_length - 1

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 1, or half a piece where unique sentinels are used and none are borrowed."""
        if self.borrow_pieces or "sentinels" not in (self.inputs, self.targets):
            return 1
        return (self.raw_length(feature_lengths) + 1) // 2

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Return the lengths of "inputs" and "targets", from the mask drawn for each piece."""
        mask_bl = self._mask(lengths_b, keys_b2, int(np.max(lengths_b, initial=0)))
        return {
            "inputs": noise.replaced_lengths(self.inputs, lengths_b, mask_bl),
            "targets": noise.replaced_lengths(self.targets, lengths_b, ~mask_bl),
        }

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return "inputs" and "targets"."""
        mask_bl = self._mask(rows.lengths, keys_b2, rows.tokens.shape[1])
        if self.borrow_pieces:
            sentinels = noise.extend_sentinels(sentinels)
        keys_bs2 = philox.split(keys_b2, 6)  # two each for mask, inputs and targets
        return {
            "inputs": noise.replace_noise(self.inputs, rows, mask_bl, sentinels, keys_bs2[:, 2:4]),
            "targets": noise.replace_noise(
                self.targets, rows, ~mask_bl, sentinels, keys_bs2[:, 4:6]
            ),
        }

    def _mask(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32], max_length: int
    ) -> NDArray[np.bool_]:
        inside_bl = np.arange(max_length) < np.asarray(lengths_b)[:, None]
        if self.mask == "all":
            return inside_bl
        drawn_bl = _MASKS[self.mask](
            lengths_b, noise_density=self.noise_density, keys_b2=keys_b2, max_length=max_length
        )
        return inside_bl & ~drawn_bl if self.mask == "suffix" else drawn_bl

    def _targets_length(self, raw_length: int) -> int:
        """Return the length of the targets of a full piece, EOS included; at most or on average."""
        if self.targets not in _SHORTENING:
            return raw_length + 1
        marked = self.targets != "drop"
        density = self.noise_density
        match self.mask:
            case "iid":
                runs = (1 - density) * (1 + (raw_length - 1) * density)
                return math.ceil(raw_length * density + marked * runs + 1)
            case "regular":
                length_k = np.arange(1, 6)
                period_k = masks.regular_period(length_k, density)
                return math.ceil(
                    raw_length * np.mean((length_k + marked) / period_k) + marked / 2 + 1
                )
            case "suffix":
                least = max(round((1 - 2 * density) * (raw_length - 1)), 1)
                return raw_length - least + marked + 1
            case "block":
                return round(raw_length * density) + 2 * marked + 1
            case "all":
                return raw_length + 1


@dataclass(frozen=True)
class ReplaceSpans(Denoising):
    """The study's baseline: i.i.d. noise, each run of it replaced by a sentinel of its own.

    inputs    Thank you X me to your party Y week .
    targets   X for inviting Y last Z
    """

    mask: MaskName = field(default="iid", init=False)
    inputs: Replacement = field(default="sentinels", init=False)
    targets: Replacement = field(default="sentinels", init=False)


@dataclass(frozen=True)
class DropTokens(Denoising):
    """I.i.d. noise is left out of the inputs, and the targets are what was left out.

    inputs    Thank you me to your party week .
    targets   for inviting last
    """

    mask: MaskName = field(default="iid", init=False)
    inputs: Replacement = field(default="drop", init=False)
    targets: Replacement = field(default="drop", init=False)


@dataclass(frozen=True)
class BertStyle(Denoising):
    """I.i.d. noise becomes the mask token (90 %) or a random token (10 %); targets are the text.

        inputs    Thank you M M me to your party apple week .
        targets   Thank you for inviting me to your party last week .

    Unlike BERT, no noise is left as it is and the whole text is predicted.
    """

    mask: MaskName = field(default="iid", init=False)
    inputs: Replacement = field(default="random_or_mask", init=False)
    targets: Replacement = field(default="nothing", init=False)


@dataclass(frozen=True)
class MassStyle(Denoising):
    """I.i.d. noise becomes the mask token; targets are the text: the study's version of MASS.

    inputs    Thank you M M me to your party M week .
    targets   Thank you for inviting me to your party last week .
    """

    mask: MaskName = field(default="iid", init=False)
    inputs: Replacement = field(default="mask_tokens", init=False)
    targets: Replacement = field(default="nothing", init=False)


@dataclass(frozen=True)
class Mass(Denoising):
    """MASS as it was published: one block of half the text is masked, and it alone is predicted.

    inputs    Thank you M M M M M party last week .
    targets   for inviting me to your
    """

    mask: MaskName = field(default="block", init=False)
    inputs: Replacement = field(default="mask_tokens", init=False)
    targets: Replacement = field(default="drop", init=False)
    noise_density: float = 0.5


@dataclass(frozen=True)
class Deshuffling(Denoising):
    """All tokens are put in random order; targets are the text. Pieces stay in one document.

    inputs    party me for your to . last you inviting week Thank
    targets   Thank you for inviting me to your party last week .
    """

    mask: MaskName = field(default="all", init=False)
    inputs: Replacement = field(default="permute", init=False)
    targets: Replacement = field(default="nothing", init=False)
    noise_density: float = field(default=1.0, init=False)
    documents_per_group: int = 1


@dataclass(frozen=True)
class PrefixLM(Denoising):
    """The inputs are a random prefix of the text, the targets the rest. Pieces stay in a document.

        inputs    Thank you for inviting
        targets   me to your party last week .

    The prefix is between round((1 - 2 density) (n - 1)), at least 1, and n - 1 tokens long.
    """

    mask: MaskName = field(default="suffix", init=False)
    inputs: Replacement = field(default="drop", init=False)
    targets: Replacement = field(default="drop", init=False)
    noise_density: float = 0.5
    documents_per_group: int = 1


_SHORTENING = ("mask_spans", "sentinels", "drop")
_MASKS = {
    "iid": masks.iid_mask,
    "regular": masks.regular_spans_mask,
    "suffix": masks.random_prefix_mask,
    "block": masks.block_mask,
}
