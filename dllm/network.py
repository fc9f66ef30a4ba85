"""A model as groups of layers, each a pattern of operators that repeats, and what walks the list."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dllm.operators import Attention, Moe, Norm, Operator, SelfConditioning, Sum, Trait
from dllm.weights import Weight
from npu.errors import TripathError


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Layers of one pattern, one after the other; where a model has several groups, all but one have a `name`.

    `geometry` is the name of the kind of their attention (`dllm.model.Geometry`).
    """

    repeat: int
    pattern: tuple[Operator, ...]
    name: str = ""
    geometry: str = ""

    def around_attention(self) -> tuple[tuple[Operator, ...], Attention, tuple[Operator, ...]]:
        """The operators of a layer before attention, attention, and those behind it."""
        (at,) = (number for number, each in enumerate(self.pattern) if isinstance(each, Attention))
        attention = self.pattern[at]
        assert isinstance(attention, Attention)
        return self.pattern[:at], attention, self.pattern[at + 1 :]

    def tensor(self, weight: str) -> str:
        """The machine's name of a weight of these layers."""
        return f"{self.name}.{weight}" if self.name else weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A tensor that the machine keeps: a weight of all layers of a group, or (`layers` None) of what is outside of layers."""

    name: str
    weight: Weight
    layers: Sequence[int] | None = None

    def of_layers(self) -> Iterator[tuple[int | None, int | None]]:
        """Index in the tensor and number of each layer; once None and None where it is outside of layers."""
        yield from enumerate(self.layers) if self.layers is not None else ((None, None),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A whole model: what comes before the layers, the groups of layers, and what makes logits of the last stream.

    The groups follow each other `cycles` times, with other weights each time. `conditioning` follows the stem where a block is
    denoised; clean passes, over a prompt or a finished block, do without it.
    """

    stem: tuple[Operator, ...]
    groups: tuple[Group, ...]
    head: tuple[Operator, ...]
    cycles: int = 1
    conditioning: tuple[Operator, ...] = ()

    def weights(self) -> Iterator[Stored]:
        """Every tensor that the machine keeps, in the order of HBM."""
        before = (*self.stem, *self.conditioning)
        found = [Stored(name=weight.name, weight=weight) for each in before for weight in each.weights]
        for group, layers in self.numbered():
            found += [
                Stored(name=group.tensor(weight.name), weight=weight, layers=layers)
                for each in group.pattern for weight in each.weights
            ]  # fmt: skip
        found += [Stored(name=weight.name, weight=weight) for each in self.head for weight in each.weights]
        yield from sorted(found, key=lambda stored: stored.weight.role.value)

    def numbered(self) -> Iterator[tuple[Group, Sequence[int]]]:
        """Each group with the numbers of its layers."""
        first, cycle = 0, sum(group.repeat for group in self.groups)
        for group in self.groups:
            yield group, [first + turn * cycle + layer for turn in range(self.cycles) for layer in range(group.repeat)]
            first += group.repeat

    def layers(self) -> Iterator[tuple[int, tuple[Operator, ...]]]:
        """Number and operators of each layer, in their order."""
        numbered = ((layer, group.pattern) for group, layers in self.numbered() for layer in layers)
        yield from sorted(numbered, key=lambda each: each[0])

    def check(self, known: Collection[type[Operator]], walker: str, traits: Collection[Trait] = frozenset()) -> None:
        """Refuse a model of which a walker does not know every operator and trait.

        Raises:
            TripathError: naming the operator or the trait.
        """
        listed = (
            *self.stem,
            *self.conditioning,
            *(each for group in self.groups for each in group.pattern),
            *self.head,
        )
        for each in (*listed, *leaves(listed)):
            if type(each) not in known:
                raise TripathError(f"model: {walker} lacks the operator {type(each).__name__}")
            for trait in sorted(each.traits - set(traits), key=lambda trait: trait.value):
                raise TripathError(f"model: {walker} lacks {trait.value}")

    @property
    def layer_macs_per_row(self) -> int:
        """Multiply-accumulates on the array of one row in all layers, attention's products left out."""
        once = sum(group.repeat * sum(each.macs_per_row for each in group.pattern) for group in self.groups)
        return self.cycles * once

    def parts(self) -> Iterator[Sequence[Operator]]:
        """The parts that a pass computes one after another: the stem, the conditioning, for each pattern the operators before and
        those behind attention, and the head."""
        yield self.stem
        yield self.conditioning
        for group in self.groups:
            before, _, behind = group.around_attention()
            yield from (before, behind)
        yield self.head


def leaves(operators: Iterable[Operator]) -> Iterator[Operator]:
    """Operators in order, those of its branches in place of a sum."""
    for each in operators:
        if isinstance(each, Sum):
            yield from (leaf for branch in each.branches for leaf in leaves(branch))
        else:
            yield each


def norms_of(operators: Sequence[Operator]) -> list[Norm]:
    """The norms of operators, in their order; those of a router and of a soft token are among them."""
    found: list[Norm] = []
    for each in leaves(operators):
        if isinstance(each, Norm):
            found.append(each)
        elif isinstance(each, SelfConditioning) or (isinstance(each, Moe) and each.experts.router_norm):
            found.append(each.norm)
    return found


def most_norms(network: Network) -> int:
    """Norms of the part of a network that has most."""
    return max(len(norms_of(part)) for part in network.parts())
