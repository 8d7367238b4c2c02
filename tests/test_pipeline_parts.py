"""The pipeline's parts by themselves, against oracles written here."""

import sys
import threading
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from fresh import fresh_process

import pipeline
from bsa import BlockLayout, BSAConfig, Grid, block_sparse_attention
from pipeline import LongCatPipeline
from pipeline.machine.measure import PeakMemory
from pipeline.media.similarity import psnr, ssim
from pipeline.model import fastvideo_adapter
from pipeline.model.denoising import denoise, guide
from pipeline.model.preview import LatentColours
from pipeline.model.schedule import longcat_sigmas
from pipeline.request.workload import Workload
from pipeline.transformer.kept_selections import KeptSelections
from pipeline.transformer.self_attention import SparseAttention


def test_import_is_light():
    """Importing the package pulls in no FastVideo, no Triton, no diffusers and no user interface."""
    heavy = ["fastvideo", "triton", "diffusers", "transformers", "gradio", "skimage"]
    code = f"import sys, pipeline, pipeline.cli.main; print([name for name in {heavy} if name in sys.modules])"
    assert fresh_process(code).stdout.strip() == "[]"


def test_names_of_the_package():
    """Those that bring PyTorch come when they are first asked for, and `compare` is the function, not its module."""
    code = "import sys, pipeline; print('torch' in sys.modules, pipeline.compare.__name__); from pipeline import *; "
    code += "print('torch' in sys.modules, LongCatPipeline.__module__, choose_device('cpu'), compare.__module__)"
    said = fresh_process(code).stdout.splitlines()
    assert said == ["False compare", "True pipeline.runs.longcat cpu pipeline.runs.compare"]
    assert set(pipeline.__all__) <= set(dir(pipeline))
    assert not hasattr(pipeline, "nonsense")


