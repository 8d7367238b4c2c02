"""Refining a long video in overlapping windows: what each reads, what it begins with, and the latents of a real one."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import original_refinement as original
import original_vectors
import pytest
import torch
from latents import final_latents
from test_pipeline_long import REQUEST, Drawing, long, run
from tiny_checkpoint import write_lora, write_tiny_checkpoint

from bsa import BSAConfig
from pipeline import FromClip, LongCatPipeline, VideoRequest, VideoResult, cli_command, read_settings
from pipeline.media.clip import read_clip
from pipeline.media.write import write_video
from pipeline.model.begin import enlarge
from pipeline.request.refinement import front_padding, given_latents, latent_frames
from pipeline.runs.chain import ChainStore, run_chain
from pipeline.runs.long_refinement import LongRefinement

STORED = np.load(Path(__file__).parent / "data" / "refinement_6b3f4b8.npz")
FIRST = replace(
    REQUEST, height=64, width=96, num_frames=58, fps=30, seed=9, lora="refine", start=FromClip(video="first.mp4")
)


class Doubling:
    """Shows every pixel twice in each direction, and every frame as often as asked; given frames stay as they are."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.requests, self.sources, self.given, self.frames = [], [], [], []

    def generate_frames(self, request, on_step, output):
        start, source = request.start, read_clip(request.start.video)
        frames = source.repeat(start.factor, axis=0).repeat(2, axis=1).repeat(2, axis=2)
        frames = 255 - frames  # so that nothing that is not refined could pass for refined
        given = frames[:0]
        if start.refined is not None:
            given = read_clip(start.refined)[-start.cond_frames :]
            frames[: len(given)] = given
        for kept, one in zip((self.requests, self.sources, self.given, self.frames), (request, source, given, frames)):
            kept.append(one)
        if not len(given):
            write_video(output, frames, request.fps, {})
        result = VideoResult(request, output, {"total": 1.0}, 1, "x", 1.0, None, None, True, "", {})
        return result, frames


def refine(folder, generator, first=FIRST, prompts="ab"):
    video = long(*prompts)
    segments = ChainStore(folder, video, "tiny")
    finer = LongRefinement(video, segments, first)
    return run_chain(generator, finer, ChainStore(folder, finer, "tiny"), folder / "refined.mp4")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, drawing = tmp_path_factory.mktemp("refined") / "ab", Drawing()
    run(long(*"ab"), folder, drawing)
    doubling = Doubling()
    return folder, drawing, doubling, refine(folder, doubling)


class TestWindows:
    def test_they_reach_over_the_end_of_the_segment_before(self, made):
        folder, drawing, doubling, _ = made
        first, second = doubling.sources
        np.testing.assert_array_equal(first, read_clip(folder / "segment-001.mp4"))
        assert len(first) == len(second) == 29
        np.testing.assert_array_equal(second[:13], drawing.frames[0][-13:])  # without loss
        np.testing.assert_array_equal(second[13:], read_clip(folder / "segment-002.mp4"))

    def test_they_begin_with_the_refined_end_of_the_one_before(self, made):
        *_, doubling, _ = made
        assert [len(given) for given in doubling.given] == [0, 26]
        np.testing.assert_array_equal(doubling.given[1], doubling.frames[0][-26:])

    def test_the_whole(self, made):
        folder, _, _, result = made
        assert (result.frames, result.fps) == (2 * long(*"ab").frames, 30)
        parts = [read_clip(folder / f"window-00{number}.mp4") for number in (1, 2)]
        assert [len(part) for part in parts] == [58, 32]
        np.testing.assert_array_equal(read_clip(result.video), np.concatenate(parts))
        assert not list(folder.glob("*.source.mp4"))
        said = read_settings(result.video)
        assert (said.request.start, said.windows) == (FromClip(video="window-001.source.mp4"), 2)
        assert [part["frames"] for part in json.loads((folder / "windows.json").read_text())["parts"]] == [58, 32]

    def test_requests(self, made):
        first, second = made[2].requests
        assert first == replace(FIRST, prompt="a", start=first.start) and first.start.cond_frames == 0
        assert (second.prompt, second.seed, second.start.cond_frames) == ("b", 10, 26)
        assert second.start.refined.endswith("window-001.end.mp4")

    def test_as_many_frames(self, made, tmp_path):
        folder = shutil.copytree(made[0], tmp_path / "ab", ignore=shutil.ignore_patterns("window*"))
        first = replace(FIRST, num_frames=29, fps=15, start=FromClip(video="x.mp4", double_frames=False))
        doubling = Doubling()
        result = refine(folder, doubling, first)
        assert (result.frames, result.fps, len(doubling.given[1])) == (45, 15, 13)

    def test_a_fault_leaves_no_source_and_goes_on(self, made, tmp_path):
        folder = shutil.copytree(made[0], tmp_path / "ab")
        (folder / "window-002.mp4").unlink()

        class Failing(Doubling):
            def generate_frames(self, *_):
                raise RuntimeError("lost")

        with pytest.raises(RuntimeError, match="lost"):
            refine(folder, Failing())
        assert not list(folder.glob("*.source.mp4"))
        doubling = Doubling()
        refine(folder, doubling)
        assert [request.prompt for request in doubling.requests] == ["b"]

    def test_a_window_that_refines_nothing(self, made):
        with pytest.raises(ValueError, match="the request begins FromNoise; pass one that refines a clip"):
            refine(made[0], Doubling(), REQUEST)

    def test_a_request_for_another_number_of_frames(self, made):
        with pytest.raises(ValueError, match="num_frames 56 is not what a window of this long video makes; use 58"):
            refine(made[0], Doubling(), replace(FIRST, num_frames=56))


