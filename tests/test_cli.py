"""The command line in process, with the simulators run at once in place of Ray: statuses, messages, files, folders."""

import datetime as dt
import html
import itertools
import json
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import tripath.cluster.launch
import tripath.run.job
import tripath.tracking.store
from npu.errors import TripathError
from npu.files import make_exclusively
from npu.metrics import PHASES, UNITS
from tests.conftest import PROMPT, compiled, compose_experiment
from tripath.command import cli
from tripath.command.arguments import quote_text
from tripath.command.interruption import ENDING, Interruption
from tripath.experiment.prompts import read_prompts
from tripath.report import console
from tripath.run.pipeline import run_paths

QUICK = ("experiment=quick",)


class InlineCluster:
    """Stands in for `tripath.cluster.launch.Cluster`: the same tasks, run one after the other in this process."""

    made = 0

    def __init__(self, launch):
        type(self).made += 1
        self._cache = launch.results

    def run(self, program, experiment, prompts, progress):
        progress(dict.fromkeys(experiment.paths, "runs"))
        return run_paths(program, experiment, prompts, self._cache)

    def each(self, tasks, show):
        for task in tasks:
            show(1)
            try:
                shared = [] if task.prepare is None else [task.prepare[0](*task.prepare[1])]
                value = task.function(*shared, *task.arguments)
            except Exception as error:  # noqa: BLE001  as Ray does
                value = error
            yield task, value

    def do(self, function, *arguments):
        return function(*arguments)

    def leave(self):
        pass

    def close(self):
        pass


@pytest.fixture
def tripath_command(monkeypatch, tmp_path, capsys, tmp_path_factory):
    """Runs a command line in an empty folder, with a cache of its own: (status, stdout, stderr)."""
    monkeypatch.setattr(tripath.cluster.launch, "Cluster", InlineCluster)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("COLUMNS", cli.WIDTH_WITHOUT_TERMINAL)
    monkeypatch.setattr(
        console.out, "_width", int(cli.WIDTH_WITHOUT_TERMINAL)
    )  # rich read COLUMNS when the console was made
    monkeypatch.setenv("TRIPATH_CACHE", str(tmp_path_factory.mktemp("cache")))

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["tripath", *arguments])
        status = cli.run()
        return status, *capsys.readouterr()

    return command


MODELS = sorted(
    file.stem for file in (Path(__file__).parents[1] / "conf" / "model").glob("*.yaml") if not file.stem.startswith("_")
)


