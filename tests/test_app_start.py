"""How `python app.py` starts and ends: without PyTorch in the process that serves, and without a traceback."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from app_server import free_port, needs_ipv6, until
from fake_pipeline import FakePipeline
from programs import interrupted_while_importing

import app
from pipeline import EMBEDDED_CHECKPOINT, GpuReading, inspect_checkpoint
from pipeline.cli import engines
from pipeline.machine import device as devices
from pipeline.machine import gpus as nvml_gpus
from pipeline.machine.device import DeviceName, expected_device
from ui import Worker
from ui.access.address import check_address
from ui.jobs.estimates import Estimates

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "triton", "fastvideo", "diffusers", "transformers", "skimage", "scipy", "matplotlib"]


def test_the_page_needs_no_torch(tmp_path):
    """Built as app.py builds it, with an engine that nobody starts."""
    code = f"""
import sys
from pathlib import Path
import app
from pipeline.engine.process import EngineProcess
checkpoint = app.inspect_checkpoint(app.EMBEDDED_CHECKPOINT)
worker = app.Worker(EngineProcess("pipeline.engine.child:load_longcat"), Path({str(tmp_path)!r}), checkpoint.name)
app.build_page(checkpoint, worker, device="cpu", model_switch=True)
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_engine_loads_the_adapters_that_the_page_lists(tmp_path):
    (tmp_path / "style.safetensors").touch()
    options = app._parser().parse_args(["--lora-dir", str(tmp_path), "--device", "cpu"])
    checkpoint = inspect_checkpoint(options.model_path, options.lora_dir)
    [engine] = engines.Engines.read(options).begin(checkpoint)
    assert (engine._arguments["lora_dir"], set(checkpoint.loras)) == (str(tmp_path), {"refine", "style"})


@pytest.mark.parametrize("module", [pytest.param("pandas", id="gradio"), pytest.param("ui.page", id="page")])
def test_interrupted_while_importing(tmp_path, module):
    done = interrupted_while_importing(module, tmp_path, "app.py")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


