"""Cycles by the number of HBM channels, on random machines: `python -m benchmarks.channel_scaling [--runs N] [--seed S]`.

Draws machines and workloads as `estimate_grid` does, runs the cycle path of each with 1 to 16 channels, and prints how often
twice the channels cost more cycles, and where they cost most.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import cycle
from benchmarks.estimate_grid import compiled_of, draw

CHANNELS = (1, 2, 4, 8, 16)
NOTICED = 0.01
"""A loss of less is not counted."""
SHOWN = 8
"""Losses that are listed, the largest first."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Doubling:
    """Twice the channels on one machine: what was drawn, the channels before, and cycles with both."""

    settings: Mapping[str, object]
    channels: int
    before: float
    after: float

    @property
    def loss(self) -> float:
        """Cycles that twice the channels cost, relative; negative where they save some."""
        return self.after / self.before - 1


def doublings(seed: int) -> Iterator[list[Doubling]]:
    """Of each machine that can be, those from 1 to 16 channels."""
    for settings in draw(seed):
        compiled = compiled_of(settings)
        if compiled is None:
            continue
        hardware, program, trace = compiled
        taken = {}
        for channels in CHANNELS:
            hbm = dataclasses.replace(hardware.hbm, channels=channels)
            machine = dataclasses.replace(hardware, hbm=hbm)
            result = cycle.simulate(program, hardware=machine, trace=trace, race_check=False)
            taken[channels] = result.metrics["makespan_cycles"]
        yield [
            Doubling(settings=settings, channels=few, before=taken[few], after=taken[many])
            for few, many in itertools.pairwise(CHANNELS)
        ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    machines = list(itertools.islice(doublings(asked.seed), asked.runs))
    found = [each for machine in machines for each in machine]
    lost = sorted((each for each in found if each.loss > NOTICED), key=lambda each: -each.loss)
    print(f"{len(machines)} machines, {len(found)} doublings, {len(lost)} cost more than {NOTICED:.0%}")
    worst = max(each.loss for each in found)
    print(f"largest loss {worst:.1%}")
    for each in lost[:SHOWN]:
        own = {key.removeprefix("hardware."): value for key, value in each.settings.items()}
        print(f"{each.loss:+.1%}  {each.channels} to {2 * each.channels} channels  {own}")


if __name__ == "__main__":
    main()
