"""The arrangement of a program: the options of a user, and the choices that the compiler makes of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from dllm.model import ModelSpec
from dllm.numerics import Numerics
from dllm.policies import CACHE_POLICIES
from dllm.workload import Workload
from npu.choices import check_choices, one_of, within
from npu.errors import TripathError
from npu.hardware import HardwareConfig


class Schedule(StrEnum):
    """The work in flight at a time."""

    PLAIN = "plain"
    PIPELINED = "pipelined"
    AUTO = "auto"


class Residency(StrEnum):
    """The data that stay on chip while the others pass."""

    ROWS = "rows"
    TRAFFIC = "traffic"


class Sampling(StrEnum):
    """The place of logits when they are sampled."""

    STORED = "stored"
    FUSED = "fused"
    HOST = "host"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompilerOptions:
    """Options of the compiler.

    Attributes:
        schedule: plain: one head of attention at a time, two panels of weights, and all rows pass through HBM between layers.
            pipelined: as much in flight as fits without smaller chunks: the softmax of a head runs beside the products of
            another, panels of weights are loaded ahead, and a pass of one chunk keeps its rows in Vector SRAM. auto: pipelined,
            with the keys below chosen by a search over programs: the analytical path proposes, the cycle path confirms.
        sampling: stored: logits go to HBM in `numerics.logits` and are read again, twice over. fused: each tile of the
            vocabulary updates the running maximum, index and sum of its rows, and no logit leaves Vector SRAM. host: logits go
            to HBM, and the processor beside the core samples them (`hardware.host`).
        residency: rows: a chunk of rows goes through a layer, and each chunk streams the weights anew. traffic: the weights of a
            projection stay in Matrix SRAM, a block at a time, while the rows of all chunks pass, where that moves a quarter fewer
            bytes (pipelined).
        weight_slots: Panels of weights in Matrix SRAM at most (pipelined).
        heads: Query heads of attention in flight, as near as the model's heads allow (pipelined).
        ffn_slice: Columns of the FFN that are made at a time at most; null: `hardware.vlen`.
        chunk_rows: Rows of a pass in Vector SRAM at a time at most.
    """

    schedule: str = field(default=Schedule.PIPELINED.value, metadata=one_of([each.value for each in Schedule]))
    sampling: str = field(default=Sampling.FUSED.value, metadata=one_of([each.value for each in Sampling]))
    residency: str = field(default=Residency.TRAFFIC.value, metadata=one_of([each.value for each in Residency]))
    weight_slots: int = field(default=4, metadata=within(2, 16))
    heads: int = field(default=4, metadata=within(1, 8))
    ffn_slice: int | None = field(default=None, metadata=within(32, 8192, power_of_two=True))
    chunk_rows: int = field(default=256, metadata=within(1, 4096))

    def __post_init__(self) -> None:
        check_choices("compiler", self)

    @property
    def lets_weights_stay(self) -> bool:
        """Weights may stay while rows pass."""
        return Residency(self.residency) is Residency.TRAFFIC and Schedule(self.schedule) is not Schedule.PLAIN

    @property
    def searches(self) -> bool:
        """Options are to be found by a search, which is none of the compiler's (`tripath.run.schedules`)."""
        return Schedule(self.schedule) is Schedule.AUTO


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrangement:
    """The work in flight in a program.

    Attributes:
        weight_slots: Panels of weights in Matrix SRAM.
        kv_heads: KV heads whose tiles of keys and values are in Matrix SRAM together.
        queries: Query heads in flight of each of them.
        keeps_rows: The rows of a pass of one chunk stay in Vector SRAM from layer to layer, and Q with them.
        sampling: The place of logits when they are sampled, and with it the unit that samples.
        weights_stay: Weights may stay in Matrix SRAM while rows pass.
    """

    weight_slots: int = 2
    kv_heads: int = 1
    queries: int = 1
    keeps_rows: bool = False
    sampling: Sampling = Sampling.STORED
    weights_stay: bool = False

    @property
    def fuses_sampling(self) -> bool:
        """Logits are sampled as they come."""
        return self.sampling is Sampling.FUSED

    @property
    def heads(self) -> int:
        """Query heads in flight."""
        return self.kv_heads * self.queries

    @property
    def turns(self) -> int:
        """Buffers that heads in flight take in turns: while one head's scores are used, the next one's are made."""
        return min(self.heads, 2)


DEFAULT = CompilerOptions()
PLAIN = Arrangement()
"""One thing at a time."""
MOST_HEADS = 8
"""Heads in flight: the softmax of one runs beside the products of the next, that of the last one does not. More than
asked for are taken only where a prime number of query heads leaves no other choice; each makes the program longer."""
FEWEST_SLOTS = 2
"""Panels of weights: with two the next load waits for a panel to be free, and its latency shows."""


