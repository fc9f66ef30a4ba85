"""Synthesis skips with one line where it lacks something, and finds areas and paths where it does not."""

import gzip

import pytest

from rtl import synthesis


def test_without_a_library_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["synthesis"])
    monkeypatch.setenv("ASAP7_LIB", "/nowhere")
    assert synthesis.main() == 0
    assert capsys.readouterr().out == "synth: skipped, no cell library; set ASAP7_LIB to asap7_rvt_tt.lib.gz\n"


def test_a_leaf_has_an_area_and_a_path(tmp_path):
    lack = synthesis.missing()
    if lack is not None:
        pytest.skip(lack)
    packed = synthesis.library()
    assert packed is not None
    cells = tmp_path / synthesis.LIBRARY
    cells.write_bytes(gzip.decompress(packed.read_bytes()) if packed.suffix == ".gz" else packed.read_bytes())
    leaf = synthesis.synthesise("quantisers", cells, tmp_path)
    assert 10 < leaf.area < 40
    assert 100 < leaf.path < 2000
    assert leaf.cells > 100
