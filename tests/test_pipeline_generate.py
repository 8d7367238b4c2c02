"""Generations with the random checkpoint: the videos are noise, everything else is the real thing."""

import json
import logging
import struct
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from bsa import BSAConfig, Grid
from pipeline import Cancelled, FromFrames, LongCatPipeline, VideoRequest, compare
from pipeline.transformer.run_forward import forward_for
from pipeline.transformer.self_attention import attention_for

SPARSE = BSAConfig(sparsity=0.5, chunk_q=Grid(2, 2, 2), chunk_k=Grid(2, 2, 2))


@pytest.fixture
def request_(tiny_pipeline):
    """8x4x4 tokens, 3 steps, in sixteen blocks of which eight are kept."""
    return tiny_pipeline.info.request("a red circle 🙂", bsa=SPARSE)


def frames_of(pipeline, request, **kwargs):
    return pipeline.generate_frames(request, **kwargs)[1]


def test_same_request_same_frames_and_other_seed_other_frames(tiny_pipeline, request_):
    first = frames_of(tiny_pipeline, request_)
    assert first.shape == (29, 64, 64, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(frames_of(tiny_pipeline, request_), first)
    assert not np.array_equal(frames_of(tiny_pipeline, replace(request_, seed=1)), first)
    assert not np.array_equal(frames_of(tiny_pipeline, replace(request_, prompt="a blue square")), first)


def test_dense_and_sparse_alternate_without_reloading(tiny_pipeline, request_):
    dense = replace(request_, bsa=None)
    first = frames_of(tiny_pipeline, dense)
    sparse = frames_of(tiny_pipeline, request_)
    assert not np.array_equal(sparse, first)
    np.testing.assert_array_equal(frames_of(tiny_pipeline, dense), first)


def test_keeping_every_block_is_dense_attention(tiny_pipeline, request_):
    everything = replace(request_, bsa=BSAConfig(sparsity=0.0, chunk_q=Grid(3, 4, 5), chunk_k=Grid(2, 3, 4)))
    result, frames = tiny_pipeline.generate_frames(everything)
    assert result.bsa_active and result.density == 1.0
    dense = frames_of(tiny_pipeline, replace(request_, bsa=None))
    # fp32 sums in another order differ by about 1e-5 in the latents, which can tip a pixel over a rounding edge
    assert np.abs(frames.astype(int) - dense).max() <= 1


def test_guidance_and_negative_prompt(tiny_pipeline, request_):
    guided = replace(request_, guidance_scale=3.0)
    assert not np.array_equal(frames_of(tiny_pipeline, guided), frames_of(tiny_pipeline, request_))
    assert not np.array_equal(
        frames_of(tiny_pipeline, replace(guided, negative_prompt="dark")), frames_of(tiny_pipeline, guided)
    )
    # without guidance the negative prompt is not looked at
    np.testing.assert_array_equal(
        frames_of(tiny_pipeline, replace(request_, negative_prompt="dark")), frames_of(tiny_pipeline, request_)
    )


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        pytest.param({"num_frames": 1}, (1, 64, 64, 3), id="image"),
        pytest.param({"num_frames": 5, "height": 16, "width": 16}, (5, 16, 16, 3), id="smallest-video"),
        pytest.param({"num_frames": 9, "height": 80, "width": 48}, (9, 80, 48, 3), id="ragged-blocks"),
    ],
)
def test_odd_sizes(tiny_pipeline, request_, changes, shape):
    assert frames_of(tiny_pipeline, replace(request_, **changes)).shape == shape


def test_progress_is_every_true_step(tiny_pipeline, request_):
    updates = []
    tiny_pipeline.generate(request_, on_step=updates.append)
    assert [(update.phase, update.step, update.total) for update in updates] == (
        [("text", 0, 1), ("text", 1, 1)]
        + [("denoise", step, 3) for step in range(4)]
        + [("decode", step, 8) for step in range(9)]
    )
    for phase in ("text", "denoise", "decode"):
        seconds = [update.seconds for update in updates if update.phase == phase]
        assert seconds == sorted(seconds) and seconds[0] >= 0


def test_preview_shows_where_the_video_is_going(tiny_pipeline, request_):
    previews = []
    tiny_pipeline.generate(request_, on_step=lambda update: previews.append(update.preview and update.preview()))
    denoising = [preview for preview in previews if preview is not None]
    assert len(denoising) == 3
    for preview in denoising:
        assert preview.shape == (8, 8, 8, 3) and preview.dtype == np.uint8
        assert preview.std() > 0


