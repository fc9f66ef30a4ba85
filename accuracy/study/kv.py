"""The study of KV formats and schemes: `python -m accuracy.study.kv --out FOLDER`; docs/kv_quantisation.md tells the method.

Each configuration leaves one JSON file and is not run again while its inputs (options and checkpoint) stay the same.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from accuracy.checkpoint import load_tensors, load_tokenizer
from accuracy.study.calibrate import calibrate, plant_outliers
from accuracy.study.decode import Policy, decode
from accuracy.study.metrics import Comparison, kv_bytes_per_token, wilson
from accuracy.study.model import Arithmetic, StudyModel
from accuracy.study.pictures import write_pictures
from accuracy.study.problems import CHECKPOINT, Problem, batches, load_problems, solved, spec_of
from accuracy.study.schemes import KvScheme
from accuracy.study.table import print_table, write_tables
from tripath.errors import TripathError
from tripath.formats import FORMATS

CALIBRATION_PROBLEMS = 40
"""The last problems of the checkpoint's test.jsonl calibrate the static scheme and are never scored."""
BASELINE = "bf16"
"""The cache format that every quantised one is compared with in the tables; schemes do not apply to it."""

SCHEMES: dict[str, KvScheme] = {
    "plain": KvScheme(),
    "baos": KvScheme(smoother="baos"),
    "baos_half": KvScheme(smoother="baos", alpha=0.5),
    "baos_pow2": KvScheme(smoother="baos", power_of_two=True),
    "baos_centred": KvScheme(smoother="baos", centre=True),
    "baos_k": KvScheme(smoother="baos", values=False),
    "baos_v": KvScheme(smoother="baos", keys=False),
    "baos_v_pow2": KvScheme(smoother="baos", keys=False, power_of_two=True),
    "static": KvScheme(smoother="static"),
    "frozen": KvScheme(smoother="frozen"),
    "oracle": KvScheme(smoother="oracle"),
    "hadamard": KvScheme(smoother="hadamard"),
    "kivi": KvScheme(k_axis="tokens", v_axis="channels"),
    "k_tokens": KvScheme(k_axis="tokens"),
    "v_channels": KvScheme(v_axis="channels"),
    "v_channels_baos": KvScheme(smoother="baos", v_axis="channels"),
    "prerope": KvScheme(pre_rope=True),
    "prerope_baos": KvScheme(smoother="baos", pre_rope=True),
}
"""Schemes by name. `baos_v_pow2` is the negative control: it equals `plain` bit for bit."""
DEFAULT_FORMATS = ("mxint8", "mxint4", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp4_e2m1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """One row of the study: a cache format and scheme, the planted gain (1: none), the rest of the arithmetic."""

    format: str
    scheme: str
    planted: float
    arithmetic: Arithmetic
    policy: Policy
    problems: int
    probed: int

    @property
    def name(self) -> str:
        """File name without its suffix."""
        return f"{self.format}-{self.scheme}" + (f"-planted{self.planted:g}" if self.planted != 1 else "")

    def digest(self, checkpoint: str) -> str:
        """SHA-256 of everything that the result depends on."""
        return hashlib.sha256(json.dumps([asdict(self), checkpoint], sort_keys=True).encode()).hexdigest()


def configurations(
    formats: Iterable[str], schemes: Iterable[str], planted: Iterable[float], *, arithmetic: Arithmetic, policy: Policy,
    problems: int, probed: int,
) -> list[Configuration]:  # fmt: skip
    """The baseline and each format under each scheme, for each planted gain.

    Raises:
        TripathError: an unknown format or scheme.
    """
    chosen = list(schemes)
    for name in chosen:
        if name not in SCHEMES:
            raise TripathError(f"study.schemes: unknown scheme {name!r}, one of {', '.join(SCHEMES)}")
    rows = [(BASELINE, "plain"), *((stored, name) for stored in formats for name in chosen)]
    for stored, _ in rows:
        if stored not in FORMATS:
            raise TripathError(f"study.formats: unknown format {stored!r}, one of {', '.join(FORMATS)}")
    return [
        Configuration(format=stored, scheme=name, planted=gain, policy=policy, problems=problems, probed=probed,
                      arithmetic=replace(arithmetic, kv=stored, kv_scheme=SCHEMES[name]))
        for gain in planted for stored, name in dict.fromkeys(rows)
    ]  # fmt: skip


def run(
    configuration: Configuration, problems: Sequence[Problem], *, folder: Path = CHECKPOINT, batch_size: int = 64,
) -> dict[str, Any]:  # fmt: skip
    """Measure one configuration: exact match over the first `problems`, metrics of `Comparison` over the first `probed`."""
    spec, policy, arithmetic = spec_of(folder), configuration.policy, configuration.arithmetic
    tensors = load_tensors(spec)
    if configuration.planted != 1:
        tensors = plant_outliers(tensors, spec, configuration.planted)
    static = arithmetic.kv_scheme.smoother == "static"
    prompts = [problem.prompt for problem in problems[-CALIBRATION_PROBLEMS:]]
    calibration = calibrate(spec, tensors, arithmetic, prompts, policy) if static else None
    model = StudyModel(spec, tensors, arithmetic, calibration)
    # Ranked in the same arithmetic: ties of BF16 confidences would else hide what the cache does to committed sets.
    reference = StudyModel(spec, tensors, Arithmetic(sampling=arithmetic.sampling))
    scored, tokenizer = problems[: configuration.problems], load_tokenizer(str(folder))
    comparison, right, canvas = Comparison(reference, policy), 0, 0.0
    started = time.perf_counter()
    for part, probed in ((scored[: configuration.probed], True), (scored[configuration.probed :], False)):
        observe, probe = (comparison.observe, comparison.probe) if probed else (None, None)
        for members in batches(part, batch_size):
            ids = [part[i].prompt for i in members]
            made = decode(model, ids, policy, observe=observe, probe=probe)
            right += sum(solved(made, part, members, tokenizer))
            canvas += sum(map(len, ids)) + policy.generation_length * len(ids)
    seconds, total = time.perf_counter() - started, len(scored)
    low, high = wilson(right, total)
    bytes_per_token = kv_bytes_per_token(
        spec, configuration.format, arithmetic.kv_scheme, token_block=arithmetic.token_block, canvas=canvas / total
    )
    return {
        "format": configuration.format, "scheme": configuration.scheme, "planted": configuration.planted,
        "problems": total, "solved": right, "exact_match": right / total, "exact_match_low": low,
        "exact_match_high": high, "probed": min(configuration.probed, total), **comparison.summary,
        "kv_bytes_per_token": bytes_per_token, "problems_per_second": total / seconds,
    }  # fmt: skip


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 of the checkpoint's weights and problems."""
    state = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), folder / "test.jsonl"]):
        state.update(file.read_bytes())
    return state.hexdigest()


