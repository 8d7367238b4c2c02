"""Image to video and continuation through the pipeline, on the random checkpoint."""

import json
import math
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from latents import final_latents
from PIL import Image
from tiny_checkpoint import write_lora

from bsa import BSAConfig
from pipeline import FromFrames, FromImage, LongCatPipeline, VideoRequest, compare, read_settings
from pipeline.cli.main import main
from pipeline.cli.parser import build_parser
from pipeline.cli.read import read_request
from pipeline.media.attention_record import AttentionRecord, record_path
from pipeline.media.clip import inspect_clip, read_clip
from pipeline.media.picture import inspect_picture
from pipeline.media.write import write_video
from pipeline.model.schedule import enhanced_schedule, longcat_sigmas
from pipeline.request.sizes import SIZES_480P, video_size
from pipeline.request.start import KV_CACHES
from pipeline.runs.as_code import cli_command, python_code
from pipeline.sweeps.run_sweep import run_sweep
from pipeline.sweeps.sweep import Sweep
from pipeline.sweeps.sweep_axes import parse_axis

SPARSE = BSAConfig(0.5, None, (2, 2, 2), (2, 2, 2))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A picture of 40 x 24 and a clip of 30 frames at 30 a second, of smooth noise."""
    folder = tmp_path_factory.mktemp("given")
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 8, 6, 8, generator=generator)
    frames = torch.nn.functional.interpolate(coarse, size=(30, 48, 64), mode="trilinear")[0]
    frames = (frames.permute(1, 2, 3, 0) * 255).byte().numpy()
    Image.fromarray(frames[0, :24, :40]).save(folder / "picture.png")
    write_video(folder / "clip.mp4", frames, 30, {})
    return folder


@pytest.fixture(scope="module")
def picture(files):
    return inspect_picture(files / "picture.png")


@pytest.fixture(scope="module")
def clip(files):
    return inspect_clip(files / "clip.mp4")


def small(make, given, **changes):
    return make(
        "a red circle", given, **{"height": 64, "width": 96, "num_frames": 29, "seed": 5, "bsa": None} | changes
    )


def cases(pipeline, picture, clip):
    info = pipeline.info
    return {
        "image": small(info.image_to_video, picture),
        "image-sparse": small(info.image_to_video, picture, bsa=SPARSE, guidance_scale=2.0),
        "frames": small(info.continuation, clip, enhance_hf=False),
        "frames-sparse": small(info.continuation, clip, bsa=SPARSE, kv_cache="host", cond_frames=9, enhance_hf=False),
        "frames-guided": small(info.continuation, clip, bsa=SPARSE, kv_cache="off", guidance_scale=2.0, steps=2),
    }


CASES = ("image", "image-sparse", "frames", "frames-sparse", "frames-guided")


@pytest.mark.parametrize(("case", "forward"), [*((case, "plain") for case in CASES), ("frames-sparse", "fast")])
def test_the_whole_way(tiny_pipeline, picture, clip, tmp_path, monkeypatch, case, forward):
    """Phases, steps, size, what is given, and what the file says of itself."""
    request = cases(tiny_pipeline, picture, clip)[case]
    monkeypatch.setattr(tiny_pipeline, "forward", forward)
    phases, previews = {}, []

    def on_step(update):
        phases[update.phase] = update.step, update.total
        if update.preview is not None:
            previews.append(update.preview())

    result, frames = tiny_pipeline.generate_frames(request, on_step, tmp_path / "video.mp4")
    given, steps = request.start.conditioning, tiny_pipeline.info.steps_run(request)
    assert phases == {"text": (1, 1), "encode": (given, given), "denoise": (steps, steps), "decode": (8, 8)}
    assert frames.shape == (29, 64, 96, 3) and len(previews) == steps
    assert all(np.array_equal(preview[:given], previews[0][:given]) for preview in previews)  # given frames stay
    assert set(result.seconds) == {"text", "encode", "denoise", "decode", "total"}
    assert result.bsa_active == (request.bsa is not None)
    assert result.density == 1 if request.bsa is None else 0.3 < result.density < 0.7
    said = read_settings(result.video).request
    assert said == replace(request, start=request.start.at(request.start.source.name))  # a name, no path


def test_the_seed_decides(tiny_pipeline, picture, clip):
    request = replace(cases(tiny_pipeline, picture, clip)["image"], steps=1)
    first, again, other = (
        tiny_pipeline.generate_frames(each)[1] for each in (request, request, replace(request, seed=6))
    )
    np.testing.assert_array_equal(again, first)
    assert not np.array_equal(other, first)


@pytest.mark.parametrize("case", CASES)
def test_both_forwards_make_the_same_video(tiny_pipeline, picture, clip, monkeypatch, case):
    request = cases(tiny_pipeline, picture, clip)[case]
    latents = []
    for forward in ("plain", "fast"):
        monkeypatch.setattr(tiny_pipeline, "forward", forward)
        latents.append(final_latents(tiny_pipeline, request, monkeypatch))
    # fp32 in another order, through at most eleven steps of two blocks; a missing rule is an error above 1e-2.
    assert (latents[0] - latents[1]).norm() / latents[0].norm() < 1e-5


@pytest.mark.parametrize("forward", ["plain", "fast"])
@pytest.mark.parametrize("bsa", [pytest.param(None, id="dense"), pytest.param(SPARSE, id="sparse")])
def test_the_cache_changes_nothing_without_guidance(tiny_pipeline, clip, monkeypatch, forward, bsa):
    monkeypatch.setattr(tiny_pipeline, "forward", forward)
    made = {
        kept: final_latents(
            tiny_pipeline, small(tiny_pipeline.info.continuation, clip, bsa=bsa, kv_cache=kept), monkeypatch
        )
        for kept in KV_CACHES
    }
    assert torch.equal(made["device"], made["host"])
    # fp32: products of other shapes sum in another order, through thirteen steps.
    assert (made["device"] - made["off"]).norm() / made["off"].norm() < 1e-5


def test_guidance_is_fitted_over_what_the_forward_has(tiny_pipeline, clip, monkeypatch):
    """As in the original, which is why a guided continuation differs a little with and without the cache."""
    made = {}
    for kept in ("device", "off"):
        request = small(tiny_pipeline.info.continuation, clip, kv_cache=kept, guidance_scale=4.0, enhance_hf=False)
        made[kept] = final_latents(tiny_pipeline, request, monkeypatch)
    assert 1e-4 < (made["device"] - made["off"]).norm() / made["off"].norm() < 0.5


@pytest.mark.parametrize("case", ["image-sparse", "frames-sparse", "frames-guided"])
def test_both_forwards_record_the_same(tiny_pipeline, picture, clip, tmp_path, monkeypatch, case):
    request, records = replace(cases(tiny_pipeline, picture, clip)[case], steps=1), []
    monkeypatch.setattr(tiny_pipeline, "record", True)
    for forward in ("plain", "fast"):
        monkeypatch.setattr(tiny_pipeline, "forward", forward)
        result = tiny_pipeline.generate(request, output=tmp_path / f"{forward}.mp4")
        records.append(AttentionRecord.load(record_path(result.video)))
    np.testing.assert_array_equal(records[0].selections, records[1].selections)
    np.testing.assert_allclose(records[0].recall, records[1].recall, rtol=1e-4)
    assert records[0].conditioning == request.start.conditioning


def test_dense_steps_and_layers_with_a_cache(tiny_pipeline, clip, monkeypatch):
    config = replace(SPARSE, dense_steps=1, dense_layers=1)
    latents = []
    for forward in ("plain", "fast"):
        monkeypatch.setattr(tiny_pipeline, "forward", forward)
        request = small(tiny_pipeline.info.continuation, clip, bsa=config, enhance_hf=False)
        latents.append(final_latents(tiny_pipeline, request, monkeypatch))
    assert (latents[0] - latents[1]).norm() / latents[0].norm() < 1e-5


def test_with_an_adapter(tiny_checkpoint, clip, picture, tmp_path, monkeypatch):
    import shutil

    folder = shutil.copytree(tiny_checkpoint, tmp_path / "longcat-random")
    write_lora(folder, "distill")
    pipeline = LongCatPipeline.load(folder, device="cpu")
    for make, given in ((pipeline.info.image_to_video, picture), (pipeline.info.continuation, clip)):
        request = small(make, given, steps=2, lora="distill")
        assert request.use_distill and request.guidance_scale == 1
        plain = replace(request, lora=None)
        assert not torch.equal(
            final_latents(pipeline, request, monkeypatch), final_latents(pipeline, plain, monkeypatch)
        )


def test_dense_and_sparse_side_by_side(tiny_pipeline, picture, tmp_path):
    request = small(tiny_pipeline.info.image_to_video, picture, bsa=SPARSE, steps=1)
    comparison = compare(tiny_pipeline, request, output_dir=tmp_path)
    assert math.isfinite(comparison.psnr) and comparison.dense.request.start == request.start


def test_a_sweep_over_videos_that_continue_a_clip(tiny_pipeline, clip, tmp_path):
    request = small(tiny_pipeline.info.continuation, clip, bsa=SPARSE, steps=1, enhance_hf=False)
    run_sweep(tiny_pipeline, Sweep(request, parse_axis("sparsity=0.5,0.75")), output_dir=tmp_path)
    made = [read_settings(file).request for file in tmp_path.glob("*.mp4")]
    assert sorted(0 if one.bsa is None else one.bsa.sparsity for one in made) == [0, 0.5, 0.75]
    assert {one.start for one in made} == {request.start.at("clip.mp4")}


class TestWhatIsGiven:
    """Which frames, how they are resized, and where they end up."""

    def test_the_last_frames_of_the_clip(self, files, clip):
        from pipeline.model.begin import given_frames

        frames = read_clip(files / "clip.mp4")
        start = FromFrames(video=str(clip.path), cond_frames=5, stride=3)
        np.testing.assert_array_equal(given_frames(start), frames[[17, 20, 23, 26, 29]])
        start = FromFrames(video=str(clip.path), cond_frames=13)
        np.testing.assert_array_equal(given_frames(start), frames[-13:])

    def test_resized_as_diffusers_does(self, files):
        from diffusers.video_processor import VideoProcessor

        from pipeline.media.picture import read_picture, stretch

        expected = VideoProcessor(vae_scale_factor=8).preprocess(Image.open(files / "picture.png"), 64, 96)
        ours = stretch(read_picture(files / "picture.png")[None], 64, 96)
        torch.testing.assert_close(ours[:, :, 0], expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("case", CASES)
    def test_latents_begin_with_the_encoded_frames(self, tiny_pipeline, picture, clip, monkeypatch, case):
        from pipeline.media.picture import stretch
        from pipeline.model.begin import given_frames

        request = cases(tiny_pipeline, picture, clip)[case]
        latents = final_latents(tiny_pipeline, request, monkeypatch)
        generator = torch.Generator().manual_seed(request.seed)
        torch.randn(1, 16, *request.latent_shape, generator=generator)  # the noise comes first
        pixels = stretch(given_frames(request.start), request.height, request.width)
        expected = tiny_pipeline._model.encode(pixels, generator, lambda: None)
        assert torch.equal(latents[:, :, : request.start.conditioning], expected)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 832, (480, 832)),
        (1080, 1920, (480, 832)),
        (600, 600, (608, 640)),
        (4000, 3000, (736, 544)),
        (100, 390, (320, 1216)),
    ],
)
def test_sizes(height, width, expected):
    """Those of `get_condition_shape(..., "480p")` of the original; 1:1 lies between two, and the first is taken."""
    assert video_size(height, width) == expected
    assert expected in SIZES_480P


def test_a_size_of_ones_own(tiny_pipeline, picture):
    info = tiny_pipeline.info
    assert (lambda r: (r.height, r.width))(info.image_to_video("x", picture)) == (48, 80)  # 64 x 64 pixels of its shape
    assert info.image_to_video("x", picture, height=96).width == 160
    assert info.image_to_video("x", picture, width=160).height == 96
    with pytest.raises(ValueError, match="100 x 20 pixels are too narrow for a video; cut it to between 1:4 and 4:1"):
        video_size(20, 100)


def test_the_schedule_for_details():
    sigmas = torch.tensor(longcat_sigmas(50))
    timesteps = 1000 * 12 * sigmas / (1 + 11 * sigmas)
    schedule = enhanced_schedule(timesteps)
    assert len(schedule.timesteps) == 56 == FromFrames(video="x").steps_run(50, 12.0)
    assert schedule.timesteps[-10:].tolist() == [500, 450, 400, 350, 300, 250, 200, 150, 100, 50]
    assert torch.equal(schedule.timesteps[:46], timesteps[:46]) and timesteps[46] <= 500
    assert torch.equal(schedule.sigmas[:-1], schedule.timesteps / 1000) and schedule.sigmas[-1] == 0


def test_a_continuation_plays_as_fast_as_its_clip(tiny_pipeline, clip):
    request = tiny_pipeline.info.continuation("x", clip)
    assert (request.start.stride, request.fps) == (2, 15)
    for fps, stride, plays in ((15, 1, 15), (24, 2, 12), (25, 2, 12), (60, 4, 15), (10, 1, 10), (1, 1, 1)):
        request = tiny_pipeline.info.continuation("x", replace(clip, fps=fps))
        assert (request.start.stride, request.fps) == (stride, plays)
    assert tiny_pipeline.info.continuation("x", clip, stride=1, fps=15).fps == 15


@pytest.mark.parametrize(
    "start",
    [
        FromImage(image="/a b/c.png"),
        FromFrames(video="/x/y.mp4", cond_frames=5, stride=3, kv_cache="off", enhance_hf=False),
    ],
    ids=["image", "frames"],
)
def test_a_request_travels_as_json(start):
    request = VideoRequest(
        prompt="x", height=64, width=64, num_frames=9, steps=2, guidance_scale=1, fps=15, bsa=None, start=start
    )
    assert VideoRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_as_code(tiny_pipeline, tiny_checkpoint, picture, clip):
    options = {"model_path": tiny_checkpoint, "device": "cpu", "compare": False, "output": "v.mp4"}
    for request in cases(tiny_pipeline, picture, clip).values():
        words = shlex.split(cli_command(request, **options))[3:]
        assert read_request(build_parser().parse_args(words), tiny_pipeline.info) == request
        program = python_code(request, **options)
        scope = {}
        exec(
            program[: program.index("pipeline = ")] + program[program.index("request = ") : program.index("result")],
            scope,
        )
        assert scope["request"] == request


def test_command_line(tiny_checkpoint, files, tmp_path, capsys):
    """Two videos, the second continuing the first, and what `info` says of one."""
    common = ["--model-path", str(tiny_checkpoint), "--prompt", "a red circle", "--steps", "1", "--width", "96"]
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    image = ["--image", str(files / "picture.png"), "--num-frames", "29"]
    assert main(["generate", *common, *image, "--output", str(first), "--device", "cpu", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["request"]["from_image"] == {"image": str(files / "picture.png")} and report["bsa_active"]
    more = ["--task", "vc", "--video", str(first), "--cond-frames", "9", "--num-frames", "17", "--no-enhance-hf"]
    assert main(["generate", *common, *more, "--output", str(second), "--device", "cpu", "--dense"]) == 0
    assert read_clip(second).shape == (17, 64, 96, 3)
    capsys.readouterr()
    assert main(["info", *common, *more, "--json", "-"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["conditioning_frames"] == 3
    assert described["memory_of_kv_cache"] == 2 * (2 * 64) * 4 * (3 * 4 * 6) + 2 * 64 * 4 * (1 * 1 * 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param(
            ["--task", "i2v"], "--task i2v makes a video that begins with --image; add --image FILE", id="no-image"
        ),
        pytest.param(
            ["--task", "vc"], "--task vc makes a video that continues --video; add --video FILE", id="no-video"
        ),
        pytest.param(
            ["--task", "t2v", "--image", "x.png"], "--image belongs to --task i2v or long, not t2v", id="other-task"
        ),
        pytest.param(
            ["--image", "x.png", "--video", "y.mp4"], "belongs to --task vc, refine or long, not i2v", id="both"
        ),
        pytest.param(["--cond-frames", "5"], "belongs to --task vc or long, not t2v", id="frames-of-nothing"),
        pytest.param(["--image", "/nowhere.png"], "cannot read the image /nowhere.png", id="nowhere"),
        pytest.param(["--video", "CLIP", "--cond-frames", "12"], "cond_frames 12 .*4n \\+ 1; try 9 or 13", id="12"),
        pytest.param(
            ["--video", "CLIP", "--cond-frames", "17"],
            "has 30 frames, and .* last 17, 2 frames apart; use a longer clip, or cond_frames 13",
            id="short",
        ),
        pytest.param(
            ["--video", "CLIP", "--num-frames", "13"],
            "num_frames 13 is too small; use 17, 21, 25, ...",
            id="nothing-new",
        ),
        pytest.param(
            ["--image", "PICTURE", "--num-frames", "1"], "num_frames 1 is too small; use 5, 9, 13", id="one-frame"
        ),
        pytest.param(
            ["--video", "CLIP", "--enhance-hf", "--use-distill"], "two schedules; turn enhance_hf off", id="schedules"
        ),
    ],
)
def test_bad_options_are_one_sentence(tiny_checkpoint, files, capsys, options, sentence):
    places = {"CLIP": str(files / "clip.mp4"), "PICTURE": str(files / "picture.png")}
    words = [places.get(word, word) for word in options]
    assert main(["generate", "--model-path", str(tiny_checkpoint), "--prompt", "x", *words]) == 2
    said = capsys.readouterr().err
    import re

    assert re.search(sentence, said) and said.count("\n") == 1
