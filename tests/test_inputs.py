"""What users hand in by file or address, and cannot be used: one line that names it, at once, and status 2."""

import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dllm.checkpoint import load_tensors
from npu.errors import TripathError
from tests.conftest import CHECKPOINT, compose_experiment
from tests.test_cli import QUICK, tripath_command  # noqa: F401  a fixture
from tripath.cluster.launch import Launch, _check_room
from tripath.cluster.ray_calls import reach
from tripath.command import cli
from tripath.experiment.prompts import kept_prompts, read_prompts, read_prompts_file

BASE = "defaults:\n  - npu_small\n  - _self_\n"
BOMB = "a: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"b{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
FILES = [
    (f"{BASE}vlen: 128\nvlen: 256\n".encode(), "mine.yaml: line 5: found duplicate key vlen"),
    (
        f"{BASE}sram:\n\tvector_bytes: 1\n".encode(),
        "mine.yaml: line 5: found character '\\t' that cannot start any token",
    ),
    (f"{BASE}name: caf\xe9\n".encode("latin-1"), "mine.yaml: must be UTF-8, byte 44 is not"),
    (f"{BASE}name: &a [*a]\n".encode(), "mine.yaml: line 4: a value contains itself"),
    (f"{BASE}{BOMB}".encode(), "mine.yaml: must have at most 100000 values with its aliases written out, got"),
    (f"{BASE}name: [".encode(), "mine.yaml: line 4: expected the node content"),
    (b"[" * 100_000, "mine.yaml: is nested too deeply"),
    (b"#" * (1 << 21), "mine.yaml: must have at most 1048576 bytes, got 2097152"),
    (b"", "hardware.name: is missing"),
    (b"name: bare\nvlen: 128\n", "hardware.clock_hz: is missing"),
    (f"{BASE}vlne: 128\n".encode(), "hardware.vlne: no such key"),
    (
        f"{BASE}sram: {{vector_bytes: 512 lanes}}\n".encode(),
        "hardware.sram.vector_bytes: unknown unit 'lanes'",
    ),
    (f"{BASE}_target_: os.system\n".encode(), "hardware._target_: is HardwareConfig here, got 'os.system'"),
]


CODE = {
    "callback": ("hydra: {callbacks: {evil: {_target_: mark.make}}}", "hydra.callbacks.evil._target_: names code"),
    "launcher": ("hydra: {launcher: {_target_: mark.make}}", "hydra.launcher._target_: names code"),
    "sweeper": ("hydra: {sweeper: {_target_: mark.make}}", "hydra.sweeper._target_: names code"),
    "formatter": ("hydra: {job_logging: {version: 1, formatters: {evil: {(): mark.make}}}}", "evil.(): names code"),
    "handler": ("hydra: {hydra_logging: {version: 1, handlers: {evil: {class: mark.Handler}}}}", "evil.class: names code"),
    "stream": ("hydra: {job_logging: {version: 1, handlers: {evil: {stream: ext://mark.made}}}}", "stream: names code"),
    "node elsewhere": (
        'hydra: {callbacks: "${evil}"}\nevil: {made: {_target_: mark.make}}', "hydra.callbacks.made._target_: names code",
    ),
    "text elsewhere": (
        'hydra: {job_logging: {version: 1, handlers: {evil: {stream: "${evil}"}}}}\nevil: ext://mark.made',
        "stream: names code",
    ),
    "environment": ("hydra: {job: {env_set: {LD_PRELOAD: ./mark.so}}}", "hydra.job.env_set: is not taken"),
    "module": ("simulator: {evil: {module: mark}}", "simulator.evil.module: is imported only where the command line names it"),
    "judge": ("simulator: {quality: {scoring: mark}}", "simulator.quality.scoring: is imported only where the command"),
    "module of a path": ("simulator: {cycle: {module: mark}}", "simulator.cycle.module: is imported only where the command"),
}  # fmt: skip
"""By what an experiment would run the module `mark`, and what is said."""


@pytest.mark.parametrize("sweep", [(), ("--multirun",)], ids=["run", "sweep"])
@pytest.mark.parametrize("way", CODE)
def test_a_configuration_file_runs_no_code(tripath_command, tmp_path, monkeypatch, way, sweep):  # noqa: F811
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    content, said = CODE[way]
    (tmp_path / "own" / "experiment" / "evil.yaml").write_text(f"# @package _global_\n{content}\n")
    (tmp_path / "own" / "mark.py").write_text("from pathlib import Path\nPath('made').touch()\n")
    monkeypatch.syspath_prepend(tmp_path / "own")
    arguments = ("experiment=evil", "paths=[analytical]", "tracking=off", "workload.prompt_length=9")
    status, _, errors = tripath_command(*sweep, "--config-dir", "own", *arguments)
    assert (status, errors.count("\n")) == (cli.BAD_INPUT, 1), errors
    assert said in errors
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize(("content", "said"), FILES, ids=[said[:40] for _, said in FILES])
def test_a_configuration_file_that_is_none_is_one_line(tripath_command, tmp_path, content, said):  # noqa: F811
    (tmp_path / "own" / "hardware").mkdir(parents=True)
    (tmp_path / "own" / "hardware" / "mine.yaml").write_bytes(content)
    status, _, errors = tripath_command("--config-dir", "own", "hardware=mine", "paths=[analytical]", "tracking=off")
    assert (status, errors.count("\n")) == (cli.BAD_INPUT, 1), errors
    assert said in errors
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", b"\xef\xbb\xbfOne.\r\n\r\nTwo.\n", ["One.", "Two."]),
        ("a.txt", "One\u2028two.\n".encode(), ["One\u2028two."]),
        ("a.txt", b"One\x0ctwo.\n", ["One\x0ctwo."]),
        ("a.jsonl", b'{"prompt": "One.\\nTwo."}\n\n{"token_ids": [3, 4]}\n', ["One.\nTwo.", [3, 4]]),
    ],
)
def test_a_line_of_a_file_is_a_prompt(tmp_path, name, content, prompts):
    (tmp_path / name).write_bytes(content)
    assert read_prompts_file(str(tmp_path / name)) == prompts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\xff\xfe", "cannot read .*a.txt .*utf-8"),
        ("a.txt", b"\n", "no prompt in .*a.txt"),
        (
            "a.jsonl",
            b'{"prompt": 5}',
            "a.jsonl, line 1: needs an object with a text `prompt`, or with a list of integers",
        ),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "x", "token_ids": [1]}', "a.jsonl, line 2: needs an object"),
        ("a.jsonl", b'{"token_ids": [true]}', "line 1: needs an object"),
        ("a.jsonl", b"[" * 100_000, "line 1: needs an object"),
    ],
)
def test_a_file_of_prompts_that_is_none_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TripathError, match=f"^workload.prompts_file: .*{said}"):
        read_prompts_file(str(tmp_path / name))


