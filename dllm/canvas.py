"""Where the tokens of a batch stand: prompts end together, blocks are decoded behind them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dllm.model import ModelSpec
from dllm.operators import Mask
from dllm.workload import Workload
from npu.errors import TripathError


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """Rows of tokens, one a sequence, whose blocks stand below each other.

    Rows up to `prompt` hold prompts, with padding in front; then come `blocks` blocks of `block_length` tokens. Where blocks
    are `aligned` to the first token of a sequence, the last tokens of a prompt, which fill no block, open the first block, and
    a sequence may end a block before the others.

    Attributes:
        lengths: Tokens of each prompt.
        generation: Tokens that are generated for each.
        block_length: Tokens of a block.
        aligned: Blocks count from the first token of a sequence, not from the first that is generated.
        seeded: The first token of a block is none of its steps' doing.
    """

    lengths: tuple[int, ...]
    generation: int
    block_length: int
    aligned: bool
    seeded: bool

    @property
    def tokens_of_blocks(self) -> dict[str, int]:
        """Facts by which a run that stops before its last block counts the tokens of its batch (`npu.program.exits`)."""
        tails = [self.tail(sequence) for sequence in range(len(self.lengths))]
        before = (self.blocks - 1) * self.block_length
        return {
            "prompt_tails": sum(tails),
            "tokens_before_last_block": sum(min(self.generation, before - tail) for tail in tails),
        }

    def tail(self, sequence: int) -> int:
        """Tokens of a prompt that stand in the first block."""
        return self.lengths[sequence] % self.block_length if self.aligned else 0

    @property
    def prompt(self) -> int:
        """Rows before the first block."""
        longest = max(length - self.tail(sequence) for sequence, length in enumerate(self.lengths))
        return -(-longest // self.block_length) * self.block_length

    @property
    def blocks(self) -> int:
        """Blocks of the sequence that has most."""
        most = max(self.tail(sequence) for sequence in range(len(self.lengths))) + self.generation
        return -(-most // self.block_length)

    @property
    def rows(self) -> int:
        """Rows of a sequence, padding included."""
        return self.prompt + self.blocks * self.block_length

    def first(self, sequence: int) -> int:
        """Row of the first token of a prompt."""
        return self.prompt - (self.lengths[sequence] - self.tail(sequence))

    def output(self, sequence: int) -> slice:
        """Rows of the tokens that are generated."""
        start = self.first(sequence) + self.lengths[sequence]
        return slice(start, start + self.generation)

    def outputs(self, values: np.ndarray, blocks: int | None = None) -> list[np.ndarray]:
        """Of each sequence what stands at its generated positions, of values [batch, rows]: those of the first `blocks`."""
        end = self.prompt + (self.blocks if blocks is None else blocks) * self.block_length
        places = [self.output(sequence) for sequence in range(len(self.lengths))]
        return [row[place.start : min(place.stop, end)] for row, place in zip(values, places, strict=True)]

    def end(self, sequence: int) -> int:
        """Row behind the last block of a sequence; to this row, all positions behind the prompt are masks at first."""
        blocks = -(-(self.tail(sequence) + self.generation) // self.block_length)
        return self.prompt + blocks * self.block_length

    def forwards(self, steps: Sequence[int], *, appends: bool) -> int:
        """Forwards of the model for so many denoising steps of each block; a cache that is appended takes one for the prompt
        and a clean one for each block, which is all where a step only samples."""
        if not appends:
            return sum(steps)
        sampled = self.seeded and self.block_length == 1
        return bool(self.prompt) + len(steps) + (0 if sampled else sum(steps))

    @property
    def most_masks(self) -> list[int]:
        """Masks that the steps of each block fill, in the sequence that has most there."""
        tails = [self.tail(sequence) for sequence in range(len(self.lengths))]
        first = max(self.block_length - (tail or self.seeded) for tail in tails)
        return [first, *[self.block_length - self.seeded] * (self.blocks - 1)]


def canvas_of(model: ModelSpec, workload: Workload, prompt_lengths: Sequence[int]) -> Canvas:
    """The canvas of prompts of so many tokens.

    Raises:
        TripathError: the cache policy does not serve the model's attention.
    """
    if not workload.caches.appends and (model.mask is not Mask.FULL or model.seeded_blocks):
        key = "seeded_blocks: true" if model.seeded_blocks else f"attention_mask: {model.attention_mask}"
        raise TripathError(f"workload.cache: {workload.cache} does not serve model.{key}, append does")
    if model.window is not None and workload.caches.appends and model.mask is Mask.FULL:
        raise TripathError(
            f"workload.cache: {workload.cache} does not serve model.window {model.window} beside attention_mask: full, whose "
            "rows see keys behind their block"
        )
    routed = model.experts.block_tokens if model.experts is not None and model.experts.block_capacity else 1
    if workload.block_length % routed:
        raise TripathError(
            f"workload.block_length: must be a multiple of model.experts.block_tokens {routed}, whose rows choose their experts "
            f"together, got {workload.block_length}"
        )
    if workload.is_uniform and (model.mask is not Mask.CAUSAL or model.seeded_blocks or model.shifted_logits):
        raise TripathError(
            "workload.diffusion: uniform serves models of model.attention_mask: causal without seeded_blocks or shifted_logits, "
            f"model {model.name} is another"
        )
    if model.self_conditioning is not None and not workload.is_uniform:
        raise TripathError(
            f"workload.diffusion: {workload.diffusion} does not serve model.self_conditioning, uniform does"
        )
    return Canvas(
        lengths=tuple(prompt_lengths), generation=workload.generation_length, block_length=workload.block_length,
        aligned=model.mask is Mask.BLOCK_CAUSAL, seeded=model.seeded_blocks,
    )  # fmt: skip