class TestPlan:
    def plan(self, folder, **changes):
        video = long(*"ab")
        return LongRefinement(video, ChainStore(folder, video, "tiny"), FIRST, **changes)

    def test_as_one(self, tmp_path):
        plan = self.plan(tmp_path)
        assert (plan.as_one.num_frames, plan.as_one.prompt, plan.frames_of(1)) == (90, "a", 58)
        assert plan.dense.segment(1, tmp_path / "end.mp4").bsa is None

    def test_written_and_read(self, tmp_path):
        plan = self.plan(tmp_path, prompts=("c", "d"))
        again = LongRefinement.from_dict(json.loads(json.dumps(plan.to_dict())), tmp_path, "tiny")
        assert again.to_dict() == plan.to_dict() and again.segment(1, tmp_path / "end.mp4").prompt == "d"
        with pytest.raises(ValueError, match="the plan of the refinement is damaged"):
            LongRefinement.from_dict({}, tmp_path, "tiny")

    def test_a_prompt_for_each_window(self, tmp_path):
        with pytest.raises(ValueError, match="there are 3 prompts for 2 windows; give one for each"):
            self.plan(tmp_path, prompts=tuple("abc"))


class TestNumbers:
    @pytest.mark.parametrize("frames", [1, 5, 26, 58, 93, 186])
    @pytest.mark.parametrize("given", [1, 5, 10, 13, 25, 26, 29])
    def test_latent_frames(self, frames, given):
        """As `generate_refine` counts them: given frames in whole groups of four latents, and then the others."""
        if frames <= given:
            return
        before = math.ceil((1 + math.ceil((given - 1) / 4)) / 4) * 4
        after = math.ceil(math.ceil((frames - given) / 4) / 4) * 4
        assert (given_latents(given), latent_frames(frames, given)) == (before, before + after)
        front = 1 + (before - 1) * 4 - given
        assert front_padding(given) == front >= 0
        assert 4 * (before + after) - 3 >= front + frames

    def test_longcats_own(self):
        assert (given_latents(26), front_padding(26), latent_frames(186, 26)) == (8, 3, 48)
        assert (given_latents(13), front_padding(13), latent_frames(93, 13)) == (4, 0, 24)

    def test_padding_at_both_ends(self):
        steps = np.zeros((3, 2, 2, 3), np.uint8)
        steps[1], steps[2] = 100, 200
        video = (enlarge(steps, 6, 4, 6, given=2)[0, 0, :, 0, 0] + 1) / 2 * 255
        assert video.tolist() == pytest.approx([0] * 11 + [0, 40, 80, 120, 160, 200] + [200] * 12, abs=1e-3)

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            pytest.param({"refined": "x.mp4"}, "cond_frames 0 and refined 'x.mp4' do not fit", id="no-number"),
            pytest.param({"cond_frames": 13}, "cond_frames 13 and refined None do not fit", id="no-file"),
            pytest.param({"refined": "x.mp4", "cond_frames": -1}, "cond_frames -1 and", id="negative"),
            pytest.param({"refined": "", "cond_frames": 1}, "the clip with refined frames is ''", id="empty"),
            pytest.param({"refined": "x.mp4", "cond_frames": 1.5}, "is not a whole number", id="fraction"),
        ],
    )
    def test_refused(self, values, says):
        with pytest.raises(ValueError, match=says):
            FromClip(video="clip.mp4", **values)

    def test_something_must_be_left(self):
        start = FromClip(video="clip.mp4", refined="x.mp4", cond_frames=58)
        with pytest.raises(ValueError, match="num_frames 58 leaves nothing to refine after cond_frames 58"):
            replace(FIRST, start=start)

    def test_written_and_read(self):
        start = FromClip(video="/a/clip.mp4", refined="/b/x.mp4", cond_frames=26)
        request = replace(FIRST, start=start)
        assert VideoRequest.from_dict(request.to_dict()) == request
        assert start.at("clip.mp4") == FromClip(video="clip.mp4", refined="x.mp4", cond_frames=26)
        assert set(FIRST.to_dict()["refine"]) == {"video", "t_thresh", "double_frames"}  # as before there were windows
        with pytest.raises(ValueError, match="is refined after the pieces before it; use the Python code"):
            cli_command(request, model_path="x", device="cpu", compare=False, output="y.mp4")


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint, tmp_path_factory):
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("windows") / "longcat-random")
    write_lora(folder, "refinement_lora")
    return LongCatPipeline.load(folder, device="cpu")


