"""Hydra's view of a sweep: a launcher that hands all jobs to tripath.command.cli, a sweeper that leaves composing them to it.

Hydra loads this module at every start, so it imports nothing else.
"""

from collections.abc import Mapping, MutableMapping, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ClusterLauncher(Launcher):
    """Runs the jobs of a sweep on one Ray cluster."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes a job."""
        del task_function
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs that these overrides make."""
        from tripath.command.cli import run_jobs

        return run_jobs(self._context.config_loader, self._config, job_overrides, initial_job_idx)


class TripathSweeper(BasicSweeper):
    """Every combination of what is swept, then the jobs of `also`: each a list of overrides, beside what is not swept.

    Hydra's own also composes each once before the first job starts. With `search`, what is swept is a space in which
    designs are sought that no other beats (tripath.sweeps.search).
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: MutableMapping[str, str] | None = None,
        also: Sequence[Sequence[str]] = (),
        search: MutableMapping[str, object] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self._also, self._search = also, search

    def sweep(self, arguments: list[str]) -> object:
        """Run the jobs."""
        if self._search is None:
            return super().sweep(arguments)
        from tripath.command.cli import run_search

        params = [f"{key}={value}" for key, value in (self.params or {}).items()]
        return run_search(self.launcher, self.config, [*params, *arguments], self._search)

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The jobs in batches; those of `also` are of the last. What the user gives comes last, and so wins; a job of `also` that
        is then the same as another is left out."""
        *batches, last = BasicSweeper.split_arguments(overrides, max_batch_size)
        shared = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        known = [_given(job) for batch in (*batches, last) for job in batch]
        for job in jobs_beside(self._also, overrides, self.params or {}):
            if _given([*job, *shared]) not in known:
                last = [*last, [*job, *shared]]
                known.append(_given(last[-1]))
        return [*batches, last]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: a job that cannot be composed is refused when its turn comes, and the others run."""


def _given(job: Sequence[str]) -> dict[str, str]:
    """The values of a job's overrides, by key."""
    return {key: value for key, _, value in (override.partition("=") for override in job)}


def jobs_beside(
    also: Sequence[Sequence[str]], overrides: Sequence[Override], params: Mapping[str, str]
) -> list[list[str]]:
    """The jobs of `also`. Where the user, whose overrides stand behind those of `params`, takes other values for an axis of
    `params`, those with a value that is not taken are left out."""
    taken = {
        each.key_or_group: {*each.sweep_string_iterator()}
        for each in overrides[len(params) :]
        if each.is_sweep_override() and each.key_or_group in params
    }

    def keeps(override: str) -> bool:
        key, _, value = override.partition("=")
        return value in taken.get(key, {value})

    return [[*map(str, job)] for job in also if all(keeps(str(override)) for override in job)]
