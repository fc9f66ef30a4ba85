"""The cache of results: what is kept comes back to the bit, and nothing else ever does."""

import dataclasses
import json
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from npu.errors import ProgramError
from npu.program import Program
from npu.program.trace import Trace
from tests.conftest import compose_experiment
from tripath.report.run_report import page_of, report_of
from tripath.run.job import Prepared, outcome_of, prepare
from tripath.run.pipeline import known_runs, run_path, run_paths
from tripath.run.results import Cache, decode, digest_of, encode, folder_digest

CORRUPTIONS = 300


@pytest.fixture(scope="module")
def experiment():
    return compose_experiment("experiment=quick", "paths=[analytical,cycle]")


@pytest.fixture(scope="module")
def prepared(experiment):
    return prepare(experiment, "Tom has 12 apples.")


@pytest.fixture(scope="module")
def kept(tmp_path_factory, experiment, prepared):
    """A cache with both timing paths: (folder, runs as they were computed)."""
    folder = tmp_path_factory.mktemp("results")
    return folder, run_paths(prepared.program, experiment, prepared.token_ids, Cache(folder))


def never_simulates(monkeypatch):
    import analytical
    import cycle

    def refused(program, *, hardware, trace, race_check=True, fast_forward=True, trace_window=(0, 0)):
        raise AssertionError

    for module in (analytical, cycle):
        monkeypatch.setattr(module, "simulate", refused)


def test_a_hit_is_the_same_report_and_page_to_the_byte(monkeypatch, experiment, prepared, kept):
    folder, runs = kept
    never_simulates(monkeypatch)
    again = run_paths(prepared.program, experiment, prepared.token_ids, Cache(folder))
    assert all(run.cached for run in again.values())
    assert not any(run.cached for run in runs.values())
    first, second = (outcome_of(experiment, prepared, found) for found in (runs, again))
    assert json.dumps(report_of(first)) == json.dumps(report_of(second))
    assert page_of(experiment, first, [], "", "") == page_of(experiment, second, [], "", "")
    assert list(second.cached) == ["analytical", "cycle"]


def test_accuracy_comes_back_with_its_text_and_trace(tmp_path):
    experiment = compose_experiment("experiment=quick", "paths=[accuracy]")
    prepared, cache = prepare(experiment, "Tom has 12 apples."), Cache(tmp_path)
    first = run_paths(prepared.program, experiment, prepared.token_ids, cache)
    second = run_paths(prepared.program, experiment, prepared.token_ids, cache)
    assert second["accuracy"].cached
    assert second["accuracy"].trace.digest == first["accuracy"].trace.digest
    outcomes = [outcome_of(experiment, prepared, runs) for runs in (first, second)]
    assert json.dumps(report_of(outcomes[0])) == json.dumps(report_of(outcomes[1]))


def test_whatever_a_result_depends_on_makes_another_entry(tmp_path, experiment, prepared, kept):
    folder, _ = kept
    program, tokens, trace = prepared.program, prepared.token_ids, Trace(breaks=(1, 1))

    def cached(name, experiment, program=program, trace=trace):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "copy")
        return run_path(name, program, experiment, tokens, trace, Cache(tmp_path / "copy")).cached

    slower = dataclasses.replace(experiment, hardware=dataclasses.replace(experiment.hardware, dma_outstanding=1))
    option = dataclasses.replace(experiment, options={"cycle": {"fast_forward": False}})
    other = prepare(compose_experiment("experiment=quick", "workload.cache=none"), "Tom has 12 apples.").program
    renamed = dataclasses.replace(
        program, phases=tuple(dataclasses.replace(phase, name="setup") for phase in program.phases)
    )
    assert cached("cycle", experiment)
    assert renamed.digest == program.digest
    for changed in ({"experiment": slower}, {"experiment": option}, {"program": other}, {"program": renamed},
                    {"trace": Trace(breaks=(0, 0))}):  # fmt: skip
        assert not cached("cycle", **{"experiment": experiment, **changed})
    assert cached("analytical", option)


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a")
    before = folder_digest(str(tmp_path))
    assert folder_digest(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"bb")
    assert folder_digest(str(tmp_path)) != before


def test_a_cache_that_is_off_or_cannot_be_written_gives_nothing_and_costs_nothing(tmp_path, experiment, prepared):
    (tmp_path / "file").write_text("")
    for cache in (Cache(None), Cache(tmp_path / "file" / "results")):
        cache.put("ab", {})
        assert cache.get("ab") is None
        assert known_runs(prepared.program, experiment, prepared.token_ids, cache) is None


def test_what_has_no_known_content_has_no_digest():
    assert digest_of(np.int64(3)) == digest_of(3)
    with pytest.raises(TypeError, match="no content of a object"):
        digest_of(object())