@pytest.fixture(scope="module")
def window(pipeline, tmp_path_factory):
    """13 frames of 24 x 40, doubled, of which 10 are given."""
    folder, generator = tmp_path_factory.mktemp("clips"), np.random.default_rng(3)
    for name, size in (("clip.mp4", (13, 24, 40, 3)), ("refined.mp4", (12, 48, 80, 3))):
        write_video(folder / name, generator.integers(0, 256, size, np.uint8), 15, {}, lossless=True)
    start = FromClip(video=str(folder / "clip.mp4"), refined=str(folder / "refined.mp4"), cond_frames=10)
    return pipeline.info.request(
        "x", height=48, width=80, num_frames=26, seed=7, steps=50, guidance_scale=1.0, use_distill=False,
        bsa=None, lora="refine", start=start,
    )  # fmt: skip


class TestLatents:
    """On the random checkpoint."""

    def test_the_first_frames_are_the_given_ones_and_stay(self, pipeline, window, monkeypatch):
        """Whatever is refined after them; and what is refined depends on them."""
        for bsa in (None, BSAConfig(0.5, None, (2, 3, 5), (2, 3, 5))):
            latents = final_latents(pipeline, replace(window, bsa=bsa), monkeypatch)
            other = final_latents(pipeline, replace(window, bsa=bsa, prompt="another"), monkeypatch)
            assert latents.shape[2] == 8
            assert torch.equal(latents[:, :, :4], other[:, :, :4])
            assert not torch.equal(latents[:, :, 4:], other[:, :, 4:])

    def test_frames_phases_and_progress(self, pipeline, window, tmp_path):
        phases = {}
        result, frames = pipeline.generate_frames(
            window, lambda update: phases.update({update.phase: (update.step, update.total)}), tmp_path / "x.mp4"
        )
        assert phases["encode"] == (12, 12) and phases["denoise"] == (5, 5)
        assert frames.shape == (26, 48, 80, 3)
        said = read_settings(result.video).request.start
        assert (said.video, said.refined, said.cond_frames) == ("clip.mp4", "refined.mp4", 10)

    def test_too_few_refined_frames(self, pipeline, window):
        start = replace(window.start, cond_frames=13)
        with pytest.raises(ValueError, match="the clip with refined frames has 12, cond_frames is 13; use"):
            pipeline.generate(replace(window, start=start))


@pytest.fixture(scope="module")
def deeper(tmp_path_factory):
    """The checkpoint that the original ran on, with an adapter that is never on."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("original") / "longcat-random", depth=original_vectors.DEPTH)
    write_lora(folder, "refinement_lora")
    return LongCatPipeline.load(folder, device="cpu")


@pytest.mark.parametrize("forward", ["plain", "fast"])
@pytest.mark.parametrize("name", original.WINDOWS)
def test_latents_of_the_original(deeper, tmp_path, monkeypatch, name, forward):
    """Enlarging, padding at both ends, three draws of one seed, the given latents, schedule, denoising.

    fp32 in another order through five steps of three blocks: measured 3e-7. Without the front padding it is 0.1.
    """
    case = original.WINDOWS[name]
    for file, frames in (("clip.mp4", original.coarse()), ("refined.mp4", original.refined(case))):
        write_video(tmp_path / file, frames, 15, {}, lossless=True)
    start = FromClip(
        video=str(tmp_path / "clip.mp4"),
        double_frames=case.double,
        refined=str(tmp_path / "refined.mp4"),
        cond_frames=case.given,
    )
    height, width = original_vectors.SIZE
    request = deeper.info.request(
        original_vectors.PROMPT, height=height, width=width, num_frames=13 * start.factor, seed=original_vectors.SEED,
        steps=50, guidance_scale=1.0, use_distill=False, lora="refine:0", start=start,
        bsa=BSAConfig.from_bsa_params(original_vectors.BSA) if case.sparse else None,
    )  # fmt: skip
    monkeypatch.setattr(deeper, "forward", forward)
    ours = original_vectors.sample(final_latents(deeper, request, monkeypatch)).astype(np.float64)
    theirs = STORED[name].astype(np.float64)
    assert np.linalg.norm(ours - theirs) < 3e-6 * np.linalg.norm(theirs)
