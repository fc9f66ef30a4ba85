"""A mistake of the user's is one line on standard error, with the key to change, and leaves no folder."""

import pytest

from tests.test_cli import MODELS, tripath_command  # noqa: F401  a fixture
from tripath.command import cli

BAD_INPUT = [
    (
        ["model=lada_8b"],
        f"model: no option 'lada_8b', one of {', '.join(MODELS)}; did you mean 'llada_8b'?",
    ),
    (["nothing=1"], "nothing: no such key"),
    (["+nothing=1"], "nothing: no such key, one of compiler, hardware"),
    (["workload.stps=8"], "workload.stps: no such key, `tripath --cfg job` prints all; did you mean 'workload.steps'?"),
    (
        ["workload.cache=dul"],
        "unknown 'dul', one of none, prefix, dual, vicinity, append, dkv, dllm_cache, sparse; did you mean 'dual'?",
    ),
    (["+workload.stps=8"], "workload.stps: no such key, one of prompt"),
    (["workload.steps"], "arguments: cannot read 'workload.steps', write KEY=VALUE"),
    (["workload.steps=many"], "workload.steps: must be an integer, got 'many'"),
    (["workload.steps=8.5"], "workload.steps: must be an integer, got 8.5"),
    (["workload.steps=true"], "workload.steps: must be an integer, got True"),
    (["workload.steps=5"], "workload.steps: must be a multiple of the number of blocks 4, got 5"),
    (["workload.generation_length=33"], "workload.generation_length: must be a multiple"),
    (["workload.threshold=.nan"], "workload.threshold: must be a finite number"),
    (["workload.cache=none,dual"], "Ambiguous value for argument 'workload.cache=none,dual'"),
    (["workload.prompt_length=500"], "workload.prompt: 500 tokens"),
    (["workload.prompt_length=9", "workload.prompt=hello"], "workload: give one of prompt, prompts_file"),
    (["workload.prompt="], "workload.prompt: the prompt is empty"),
    (["workload.prompts_file=absent.txt"], "workload.prompts_file: cannot read absent.txt"),
    (["hardware.sram.vector_bytes=100"], "hardware.sram.vector_bytes: working set"),
    (["hardware.blen=7"], "hardware.blen: must be a power of two"),
    (["hardware.hbm.channels=two"], "hardware.hbm.channels: must be an integer"),
    (["hardware.timing.M_MM.latency=long"], "hardware.timing.M_MM.latency: must be an integer"),
    (["~hardware.blen"], "hardware.blen: is missing"),
    (["+hardware.hbm._target_=os.system"], "hardware.hbm._target_: is Hbm here, got 'os.system'"),
    (["numerics.kv=mxint5"], "numerics.kv: unknown 'mxint5'"),
    (["model.checkpoint=absent"], "model.checkpoint: no such folder absent"),
    (["model.checkpoint=pkg://absent/folder"], "model.checkpoint: no package 'absent'"),
    (["model=llada_8b"], "paths: model llada_8b has no checkpoint to execute; use paths=[analytical,cycle]"),
    (["model=llada_8b", "paths=[cycle]"], "workload.prompt_length: model llada_8b has no tokenizer"),
    (["paths=[spice]"], "paths: unknown 'spice', one of analytical, cycle, accuracy, quality, perplexity, rtl"),
    (["paths=[analytcal,cycle]"], "did you mean 'analytical'?"),
    (["paths=[]"], "paths: must be a choice of"),
    (["paths=[cycle,cycle]"], "paths: must be a choice of"),
    (["+simulator.cycle.speed=2", "paths=[cycle]"], "simulator.cycle: unknown option 'speed'"),
    (["simulator.cycle.race_check=[]", "paths=[cycle]"], "simulator.cycle.race_check: must be true or false, got []"),
    (["simulator.cycle.fast_forward=no", "paths=[cycle]"], "fast_forward: must be true or false, got 'no'"),
    (["simulator.accuracy.keep_quantised=1", "paths=[accuracy]"], "keep_quantised: must be true or false, got 1"),
    (["simulator.quality.planted=much", "paths=[quality]"], "simulator.quality.planted: must be a finite number"),
    (["+simulator.spice.speed=2"], "simulator.spice: no such simulator"),
    (["validation.estimate.value=0.9"], "validation.estimate: tolerance 0.9"),
    (["validation.fail_on=[counts]"], "validation.fail_on: unknown 'counts'"),
    (["launch.num_cpus=0"], "launch.num_cpus: must be from 1 to 65536, got 0"),
    (["launch.num_cpus=true"], "launch.num_cpus: must be an integer, got True"),
    (["launch.job_cpus=null"], "launch.job_cpus: must be an integer, got None"),
    (["launch.address=6379"], "launch.address: must be a text, got 6379"),
    (["tracking.enabled=maybe"], "tracking.enabled: must be true or false"),
    (["modell=llada_8b"], "modell: no such key, `tripath --cfg job` prints all; did you mean 'model'?"),
    (["steps=8"], "steps: no such key, `tripath --cfg job` prints all; did you mean 'workload.steps'?"),
    (["hydra.run.dr=x"], "did you mean 'hydra.run.dir'?"),
    (
        ["hardware.hbm=hbm3"],
        "hardware.hbm: needs a mapping, got 'hbm3'; a file is chosen by hardware/hbm=hbm3",
    ),
    (["experiment=kv_quantization"], "did you mean 'kv_quantisation'?"),
    (["scheme=boas"], "scheme: no option 'boas', one of baos, "),
    (["numerics/smoothing=boas"], "numerics/smoothing: no option 'boas', one of baos, plain; did you mean 'baos'?"),
    (["hardware.execution=decouple"], "hardware.execution: unknown 'decouple', one of serial, decoupled; did you mean"),
    (["launch.cache=no"], "launch.cache: unknown 'no', one of on, off"),
    (["workload.block_length=12"], "workload.block_length: unknown 12, one of 1, 2, 4, 8, 16, "),
    (["workload.prompt=Tom", "has", "12"], "arguments: cannot read 'has', write KEY=VALUE, and quote blanks"),
    (["paths=[analytical"], "arguments: cannot read 'paths=[analytical', write KEY=VALUE"),
    (
        ["+simulator.cycle.racecheck=false", "paths=[cycle]"],
        "one of race_check, fast_forward, trace_window; did you mean",
    ),
    (["+simulator.cycle.racecheck=false"], "simulator.cycle: unknown option 'racecheck'"),
    (["validation.streams=publised", "experiment=dram_reference"], "did you mean 'published'?"),
    (["--experimental-rerun", "job.pickle"], "arguments: --experimental-rerun reads a pickle, which may run code"),
    (["experiment=[quick,ci]"], "experiment: takes one file, got [quick,ci]; several are swept"),
    (["hardware=[npu_small,npu_v1]"], "hardware: takes one file, got [npu_small,npu_v1]"),
    (["workload.prompt=\udcff"], "arguments: must be UTF-8, got 'workload.prompt=\\udcff'"),
    (["--mutlirun"], "unrecognized arguments: --mutlirun; see tripath --help; did you mean '--multirun'?"),
    (["--speed"], "arguments: unrecognized arguments: --speed"),
    (["--multirun", "--run"], "Only one of --run"),
    (["--config-dir", "absent"], "Additional config directory"),
    (["hydra.run.dir=/proc/absent/run"], "hydra.run.dir: cannot write /proc/absent"),
    (["model.checkpoint=a,b [1] {c}=$d"], "model.checkpoint: no such folder a,b [1] {c}=$d"),
    (["workload.prompts_file=it's (1).txt"], "workload.prompts_file: cannot read it's (1).txt (No such file"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=lambda value: " ".join(value)[:40])
def test_bad_input_is_one_line_and_leaves_no_folder(tripath_command, tmp_path, arguments, message):  # noqa: F811
    status, _, errors = tripath_command("tracking=off", *arguments)
    assert status == cli.BAD_INPUT
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_folders_that_were_there_stay_and_those_that_hydra_made_go(tripath_command, tmp_path):  # noqa: F811
    mine = tmp_path / "mine"
    mine.mkdir()
    for place in ("mine", "mine/new/run"):
        status, _, _ = tripath_command("hardware.blen=7", f"hydra.run.dir={place}")
        assert status == cli.BAD_INPUT
        assert list(tmp_path.iterdir()) == [mine]
        assert not list(mine.iterdir())
