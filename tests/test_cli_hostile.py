"""The command line under hostile conditions: streams, devices, numbers, paths, interrupts. What it
prints when all is well: test_cli.py.
"""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cos_ext.cli import main

DEMO = ["demo", "--quiet", "--samples", "2", "--timesteps", "2"]
BENCH = ["bench", "--mib", "1", "--timesteps", "2", "--repeats", "1"]
TRAIN = ["train", "--quiet", "--data", "nowhere"]


def refused(capsys, arguments):
    """The one line that the command is refused with."""
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("name", ["cuda:-1", "cuda:99", "cpu:5", "meta", "mps", "", "θ"])
@pytest.mark.parametrize("command", [DEMO, [*TRAIN, "--output", "x"]])
def test_unknown_devices(capsys, tmp_path, monkeypatch, command, name):
    monkeypatch.chdir(tmp_path)
    assert "--device" in refused(capsys, [*command, "--device", name])


@pytest.mark.parametrize(
    "arguments",
    [
        [*DEMO, "--rho", 10**30],
        [*DEMO, "--timesteps", 10**30],
        [*DEMO, "--timesteps", 2**31],
        [*DEMO, "--iterations", 2**63],
        [*DEMO, "--samples", "1e30"],
        [*DEMO, "--samples", "nan"],
        [*BENCH, "--threads", 0],
        [*BENCH, "--threads", 100_000],
        [*BENCH, "--mib", 0],
        [*BENCH, "--mib", 10**30],
        [*BENCH, "--timesteps", 0],
        [*BENCH, "--timesteps", 10**30],
        [*BENCH, "--repeats", 0],
        [*BENCH, "--rho", -1],
        [*TRAIN, "--output", "x", "--lr", "nan"],
        [*TRAIN, "--output", "x", "--seed", 10**30],
        [],
    ],
)
def test_absurd_numbers(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    refused(capsys, arguments)


@pytest.mark.parametrize("bad", [".", "missing/x.out", "file/x.out", "n" * 300])
@pytest.mark.parametrize(
    "command",
    [
        [*DEMO, "--json"],
        [*DEMO, "--plot"],
        [*DEMO, "--report", "--json"],
        [*DEMO, "--energy", "--json"],
        [*BENCH, "--json"],
    ],
)
def test_outputs_are_checked_before_the_work(capsys, tmp_path, monkeypatch, command, bad):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for work in ("demo.data.fashion_mnist", "benchmark.run_bench"):
        monkeypatch.setattr(f"cos_ext._commands.{work}", lambda *_, **__: pytest.fail("worked"))
    assert bad in refused(capsys, [*command, bad])


@pytest.mark.parametrize("bad", [".", "folder", "m.json", "s.state", "run.state/x", "", "/"])
def test_the_output_of_training_is_checked_before_the_work(capsys, tmp_path, monkeypatch, bad):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "run.state").touch()
    monkeypatch.setattr("cos_ext.data.load", lambda *_, **__: pytest.fail("worked"))
    refused(capsys, [*TRAIN, "--output", bad])


def test_a_folder_in_the_place_of_the_record_or_the_state(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("cos_ext.data.load", lambda *_, **__: pytest.fail("worked"))
    for name in ("run_lr0.1.json", "other.state"):
        (tmp_path / name).mkdir()
        output = tmp_path / name.replace(".json", "").replace(".state", ".safetensors")
        assert name in refused(capsys, [*TRAIN, "--output", output])


def test_an_unknown_format_of_a_plot(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    monkeypatch.setattr("cos_ext._commands.demo.data.fashion_mnist", lambda: pytest.fail("worked"))
    assert "suffix" in refused(capsys, [*DEMO, "--plot", tmp_path / "x.xyz"])
    same = tmp_path / "x.png"
    assert "two files" in refused(capsys, [*DEMO, "--plot", same, "--json", same])


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("arguments", [["info"], ["train", "--help"], [*DEMO, "--exact"]])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output(capsys, monkeypatch, arguments):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert "No space left" in refused(capsys, arguments)


@pytest.mark.parametrize("arguments", [["info"], ["train", "--help"], DEMO])
def test_a_closed_pipe_ends_quietly(capsys, monkeypatch, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(arguments) == 141
    assert capsys.readouterr().err == ""


def test_closed_standard_streams(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert "standard output is closed" in refused(capsys, ["info"])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        assert main(DEMO[:1] + DEMO[2:]) == 0 and main([*DEMO, "--samples", "0"]) == 2
        assert sys.stderr is None
    assert "ANN accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_terminals_without_theta_show_an_escape(monkeypatch, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0 and stream.errors == "strict"
    shown = raw.getvalue().decode(encoding)
    assert "initial θ" in shown or "initial \\u03b8" in shown


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "x"),
        RuntimeError("first\nsecond"),
        MemoryError(),
        OverflowError("too large"),
    ],
)
def test_errors_become_one_line(capsys, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("cos_ext._commands.information.build_info", fail)
    refused(capsys, ["info"])


# ---------------------------------------------------------------- in a process of its own


SLOW = """
import signal, sys, threading, time
import torch
from cos_ext import cli, data

# Jobs that a shell starts in the background are told to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Slow(torch.utils.data.Dataset):
    def __init__(self, real): self.real, self.calls = real, 0
    def __len__(self): return 2
    def batches(self, *_, **__): return self
    def __iter__(self):
        yield from self.real.batches(2)
        if threading.current_thread() is not threading.main_thread():
            print("loading", flush=True)
            time.sleep(600)

real = data.fashion_mnist
data.fashion_mnist = lambda: type("Set", (), {"first": lambda _, n: Slow(real().first(2))})()
sys.argv = ["cos_ext", "demo", "--quiet", "--timesteps", "2"]
import runpy
runpy.run_module("cos_ext", run_name="__main__")
"""


def test_an_interrupt_does_not_wait_for_a_batch():
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while "loading" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)  # it loads for far longer
    finally:
        process.kill()
    assert process.returncode == 130 and err == "cos_ext demo: interrupted\n"


@pytest.mark.parametrize("redirection, code", [("> /dev/full", 2), (">&-", 2), ("2>&-", 0)])
def test_the_interpreter_adds_nothing_at_its_end(redirection, code):
    command = f'"{sys.executable}" -m cos_ext info {redirection}'
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert ended.returncode == code and ended.stderr.count("\n") == (code == 2)
    assert (torch.__version__ in ended.stdout) == (code == 0)