@pytest.mark.parametrize(
    ("phase", "step"),
    [
        pytest.param("text", 0, id="before-anything"),
        pytest.param("denoise", 0, id="before-first-step"),
        pytest.param("denoise", 2, id="between-steps"),
        pytest.param("decode", 3, id="while-decoding"),
        pytest.param("decode", 8, id="after-decoding"),
    ],
)
def test_cancel_then_repeat(tiny_pipeline, request_, tmp_path, phase, step):
    def stop(update):
        if (update.phase, update.step) == (phase, step):
            raise Cancelled

    expected = frames_of(tiny_pipeline, request_)
    with pytest.raises(Cancelled):
        tiny_pipeline.generate(request_, on_step=stop, output=tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(frames_of(tiny_pipeline, request_), expected)


def test_failure_in_the_middle_leaves_the_pipeline_usable(tiny_pipeline, request_, monkeypatch):
    expected = frames_of(tiny_pipeline, request_)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.transformer.run_forward.fast_forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny_pipeline.generate(request_)
    np.testing.assert_array_equal(frames_of(tiny_pipeline, request_), expected)


BSA_LINES = [
    "Enabling Block Sparse Attention (BSA) for LongCat transformer",
    "BSA parameters: {'sparsity': 0.5, 'cdf_threshold': None, "
    "'chunk_3d_shape_q': [2, 2, 2], 'chunk_3d_shape_k': [2, 2, 2]}",
]


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        pytest.param({}, BSA_LINES, id="sparse"),
        pytest.param(
            {"bsa": None}, ["Block Sparse Attention (BSA) is not used: dense attention was asked for"], id="dense"
        ),
        pytest.param(
            {"num_frames": 1},
            [
                "Block Sparse Attention (BSA) is not used: num_frames 1 is a single latent frame, for which LongCat "
                "always uses dense attention; ask for at least 5 frames"
            ],
            id="single-latent-frame",
        ),
    ],
)
def test_log(tiny_pipeline, request_, caplog, changes, lines):
    with caplog.at_level(logging.INFO, logger="pipeline"):
        tiny_pipeline.generate(replace(request_, **changes))
    forward = ["The fast forward runs because it is the faster one on a CPU"]
    assert [record.getMessage() for record in caplog.records if record.name == "pipeline"] == lines + forward


def test_result(tiny_pipeline, request_, tmp_path):
    result = tiny_pipeline.generate(request_, output=tmp_path / "new" / "video.mp4")
    assert result.request == request_
    assert result.video == tmp_path / "new" / "video.mp4" and result.video.stat().st_size > 0
    assert set(result.seconds) == {"text", "denoise", "decode", "total"}
    parts = [result.seconds[name] for name in ("text", "denoise", "decode")]
    assert min(parts) > 0 and sum(parts) <= result.seconds["total"]
    assert result.peak_memory_label == "process RSS" and result.peak_memory > 100 * 2**20  # PyTorch alone is more
    assert (result.density, result.blocks_kept, result.blocks_total) == (0.5, 8.0, 16)
    assert result.bsa_active and "8 of 16" in result.bsa_reason
    assert {"python", "torch", "triton", "fastvideo", "device"} <= set(result.versions)
    assert VideoRequest.from_dict(json.loads(json.dumps(result.to_dict()))["request"]) == request_

    dense = tiny_pipeline.generate(replace(request_, bsa=None))
    assert (dense.density, dense.blocks_kept, dense.blocks_total, dense.bsa_active) == (1.0, None, None, False)


def boxes(content):
    """Names of an MP4's top-level boxes, in order: 4 bytes of length, 4 of name."""
    names, at = [], 0
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        names.append(name.decode())
        at += length
    return names


