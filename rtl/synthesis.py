"""Maps the core to the cells of ASAP7 and times it, unit by unit: `python -m rtl.synthesis [UNIT...]` (`make synth`).

Yosys with the slang front end (`pyosys`) reads the sources, OpenSTA (`sta`) finds the critical path. A unit is mapped with the
units and leaves inside it as black boxes, whose areas are added; a leaf alone, one lane, adder, block or column of it. SRAM is
not mapped: its bits have an assumed area. For the critical path the netlists of what is inside are put in their places.
Cells that the library marks as don't-use (`*xp*` and the like) are allowed; four-fold flip-flops, latches and the buffers for
hold times (`HB*`, slow on purpose) are not.
"""

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rtl.hardware import small_core

FOLDER = Path(__file__).parent
LIBRARY = "asap7_rvt_tt.lib"
PLACES = ("/work/shared/asap7", "shared/asap7", "../shared/asap7")
PERIOD_PS = 1000
"""The clock that the core is meant for."""
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
"""Commands of ABC where those of Yosys do not reach `PERIOD_PS`: `if -g` balances the depth of the logic before it is mapped,
which costs a tenth of the area and makes paths a fifth shorter."""
FANOUT, BUFFER = 8, "BUFx8_ASAP7_75t_R"
"""Of the trees that bring a wire to all instances of a leaf."""
SRAM_BIT_UM2 = 0.0426
"""Area of a bit of SRAM, assumed: a cell of 0.027 um2 at a share of cells of 63 %."""
SYNTHESISED = tuple((FOLDER / "sources.txt").read_text().split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A part to map, the modules inside it that are black boxes, and the load of each output in fF."""

    what: str
    boxes: tuple[str, ...] = ()
    load: float = 4.0
    parameters: str = ""
    module: str | None = None


LEAVES = {
    "adders": Source(what="FP32 adder, two stages"),
    "terms": Source(what="integer to FP32 and two scales, for one block of one column; five stages"),
    "dots": Source(what="dot products of one column, 32 MACs of 8 bits; two stages"),
    "dots4": Source(what="the same for MXINT4 alone", module="dots", parameters="-G BITS=4"),
    "quantisers": Source(what="BF16 to a code of MXINT8 or MXINT4", load=50.0),
    "dequantisers": Source(what="code to BF16"),
    "lanes": Source(what="one lane: FP32 sum, two products, maximum, all tables; eight stages"),
    "address_steps": Source(what="one address register"),
}
UNITS = {
    "queue": Source(what="one queue of 8 places"),
    "retirement": Source(what="retirement in order of one unit"),
    "front_end": Source(what="front end", boxes=("address_steps",)),
    "vector_control": Source(what="interlocks of the vector queue"),
    "matrix_unit": Source(what="matrix unit, 64 accumulators",
                          boxes=("adders", "terms", "dots", "quantisers")),
    "vector_unit": Source(what="vector unit of 32 lanes, and the scalar unit", boxes=("adders", "lanes")),
    "dma_control": Source(what="order of descriptors, walker"),
    "dma_in": Source(what="loads", boxes=("dequantisers",)),
    "dma_out": Source(what="stores", boxes=("quantisers",)),
}  # fmt: skip
SRAMS = ("program_sram", "vector_sram", "matrix_sram", "scalar_sram")
CORE = Source(what="semaphores and wires of the core", boxes=(*UNITS, *SRAMS))
SOURCES = {**LEAVES, **UNITS, "core": CORE}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """Area in um2 and number of cells without black boxes; which of those there are, as (module, count); critical path in ps."""

    area: float
    cells: int
    boxes: tuple[tuple[str, int], ...]
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
    """The library or tool that synthesis lacks, in one line; None if it can run."""
    if library() is None:
        return "no cell library; set ASAP7_LIB to asap7_rvt_tt.lib.gz"
    if shutil.which("sta") is None:
        return "no sta; install opensta"
    try:
        import pyosys  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return "no pyosys; pip install pyosys==0.70"
    return None


def synthesise(name: str, cells: Path, work: Path) -> Mapped:
    """Map a leaf or a unit to `cells` (an unpacked library), in the folder `work`, where the netlists of its leaves are.

    A leaf is mapped by Yosys' own commands, and by `RECIPE` where those do not reach `PERIOD_PS`; a unit by `RECIPE`.
    """
    if name not in LEAVES:
        return _mapped(name, cells, work, by_recipe=True)
    plain = _mapped(name, cells, work, by_recipe=False)
    return plain if plain.path <= PERIOD_PS else _mapped(name, cells, work, by_recipe=True)


def _mapped(name: str, cells: Path, work: Path, *, by_recipe: bool) -> Mapped:
    from pyosys import libyosys  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    source = SOURCES[name]
    module = source.module or name
    netlist, statistics = work / f"{name}.v", work / f"{name}.statistics"
    constraints, recipe = work / "constraints", work / "recipe"
    recipe.write_text(RECIPE)
    constraints.write_text(f"set_driving_cell BUFx2_ASAP7_75t_R\nset_load {source.load} [all_outputs]\n")
    design = libyosys.Design()
    ties = "-hicell TIEHIx1_ASAP7_75t_R H -locell TIELOx1_ASAP7_75t_R L"
    mapping = f"-script {recipe}" if by_recipe else f"-D {TARGET_PS}"
    wired = work / f"{name}.json"
    for command in (
        f"{_read(name)} {source.parameters}", f"hierarchy -top {module}", "synth -flatten -booth",
        f"dfflibmap -dont_use DFFHQx4* -dont_use DFFLQ* -liberty {cells}",
        f"abc -liberty {cells} -dont_use HB* -constr {constraints} {mapping}",
        "setundef -zero", f"hilomap {ties}", "opt_clean -purge", f"write_json {wired}",
    ):  # fmt: skip
        _run(command, design)
    _spread(wired, module, source.boxes)
    design = libyosys.Design()
    for command in (
        f"read_json {wired}", f"hierarchy -top {module}", f"write_verilog -noattr -simple-lhs {netlist}",
        f"tee -q -o {statistics} stat -liberty {cells}",
    ):  # fmt: skip
        _run(command, design)
    text = statistics.read_text()
    area = re.findall(r"Chip area for (?:top )?module.*: ([\d.]+)", text)
    count = re.findall(r"^\s*(\d+)\s+(?:[\d.E+]+\s+)?cells$", text, re.MULTILINE)
    boxes = _boxes(netlist, source)
    return Mapped(
        area=float(area[-1]), cells=int(count[-1]) - len(boxes), boxes=boxes, path=critical_path(name, cells, work)
    )  # fmt: skip


def _read(name: str) -> str:
    """The pass that reads a module and what it needs."""
    source = SOURCES[name]
    sources = " ".join(str(FOLDER / file) for file in SYNTHESISED)
    boxes = " ".join(f"--blackboxed-module {box}" for box in source.boxes)
    return f"read_slang --top {source.module or name} {boxes} {sources}"


def _boxes(netlist: Path, source: Source) -> tuple[tuple[str, int], ...]:
    """The black boxes of a netlist with the COUNT of each. Leaves become modules of their own in the netlist, as STA reads it."""
    found = []

    def plain(match: re.Match[str]) -> str:
        count = re.search(r"\.COUNT\(32'(?:sd|d|h)([0-9a-f]+)\)", match[2] or "")
        number = 1 if count is None else int(count[1], 16 if "'h" in count[0] else 10)
        found.append((match[1], number))
        name = f"{match[1]}_{number}" if match[1] in LEAVES else match[1]
        return f"  {name} {match[3]} ("

    names = "|".join(source.boxes)
    if names:
        text = re.sub(rf"^  ({names}) (#\([^;]*?\n  \) )?(\S+) +\(", plain, netlist.read_text(), flags=re.MULTILINE)
        netlist.write_text(text)
    return tuple(found)


def _run(command: str, design: object) -> None:
    """A pass of Yosys, which names every one on standard output."""
    from pyosys import libyosys  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        libyosys.run_pass(command, design)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _ports(name: str, count: int) -> dict[str, tuple[str, int]]:
    """Direction and bits of each port of a leaf with COUNT = `count`."""
    from pyosys import libyosys  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    design = libyosys.Design()
    _run(f"{_read(name)} -G COUNT={count}", design)
    wires = design.top_module().wires_.values()
    return {
        str(wire.name).removeprefix("\\"): ("input" if wire.port_input else "output", int(wire.width))
        for wire in wires
        if wire.port_input or wire.port_output
    }


def _array(name: str, count: int) -> str:
    """A module of `count` instances of a mapped leaf. A port that grows with COUNT is divided among them; others are shared,
    through a tree of buffers (whose area is nowhere)."""
    one, two = _ports(name, 1), _ports(name, 2)
    own = {port for port, (_, width) in one.items() if two[port][1] != width}
    lines = [f"module {name}_{count} ({', '.join(one)});"]
    lines += [f"{way} [{width * (count if port in own else 1) - 1}:0] {port};" for port, (way, width) in one.items()]
    shared = {}
    for port, (way, width) in one.items():
        if port not in own:
            shared[port] = [port] * count
            if way == "input" and port != "clock":
                buffers, shared[port] = _tree(port, width, count)
                lines += buffers
    for i in range(count):
        wires = ", ".join(
            f".{port}({port}[{(i + 1) * width - 1}:{i * width}])" if port in own else f".{port}({shared[port][i]})"
            for port, (_, width) in one.items()
        )
        lines.append(f"  {name} i{i} ({wires});")
    return "\n".join([*lines, "endmodule\n"])


def _tree(port: str, width: int, count: int) -> tuple[list[str], list[str]]:
    """Buffers that bring a port to `count` places, `FANOUT` to each, and the wire at each place."""
    lines, above = [], [port]
    for level, size in enumerate(_levels(count), 1):
        wires = [f"{port}_{level}_{i}" for i in range(size)]
        for i, wire in enumerate(wires):
            lines.append(f"wire [{width - 1}:0] {wire};")
            source = above[i // FANOUT]
            lines += [f"  {BUFFER} {wire}_b{bit} (.A({source}[{bit}]), .Y({wire}[{bit}]));" for bit in range(width)]
        above = wires
    return lines, [above[i // FANOUT] for i in range(count)]


def _levels(count: int) -> list[int]:
    """Buffers of each level of a tree to `count` places, `FANOUT` to each; one at least where there are several places."""
    if count == 1:
        return []
    levels = [-(-count // FANOUT)]
    while levels[0] > FANOUT:
        levels.insert(0, -(-levels[0] // FANOUT))
    return levels


def _spread(netlist: Path, top: str, boxes: tuple[str, ...]) -> None:
    """Put trees of buffers where a wire of a mapped netlist (JSON) goes to several inputs of leaves: the mapping takes all of
    them together for one load."""
    design = json.loads(netlist.read_text())
    module = design["modules"][top]
    cells = module["cells"]
    places: dict[int, list[tuple[list, int]]] = {}
    named = (part["bits"] for part in (*module["ports"].values(), *module["netnames"].values()))
    highest = max(bit for bits in named for bit in bits if isinstance(bit, int))
    for cell in cells.values():
        for port, bits in cell["connections"].items():
            highest = max([highest, *(bit for bit in bits if isinstance(bit, int))])
            if cell["type"] in boxes and cell["port_directions"][port] == "input" and port != "clock":
                for i, bit in enumerate(bits):
                    if isinstance(bit, int):
                        places.setdefault(bit, []).append((bits, i))
    for bit, pins in places.items():
        above = [bit]
        for size in _levels(len(pins)):
            wires = [highest + 1 + i for i in range(size)]
            for i, wire in enumerate(wires):
                cells[f"spread_{wire}"] = {
                    "hide_name": 0, "type": BUFFER, "parameters": {}, "attributes": {},
                    "port_directions": {"A": "input", "Y": "output"}, "connections": {"A": [above[i // FANOUT]], "Y": [wire]},
                }  # fmt: skip
            highest, above = highest + size, wires
        if len(pins) > 1:
            for i, (bits, place) in enumerate(pins):
                bits[place] = above[i // FANOUT]
    netlist.write_text(json.dumps(design))


def critical_path(name: str, cells: Path, work: Path) -> float:
    """The longest path between registers in ps, with the set-up of the register that it ends in; what is inside included, but
    for SRAM, at which paths begin and end unseen."""
    source, files = SOURCES[name], _netlists(name, work)
    script = work / f"{name}.tcl"
    read = "".join(f"read_verilog {file}\n" for file in dict.fromkeys(files))
    script.write_text(
        f"read_liberty {cells}\n{read}link_design {source.module or name}\n"
        f"create_clock -name clock -period {PERIOD_PS} [get_ports clock]\n"
        "set_input_delay 0 -clock clock [all_inputs]\nset_output_delay 0 -clock clock [all_outputs]\n"
        "report_checks -path_delay max\nexit\n"
    )
    done = subprocess.run(["sta", "-no_splash", "-exit", script], capture_output=True, text=True, check=True)  # noqa: S603, S607
    slacks = re.findall(r"(-?[\d.]+)\s+slack", done.stdout)
    if len(slacks) != 1:
        raise RuntimeError(f"synth: sta found no path of {name}\n{done.stdout[-2000:]}")
    (work / f"{name}.path").write_text(done.stdout)
    return PERIOD_PS - float(slacks[0])


def _netlists(name: str, work: Path) -> list[Path]:
    """The netlist of a unit, and those of all that is inside."""
    source = SOURCES[name]
    files = [work / f"{name}.v"]
    for box, count in sorted(set(_boxes_in(files[0], source))):
        arrays = work / f"{box}_{count}.v"
        arrays.write_text(_array(box, count))
        files += [work / f"{box}.v", arrays]
    return files + [file for box in source.boxes if box in UNITS for file in _netlists(box, work)]


def _boxes_in(netlist: Path, source: Source) -> list[tuple[str, int]]:
    names = "|".join(box for box in source.boxes if box in LEAVES)
    found = re.findall(rf"^  ({names})_(\d+) \S+ +\(", netlist.read_text(), re.MULTILINE) if names else []
    return [(box, int(count)) for box, count in found]


def main() -> int:
    """Print a row for each leaf and unit, and their sum; or why there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", nargs="*", metavar="UNIT", help="of the core; all without any")
    units = parser.parse_args().units
    lack = missing()
    if lack is not None:
        print(f"synth: skipped, {lack}")
        return 0
    packed = library()
    assert packed is not None
    chosen = [name for name in units if name in SOURCES] or list(SOURCES)
    needed = {box for name in chosen for box in SOURCES[name].boxes}
    needed |= {leaf for name in needed & set(UNITS) for leaf in SOURCES[name].boxes}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        cells = work / LIBRARY
        data = packed.read_bytes()
        cells.write_bytes(gzip.decompress(data) if packed.suffix == ".gz" else data)
        print(f"{'unit':16}{'um2':>11}{'with leaves':>13}{'cells':>8}{'ps':>8}{'GHz':>7}")
        mapped: dict[str, Mapped] = {}
        for name in [name for name in SOURCES if name in chosen or name in needed]:
            mapped[name] = one = synthesise(name, cells, work)
            path = f"{one.path:8.0f}{1000 / one.path:7.2f}"
            print(
                f"{name:16}{one.area:11.1f}{total(name, mapped):13.1f}{one.cells:8}{path}  {SOURCES[name].what}",
                flush=True,
            )
        if "core" in chosen:
            bits = sram_bits()
            print(
                f"{'SRAM':16}{bits * SRAM_BIT_UM2:11.1f}{bits * SRAM_BIT_UM2:13.1f}  {bits} bits of {SRAM_BIT_UM2} um2 (assumed)"
            )
    return 0


def sram_bits() -> int:
    """Bits of all memories of the small core, instructions included."""
    sram = small_core().sram
    return 8 * (sram.matrix_bytes + sram.vector_bytes + sram.fp_bytes + sram.int_bytes) + 4096 * 128


def total(name: str, mapped: dict[str, Mapped]) -> float:
    """Area with what is mapped of the black boxes, SRAM left out."""
    boxes = Counter(dict[str, int]())
    for box, count in mapped[name].boxes:
        boxes[box] += count
    return mapped[name].area + sum(count * total(box, mapped) for box, count in boxes.items() if box in mapped)


if __name__ == "__main__":
    sys.exit(main())
