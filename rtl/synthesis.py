"""Maps the leaf units to the cells of ASAP7 and times them: `python -m rtl.synthesis` (`make synth`).

Yosys with the slang front end (`pyosys`) reads the sources, OpenSTA (`sta`) finds the critical path. Each leaf is mapped
alone, one lane, adder, block or column of it; SRAM bodies and what surrounds the leaves are not mapped. Cells that the library
marks as don't-use (`*xp*` and the like) are allowed; four-fold flip-flops and latches are not.
"""

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = "asap7_rvt_tt.lib"
PLACES = ("/work/shared/asap7", "shared/asap7", "../shared/asap7")
TARGET_PS = 400
"""Delay that the mapping aims at between registers: short, so that it sizes and buffers."""
RECIPE = f"""strash
ifraig
scorr
dc2
dch -f
if -g -K 6
strash
&get -n
&dch -f
&nf -D {TARGET_PS}
&put
buffer -c
topo
upsize -D {TARGET_PS}
dnsize -D {TARGET_PS}
"""
"""Commands of ABC: as Yosys' own, but `if -g` balances the depth of the logic before it is mapped, which costs a tenth of the
area and makes paths a fifth shorter."""
PACKAGES = ("tripath_pkg.sv", "core_pkg.sv", "float_pkg.sv", "transcendental_pkg.sv", "quantise_pkg.sv", "lane_pkg.sv")
LEAVES = {
    "adders": ("adder.sv", "FP32 adder, two stages"),
    "terms": ("term.sv", "integer to FP32 and two scales, for one block of one column; five stages"),
    "dots": ("dot.sv", "dot products of one column, 32 MACs of 8 bits; two stages"),
    "quantisers": ("quantise.sv", "BF16 to a code of MXINT8 or MXINT4"),
    "dequantisers": ("dequantise.sv", "code to BF16"),
    "lanes": ("lane.sv", "one lane: FP32 sum, two products, maximum, all tables; eight stages"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    """Area in um2, number of cells, critical path in ps."""

    area: float
    cells: int
    path: float


def library() -> Path | None:
    """The packed library: `$ASAP7_LIB` (a folder or the file), or where this project keeps it; None where it is not."""
    named = os.environ.get("ASAP7_LIB")
    for place in [named] if named else PLACES:
        path = Path(place)
        for file in (path, path / f"{LIBRARY}.gz", path / LIBRARY):
            if file.is_file():
                return file
    return None


def missing() -> str | None:
    """What synthesis lacks, in one line; None where it can run."""
    if library() is None:
        return "no cell library; set ASAP7_LIB to asap7_rvt_tt.lib.gz"
    if shutil.which("sta") is None:
        return "no sta; install opensta"
    try:
        import pyosys  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return "no pyosys; pip install pyosys==0.70"
    return None


def synthesise(module: str, cells: Path, work: Path) -> Leaf:
    """Map one leaf with COUNT = 1 to `cells` (an unpacked library), in the folder `work`."""
    from pyosys import libyosys  # pyright: ignore[reportMissingImports]

    sources = " ".join(str(FOLDER / name) for name in (*PACKAGES, LEAVES[module][0]))
    netlist, log = work / f"{module}.v", work / f"{module}.log"
    constraints, recipe = work / "constraints", work / "recipe"
    recipe.write_text(RECIPE)
    constraints.write_text("set_driving_cell BUFx2_ASAP7_75t_R\nset_load 1.0 [all_outputs]\n")
    design = libyosys.Design()
    ties = "-hicell TIEHIx1_ASAP7_75t_R H -locell TIELOx1_ASAP7_75t_R L"
    for command in (
        f"read_slang --top {module} {sources}", f"hierarchy -top {module}", "synth -flatten -booth",
        f"dfflibmap -dont_use DFFHQx4* -dont_use DFFLQ* -liberty {cells}",
        f"abc -liberty {cells} -constr {constraints} -script {recipe}",
        "setundef -zero", f"hilomap {ties}", "opt_clean -purge", f"write_verilog -noattr -simple-lhs {netlist}",
    ):  # fmt: skip
        _run(f"tee -q -a {log} {command}", design)
    _run(f"tee -q -o {log}.stat stat -liberty {cells}", design)
    text = Path(f"{log}.stat").read_text()
    area = re.findall(r"Chip area for (?:top )?module.*: ([\d.]+)", text)
    count = re.findall(r"^\s*(\d+)\s+(?:[\d.E+]+\s+)?cells$", text, re.MULTILINE)
    return Leaf(area=float(area[-1]), cells=int(count[-1]), path=critical_path(module, netlist, cells, work))


def _run(command: str, design: object) -> None:
    """A pass of Yosys, which names every one on standard output."""
    from pyosys import libyosys  # pyright: ignore[reportMissingImports]

    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        libyosys.run_pass(command, design)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def critical_path(module: str, netlist: Path, cells: Path, work: Path) -> float:
    """The longest path between registers in ps, with the set-up of the register that it ends in."""
    script = work / f"{module}.tcl"
    script.write_text(
        f"read_liberty {cells}\nread_verilog {netlist}\nlink_design {module}\n"
        "create_clock -name clock -period 1000 [get_ports clock]\n"
        "set_input_delay 0 -clock clock [all_inputs]\nset_output_delay 0 -clock clock [all_outputs]\n"
        "report_checks -path_delay max\nexit\n"
    )
    done = subprocess.run(["sta", "-no_splash", "-exit", script], capture_output=True, text=True, check=True)  # noqa: S603, S607
    slacks = re.findall(r"(-?[\d.]+)\s+slack", done.stdout)
    if len(slacks) != 1:
        raise RuntimeError(f"synth: sta found no path of {module}\n{done.stdout[-2000:]}")
    return 1000.0 - float(slacks[0])


def main() -> int:
    """Print a row for each leaf, or why there is none."""
    lack = missing()
    if lack is not None:
        print(f"synth: skipped, {lack}")
        return 0
    packed = library()
    assert packed is not None
    chosen = [name for name in sys.argv[1:] if name in LEAVES] or list(LEAVES)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        cells = work / LIBRARY
        data = packed.read_bytes()
        cells.write_bytes(gzip.decompress(data) if packed.suffix == ".gz" else data)
        print(f"{'unit':14}{'um2':>10}{'cells':>8}{'ps':>8}{'GHz':>7}")
        for name in chosen:
            leaf = synthesise(name, cells, work)
            figures = f"{leaf.area:10.1f}{leaf.cells:8}{leaf.path:8.0f}{1000 / leaf.path:7.2f}"
            print(f"{name:14}{figures}  {LEAVES[name][1]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
