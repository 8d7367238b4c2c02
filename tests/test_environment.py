"""Programs in surroundings that are not as usual: GPUs that cannot be used, proxies, odd paths and terminals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from app_server import answers, free_port, needs_ipv6, until
from programs import ROOT
from stub_driver import StubDriver, needs_compiler

from pipeline import LongCatPipeline


def command_line(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


@needs_compiler
def test_a_gpu_that_pytorch_cannot_use(tiny_checkpoint, tmp_path):
    """NVML lists two; FastVideo chooses CUDA by that alone, and its log of stages waits for CUDA."""
    env = StubDriver(tmp_path).env() | {"CUDA_VISIBLE_DEVICES": "-1", "FASTVIDEO_STAGE_LOGGING": "1"}
    small = ["--height", "64", "--width", "64", "--num-frames", "5", "--steps", "1", "--dense"]
    where = ["--model-path", tiny_checkpoint, "--output", tmp_path / "video.mp4"]
    done = command_line("generate", "--prompt", "x", *small, *where, env=env)
    assert done.returncode == 0, done.stderr
    assert "(process RSS)" in done.stdout


def test_a_path_with_wildcards(tiny_checkpoint, tmp_path):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "models [v2] *?" / "long[cat]")
    assert LongCatPipeline.load(checkpoint, device="cpu").info.path == checkpoint


@needs_ipv6
def test_the_page_behind_proxies_on_ipv6(tmp_path):
    """Gradio reads the proxies when it is imported, and asks itself whether it is up."""
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "socks5://127.0.0.1:1", "NO_PROXY": "fe80::/10"}
    options = ["--device", "cpu", "--host", "::1", "--port", str(port := free_port()), "--output-dir", tmp_path]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "app.py", *options], cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        until(lambda: answers(f"http://[::1]:{port}") or server.poll() is not None, "app.py to answer")
        assert server.poll() is None, (tmp_path / "log").read_text()
    finally:
        server.terminate()
        server.wait()