def damaged(data, generator):
    """The bytes with one to three bits flipped, or cut, or lengthened."""
    kind = generator.randrange(4)
    if kind == 0:
        return data[: generator.randrange(len(data))]
    if kind == 1:
        return data + generator.randbytes(generator.randint(1, 40))
    bits = bytearray(data)
    for place in generator.sample(range(len(data)), generator.randint(1, 3)):
        bits[place] ^= 1 << generator.randrange(8)
    return bytes(bits)


def test_a_damaged_entry_is_computed_anew_and_replaced(monkeypatch, experiment, prepared, kept, tmp_path):
    """Every damage is refused; for some, the whole way is gone: recomputed to the same metrics, and whole afterwards."""
    source, runs = kept
    folder = tmp_path / "copy"
    shutil.copytree(source, folder)
    cache, generator = Cache(folder), random.Random(1)
    entries = {file: file.read_bytes() for file in folder.rglob("*.result")}
    for number in range(CORRUPTIONS):
        file, data = generator.choice(list(entries.items()))
        file.write_bytes(damaged(data, generator))
        assert cache.get(file.stem) is None
        if number % 100 == 0:
            again = run_paths(prepared.program, experiment, prepared.token_ids, cache)
            assert any(not run.cached for run in again.values())
            assert {name: run.result for name, run in again.items()} == {n: run.result for n, run in runs.items()}
        file.write_bytes(data)
        assert cache.get(file.stem) is not None


def test_an_entry_answers_only_for_itself():
    content = {"a": 1.5}
    assert decode(encode(content, "x"), "x") == content
    with pytest.raises(ValueError, match="not the one"):
        decode(encode(content, "x"), "y")


def test_an_entry_of_another_form_is_no_hit(tmp_path, experiment, prepared, kept):
    """Whole, but not what this version writes: a field more, a field less, another program's."""
    folder, _ = kept
    for file in folder.rglob("*.result"):
        content = decode(file.read_bytes(), file.stem)
        for wrong in ({**content, "more": 1}, {"result": content["result"]}, {},
                      {**content, "result": {**content["result"], "program_digest": "0" * 64}}):  # fmt: skip
            Cache(tmp_path).put(file.stem, wrong)
            assert Cache(tmp_path).get(file.stem) == wrong
            assert known_runs(prepared.program, experiment, prepared.token_ids, Cache(tmp_path)) is None


def test_a_damaged_program_file_is_refused(prepared):
    data, generator = prepared.program.to_bytes(), random.Random(2)
    for _ in range(CORRUPTIONS):
        with pytest.raises(ProgramError):
            Program.from_bytes(damaged(data, generator))


def test_without_paths_nothing_is_compiled():
    experiment = compose_experiment("experiment=dram_reference")
    assert prepare(experiment, None) == Prepared(program=None, prompts=None)
    assert prepare(experiment, None).token_ids == []


def test_what_was_not_used_for_longest_is_removed_first(tmp_path):
    cache, digests = Cache(tmp_path), [f"{number:064x}" for number in range(300, 310)]
    for age, digest in enumerate(digests):
        cache.put(digest, {"value": digest})
        os.utime(next(tmp_path.glob(f"*/{digest}.result")), (age, age))
    left = tmp_path / "00" / ".killed.result.xyz"  # of a writer that was killed
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    mine = tmp_path / "notes.txt"
    mine.write_text("not of the cache")
    cache.prune(None)
    size = sum(place.stat().st_size for place in tmp_path.glob("*/*.result"))
    cache.prune(size + 4)
    assert left.exists()
    assert cache.get(digests[0])  # used: from now on the youngest
    cache.prune(size * 4 // 10)
    assert [digest for digest in digests if cache.get(digest)] == [digests[0], *digests[-3:]]
    assert not left.exists()
    cache.prune(0)
    assert [place for place in tmp_path.rglob("*") if place.is_file()] == [mine]
    Cache(tmp_path / "absent").prune(0)
    Cache(None).prune(0)


def test_an_entry_is_whole_or_not_there_while_others_prune(tmp_path):
    content = {"value": list(range(2000))}
    digests = [f"{number:064x}" for number in range(40)]

    def work(seed):
        cache, generator = Cache(tmp_path), random.Random(seed)
        for _ in range(200):
            digest = generator.choice(digests)
            assert cache.get(digest) in (None, content)
            cache.put(digest, content)
            cache.prune(20 * 8000)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    Cache(tmp_path).prune(20 * 8000)
    assert sum(place.stat().st_size for place in tmp_path.glob("*/*")) <= 20 * 8000
