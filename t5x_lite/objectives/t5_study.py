"""Objectives of the T5 paper's study: a noise mask, and replacements for inputs and targets.

The examples show the paper's sentence, "Thank you for inviting me to your party last week .", with
M the mask token and X, Y, Z sentinels. `Denoising` combines any mask and replacements; its
subclasses are the combinations of the study.

Source: Raffel et al. 2020 (T5), section 3.3 and table 3, and the T5 library's preprocessors, whose
outputs these equal bit for bit; Song et al. 2019 (MASS).
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
from t5x_lite.objectives.objective import EosAfter, Rows
from t5x_lite.objectives.sentinels import Sentinels

MaskName = Literal["iid", "regular", "suffix", "block", "all"]


@dataclass(frozen=True)
class Denoising:
    """Denoising with any combination of a mask and replacements (T5's `denoise`).

    A chunk is one token shorter than the inputs, for EOS. The length of the targets is random with
    "iid" and "regular" masks; the feature must hold the average, and longer targets are truncated,
    as in the study (144 on average for inputs of 512 at 15 % with sentinels; the study has 192).

    Attributes:
        mask: Which tokens are noise: "iid" (independent), "regular" (equal spans at equal
            distances), "suffix" (all after a random prefix), "block" (one span), or "all".
        inputs: Replacement of noise in the inputs (`noise.Replacement`).
        targets: Replacement of the other tokens in the targets; "nothing" for the whole text.
        noise_density: Fraction of tokens that are noise.
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks; 128 as in the T5 library. 1 keeps each chunk within a document.
        borrow_pieces: Mark spans beyond the vocabulary's sentinels with its last pieces of text, as
            the T5 library does. The number of spans of an "iid" mask is random and exceeds 100 at
            densities of 25 % and 50 %.
    """

    mask: MaskName = "iid"
    inputs: Replacement = "sentinels"
    targets: Replacement = "sentinels"
    noise_density: float = 0.15
    documents_per_group: int = 128
    borrow_pieces: bool = True

    eos_after: ClassVar[EosAfter] = "chunks"

    def __post_init__(self):
        """Check the settings."""
        density = self.noise_density
        if self.mask in ("suffix", "all"):
            most = {"suffix": 0.5, "all": 1.0}[self.mask]
            require_field(self, "noise_density", 0 < density <= most, f"in (0, {most:g}]")
        else:
            require_field(self, "noise_density", 0 < density < 1, "in (0, 1)")
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute the chunk length: that of the inputs without EOS."""
        name = type(self).__name__
        inputs_length = length_of(feature_lengths, "inputs", least=3, objective=name)
        length_of(feature_lengths, "targets", least=1, objective=name)
        check_targets(
            feature_lengths,
            self._targets_length(inputs_length - 1),
            made_by=f"{name} of inputs of {inputs_length} tokens",
            average=self.mask in ("iid", "regular") and self.targets in noise.SHORTENING,
        )
        return inputs_length - 1

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 1, or half the chunk length for unique sentinels that are not borrowed."""
        if self.borrow_pieces or "sentinels" not in (self.inputs, self.targets):
            return 1
        return (self.raw_length(feature_lengths) + 1) // 2

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of "inputs" and "targets" from the mask drawn for each chunk."""
        mask_bl = self._mask(lengths_b, keys_b2, int(np.max(lengths_b, initial=0)))
        return {
            "inputs": noise.replaced_lengths(self.inputs, lengths_b, mask_bl),
            "targets": noise.replaced_lengths(self.targets, lengths_b, ~mask_bl),
        }

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Make "inputs" and "targets"."""
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
        mask_bl = _MASKS[self.mask](
            lengths_b, noise_density=self.noise_density, keys_b2=keys_b2, max_length=max_length
        )
        return inside_bl & ~mask_bl if self.mask == "suffix" else mask_bl

    def _targets_length(self, raw_length: int) -> int:
        """Return the targets' length for a full chunk, EOS included.

        It is the mean for "iid" and "regular" masks, the maximum for the others.
        """
        if self.targets not in noise.SHORTENING:
            return raw_length + 1
        marked = self.targets != "drop"  # each run of kept tokens becomes one token, not none
        density = self.noise_density
        match self.mask:
            case "iid":
                # A run of kept tokens starts at a kept token that is first or follows noise.
                runs = (1 - density) * (1 + (raw_length - 1) * density)
                return math.ceil(raw_length * density + marked * runs + 1)
            case "regular":
                length_k = np.arange(1, 6)  # the span lengths that the mask draws
                period_k = masks.regular_period(length_k, density)
                return math.ceil(
                    raw_length * np.mean((length_k + marked) / period_k) + marked / 2 + 1
                )
            case "suffix":
                shortest_prefix = max(round((1 - 2 * density) * (raw_length - 1)), 1)
                return raw_length - shortest_prefix + marked + 1
            case "block":
                return round(raw_length * density) + 2 * marked + 1
            case "all":
                return raw_length + 1


@dataclass(frozen=True)
class ReplaceSpans(Denoising):
    """The study's baseline: each run of i.i.d. noise is replaced with a sentinel.

        inputs    Thank you X me to your party Y week .
        targets   X for inviting Y last Z

    The fields below are fixed; the others of `Denoising` can be set.

    Attributes:
        mask: "iid".
        inputs: "sentinels".
        targets: "sentinels".
    """

    mask: MaskName = field(default="iid", init=False)
    inputs: Replacement = field(default="sentinels", init=False)
    targets: Replacement = field(default="sentinels", init=False)


@dataclass(frozen=True)
class DropTokens(Denoising):
    """I.i.d. noise is removed from the inputs, and the targets are the removed tokens.

        inputs    Thank you me to your party week .
        targets   for inviting last

    The fields below are fixed; the others of `Denoising` can be set.

    Attributes:
        mask: "iid".
        inputs: "drop".
        targets: "drop".
    """

    mask: MaskName = field(default="iid", init=False)
    inputs: Replacement = field(default="drop", init=False)
    targets: Replacement = field(default="drop", init=False)


@dataclass(frozen=True)
class BertStyle(Denoising):
    """I.i.d. noise becomes the mask token (90 %) or a random token (10 %); targets are the text.

        inputs    Thank you M M me to your party apple week .
        targets   Thank you for inviting me to your party last week .

    Unlike in BERT, all noise is replaced and the whole text is predicted. The fields below are
    fixed; the others of `Denoising` can be set.

    Attributes:
        mask: "iid".
        inputs: "random_or_mask".
        targets: "nothing".
    """

    mask: MaskName = field(default="iid", init=False)
    inputs: Replacement = field(default="random_or_mask", init=False)
    targets: Replacement = field(default="nothing", init=False)


@dataclass(frozen=True)
class MassStyle(Denoising):
    """The study's version of MASS: i.i.d. noise becomes the mask token; targets are the text.

        inputs    Thank you M M me to your party M week .
        targets   Thank you for inviting me to your party last week .

    The fields below are fixed; the others of `Denoising` can be set.

    Attributes:
        mask: "iid".
        inputs: "mask_tokens".
        targets: "nothing".
    """

    mask: MaskName = field(default="iid", init=False)
    inputs: Replacement = field(default="mask_tokens", init=False)
    targets: Replacement = field(default="nothing", init=False)


@dataclass(frozen=True)
class Mass(Denoising):
    """MASS as published: a block of half the text is masked, and only the block is predicted.

        inputs    Thank you M M M M M party last week .
        targets   for inviting me to your

    Attributes:
        mask: "block", fixed.
        inputs: "mask_tokens", fixed.
        targets: "drop", fixed.
        noise_density: Fraction of the tokens in the block; 0.5 as in Song et al. 2019.
    """

    mask: MaskName = field(default="block", init=False)
    inputs: Replacement = field(default="mask_tokens", init=False)
    targets: Replacement = field(default="drop", init=False)
    noise_density: float = 0.5


@dataclass(frozen=True)
class Deshuffling(Denoising):
    """Deshuffling: the tokens are permuted; targets are the text.

        inputs    party me for your to . last you inviting week Thank
        targets   Thank you for inviting me to your party last week .

    Attributes:
        mask: "all", fixed.
        inputs: "permute", fixed.
        targets: "nothing", fixed.
        noise_density: 1, fixed.
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks; 1, as in the study, keeps each chunk within a document.
    """

    mask: MaskName = field(default="all", init=False)
    inputs: Replacement = field(default="permute", init=False)
    targets: Replacement = field(default="nothing", init=False)
    noise_density: float = field(default=1.0, init=False)
    documents_per_group: int = 1


@dataclass(frozen=True)
class PrefixLM(Denoising):
    """Prefix language modeling: the inputs are a random prefix of the text, the targets the rest.

        inputs    Thank you for inviting
        targets   me to your party last week .

    The prefix of a chunk of n tokens has between round((1 - 2 * noise_density) * (n - 1)), at least
    1, and n - 1 tokens.

    Attributes:
        mask: "suffix", fixed.
        inputs: "drop", fixed.
        targets: "drop", fixed.
        noise_density: Mean fraction of the tokens in the targets, at most 0.5.
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks; 1, as in the study, keeps each chunk within a document.
    """

    mask: MaskName = field(default="suffix", init=False)
    inputs: Replacement = field(default="drop", init=False)
    targets: Replacement = field(default="drop", init=False)
    noise_density: float = 0.5
    documents_per_group: int = 1


_MASKS = {
    "iid": masks.iid_mask,
    "regular": masks.regular_spans_mask,
    "suffix": masks.random_prefix_mask,
    "block": masks.block_mask,
}