@pytest.mark.skipif(sys.platform != "linux", reason="asks GNU OpenMP, which PyTorch brings along on Linux")
@pytest.mark.parametrize(
    ("wanted", "policy"), [pytest.param("", "PASSIVE", id="default"), pytest.param("ACTIVE", "ACTIVE", id="user-wins")]
)
def test_threads_sleep_while_they_wait(monkeypatch, wanted, policy):
    """What the OpenMP runtime itself reports when PyTorch loads it."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    environment = {"OMP_DISPLAY_ENV": "TRUE"} | ({"OMP_WAIT_POLICY": wanted} if wanted else {})
    assert f"OMP_WAIT_POLICY = '{policy}'" in fresh_process("import pipeline.cli.main", **environment).stderr


# -- guidance and update ----------------------------------------------------------------------------


def test_guide_is_the_projection_formula():
    unconditional, conditional = torch.randn(2, 1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    # least squares: the multiple of the unconditional prediction that is nearest to the conditional one
    fit = torch.linalg.lstsq(unconditional.reshape(-1, 1), conditional.reshape(-1, 1)).solution.item()
    expected = fit * unconditional + 4.0 * (conditional - fit * unconditional)
    torch.testing.assert_close(guide(torch.cat([unconditional, conditional]), 4.0), expected)


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        pytest.param(1.0, torch.float32, id="plain"),
        pytest.param(2.5, torch.float32, id="guided"),
        pytest.param(1.0, torch.bfloat16, id="bf16"),
    ],
)
def test_denoise_follows_a_straight_flow_exactly(scale, dtype):
    """With the true flow of a straight path, clean - noise, any Euler schedule ends at the clean latents."""
    generator = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 1, 4, 2, 3, 3, generator=generator)
    sigmas = torch.tensor([1.0, 0.7, 0.2, 0.0])
    seen, estimates = [], []

    def velocity(latents, timestep, text, mask):
        seen.append((latents.dtype, timestep.dtype, timestep.tolist(), len(latents)))
        return (clean - noise).expand(len(latents), -1, -1, -1, -1)

    result = denoise(
        velocity,
        SimpleNamespace(timesteps=sigmas[:-1] * 1000, sigmas=sigmas),
        noise,
        torch.zeros(2, 1, 1),
        None,
        guidance_scale=scale,
        dtype=dtype,
        on_step=lambda done, total, estimate: estimates.append(estimate),
    )
    # fp32 sums of numbers around 1; nothing but the model's inputs may be rounded to bf16
    torch.testing.assert_close(result, clean, rtol=0, atol=1e-6)
    assert estimates[0] is None
    for estimate in estimates[1:]:
        torch.testing.assert_close(estimate, clean, rtol=0, atol=1e-6)
    rows = 2 if scale > 1 else 1
    rounded = (sigmas[:-1] * 1000).to(dtype)
    assert seen == [(dtype, dtype, [value.item()] * rows, rows) for value in rounded]


@pytest.mark.parametrize("steps", [pytest.param(0, id="none"), pytest.param(51, id="too-many")])
def test_distilled_schedule_refuses(steps):
    with pytest.raises(ValueError, match=f"steps {steps} is not possible; use 1 to 50"):
        longcat_sigmas(steps, use_distill=True)


# -- density ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "config"),
    [
        pytest.param(
            Grid(4, 4, 8), BSAConfig(sparsity=0.75, chunk_q=Grid(2, 2, 2), chunk_k=Grid(2, 2, 4)), id="divides"
        ),
        pytest.param(
            Grid(5, 3, 7), BSAConfig(sparsity=0.75, chunk_q=Grid(2, 2, 2), chunk_k=Grid(3, 2, 4)), id="ragged"
        ),
        pytest.param(
            Grid(4, 4, 4),
            BSAConfig(sparsity=None, cdf_threshold=0.5, chunk_q=Grid(2, 2, 2), chunk_k=Grid(2, 2, 2)),
            id="cdf",
        ),
        pytest.param(
            Grid(3, 5, 4),
            BSAConfig(sparsity=0.9, cdf_threshold=0.4, chunk_q=Grid(2, 2, 3), chunk_k=Grid(2, 3, 2)),
            id="both-ragged",
        ),
    ],
)
def test_density_counts_token_pairs(grid, config):
    """Against the boolean token mask, averaged over two calls with different data."""
    attention = SparseAttention(Workload.of(grid, 1.0, config, 1))
    [attend] = attention.layers(1, 0, KeptSelections(config))
    generator = torch.Generator().manual_seed(2)
    shares, blocks = [], []
    for _ in range(2):
        q, k, v = 3 * torch.randn(3, 1, 2, grid.volume, 16, generator=generator)
        out = attend(q, k, v, grid)
        expected, selection = block_sparse_attention(q, k, v, grid, config, return_selection=True)
        torch.testing.assert_close(out, expected)
        q_layout, k_layout = BlockLayout(grid, config.chunk_q), BlockLayout(grid, config.chunk_k)
        block_mask = selection.mask(k_layout.blocks.volume)
        rows, columns = q_layout.block_of_token(q.device), k_layout.block_of_token(q.device)
        shares.append(block_mask[:, :, rows][..., columns].double().mean().item())
        blocks.append(selection.counts.double().mean().item())
    assert attention.density() == pytest.approx(np.mean(shares), rel=1e-12)
    assert attention.blocks_kept() == pytest.approx(np.mean(blocks), rel=1e-12)
    assert attention.blocks_total() == BlockLayout(grid, config.chunk_k).blocks.volume


# -- similarity -------------------------------------------------------------------------------------


def test_psnr_of_a_known_error():
    video = np.full((3, 8, 8, 3), 100, np.uint8)
    other = video.copy()
    other[1] += 10  # mean squared error 100/3
    assert psnr(video, other) == pytest.approx(10 * np.log10(255**2 * 3 / 100))
    assert psnr(video, video) == float("inf")


def test_ssim_falls_with_noise_and_is_one_for_equal_videos():
    generator = np.random.default_rng(0)
    video = generator.integers(60, 190, (2, 32, 32, 3), dtype=np.uint8)
    slightly, strongly = (
        np.clip(video + generator.normal(0, s, video.shape), 0, 255).astype(np.uint8) for s in (5, 40)
    )
    assert ssim(video, video) == pytest.approx(1.0)
    assert 1 > ssim(video, slightly) > ssim(video, strongly) > 0


def test_similarity_refuses_different_shapes():
    video = np.zeros((3, 8, 8, 3), np.uint8)
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="different shapes"):
            measure(video, video[:2])


# -- preview ----------------------------------------------------------------------------------------


def test_fitted_colours_recover_a_linear_decoder():
    generator = torch.Generator().manual_seed(3)
    factors, bias = torch.randn(5, 3, generator=generator) * 0.1, torch.tensor([0.4, 0.5, 0.6])

    def decode(latents):
        pixels = torch.einsum("bcthw,cr->brthw", latents, factors) + bias.view(1, 3, 1, 1, 1)
        return pixels.repeat_interleave(8, -1).repeat_interleave(8, -2)

    colours = LatentColours.fit(decode, 5, torch.device("cpu"))
    # the ridge pulls the factors towards zero by a few percent
    torch.testing.assert_close(colours.factors, factors, rtol=0, atol=0.02)
    torch.testing.assert_close(colours.bias, bias, rtol=0, atol=0.02)


def test_stored_colours():
    config = {"latent_rgb_factors": [[0.5, 0.0, 0.0], [0.0, 0.25, -9.0]], "latent_rgb_bias": [0.0, 0.5, 0.0]}
    latents = torch.ones(1, 2, 3, 4, 5)
    preview = LatentColours.from_config(config)(latents)
    assert preview.shape == (3, 4, 5, 3)
    assert preview[0, 0, 0].tolist() == [128, 191, 0]
    assert LatentColours.from_config({}) is None


# -- resources --------------------------------------------------------------------------------------


def test_peak_memory_sees_what_is_gone_at_the_end():
    size = 300 * 2**20
    before = psutil.Process().memory_info().rss
    held = threading.Event()
    with PeakMemory(torch.device("cpu")) as peak:
        block = np.ones(size, np.uint8)
        held.wait(0.2)  # ten samples
        del block
    assert peak.label == "process RSS"
    # other tests' garbage may be freed meanwhile, which lowers the base
    assert peak.bytes > before + size // 2


# -- the adapter's guards ---------------------------------------------------------------------------


def test_another_fastvideo_is_named(monkeypatch, tiny_pipeline):
    from fastvideo.distributed import parallel_state

    monkeypatch.delattr(parallel_state, "get_local_torch_device")
    with pytest.raises(RuntimeError, match="parallel_state has no get_local_torch_device; .* fits FastVideo 0.2.1"):
        fastvideo_adapter._support_cpu()


def test_no_network_interface(monkeypatch):
    """What gloo says in a network namespace whose loopback is down."""

    def refuse(*_, **__):
        raise RuntimeError("[enforce fail at device.cc] Unable to find interface for: [127.0.0.1]")

    monkeypatch.setattr(fastvideo_adapter, "_device_in_use", None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    with pytest.raises(RuntimeError, match="no network interface of its own here; turn the loopback on"):
        fastvideo_adapter._prepare_process(torch.device("cpu"))


def test_one_device_per_process(monkeypatch, tiny_checkpoint):
    monkeypatch.setattr(fastvideo_adapter, "_device_in_use", "cuda:0")
    with pytest.raises(ValueError, match="already runs FastVideo on cuda:0; start another process for cpu"):
        LongCatPipeline.load(tiny_checkpoint, device="cpu")


def test_loading_mutes_its_own_thread_only(monkeypatch, capsys):
    monkeypatch.delenv("FASTVIDEO_LOGGING_LEVEL", raising=False)
    with fastvideo_adapter._quiet():
        print("noise")
        other = threading.Thread(target=print, args=["Running on http://localhost:7860"])
        other.start()
        other.join()
    print("after")
    assert capsys.readouterr().out == "Running on http://localhost:7860\nafter\n"
