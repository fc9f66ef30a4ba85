"""`tripath sync FOLDER`: logs to MLflow what a run or a sweep could not log.

FOLDER is that of a run, or of a sweep with its jobs below. What is in the store already is not logged again.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from npu.errors import Arguments, TripathError, print_error
from tripath.tracking.record import FILE, Record, from_json
from tripath.tracking.store import Store, Tracking, noted


def sync(folder: Path, store: Store) -> list[Path]:
    """Log the run or sweep in `folder`, and below a sweep its jobs; the folders whose records were logged now.

    Raises:
        TripathError: there is no record, or the store cannot be written.
    """
    jobs = sorted(file.parent for file in folder.rglob(FILE) if file.parent != folder)
    record = _record(folder)
    if record is None and not jobs:
        raise TripathError(f"{folder}: no record of a run here or below ({FILE})")
    if record is None or not jobs:
        return [each for each in jobs or [folder] if _log(each, store, None)]
    known = noted(folder)
    parent = known if known and known.uri == store.uri else store.begin(record, folder)
    logged = [job for job in jobs if _log(job, store, parent.run_id)]
    if logged or parent is not known:
        ended = replace(record, status="KILLED") if record.status == "RUNNING" else record
        store.end(parent.run_id, ended, folder)
    return logged


def _record(folder: Path) -> Record | None:
    try:
        return from_json((folder / FILE).read_bytes())
    except OSError:
        return None


def _log(folder: Path, store: Store, parent: str | None) -> bool:
    """Log the run in `folder` unless the store has it."""
    known = noted(folder)
    if known and known.uri == store.uri:
        return False
    store.log_folder(folder, parent)
    return True


def main(arguments: Sequence[str]) -> int:
    """Carry out `tripath sync FOLDER`; the exit status is 0, or 2 after one line if that is not possible."""
    parser = Arguments(prog="tripath sync", description="Log a run, or a sweep with its jobs, to MLflow.")
    parser.add_argument("folder", type=Path, help="of a run or a sweep")
    parser.add_argument(
        "--uri", default=os.environ.get("MLFLOW_TRACKING_URI"),
        help="as tracking.uri; else $MLFLOW_TRACKING_URI, else SQLite in the folder of --store",
    )  # fmt: skip
    parser.add_argument("--store", default="mlruns", help="as tracking.folder (default: %(default)s)")
    parser.add_argument("--experiment", default="tripath", help="as tracking.experiment (default: %(default)s)")
    try:
        given = parser.parse_args(arguments)
        logged = sync(
            given.folder,
            Store(Tracking(enabled=True, uri=given.uri, folder=given.store, experiment=given.experiment)),
        )
    except (TripathError, OSError) as error:
        print_error(str(error))
        return 2
    sys.stdout.write(f"{len(logged)} runs logged\n")
    return 0


def tripath_sync() -> None:
    """The script `tripath-sync`: `tripath sync` by its older name."""
    sys.exit(main(sys.argv[1:]))
