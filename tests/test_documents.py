"""The pages say what is: what is generated is fresh, links lead somewhere, commands run, the public API is the one listed."""

import ast
import importlib
import inspect
import itertools
import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import compose_experiment
from tests.test_cli import tripath_command  # noqa: F401  a fixture
from tripath import api
from tripath.command import cli
from tripath.command.arguments import quote_text
from tripath.command.composition import compose_values
from tripath.command.manual import manual
from tripath.sweeps import baseline

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
FREE = {"hardware.timing", "hardware.hbm.timings", "hardware.queue_depth", "technology.numbers", "validation.fidelity"}
"""Keys below which names are data."""


def test_the_page_of_the_configuration_is_what_the_generator_writes():
    assert (ROOT / "docs" / "configuration.md").read_text() == manual(), "make generate"


def test_every_key_is_on_the_page_with_its_type_and_meaning():
    text = manual()
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \| [^|]* \| ([^|]*) \|$", text, re.MULTILINE)
    assert len(rows) > 150
    assert not [key for key, kind, meaning in rows if not kind.strip() or not meaning.strip()]
    listed = {key for key, _, _ in rows}

    def walk(prefix, node):
        for key, value in node.items():
            name = f"{prefix}{key}"
            if key == "_target_" or name in ("devices", "model.checkpoint"):
                continue
            if isinstance(value, dict) and value and name not in FREE:
                walk(f"{name}.", value)
            else:
                assert name in listed or not value, name

    walk("", compose_values())
    assert not [line for line in text.splitlines() if line.endswith("|  |") and "default" not in line]


