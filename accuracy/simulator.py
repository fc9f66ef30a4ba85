"""The accuracy path: which bits come out, what text, and how far from the unquantised reference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from accuracy.executor import Machine
from accuracy.image import build_image, read_tokens
from accuracy.quantised import default_folder
from dllm.canvas import Canvas, canvas_of
from dllm.checkpoint import load_tensors
from dllm.decoding import Generation, Step, generate
from dllm.model import ModelSpec
from dllm.noise import Draws
from dllm.reference import ReferenceModel, softmax
from dllm.workload import StepLoop, Workload
from npu.metrics import Result, Table
from npu.program import Program
from npu.program.tables import event_counts
from npu.program.trace import Trace


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyOutcome:
    """Result of the path, the trace that the timing paths replay, and what was generated.

    `token_ids` per sequence; `trip_counts` denoising steps of each block that was decoded; `commit_steps` per sequence and token
    the denoising step of its block, counted from 1, that committed its token (0: it is masked still); `steps` per
    sequence (executor's view).
    """

    result: Result
    trace: Trace
    token_ids: list[list[int]]
    trip_counts: list[int]
    commit_steps: list[list[int]]
    steps: list[list[Step]]


def execute(
    program: Program, *, model: ModelSpec, workload: Workload, tensors: Mapping[str, np.ndarray],
    prompts: Sequence[Sequence[int]], progress: Callable[[int, int], None] | None = None,
    quantised: Path | None = None,
) -> tuple[Machine, list[list[Step]]]:  # fmt: skip
    """Run a program to its end; the machine, and per sequence the record of every denoising step.

    `progress(steps done, steps scheduled at most)` is called after each step; `quantised`: see `build_image`.
    """
    image = build_image(program, model, workload, tensors, prompts, quantised=quantised)
    layout, steps = program.layout, [[] for _ in prompts]
    seen = np.zeros((layout["batch"] * layout["block_length"], model.vocab), np.float32)
    machine = Machine(program=program, hbm=image, logits=seen)
    loops, plan = workload.step_loops(0), canvas_of(model, workload, [len(prompt) for prompt in prompts])
    before = read_tokens(machine.hbm, program)
    block, number, step, taken = 0, 0, 0, -int(loops[0].skips)  # a loop that skips has a break ahead of its first step
    while machine.run_to_break():
        after, loop, taken = read_tokens(machine.hbm, program), loops[number], taken + 1
        start = layout["prompt"] + block * layout["block_length"] + loop.first
        place = slice(start, start + loop.length)
        if taken:
            if plan.seeded and plan.block_length > 1 and step == 0:  # the first token was there before the step
                before[:, start] = after[:, start]
            if workload.is_uniform and step == 0:  # the block before has its output, and this one random tokens
                before[:, :start] = after[:, :start]
                for row in range(len(prompts)):
                    drawn = Draws(workload=workload, sequence=row).tokens(block, workload.most_steps, model.vocab)
                    before[row, place] = drawn
            logits = seen[: layout["batch"] * loop.length].reshape(layout["batch"], loop.length, model.vocab).copy()
            for row in range(len(prompts)):
                steps[row].append(_record(machine, program, row, plan, block, step, loop, before, after, logits, place,
                                          uniform=workload.is_uniform))  # fmt: skip
            step += 1
            if progress:
                progress(sum(1 for _ in steps[0]), plan.blocks * workload.most_steps)
        before = after
        if loop.skips or workload.is_uniform:
            flag = "untold" if workload.sub_block_cache and not loop.alone else "remaining"
            goes_on = machine.integer[layout[flag]] > 0
        else:
            edited = workload.edits and any(records[-1].committed.any() for records in steps)
            goes_on = (after[:, place] == model.mask_id).any() or edited
        if taken == loop.most or not goes_on:
            number = (number + 1) % len(loops)
            taken = -int(loops[number].skips)
            if number == 0:
                block, step, loops = block + 1, 0, workload.step_loops(block + 1)
    return machine, steps


def _record(
    machine: Machine, program: Program, row: int, plan: Canvas, block: int, step: int, loop: StepLoop, before: np.ndarray,
    after: np.ndarray, logits: np.ndarray, place: slice, *, uniform: bool,
) -> Step:  # fmt: skip
    layout, length = program.layout, loop.length
    sampled = machine.integer[layout["sampled"] + row * length :][:length].astype(np.int64)
    confidence = machine.fp[layout["confidence"] + row * length :][:length].copy()
    entropy = None
    if "entropy" in layout:
        entropy = machine.fp[layout["entropy"] + row * length :][:length].copy()
    # What uniform diffusion accepts stands in the canvas as it was drawn.
    committed = (sampled == after[row, place]) if uniform else (before[row, place] != after[row, place])
    return Step(
        block=block, step=step, loop=loop, canvas=before[row, plan.first(row) : plan.end(row)].astype(np.int64),
        logits=logits[row], token_ids=sampled, confidence=confidence, committed=committed, entropy=entropy,
    )  # fmt: skip


def final_state(
    program: Program, *, model: ModelSpec, workload: Workload, prompts: Sequence[Sequence[int]]
) -> tuple[np.ndarray, Machine]:
    """HBM before the first instruction (uint8), and the machine after the last: what another executor starts from and
    must arrive at.

    Raises:
        TripathError: the checkpoint is missing or does not fit the model.
    """
    image = build_image(program, model, workload, load_tensors(model), prompts)
    machine = Machine(program=program, hbm=image.copy())
    while machine.run_to_break():
        pass
    return image, machine


def simulate(
    program: Program, *, model: ModelSpec, workload: Workload, prompts: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] | None = None, keep_quantised: bool = True,
) -> AccuracyOutcome:  # fmt: skip
    """Execute `program` on the model's checkpoint and compare it with the reference.

    Args:
        program: The program to execute.
        model: Names the checkpoint.
        workload: The workload it was compiled for.
        prompts: Token ids, one list per sequence.
        progress: Is called after each step, with the steps done and those scheduled at most.
        keep_quantised: Quantise the weights of a model beyond 6 GiB once, and keep them below the user's cache folder.

    Raises:
        TripathError: the checkpoint is missing or does not fit the model.
    """
    tensors = load_tensors(model)
    machine, steps = execute(
        program, model=model, workload=workload, tensors=tensors, prompts=prompts, progress=progress,
        quantised=default_folder() if keep_quantised else None,
    )  # fmt: skip
    trace = machine.trace
    plan = canvas_of(model, workload, [len(prompt) for prompt in prompts])
    blocks = steps[0][-1].block + 1
    tokens = plan.outputs(read_tokens(machine.hbm, program), blocks)
    trips = [sum(record.block == block for record in steps[0]) for block in range(blocks)]
    metrics, table = fidelity(ReferenceModel(model, tensors), workload, prompts, tokens, steps)
    metrics["generated_tokens"] = sum(map(len, tokens))
    metrics["kept_tokens"] = kept = sum(_before_end(row, model.end_ids) for row in tokens)
    metrics["denoising_steps"] = sum(trips)
    metrics["forwards"] = forwards = plan.forwards(trips, appends=workload.caches.appends)
    metrics["forwards_per_token"] = forwards * len(tokens) / metrics["generated_tokens"]
    if kept:
        metrics["forwards_per_kept_token"] = forwards * len(tokens) / kept
    result = Result(
        simulator="accuracy", program_digest=program.digest, trace_digest=trace.digest, metrics=metrics,
        counts=event_counts(program, machine.retired), tables={"steps": table},
    )  # fmt: skip
    return AccuracyOutcome(
        result=result, trace=trace, token_ids=[row.tolist() for row in tokens], trip_counts=trips,
        commit_steps=_commit_steps(plan, blocks, steps), steps=steps,
    )  # fmt: skip


def _before_end(tokens: np.ndarray, end_ids: Sequence[int]) -> int:
    """Tokens of a sequence before the first end token."""
    ends = np.flatnonzero(np.isin(tokens, end_ids))
    return int(ends[0]) if len(ends) else len(tokens)


def _commit_steps(plan: Canvas, blocks: int, steps: Sequence[Sequence[Step]]) -> list[list[int]]:
    """Of each sequence, by generated position: the step of its block, counted from 1, that committed it; 0: none did."""
    found = np.zeros((len(steps), plan.rows), np.int64)
    for row, records in enumerate(steps):
        for record in records:
            start = plan.prompt + record.block * plan.block_length + record.loop.first
            found[row, start : start + record.loop.length][record.committed] = record.step + 1
    return [row.tolist() for row in plan.outputs(found, blocks)]


def fidelity(
    model: ReferenceModel,
    workload: Workload,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[np.ndarray],
    steps: list[list[Step]],
) -> tuple[dict[str, float], Table]:
    """Distance of the executor from the reference: free running (tokens) and step by step on the executor's canvases.

    Metrics: `token_agreement` (share of generated tokens equal, each decoding for itself), `logit_kl` (mean over masked
    positions of KL(reference || executor) in nats), `argmax_agreement`, `transfer_set_overlap` (mean Jaccard index of
    the committed sets).
    """
    equal, divergence, same, overlap, rows = [], [], [], [], []
    for number, prompt in enumerate(prompts):
        plan, blocks = canvas_of(model.spec, workload, [len(prompt)]), steps[number][-1].block + 1
        free = generate(model, prompt, workload, blocks=min(blocks, plan.blocks), sequence=number)
        equal.append(np.mean(np.array(free.token_ids) == tokens[number]))
        known = {(record.block, record.step): (record.canvas, record.loop) for record in steps[number]}
        forced = generate(
            model, prompt, workload, force=lambda block, step, of=known: of.get((block, step)), sequence=number
        )
        for mine, theirs in _pairs(steps[number], forced):
            start = len(prompt) - plan.tail(0) + mine.block * workload.block_length + mine.loop.first
            masked = theirs.canvas[start : start + mine.loop.length] == model.spec.mask_id
            masked |= workload.is_uniform or not masked.any()  # a step that only edits looks at all positions
            p, q = softmax(theirs.logits.astype(np.float64)), softmax(mine.logits.astype(np.float64))
            kl = (p * (np.log(p + 1e-30) - np.log(q + 1e-30))).sum(-1)[masked]
            agree = (mine.token_ids == theirs.token_ids)[masked]
            jaccard = (mine.committed & theirs.committed).sum() / max(1, (mine.committed | theirs.committed).sum())
            divergence.append(kl)
            same.append(agree)
            overlap.append(jaccard)
            rows.append([number, mine.block, mine.step, float(kl.mean()), float(agree.mean()), float(jaccard)])
    metrics = {
        "token_agreement": float(np.mean(equal)), "logit_kl": float(np.concatenate(divergence).mean()),
        "argmax_agreement": float(np.concatenate(same).mean()), "transfer_set_overlap": float(np.mean(overlap)),
    }  # fmt: skip
    columns = ["sequence", "block", "step", "logit KL", "argmax agreement", "transfer-set overlap"]
    return metrics, Table(columns=columns, rows=rows)


def _pairs(steps: list[Step], forced: Generation) -> list[tuple[Step, Step]]:
    """Executor's and reference's records of the same steps (a finished sequence of a batch has none)."""
    theirs = {(record.block, record.step): record for record in forced.steps}
    return [(mine, theirs[mine.block, mine.step]) for mine in steps if (mine.block, mine.step) in theirs]