def test_a_token_id_that_the_model_lacks_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"token_ids": [3, 512]}')
    experiment = compose_experiment(f"workload.prompts_file={tmp_path}/a.jsonl")
    with pytest.raises(TripathError, match=r"token ids must be from 0 to 511 \(model.vocab\), got 512"):
        read_prompts(experiment, None)


def test_prompts_may_come_through_a_pipe():
    read, write = os.pipe()
    thread = threading.Thread(target=lambda: (os.write(write, b"One.\nTwo.\n"), os.close(write)))
    thread.start()
    name = f"/dev/fd/{read}"
    assert read_prompts_file(kept_prompts(name)) == ["One.", "Two."]
    assert kept_prompts(name) == kept_prompts(name)
    thread.join()
    os.close(read)


def test_a_pipe_without_a_writer_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("tripath.experiment.prompts.PIPE_SECONDS", 0.3)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TripathError, match=r"^workload.prompts_file: nothing came from .*pipe in 0 s"):
        compose_experiment(f"workload.prompts_file={tmp_path}/pipe")


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path / "model")
    return tmp_path / "model"


def refused(checkpoint, said):
    with pytest.raises(TripathError, match=f"^model.checkpoint: .*{said}"):
        load_tensors(compose_experiment(f"model.checkpoint={checkpoint}").model)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(checkpoint, value):
    tensors = load_file(checkpoint / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name].copy()
    tensors[name].flat[3] = value
    save_file(tensors, checkpoint / "model.safetensors")
    refused(checkpoint, rf"tensor {name} has a value that is not finite \(.*model.safetensors\)")


def test_weights_that_are_no_weights_are_named(checkpoint):
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "layer.0.qweight": np.zeros(4, np.int32)}, weights)
    refused(checkpoint, "tensor layer.0.qweight is packed by GPTQ or AWQ")
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(checkpoint, "is a pointer of Git LFS; `git lfs pull` fetches the weights")
    (checkpoint / "config.json").unlink()
    os.mkfifo(checkpoint / "config.json")
    refused(checkpoint, "config.json is no file")


def server(answer):
    """A server that answers each connection with some bytes: its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            link = listening.accept()[0]
            if answer is not None:
                link.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return listening.getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no Ray cluster; its port is 6379"),
        (b"SSH-2.0-x\r\n", "no Ray"),
        (None, "timed out"),
    ],
)
def test_what_is_no_ray_cluster_is_found_out_at_once(monkeypatch, answer, said):
    monkeypatch.setattr("tripath.cluster.ray_calls.REACH_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises((TripathError, OSError), match=said):
        reach(f"127.0.0.1:{server(answer)}")
    assert time.monotonic() - began < 5
    reach(f"127.0.0.1:{server(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))}")
    with pytest.raises(TripathError, match="a port must be from 1 to 65535, got 99999"):
        reach("here:99999")


def test_jobs_that_no_node_has_room_for_are_refused():
    nodes = [{"CPU": 2.0, "memory": 1e9}, {"CPU": 4.0, "memory": 5e8}]
    _check_room(Launch(job_cpus=4, job_memory_bytes=10**9), nodes)
    with pytest.raises(TripathError, match=r"^launch.job_cpus: no node of the cluster has so much, 5 of at most 4$"):
        _check_room(Launch(job_cpus=5), nodes)
    with pytest.raises(TripathError, match=r"^launch.job_memory_bytes: no node .* 1000000001 of at most 1000000000$"):
        _check_room(Launch(job_memory_bytes=10**9 + 1), nodes)


def test_prompts_of_a_file_of_json_run(tripath_command, tmp_path):  # noqa: F811
    (tmp_path / "a.jsonl").write_text('{"prompt": "Tom has 12 apples.\\nHow many?"}\n{"token_ids": [5, 6, 7]}\n')
    arguments = (*QUICK, "paths=[accuracy]", "workload.prompts_file=a.jsonl", "hydra.run.dir=run")
    assert tripath_command(*arguments)[0] == cli.PASSED
    rows = json.loads(Path("run/report.json").read_text())["generation"]["sequences"]
    assert rows[0]["prompt"] == "Tom has 12 apples.\nHow many?"
    assert len(rows) == 2