def test_every_shipped_file_is_on_the_page():
    text = manual()
    groups = ("config.yaml", "hydra")
    for path in (ROOT / "conf").rglob("*.yaml"):
        place = path.relative_to(ROOT / "conf")
        if place.parts[0] not in groups and not place.name.startswith("_"):
            assert f"{place.parent}={place.stem}" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_within_the_repository_leads_to_a_file(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_public_api_is_the_one_that_the_page_lists():
    listed = set(re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    paths = [name for name in api.__all__ if inspect.ismodule(getattr(api, name))]
    inner = {"cycle.instruction_times", "accuracy.final_state"}  # for the RTL path's witnesses
    of_paths = {f"{name}.{each}" for name in paths for each in getattr(api, name).__all__} - inner
    assert listed == {f"tripath.api.{name}" for name in api.__all__ if name not in paths} | of_paths
    assert api.__all__ == sorted(api.__all__)
    for name in listed:
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        assert inspect.getdoc(value), name
        members = (
            [member for key, member in vars(value).items() if not key.startswith("_")] if inspect.isclass(value) else []
        )
        assert all(inspect.getdoc(each) for each in members if callable(each) or isinstance(each, property)), name


def test_a_docstring_says_what_a_thing_is():
    """A question word at its begin makes a sentence that ends nowhere."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    files = [file for package in [*packages, "benchmarks", "examples"] for file in (ROOT / package).rglob("*.py")]
    nodes = [
        (file, node) for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)
    ]
    texts = [(file, text) for file, node in nodes if (text := ast.get_docstring(node))]
    asking = [f"{file}: {text}" for file, text in texts if text.split()[0] in {"What", "Whether", "How"}]
    assert texts
    assert not asking


def commands(page):
    """Every command of a page: its words, and the lines that it printed."""
    for block in re.findall(r"^```\n(\$ .*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, *printed = text.splitlines()
            yield shlex.split(line), [row for row in printed if row != "..."]


TUTORIAL = list(commands(ROOT / "docs" / "tutorial.md"))


@pytest.mark.parametrize(
    "arguments",
    [words[1:] for words, _ in TUTORIAL if words[0] == "tripath" and words[1:2] != ["baseline"]],
    ids=" ".join,
)
def test_every_command_of_the_tutorial_composes(arguments):
    if "--help" in arguments or "workload.cache=duel" in arguments:
        return
    parsed = OverridesParser.create().parse_overrides([quote_text(each) for each in arguments if each != "--multirun"])
    swept = [override for override in parsed if override.is_sweep_override()]
    assert ("--multirun" in arguments) == bool(swept)
    fixed = [str(override.input_line) for override in parsed if override not in swept]
    for choice in itertools.product(*(override.sweep_string_iterator() for override in swept)):
        compose_experiment(*fixed, *(f"{override.key_or_group}={value}" for override, value in zip(swept, choice)))


def test_the_tutorial_s_timing_commands_print_what_it_shows(tripath_command, capsys):  # noqa: F811
    ran = 0
    for words, shown in TUTORIAL:
        line = " ".join(words)
        if words[:2] == ["tripath", "baseline"]:
            assert baseline.main(words[2:]) == cli.PASSED
            capsys.readouterr()
        elif (words[0] == "tripath" and "paths=" in line) or "duel" in line:
            status, output, errors = tripath_command(*words[1:])
            failed, bad = "queue_depth" in line, "duel" in line
            assert status == (cli.FAILED if failed else cli.BAD_INPUT if bad else cli.PASSED), errors
            figures = re.findall(r"\d+(?:,\d{3})+", "\n".join(row for row in shown if "error" not in row))
            assert [each for each in figures if each not in output] == []
            said = errors + "".join(
                file.read_text() for file in Path("runs").rglob("junit.xml")
            )  # the terminal has some drifts
            assert all(row.split(": ", 2)[2] in said for row in shown if row.startswith("error: "))
            ran += 1
    assert ran == 6


EXPERIMENTS = {"validation.host.": "validate_host", "hydra.sweeper.search.": "design_space"}
"""Groups that are null unless an experiment fills them."""
FILLED_IN = {"hydra.sweeper.search.numerics", "hydra.run.dir", "hydra.sweep.dir", "model.folder"}
"""What a command fills in itself, a text that only Hydra resolves, or what one file of a group has alone."""
OPTIONAL = ("model.rope_scaling.", "model.experts.", "model.full_layers.", "hardware.host.")
"""Keys of a mapping that is null by default: they are set together."""


@pytest.mark.parametrize("experiment", [None, *EXPERIMENTS.values()])
def test_every_documented_key_can_be_set(experiment):
    rows = re.findall(r"^\| `([^`]+)` \| [^|]* \| (?:`([^|]*)`)?[^|]* \|", manual(), re.MULTILINE)
    groups = compose_values()
    own = {key: value for key, value in rows if key.partition(".")[0] in groups or key.startswith("hydra.")}
    of_experiment = {
        key: next((name for group, name in EXPERIMENTS.items() if key.startswith(group)), None) for key in own
    }
    chosen = [key for key in own if of_experiment[key] == experiment and not re.search(r"NAME|\[\]|\.value$", key)]
    assert len(chosen) > 3
    values = {
        key: yaml.safe_load(own[key] or "null")
        for key in chosen
        if key not in FILLED_IN and not key.startswith(OPTIONAL)
    }
    simple = {key: None if isinstance(value, dict) else value for key, value in values.items()}
    overrides = [f"{key}={json.dumps(value)}" for key, value in simple.items()]
    chosen_experiment = [f"experiment={experiment}"] if experiment else []
    with initialize_config_module("conf", version_base="1.3"):
        compose("config", overrides=[*chosen_experiment, *overrides], return_hydra_config=True)


def test_the_site_gives_commands_without_their_prompt():
    code = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    page = "before\n\n```\n$ tripath a=1\nprinted\n\n$ tripath b=2\n$ tripath c=3\n```\n\n[code](../npu/isa.py)\n\n```\n$x = 1\n```\n"
    shown = code["on_page_markdown"](page)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", shown, re.MULTILINE | re.DOTALL)
    assert blocks == [
        ("sh", "tripath a=1\n"), ("text", "printed\n\n"), ("sh", "tripath b=2\ntripath c=3\n"), ("", "$x = 1\n")
    ]  # fmt: skip
    assert "`npu/isa.py`" in shown


def test_a_link_of_the_site_has_the_title_of_its_page():
    code = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    page = "[compiler.md](compiler.md) [timing.md](timing.md#fast-forward) [rules](timing.md)"
    shown = code["on_page_markdown"](page)
    assert shown == "[The compiler](compiler.md) [Fast-forward](timing.md#fast-forward) [rules](timing.md)"


def test_search_of_the_site_needs_no_network():
    site = (ROOT / "mkdocs.yml").read_text()
    (script,) = re.findall(r"polyfills: \[(\S+)\]", site)
    assert "- offline" in site
    assert (ROOT / "docs" / script).is_file()