def sampling_of(options: CompilerOptions, workload: Workload) -> Sampling:
    """The way of sampling; a program of the sampling stage alone is given its logits, and guidance needs those of two passes."""
    chosen = Sampling(options.sampling)
    return Sampling.STORED if chosen is Sampling.FUSED and (workload.samples_only or workload.guided) else chosen


def check_support(options: CompilerOptions, workload: Workload, hardware: HardwareConfig) -> None:
    """Refuse what a machine without support for diffusion does not do, and a host without work.

    Raises:
        TripathError: naming both keys.
    """
    samples_there = Sampling(options.sampling) is Sampling.HOST
    if samples_there and hardware.host is None:
        raise TripathError(f"compiler.sampling: host needs hardware.host, hardware {hardware.name} has none")
    if hardware.host is not None and not samples_there:
        raise TripathError(
            f"compiler.sampling: must be host on hardware {hardware.name}, whose host samples (hardware.host), "
            f"got {options.sampling}"
        )
    if samples_there and workload.guided:
        raise TripathError(
            f"workload.guidance: {workload.guidance} needs the core's sampling, not compiler.sampling=host"
        )
    if samples_there and workload.edits:
        raise TripathError(
            "workload.edit_threshold: compiler.sampling=host leaves commits to the host, which edits nothing"
        )
    if samples_there and workload.draws:
        key = "temperature" if workload.temperature else "score"
        raise TripathError(
            f"workload.{key}: compiler.sampling=host leaves tokens to the host, which draws no random numbers"
        )
    if samples_there and workload.commits.measures_entropy:
        raise TripathError(
            f"workload.commit: compiler.sampling=host leaves commits to the host, which does not know {workload.commit}"
        )
    if samples_there and workload.sub_blocks > 1:
        raise TripathError(
            "workload.sub_block_length: compiler.sampling=host leaves commits to the host, which fills blocks as a whole; "
            f"workload.sub_block_length={workload.block_length} does"
        )
    if samples_there and workload.stop_at_end:
        raise TripathError(
            "workload.stop_at_end: compiler.sampling=host leaves the tokens to the host, where nothing looks for the end"
        )
    if workload.is_uniform and Sampling(options.sampling) is not Sampling.FUSED:
        raise TripathError(
            f"compiler.sampling: {options.sampling} does not serve workload.diffusion=uniform, whose logits are sampled as they "
            "come; fused does"
        )
    if hardware.append_only_cache and workload.caches.rewrites:
        able = ", ".join(name for name, policy in CACHE_POLICIES.items() if not policy.rewrites)
        raise TripathError(
            f"workload.cache: {workload.cache} rewrites rows of the cache, hardware {hardware.name} has append_only_cache; "
            f"one of {able}"
        )


def as_sampled(numerics: Numerics, options: CompilerOptions, workload: Workload) -> Numerics:
    """The numerics that a program shows: logits that never leave Vector SRAM are BF16."""
    return replace(numerics, logits="bf16") if sampling_of(options, workload) is Sampling.FUSED else numerics


def arrangements(options: CompilerOptions, model: ModelSpec, workload: Workload) -> Iterator[Arrangement]:
    """The arrangements that options allow, best first: three panels of weights at least come before heads in flight."""
    sampling = sampling_of(options, workload)
    match Schedule(options.schedule):
        case Schedule.PLAIN:
            yield Arrangement(sampling=sampling)
        case Schedule.PIPELINED:
            for slots in (range(options.weight_slots, FEWEST_SLOTS, -1), (FEWEST_SLOTS,)):
                for kv_heads, queries in _heads(model, options.heads):
                    for each in slots:
                        yield Arrangement(
                            weight_slots=each, kv_heads=kv_heads, queries=queries, keeps_rows=True, sampling=sampling
                        )
            yield Arrangement(sampling=sampling)
        case Schedule.AUTO:
            raise TripathError(
                "compiler.schedule: auto is a search over programs, which tripath.api.prepare carries out; a compiler takes "
                "plain or pipelined"
            )


def _heads(model: ModelSpec, wanted: int) -> list[tuple[int, int]]:
    """KV heads and query heads of each that can be in flight, best first: as many as are `wanted`, or a few more, then fewer; and
    rather of one KV head, which needs no more tiles in Matrix SRAM."""
    most = range(1, MOST_HEADS + 1)
    found = [
        (kv_heads, queries)
        for kv_heads in most
        for queries in most
        if kv_heads * queries <= MOST_HEADS
        and all(each.kv_heads % kv_heads == 0 and each.group % queries == 0 for each in model.geometries)
    ]

    def rank(each: tuple[int, int]) -> tuple[bool, int, int]:
        heads = each[0] * each[1]
        return heads < wanted, abs(heads - wanted), -each[1]

    return sorted(found, key=rank)