def test_the_default_problem_goes_through_all_paths(tripath_command, tmp_path):
    status, output, errors = tripath_command(*QUICK, "hydra.run.dir=run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert errors == ""
    assert report["status"] == "passed"
    assert status == cli.PASSED
    assert set(report["simulators"]) == {"analytical", "cycle", "accuracy"}
    assert report["simulators"]["accuracy"]["metrics"]["accuracy.generated_tokens"] == 16
    assert report["generation"]["prompt"] == PROMPT
    assert len(report["generation"]["token_ids"]) == 16
    assert report["generation"]["trip_counts"] == [2, 2]
    for shown in (PROMPT, "analytical", "makespan_cycles", "all checks hold", str(tmp_path / "run")):
        assert shown in output.replace("\n", " ")


def test_every_metric_and_count_is_documented(tripath_command, tmp_path):
    assert tripath_command(*QUICK, "hydra.run.dir=run")[0] == cli.PASSED
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    documented = (Path(__file__).parents[1] / "docs" / "validation.md").read_text()
    units, phases = "|".join(UNITS), "|".join(PHASES)
    for name in {name for row in report["simulators"].values() for name in row["metrics"]}:
        general = re.sub(rf"\.({units})\b", ".<unit>", name)
        general = re.sub(rf"\.({phases})$", ".<phase>", general)
        general = re.sub(r"(component_cycles)\..*", r"\1.<component>", general)
        general = re.sub(r"(bound_cycles)\..*", r"\1.<resource>", general)
        general = re.sub(r"(stall_cycles\.<unit>)\..*", r"\1.<cause>", general)
        assert f"`{general}`" in documented
    for name in {row["metric"] for row in report["discrepancies"] if row["kind"] == "count"}:
        general = re.sub(r"instructions\..*", "instructions.<MNEMONIC>", name)
        assert f"`{re.sub(rf'busy_cycles.({units})', 'busy_cycles.<unit>', general)}`" in documented


REFERENCES = """
defaults:
  - default
  - _self_
references:
  - _target_: tripath.validation.Reference
    metric: cycle.makespan_cycles
    expected: 1000.0
    source: a board
    tolerance: 0.1
    reason: a figure that is not so
"""


def test_a_figure_measured_elsewhere_can_fail_a_run(tripath_command, tmp_path):
    (tmp_path / "mine" / "validation").mkdir(parents=True)
    (tmp_path / "mine" / "validation" / "board.yaml").write_text(REFERENCES)
    arguments = ("--config-dir", "mine", *QUICK, "validation=board", "paths=[cycle]", "hydra.run.dir=run")
    assert tripath_command(*arguments)[0] == cli.FAILED
    rows = json.loads((tmp_path / "run" / "report.json").read_text())["discrepancies"]
    assert [row["verdict"] for row in rows] == ["failed"]
    assert (rows[0]["kind"], rows[0]["expected_source"]) == ("reference", "a board")


def test_a_store_that_cannot_be_opened_is_bad_input(tripath_command, tmp_path):
    arguments = ("workload.steps=4", "paths=[analytical]", "tracking.uri=nonsense://x", "hydra.run.dir=run")
    status, _, errors = tripath_command(*arguments)
    assert (status, errors.count("\n")) == (cli.BAD_INPUT, 1)
    assert errors.startswith("error: tracking.uri: cannot open nonsense://x")
    assert not list(tmp_path.iterdir())


def test_a_store_that_fails_later_costs_no_result(tripath_command, tmp_path, monkeypatch):
    class FullStore:
        def __init__(self, _):
            pass

        def wait(self):
            pass

        def log_run(self, *_):
            message = "tracking.uri: the disk is full"
            raise TripathError(message)

    monkeypatch.setattr(tripath.tracking.store, "Store", FullStore)
    status, output, errors = tripath_command("workload.steps=4", "paths=[analytical]", "hydra.run.dir=run")
    assert status == cli.PASSED
    assert errors.startswith(
        f"note: tracking.uri: the disk is full; the results are kept, `tripath sync {tmp_path}/run` logs"
    )
    assert "mlflow  run" not in output
    assert (tmp_path / "run" / "report.json").exists()


def test_a_failing_check_is_status_1_with_its_report(tripath_command, tmp_path):
    arguments = (*QUICK, "paths=[analytical,cycle]", "validation.estimate.value=0.000001", "hydra.run.dir=run")
    status, output, errors = tripath_command(*arguments)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert status == cli.FAILED
    assert report["status"] == "failed"
    assert [row["kind"] for row in report["discrepancies"] if row["verdict"] == "failed"] == ["estimate"]
    assert "1 checks failed" in output
    assert errors == ""
    assert tripath_command(*arguments, "validation.fail_on=[count,bound]")[0] == cli.PASSED


def test_a_defect_of_ours_shows_its_traceback_and_has_a_status_of_its_own(tripath_command, monkeypatch, tmp_path):
    def broken(*_):
        message = "a defect"
        raise RuntimeError(message)

    monkeypatch.setattr(tripath.run.job, "compile_program", broken)
    status, _, errors = tripath_command("tracking=off")
    assert status == cli.INTERNAL_ERROR
    assert "Traceback" in errors
    assert "RuntimeError: a defect" in errors
    assert not list(tmp_path.iterdir())


def test_a_sweep_goes_on_after_a_bad_job_and_takes_the_worst_status(tripath_command, tmp_path):
    before = InlineCluster.made
    arguments = (*QUICK, "paths=[analytical]", "hydra.sweep.dir=sweep")
    status, output, errors = tripath_command("--multirun", *arguments, "hardware.blen=8,7,4")
    assert status == cli.BAD_INPUT
    assert errors.splitlines() == ["error: job 1: hardware.blen: must be a power of two from 4 to 128, got 7"]
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {
        "0", "2", "junit.xml", "multirun.yaml", "record.json", "report.html", "summary.md", "sweep.csv", "sweep.png",
        "sweep.svg",
    }  # fmt: skip
    assert (tmp_path / "sweep" / "2" / "report.json").exists()
    assert "2 passed, 1 bad input" in output
    assert InlineCluster.made == before + 1


def test_the_command_on_the_page_runs_the_same_again(tripath_command, tmp_path):
    """As a shell splits it, with a prompt that has quotes, a dollar and a sign of the grammar in it."""
    prompt = """workload.prompt=Tom's 12 "red", $HOME {apples}"""
    assert tripath_command(*QUICK, "paths=[analytical]", prompt, "hydra.run.dir=one")[0] == cli.PASSED
    page = (tmp_path / "one" / "report.html").read_text()
    pasted = html.unescape(page.rpartition("<pre>")[2].partition("</pre>")[0]).splitlines()[-1]
    name, *arguments = shlex.split(pasted)
    assert name == "tripath"
    assert tripath_command(*arguments, "hydra.run.dir=two")[0] == cli.PASSED
    one, two = ((tmp_path / run / "config.yaml").read_text() for run in ("one", "two"))
    assert one == two
    assert """Tom's 12 "red", $HOME {apples}""" in yaml.safe_load(one)["workload"]["prompt"]


@pytest.mark.parametrize("override", ["hardware.blen=7,5", "model=absent"])
def test_a_sweep_of_which_nothing_ran_leaves_no_folder(tripath_command, tmp_path, override):
    status, _, _ = tripath_command("--multirun", *QUICK, override)
    assert status == cli.BAD_INPUT
    assert not list(tmp_path.iterdir())


def test_the_sweep_of_the_cache_policies(tripath_command, tmp_path):
    arguments = ("experiment=cache_policies", "tracking=off", "paths=[analytical]", "hydra.sweep.dir=sweep")
    assert tripath_command("--multirun", *arguments)[0] == cli.PASSED
    configurations = [(tmp_path / "sweep" / job / "config.yaml").read_text() for job in "012"]
    for policy, text in zip(("none", "prefix", "dual"), configurations, strict=True):
        assert f"cache: {policy}\n" in text


def test_an_interrupt_ends_the_command(tripath_command, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(InlineCluster, "run", interrupt)
    status, _, errors = tripath_command(*QUICK)
    assert status == cli.INTERRUPTED
    assert errors == "error: interrupted\n"


def test_a_signal_that_follows_at_once_is_the_same_interruption(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    interrupt = Interruption()
    for now, raises in ((100.0, True), (100.5, False), (102.0, False), (105.0, True)):  # noqa: B007  read by the clock
        with pytest.raises(KeyboardInterrupt) if raises else nullcontext():
            interrupt(signal.SIGINT, None)


@pytest.fixture
def default_handlers():
    """As a process begins; `main` leaves them ignored."""
    handlers = {each: signal.signal(each, signal.SIG_DFL) for each in ENDING}
    yield
    for each, handler in handlers.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("default_handlers")
def test_an_interruption_before_the_command_line_can_take_it_is_one_line(monkeypatch, capsys, number):
    from tripath import __main__

    monkeypatch.setattr(__main__, "command", lambda _: signal.raise_signal(number))
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert {signal.getsignal(each) for each in ENDING} == {signal.SIG_IGN}, "the interpreter's end is left alone"
    assert ended.value.code == cli.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"


def test_of_a_run_that_cannot_be_written_whole_nothing_is_left(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tripath.run.job, "write_atomically", interrupted)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        tripath.run.job.keep_files(tmp_path, {"report.json": b"{}", "report.html": b"page", "record.json": b"{}"})
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_prompts_of_a_file_make_a_batch(tripath_command, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\nAnna has 9 pens.\n")
    arguments = (*QUICK, "hydra.run.dir=run", "workload.prompts_file=prompts.txt")
    assert tripath_command(*arguments)[0] == cli.PASSED
    sequences = json.loads((tmp_path / "run" / "report.json").read_text())["generation"]["sequences"]
    assert [row["prompt"] for row in sequences] == [PROMPT, "Anna has 9 pens."]
    status, _, errors = tripath_command(*arguments, "workload.batch=3")
    assert status == cli.BAD_INPUT
    assert "workload.batch: 3, but prompts.txt has 2 prompts" in errors
    (tmp_path / "prompts.txt").write_text("\n")
    assert "no prompt in prompts.txt" in tripath_command(*arguments)[2]


def test_a_prompt_may_hold_any_character_and_unknown_words_are_named(tripath_command, tmp_path):
    text = 'Tom\'s "box" (of 3, or {4}) costs $5: how many? [x=y] ${z} \\'
    status, _, errors = tripath_command(*QUICK, "paths=[analytical]", f"workload.prompt={text}", "hydra.run.dir=run")
    assert status == cli.PASSED
    assert errors.startswith("note: the model's vocabulary lacks: ")
    configuration = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert OmegaConf.to_container(configuration, resolve=False)["workload"]["prompt"] == text


PLAIN_TEXT = st.characters(codec="utf-8", exclude_categories=["C", "Z"], include_characters=" ")


@given(st.text(PLAIN_TEXT, min_size=1) | st.text("ab \\'\"${}[](),:=&", min_size=1))
def test_a_quoted_prompt_reads_back(text):
    if text[:1] not in ("'", '"') and text != "null":
        override = OverridesParser.create().parse_override(quote_text(f"workload.prompt={text}"))
        assert OmegaConf.create({"prompt": override.value()}).prompt == text


def test_quoting_leaves_other_arguments_alone():
    for argument in ("workload.prompt=null", "workload.prompt='a, b'", 'workload.prompt="a"', "workload.steps=8"):
        assert quote_text(argument) == argument


def test_a_synthetic_prompt_has_its_length_and_no_special_token():
    special = ("model.mask_id=7", "model.eos_id=0", "model.checkpoint=synthetic")
    experiment = compose_experiment("workload.prompt_length=200", "workload.batch=2", *special)
    prompts = read_prompts(experiment, "unused")
    assert [len(tokens) for tokens in prompts.token_ids] == [200, 200]
    assert not {7, 0} & set(prompts.token_ids[0])
    assert prompts.texts == ["200 tokens"] * 2


def test_a_prompt_is_repeated_over_the_batch_and_needed():
    experiment = compose_experiment("workload.batch=3")
    assert read_prompts(experiment, PROMPT).texts == [PROMPT] * 3
    with pytest.raises(TripathError, match="no prompt is given"):
        read_prompts(experiment, None)


NUMERICS = ("mxint8", "mxint4_kv", "mxint4", "bf16", "mxfp8", "mxfp8_e5m2", "mxfp6", "mxfp4", "fp16")
HARDWARE = {"npu_small": ("wordmath",), "npu_datacenter": ("wordmath", "llada_8b")}
CHOICES = [
    (hardware, model, workload, numerics)
    for hardware, models in HARDWARE.items()
    for model, workload, numerics in itertools.product(models, ("wordmath", "threshold", "llada_gsm8k"), NUMERICS)
    if model == "llada_8b" or workload != "llada_gsm8k"
]


@pytest.mark.parametrize(("hardware", "model", "workload", "numerics"), CHOICES, ids="-".join)
def test_every_shipped_configuration_composes_and_compiles(hardware, model, workload, numerics):
    experiment = compose_experiment(
        f"hardware={hardware}", f"model={model}", f"workload={workload}", f"numerics={numerics}",
        "paths=[analytical,cycle]",
    )  # fmt: skip
    assert len(compiled(experiment)[0].words) > 100


def test_importing_the_command_line_loads_nothing_heavy():
    heavy = "{'ray', 'mlflow', 'numba', 'numpy', 'matplotlib', 'pandas'}"
    code = f"import sys, tripath.command.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_explains_itself_and_lists_groups(tripath_command, capsys):
    with pytest.raises(SystemExit) as exit_:
        tripath_command("--help")
    output = capsys.readouterr().out
    assert not exit_.value.code
    for shown in (
        "Examples:",
        "hardware: npu_append_only, npu_autoregressive, npu_datacenter, npu_host_sampling, npu_plena, npu_small, npu_v1",
        ", ".join(MODELS),
        "Exit status",
    ):
        assert shown in output


@pytest.mark.usefixtures("default_handlers")
def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    from importlib.metadata import version

    from tripath.__main__ import main

    monkeypatch.setattr(sys, "argv", ["tripath", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert capsys.readouterr().out == f"tripath {version('tripath')}\n"


def test_a_command_that_computed_something_keeps_the_cache_within_its_limit(tripath_command, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPATH_CACHE", str(tmp_path / "cache"))
    arguments = (*QUICK, "paths=[analytical]", "hydra.run.dir=run")

    def kept():
        return {place: place.stat().st_size for place in (tmp_path / "cache").glob("*/*.result")}

    assert tripath_command(*arguments)[0] == cli.PASSED
    (size,) = kept().values()
    assert tripath_command(*arguments, "launch.cache_limit_bytes=1")[0] == cli.PASSED  # a hit: nothing was computed
    assert list(kept().values()) == [size]
    assert (
        tripath_command(*arguments, "hardware.vlen=128", f"launch.cache_limit_bytes={size * 3 // 2}")[0] == cli.PASSED
    )
    assert len(kept()) == 1
    assert tripath_command(*arguments, "launch.cache_limit_bytes=0")[0] == cli.BAD_INPUT


class SameSecond:
    """A clock that stands still."""

    @staticmethod
    def now():
        return dt.datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001  as Hydra's


def test_commands_of_one_second_have_folders_of_their_own(tripath_command, tmp_path, monkeypatch):
    monkeypatch.setattr("hydra.core.utils.datetime", SameSecond)
    quick = (*QUICK, "paths=[analytical]", "tracking=off")
    assert tripath_command(*quick)[0] == cli.PASSED
    assert tripath_command(*quick)[0] == cli.PASSED
    assert tripath_command("--multirun", *quick, "hardware.blen=4,8")[0] == cli.PASSED
    assert tripath_command("--multirun", *quick, "hardware.blen=7,5")[0] == cli.BAD_INPUT
    assert tripath_command(*quick, "hardware.blen=7")[0] == cli.BAD_INPUT
    day = tmp_path / "runs" / "2026-01-02"
    assert {path.relative_to(day).as_posix() for path in day.rglob("report.json")} == {
        "03-04-05/report.json", "03-04-05-2/report.json", "03-04-05-3/0/report.json", "03-04-05-3/1/report.json",
    }  # fmt: skip
    assert sorted(path.name for path in day.iterdir()) == ["03-04-05", "03-04-05-2", "03-04-05-3"]


def test_a_folder_is_made_for_one_alone(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_exclusively(tmp_path / "new" / "run"), range(40)))
    assert {path.name for path in made} == {"run", *(f"run-{number}" for number in range(2, 41))}


def test_a_commit_that_depends_on_data_says_so_where_no_path_has_data(tripath_command):
    said = "note: workload.commit=threshold: no path says how many steps the commits take"
    arguments = (*QUICK, "tracking=off", "workload.commit=threshold")
    assert tripath_command(*arguments, "paths=[analytical]")[2].startswith(said)
    assert tripath_command(*arguments, "paths=[analytical,accuracy]")[2] == ""
