"""A mixture of experts: how many there are, and how a router chooses among them for each row."""

from dataclasses import dataclass, field
from enum import Enum

from npu.choices import check_choices, one_of, within
from npu.errors import TripathError


class Scoring(Enum):
    """The function from a router's logits to the scores of experts."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """A mixture of experts: gated MLPs of which each row takes a few, and a router that chooses them.

    A row takes the experts of the highest scores, to which a learned bias may be added for the choice alone. Where experts form
    groups, it chooses among those of the `kept_groups` groups whose two best add up to most. Under block routing all rows of a
    block choose among the `block_capacity` experts whose best score in the block, bias included, is highest (LLaDA2.2).

    Attributes:
        count: Experts.
        chosen: Those that a row takes.
        inner: Width of an expert in elements, a multiple of 32.
        score: softmax (over all experts) or sigmoid.
        bias: Scores have a bias for the choice; weights have none.
        groups: Groups of neighbouring experts.
        kept_groups: Groups among whose experts a row chooses.
        block_capacity: Experts among which the rows of a block choose; 0: each row chooses among all.
        block_tokens: Tokens of such a block; blocks count from the first token of a sequence.
        normalised: The weights of a row's experts are divided by their sum.
        scale: A factor for all weights.
        shared: Width of an expert that every row takes with weight 1; 0: there is none.
        factors: Each expert has a learned factor of its weight.
        router_norm: The router reads the residual stream, by an RMS norm of its own whose factors are divided by
            sqrt(model.hidden), and not what the experts read.
        beside_ffn: The gated MLP (`ffn`) runs beside the experts; each of the two has a norm before and a norm behind it.
        first_layer: Layers before it have one gated MLP (`ffn`) instead.
    """

    count: int = field(metadata=within(2, 4096))
    chosen: int = field(metadata=within(1, 16))
    inner: int = field(metadata=within(32, 1 << 20))
    score: str = field(default="softmax", metadata=one_of([each.value for each in Scoring]))
    bias: bool = False
    groups: int = field(default=1, metadata=within(1, 1024))
    kept_groups: int = field(default=1, metadata=within(1, 1024))
    block_capacity: int = field(default=0, metadata=within(0, 4096))
    block_tokens: int = field(default=32, metadata=within(1, 1 << 13))
    normalised: bool = True
    scale: float = field(default=1.0, metadata=within(1e-3, 1e3))
    shared: int = field(default=0, metadata=within(0, 1 << 20))
    factors: bool = False
    router_norm: bool = False
    beside_ffn: bool = False
    first_layer: int = field(default=0, metadata=within(0, 4096))

    def __post_init__(self) -> None:
        check_choices("model.experts", self)
        size, rest = divmod(self.count, self.groups)
        rules = [
            (not rest, "groups", f"{self.groups} does not divide model.experts.count {self.count}"),
            (self.groups == 1 or size > 1, "groups", "a group needs two experts"),
            (self.kept_groups <= self.groups, "kept_groups", f"{self.kept_groups} of {self.groups} groups"),
            (self.chosen <= self.kept_groups * size, "chosen", f"a row chooses among {self.kept_groups * size} experts"),
            (self.groups == 1 or not self.block_capacity, "groups", "stands beside model.experts.block_capacity"),
            (self.block_capacity <= self.count, "block_capacity", f"{self.block_capacity} of {self.count} experts"),
            (not 0 < self.block_capacity < self.chosen, "block_capacity", f"each row takes {self.chosen} experts"),
        ]  # fmt: skip
        if self.beside_ffn and self.first_layer:
            rules.append((False, "first_layer", f"{self.first_layer} stands beside model.experts.beside_ffn"))
        for holds, key, rule in rules:
            if not holds:
                raise TripathError(f"model.experts.{key}: {rule}")
        for key in ("inner", "shared"):
            if getattr(self, key) % 32:
                raise TripathError(
                    f"model.experts.{key}: must be a multiple of the MX block of 32, got {getattr(self, key)}"
                )

    @property
    def scoring(self) -> Scoring:
        """The function from logits to scores."""
        return Scoring(self.score)