def test_video_file_plays_everywhere_and_says_how_it_was_made(tiny_pipeline, request_, tmp_path):
    hostile = replace(request_, prompt="quotes \" ' ; = \\ \0 emoji 🙂 \n newline", num_frames=29, fps=24)
    result = tiny_pipeline.generate(hostile, output=tmp_path / "video.mp4")
    reader = imageio_ffmpeg.read_frames(str(result.video))
    meta = next(reader)
    reader.close()
    assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p")
    assert meta["size"] == (64, 64) and meta["fps"] == 24
    assert imageio_ffmpeg.count_frames_and_secs(str(result.video))[0] == 29
    names = boxes(result.video.read_bytes())
    assert names.index("moov") < names.index("mdat")

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", result.video, "-f", "ffmetadata", "-"]
    metadata = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    # ffmetadata escapes = ; # \ and newlines with a backslash
    comment = (
        metadata.split("comment=")[1].split("\nencoder")[0].replace("\\\\", "\0").replace("\\", "").replace("\0", "\\")
    )
    content = json.loads(comment)
    assert VideoRequest.from_dict(content["request"]) == hostile
    assert content["versions"] == result.versions
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]


@pytest.mark.parametrize(
    ("output", "says"),
    [
        pytest.param("/proc/1/nowhere/video.mp4", "cannot write into the folder", id="no-permission"),
        pytest.param("{tmp}/file/video.mp4", "file is not a folder; choose another place", id="folder-is-a-file"),
        pytest.param("{tmp}/video.avi", "does not end in .mp4; use a name such as video.mp4", id="not-mp4"),
        pytest.param("{tmp}/folder.mp4", "is a folder; add a file name", id="is-a-folder"),
    ],
)
def test_output_that_cannot_be_written(tiny_pipeline, request_, tmp_path, output, says):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match=says):
        tiny_pipeline.generate(
            request_, on_step=lambda update: pytest.fail("work was begun"), output=output.format(tmp=tmp_path)
        )


def test_too_many_tokens(tiny_pipeline, request_):
    # the checkpoint's tokenizer makes one token per byte and one for the end
    tiny_pipeline.generate(replace(request_, prompt="x" * 511))
    with pytest.raises(ValueError, match="the prompt has 513 tokens, LongCat reads 512 .* shorten it to 99 %"):
        tiny_pipeline.generate(replace(request_, prompt="x" * 512))
    with pytest.raises(ValueError, match="the negative prompt has 1025 tokens"):
        tiny_pipeline.generate(replace(request_, negative_prompt="x" * 1024))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an NVIDIA driver")
def test_cuda_without_a_driver(tiny_checkpoint):
    with pytest.raises(ValueError, match="finds no usable NVIDIA driver; install one, or use cpu or auto"):
        LongCatPipeline.load(tiny_checkpoint, device="cuda")


def test_unknown_device(tiny_checkpoint):
    with pytest.raises(ValueError, match="unknown device 'tpu'; use auto, cpu, cuda or cuda:N"):
        LongCatPipeline.load(tiny_checkpoint, device="tpu")


def test_compare(tiny_pipeline, request_, tmp_path):
    updates = []
    comparison = compare(tiny_pipeline, request_, updates.append, tmp_path)
    assert comparison.dense.request == replace(request_, bsa=None) and comparison.sparse.request == request_
    assert [comparison.dense.video.name, comparison.sparse.video.name] == ["dense.mp4", "sparse.mp4"]
    assert [update.step for update in updates if update.phase == "denoise"] == [0, 1, 2, 3, 0, 1, 2, 3]
    dense, sparse = frames_of(tiny_pipeline, replace(request_, bsa=None)), frames_of(tiny_pipeline, request_)
    error = np.mean((dense.astype(float) - sparse) ** 2)
    assert comparison.psnr == pytest.approx(10 * np.log10(255**2 / error))
    assert 0 < comparison.ssim < 1
    for result in (comparison.dense, comparison.sparse):
        assert (result.timing.clock, len(result.timing.steps), result.timing.alike) == ("CPU time", 3, (0, 0, 0))
        assert min(result.timing.steps) > 0 and result.timing.decode > 0
    # of the sparse run alone: its dense forward passes beside its own steps
    assert (len(comparison.dense.timing.reference), len(comparison.sparse.timing.reference)) == (0, 3)
    reference = 3 * np.median(comparison.sparse.timing.reference)
    assert comparison.speedup == pytest.approx(reference / comparison.sparse.timing.denoise)
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_compare_with_the_sparse_video_first(tiny_pipeline, request_, tmp_path):
    """It is there sooner; the comparison is the same, and sparse passes are timed beside the dense steps."""
    request, order = replace(request_, num_frames=5, seed=8), []
    made = tiny_pipeline.generate_frames

    def noting(asked, *given):
        order.append("dense" if asked.bsa is None else "sparse")
        return made(asked, *given)

    watched = SimpleNamespace(generate_frames=noting)
    other = compare(watched, request, output_dir=tmp_path / "other", sparse_first=True)
    assert order == ["sparse", "dense"]
    assert [other.dense.video.name, other.sparse.video.name] == ["dense.mp4", "sparse.mp4"]
    usual = compare(tiny_pipeline, request, output_dir=tmp_path / "usual")
    assert (other.psnr, other.ssim, other.frames) == (usual.psnr, usual.ssim, usual.frames)
    dense, sparse = other.dense.timing, other.sparse.timing
    assert (len(dense.reference), len(sparse.reference)) == (3, 0)
    assert dense.reference_of == request.bsa.to_bsa_params() and sparse.reference_of is None
    beside = 3 * np.median(dense.reference)
    assert other.speedup == pytest.approx(dense.denoise / beside)