class TestAddress:
    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "0.0.0.0", *(pytest.param(host, marks=needs_ipv6) for host in ("::1", "::")), "localhost"],
    )
    def test_free(self, host):
        check_address(host, free_port())

    def test_taken(self):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 is taken; try --port {port + 1}"):
                check_address("127.0.0.1", port)

    @pytest.mark.parametrize(
        ("host", "reason"),
        [
            pytest.param("192.0.2.1", "Cannot assign requested address", id="another-machine"),
            pytest.param("nowhere.invalid", ".*", id="unknown"),
            pytest.param("x" * 300, "it is no host name", id="no-name"),
        ],
    )
    def test_no_address_of_this_machine(self, host, reason):
        with pytest.raises(ValueError, match=rf"--host {host} is no address of .* \({reason}\); use 127.0.0.1, or"):
            check_address(host, 7860)

    @pytest.mark.parametrize(
        ("number", "sentence"),
        [
            pytest.param(errno.EACCES, "port 80 of 127.0.0.1 is not allowed; try --port 7860", id="not-allowed"),
            pytest.param(errno.ENOBUFS, r"cannot listen .* \(No buffer space available\); try another", id="other"),
        ],
    )
    def test_what_the_system_refuses(self, monkeypatch, number, sentence):
        def refuse(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("socket.socket.bind", refuse)
        with pytest.raises(OSError, match=sentence):
            check_address("127.0.0.1", 80)

    def test_found_before_the_engine_starts(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(engines, "EngineProcess", lambda *_, **__: pytest.fail("the engine was made"))
        options = ["--device", "cpu", "--output-dir", str(tmp_path)]
        assert app.main([*options, "--host", "192.0.2.1"]) == 2
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            assert app.main([*options, "--port", str(other.getsockname()[1])]) == 1
        address, port = capsys.readouterr().err.splitlines()
        assert address.startswith("error: --host 192.0.2.1 is no address") and " is taken; try --port " in port


class TestTemporaryFolder:
    def test_not_to_be_written(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(app.tempfile, "gettempdir", lambda: "/proc/1/nowhere")
        assert app.main(["--device", "cpu", "--output-dir", str(tmp_path)]) == 2
        said = "error: cannot write to the folder for temporary files /proc/1/nowhere (No such file or directory); set"
        assert capsys.readouterr().err.startswith(said)

    def test_full(self, monkeypatch, tmp_path):
        """A full disk takes names, but no content."""
        monkeypatch.setattr(app.tempfile, "gettempdir", lambda: str(tmp_path))
        monkeypatch.setattr(app.tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))
        with pytest.raises(ValueError, match=r"No space left on device\); set TMPDIR to a folder of your own"):
            app.check_temporary_folder()

    def test_none_in_the_system(self, monkeypatch):
        def nowhere():
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

        monkeypatch.setattr(app.tempfile, "gettempdir", nowhere)
        with pytest.raises(ValueError, match="No usable temporary directory found in .*; set TMPDIR to a folder of"):
            app.check_temporary_folder()


class TestDevice:
    GPUS = tuple(GpuReading(index, "NVIDIA H200", 0, 2**37, 0, uuid=f"GPU-{index}") for index in range(2))

    @pytest.fixture
    def gpus(self, monkeypatch):
        """What NVML shows."""

        def show(gpus, visible=None):
            for module in (devices, nvml_gpus):
                monkeypatch.setattr(module, "read_resources", lambda: SimpleNamespace(gpus=gpus))
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            if visible is not None:
                monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

        return show

    @pytest.mark.parametrize(
        ("asked", "gpus_here", "visible", "expected"),
        [
            pytest.param("auto", 0, None, "cpu", id="no-gpu"),
            pytest.param("auto", 2, None, "cuda:0", id="gpu"),
            pytest.param("cpu", 2, None, "cpu", id="cpu-asked-for"),
            pytest.param("cuda", 1, None, "cuda:0", id="cuda"),
            pytest.param("cuda:1", 2, None, "cuda:1", id="second"),
            pytest.param("cuda:0", 2, "1", "cuda:0", id="one-made-visible"),
        ],
    )
    def test_told_without_torch(self, gpus, monkeypatch, asked, gpus_here, visible, expected):
        gpus(self.GPUS[:gpus_here], visible)
        monkeypatch.setattr(devices.metadata, "version", lambda package: "2.12.0")
        monkeypatch.setattr("pipeline.machine.device.choose_device", lambda device: pytest.fail("PyTorch was asked"))
        assert str(expected_device(asked)) == expected

    @pytest.mark.parametrize(
        ("asked", "version", "visible"),
        [
            pytest.param("cuda:2", "2.12.0", None, id="too-many"),
            pytest.param("auto", "2.12.0", "", id="none-made-visible"),
            pytest.param("auto", "2.12.0+cpu", None, id="torch-without-cuda"),
            pytest.param("tpu", "2.12.0", None, id="unknown"),
        ],
    )
    def test_torch_answers_in_doubt(self, gpus, monkeypatch, asked, version, visible):
        gpus(self.GPUS, visible)
        monkeypatch.setattr(devices.metadata, "version", lambda package: version)
        monkeypatch.setattr("pipeline.machine.device.choose_device", lambda device: torch.device("cuda", 7))
        assert expected_device(asked) == DeviceName("cuda", 7)

    def test_the_loaded_model_knows_better(self, gpus, tmp_path):
        """NVML shows a GPU, and the pipeline has loaded on the CPU all the same."""
        gpus(self.GPUS)
        checkpoint = inspect_checkpoint(EMBEDDED_CHECKPOINT)
        worker = Worker(lambda say: FakePipeline(), tmp_path, checkpoint.name)
        estimates = Estimates(checkpoint, worker, "cuda")
        wanted = checkpoint.request("x")
        before = estimates.of(wanted)
        assert (str(estimates.device), before.memory_label) == ("cuda:0", "CUDA allocated")
        worker.start()
        try:
            until(lambda: estimates.of(wanted).memory_label != before.memory_label, "the estimates of the CPU")
            assert str(estimates.device) == "cpu"
            estimates.plan(wanted)
        finally:
            worker.close()