def study(
    rows: Sequence[Configuration], out: Path, *, folder: Path = CHECKPOINT, batch_size: int = 64,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run what is missing in `out`, then write `kv.csv`, `kv.json`, `exact_match.png` and `logit_kl.png` there.

    Raises:
        TripathError: more problems are asked for than the checkpoint has beside those that calibrate.
    """
    problems, checkpoint = load_problems(folder), checkpoint_digest(folder)
    limit = len(problems) - CALIBRATION_PROBLEMS
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for number, row in enumerate(rows):
        if row.problems > limit:
            raise TripathError(f"study.problems: {row.problems} exceed the {limit} that do not calibrate")
        file, digest = out / f"{row.name}.json", row.digest(checkpoint)
        known = json.loads(file.read_text()) if file.exists() else {}
        if known.get("digest") != digest:
            known = {
                **run(row, problems, folder=folder, batch_size=batch_size),
                "digest": digest,
                "checkpoint": checkpoint,
            }
            temporary = file.with_suffix(".part")
            temporary.write_text(json.dumps(known, indent=1) + "\n")
            temporary.replace(file)
        results.append(known)
        print(f"{number + 1}/{len(rows)} {row.name}: {known['solved']} of {known['problems']}", file=sys.stderr)
    write_tables(results, out)
    write_pictures(results, out)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 2 with one line for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m accuracy.study.kv", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/kv"), help="folder of results (default runs/kv)")
    parser.add_argument("--formats", nargs="+", default=DEFAULT_FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), metavar="SCHEME", help=", ".join(SCHEMES))
    parser.add_argument(
        "--planted", nargs="+", type=float, default=[1.0], metavar="GAIN", help="gains of planted K outliers; 1: none"
    )
    parser.add_argument("--problems", type=int, default=300, help="problems that are scored (default 300)")
    parser.add_argument("--probed", type=int, default=64, help="of these, compared step by step with FP32 (default 64)")
    parser.add_argument("--weights", default="mxint8", help="format of weights (default mxint8)")
    parser.add_argument("--activations", default="mxint8", help="format of activations (default mxint8)")
    parser.add_argument("--logits", default="mxint8", help="format of logits (default mxint8)")
    parser.add_argument("--cache", default="dual", help="none, prefix or dual (default dual)")
    parser.add_argument("--batch", type=int, default=64, help="problems decoded together (default 64)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of model and problems")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        arithmetic = Arithmetic(weights=options.weights, activations=options.activations, logits=options.logits,
                                lanes="bf16", sampling="bf16")  # fmt: skip
        rows = configurations(options.formats, options.schemes, options.planted, arithmetic=arithmetic,
                              policy=Policy(cache=options.cache), problems=options.problems, probed=options.probed)  # fmt: skip
        print_table(study(rows, options.out, folder=options.checkpoint, batch_size=options.batch))
    except TripathError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