def test_a_pass_stands_for_the_step_beside_which_it_is(tiny_pipeline, request_):
    """Or the first sparse pass between dense steps would attend to everything, where dense steps come first."""
    plan = tiny_pipeline.plan(replace(request_, num_frames=5, bsa=replace(request_.bsa, dense_steps=1)))
    attention = attention_for(plan.work)
    with tiny_pipeline.exclusive() as model, torch.no_grad():
        run = forward_for(plan.forward, model, plan.work, attention, at=(range(2, 3), range(1)))
        channels, (frames, rows, columns) = model.transformer.in_channels, plan.request.latent_shape
        given = torch.zeros(plan.work.rows, channels, frames, rows, columns, dtype=model.dtype)
        width = model.transformer.caption_embedder.linear_1.weight.shape[1]
        text = torch.zeros(plan.work.rows, 4, width, dtype=model.dtype)
        shares = []
        for _ in range(2):
            run(given, torch.zeros(plan.work.rows), text, torch.ones(plan.work.rows, 4, dtype=torch.long))
            shares.append(attention.density())
    assert shares == [pytest.approx(plan.work.blocks.density), pytest.approx((1 + plan.work.blocks.density) / 2)]


def test_only_a_sparse_video_right_after_its_dense_one_times_dense_passes(tiny_pipeline, request_):
    """Whoever asks for one video does not pay for a comparison."""

    def references(request):
        return len(tiny_pipeline.generate(request).timing.reference)

    dense = replace(request_, bsa=None, num_frames=5)
    sparse, more = (replace(dense, bsa=BSAConfig(sparsity)) for sparsity in (0.5, 0.75))
    assert references(replace(sparse, seed=99)) == 0
    assert [references(request) for request in (dense, sparse, more)] == [0, 3, 3]  # as in a sweep
    assert [references(request) for request in (replace(dense, seed=1), sparse)] == [0, 0]
    assert [references(request) for request in (sparse, replace(dense, seed=1))] == [0, 0]
    assert [references(request) for request in (more, replace(dense, seed=2))] == [0, 0]
    assert [references(request) for request in (sparse, dense, sparse, dense)] == [0, 3, 3, 0]  # once for each pair
    continued = replace(dense, start=FromFrames(video="x.mp4"), num_frames=17)
    plans = [tiny_pipeline.plan(replace(continued, bsa=bsa)) for bsa in (sparse.bsa, None)]
    tiny_pipeline._last = plans[0]
    assert tiny_pipeline._beside(plans[1]) is None  # its kept keys are not those of sparse attention


def test_dense_passes_in_between_change_no_video(tiny_pipeline, request_):
    alone = frames_of(tiny_pipeline, replace(request_, seed=5))
    frames_of(tiny_pipeline, replace(request_, seed=5, bsa=None))
    np.testing.assert_array_equal(frames_of(tiny_pipeline, replace(request_, seed=5)), alone)


def test_compare_refuses_when_there_is_nothing_to_compare(tiny_pipeline, request_):
    with pytest.raises(ValueError, match="nothing to compare: dense attention was asked for"):
        compare(tiny_pipeline, replace(request_, bsa=None))
    with pytest.raises(ValueError, match="nothing to compare: num_frames 1 is a single latent frame"):
        compare(tiny_pipeline, replace(request_, num_frames=1))


def test_equal_videos_compare_as_equal(tiny_pipeline, request_):
    comparison = compare(tiny_pipeline, replace(request_, bsa=BSAConfig(sparsity=0.0), num_frames=5))
    assert comparison.psnr > 50 and comparison.ssim > 0.999
    json.dumps(comparison.to_dict(), allow_nan=False)
