"""Long videos: their plan, the folder that keeps what is finished, and the joined file, with a generator that draws."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bsa import BSAConfig
from pipeline import Cancelled, FromClip, FromFrames, FromImage, StepUpdate, VideoRequest, VideoResult, read_settings
from pipeline.media import write
from pipeline.media.clip import read_clip
from pipeline.media.join import join_videos
from pipeline.media.write import write_video
from pipeline.model.begin import given_frames
from pipeline.runs import chain
from pipeline.runs.chain import ChainStore, run_chain
from pipeline.runs.long_video import LongVideo, prompts_for

REQUEST = VideoRequest(
    prompt="a",
    height=32,
    width=48,
    num_frames=29,
    steps=3,
    guidance_scale=1.0,
    seed=5,
    fps=15,
    bsa=BSAConfig(0.5, None, (2, 2, 2), (2, 2, 2)),
)


class Drawing:
    """Draws coarse blocks of one colour, by prompt and seed. What a video begins with stays as it is.

    fail: raised in the last step, by the number of the video from 1.
    """

    device = torch.device("cpu")

    def __init__(self, **fail) -> None:
        self.requests, self.given, self.frames = [], [], []
        self.fail = {int(name.removeprefix("at_")): error for name, error in fail.items()}

    def generate_frames(self, request, on_step, output):
        self.requests.append(request)
        given = np.empty((0, request.height, request.width, 3), np.uint8)
        if isinstance(request.start, FromFrames):
            given = given_frames(request.start)
        self.given.append(given)
        generator = np.random.default_rng([request.seed, *request.prompt.encode()])
        size = request.num_frames - len(given), request.height // 16, request.width // 16, 3
        new = np.kron(generator.integers(0, 256, size), np.ones((1, 16, 16, 1))).astype(np.uint8)
        for step in range(request.steps + 1):
            if step == request.steps and (error := self.fail.get(len(self.requests))) is not None:
                raise error
            if on_step is not None:
                on_step(StepUpdate("denoise", step, request.steps, 0.0))
        frames = np.concatenate([given, new])
        self.frames.append(frames)
        if not len(given):  # what it begins with is cut off later
            write_video(output, frames, request.fps, {})
        active, reason = request.workload.sparse, request.workload.reason
        return VideoResult(request, output, {"total": 1.0}, 1, "x", 1.0, None, None, active, reason, {}), frames


def long(*prompts, **changes):
    names = ("cond_frames", "kv_cache", "enhance_hf")
    shape = {name: changes.pop(name) for name in names if name in changes}
    return LongVideo(replace(REQUEST, **changes), prompts, **shape)


def run(video, folder, generator=None, **options):
    generator = generator or Drawing()
    store = ChainStore(folder, video, options.pop("checkpoint", "tiny"))
    return run_chain(generator, video, store, folder / "video.mp4", **options), generator


class TestPlan:
    @pytest.mark.parametrize(
        ("frames", "cond_frames", "segments", "expected"),
        [
            pytest.param(93, 13, 12, 973, id="longcats-minute"),
            pytest.param(93, 13, 4, 333, id="longcats-story"),
            pytest.param(93, 13, 1, 93, id="one-segment"),
            pytest.param(29, 25, 3, 37, id="four-new-ones"),
            pytest.param(5, 1, 2, 9, id="shortest"),
        ],
    )
    def test_length(self, frames, cond_frames, segments, expected):
        assert long(*"a" * segments, num_frames=frames, cond_frames=cond_frames).frames == expected

    def test_requests(self):
        video = long("a", "b", "c", cond_frames=9, kv_cache="host", enhance_hf=False)
        first, second, third = (video.segment(number, Path(f"end-{number}.mp4")) for number in range(3))
        assert first == REQUEST
        start = FromFrames(video="end-1.mp4", cond_frames=9, kv_cache="host", enhance_hf=False)
        assert second == replace(REQUEST, prompt="b", seed=6, start=start)
        assert (third.prompt, third.seed, third.start.video) == ("c", 7, "end-2.mp4")

    def test_segments_may_have_seeds_of_their_own(self):
        video = LongVideo(REQUEST, ("a", "b"), seeds=(5, 90))
        assert [video.segment(number, Path("x.mp4")).seed for number in range(2)] == [5, 90]
        assert LongVideo(REQUEST, ("a", "b"), seeds=(5, 6)) == LongVideo(REQUEST, ("a", "b"))
        with pytest.raises(ValueError, match="there are 1 seeds for 2 segments; give one for each"):
            LongVideo(REQUEST, ("a", "b"), seeds=(5,))

    def test_comes_back_from_plain_values(self):
        video = replace(long("a", "b", cond_frames=9, start=FromImage(image="/x/dog.png")), seeds=(5, 90))
        assert LongVideo.from_dict(json.loads(json.dumps(video.to_dict()))) == video

    @pytest.mark.parametrize("damage", [{"prompts": 3}, {"seeds": ["x"]}, {"request": 1}, {"more": 1}])
    def test_damaged_values_are_refused(self, damage):
        with pytest.raises(ValueError):
            LongVideo.from_dict(long("a", "b").to_dict() | damage)

    def test_a_seed_at_the_end_of_its_range_begins_anew(self):
        assert long("a", "b", seed=2**63 - 1).segment(1, Path("x.mp4")).seed == 0

    def test_a_picture_is_the_beginning_of_the_first_segment_only(self):
        video = long("a", "b", start=FromImage(image="dog.png"))
        assert video.segment(0, Path("x.mp4")).start == FromImage(image="dog.png")
        assert isinstance(video.segment(1, Path("x.mp4")).start, FromFrames)

    @pytest.mark.parametrize(
        ("prompts", "segments", "expected"),
        [
            pytest.param("a", 3, ("a", "a", "a"), id="one-for-all"),
            pytest.param("ab", 4, ("a", "b", "b", "b"), id="the-last-for-the-rest"),
            pytest.param("abc", None, ("a", "b", "c"), id="one-each"),
            pytest.param("a", 1, ("a",), id="one"),
        ],
    )
    def test_prompts(self, prompts, segments, expected):
        assert prompts_for(list(prompts), segments) == expected

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            pytest.param(lambda: prompts_for(["a"], None), "one prompt needs the number of segments", id="one-prompt"),
            pytest.param(lambda: prompts_for(["a", "b"], 1), "there are 2 prompts for 1 segments", id="too-many"),
            pytest.param(lambda: long(), "of 0 segments cannot be made; use 1 to 999", id="none"),
            pytest.param(lambda: long(*"a" * 1000), "of 1000 segments cannot be made", id="endless"),
            pytest.param(lambda: prompts_for(["a"], 10**15), "use 1 to 999", id="more-than-memory-holds"),
            pytest.param(lambda: long("a", ""), "segment 2 of 2 cannot be made: the prompt is empty", id="prompt"),
            pytest.param(lambda: long("a", "b", num_frames=13), "segment 2 of 2 cannot be made: num_fr", id="short"),
            pytest.param(lambda: long("a", "b", cond_frames=12), "cond_frames 12 is not of the form 4n", id="cond"),
            pytest.param(
                lambda: long("a", start=FromClip(video="x.mp4"), lora="refine", num_frames=30),
                "not refined; refine it",
                id="refined",
            ),
        ],
    )
    def test_refused(self, make, says):
        with pytest.raises(ValueError, match=says):
            make()


@pytest.fixture(scope="module")
def abc(tmp_path_factory):
    """A finished folder; do not write to it."""
    folder = tmp_path_factory.mktemp("long") / "abc"
    return folder, *run(long(*"abc"), folder)


@pytest.fixture
def folder(abc, tmp_path):
    """A copy of it to go on with."""
    return shutil.copytree(abc[0], tmp_path / "abc")


class TestChain:
    def test_every_segment_begins_with_the_very_frames_that_the_last_one_ended_with(self, abc):
        _, result, drawn = abc
        assert len(drawn.requests) == 3 and not len(drawn.given[0])
        for before, given in zip(drawn.frames, drawn.given[1:]):
            np.testing.assert_array_equal(given, before[-13:])  # no loss by compression
        assert (result.frames, result.fps, len(result.parts)) == (29 + 2 * 16, 15, 3)

    def test_the_whole_is_its_parts_without_what_they_share(self, abc):
        folder, result, drawn = abc
        parts = [read_clip(folder / f"segment-{number:03}.mp4") for number in (1, 2, 3)]
        assert [len(part) for part in parts] == [29, 16, 16]
        np.testing.assert_array_equal(read_clip(result.video), np.concatenate(parts))
        made = np.concatenate([drawn.frames[0], *(frames[13:] for frames in drawn.frames[1:])])
        assert np.abs(read_clip(result.video).astype(int) - made).mean() < 6  # H.264 of flat blocks

    def test_what_the_files_say(self, abc):
        folder, result, drawn = abc
        assert read_settings(result.video).request == REQUEST
        second = read_settings(folder / "segment-002.mp4").request
        assert second == replace(drawn.requests[1], start=drawn.requests[1].start.at("segment-001.end.mp4"))
        assert json.loads(json.dumps(result.to_dict()))["seconds"] == 4.067
        assert {path.name for path in folder.iterdir()} == {
            *(f"segment-00{number}{kind}.mp4" for number in (1, 2, 3) for kind in ("", ".end")),
            *("segments.json", "video.mp4"),
        }

    @pytest.mark.parametrize("error", [Cancelled(), KeyboardInterrupt(), RuntimeError("lost")])
    def test_what_stops_it_costs_one_segment(self, abc, tmp_path, caplog, error):
        video = long(*"ab")
        with caplog.at_level(logging.WARNING, "pipeline"), pytest.raises(type(error)):
            run(video, tmp_path, Drawing(at_2=error))
        assert f"1 of 2 segments are kept in {tmp_path}; another run" in caplog.text
        begun = []
        result, drawn = run(video, tmp_path, on_begin=begun.append)
        assert begun == [1] and len(drawn.requests) == 1
        np.testing.assert_array_equal(read_clip(result.video), read_clip(abc[1].video)[:45])

    def test_a_disk_that_fills_up_in_segment_3(self, tmp_path, monkeypatch):
        """The second and those before it stay; with space again, the third is the next."""

        def full(output, *rest):
            if output.name.startswith("segment-003"):
                raise OSError("no space left on the disk (0.0 MiB free)")
            return encode(output, *rest)

        encode, video = write.run_ffmpeg, long(*"abcd", num_frames=17)
        monkeypatch.setattr(write, "run_ffmpeg", full)
        monkeypatch.setattr(write, "_rescue", lambda *_: "it was not kept")
        with pytest.raises(OSError, match="segment-003.mp4: no space left"):
            run(video, tmp_path)
        assert len(json.loads((tmp_path / "segments.json").read_text())["parts"]) == 2
        assert [len(read_clip(tmp_path / f"segment-00{number}.mp4")) for number in (1, 2)] == [17, 4]
        assert not list(tmp_path.glob("*003*")) and not list(tmp_path.glob(".*"))
        monkeypatch.setattr(write, "run_ffmpeg", encode)
        result, drawn = run(video, tmp_path)
        assert [request.prompt for request in drawn.requests] == ["c", "d"]
        assert result.frames == len(read_clip(result.video)) == 17 + 3 * 4

    def test_a_crash_before_the_list_is_written_makes_the_segment_again(self, tmp_path, monkeypatch):
        """Its files are there, and nothing says that it is finished."""

        def crash(file, text):
            if text.count('"frames"') == 2:
                raise KeyboardInterrupt
            whole(file, text)

        whole = chain.write_whole
        monkeypatch.setattr(chain, "write_whole", crash)
        with pytest.raises(KeyboardInterrupt):
            run(long(*"abc"), tmp_path)
        monkeypatch.setattr(chain, "write_whole", whole)
        _, drawn = run(long(*"abc"), tmp_path)
        assert [request.prompt for request in drawn.requests] == ["b", "c"]

    @pytest.mark.parametrize(
        ("prompts", "made"),
        [
            pytest.param("abc", "", id="nothing-again"),
            pytest.param("abcde", "de", id="more"),
            pytest.param("ab", "", id="fewer"),
        ],
    )
    def test_going_on(self, folder, prompts, made):
        (folder / "video.mp4").unlink()
        result, drawn = run(long(*prompts), folder)
        assert "".join(request.prompt for request in drawn.requests) == made
        assert result.frames == len(read_clip(result.video)) == long(*prompts).frames

    @pytest.mark.parametrize("lost", ["segment-002.mp4", "segment-002.end.mp4"])
    def test_a_file_that_was_removed_is_made_again_with_all_after_it(self, folder, lost):
        """And may then be another one."""
        (folder / lost).unlink()
        _, drawn = run(long(*"axc"), folder)
        assert [request.prompt for request in drawn.requests] == ["x", "c"]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            pytest.param({"seed": 6}, "holds segment 1 with another seed; choose another folder, or remove", id="seed"),
            pytest.param({"width": 64}, "holds segment 1 with another width", id="size"),
            pytest.param({"bsa": None}, "holds segment 1 with another bsa", id="attention"),
            pytest.param({"cond_frames": 9}, "holds segment 2 with another start", id="conditioning"),
            pytest.param({"prompts": "axc"}, "holds segment 2 with another prompt", id="prompt"),
            pytest.param({"checkpoint": "big"}, "holds segment 1 with another checkpoint", id="checkpoint"),
        ],
    )
    def test_what_is_made_may_not_change(self, abc, change, says):
        prompts, checkpoint = change.pop("prompts", "abc"), change.pop("checkpoint", "tiny")
        with pytest.raises(ValueError, match=says):
            ChainStore(abc[0], long(*prompts, **change), checkpoint)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            pytest.param("{", "cannot be read", id="cut-off"),
            pytest.param("[" * 100_000, "cannot be read", id="nested"),
            pytest.param("[]", "is damaged", id="list"),
            pytest.param('{"format": 1, "parts": 3}', "is damaged", id="number"),
            pytest.param('{"format": 1, "parts": [{"request": {"a": 1}}]}', "is damaged", id="request"),
            pytest.param('{"format": 2, "parts": []}', "its format is 2, not 1", id="newer"),
        ],
    )
    def test_a_list_that_cannot_be_used(self, folder, content, says):
        (folder / "segments.json").write_text(content)
        with pytest.raises(ValueError, match=says):
            ChainStore(folder, long("a"), "tiny")


class TestFiles:
    @pytest.fixture
    def parts(self, tmp_path):
        folder = tmp_path / "it's a: [folder] 🙂"
        for number, count in enumerate((13, 4, 8)):
            size = (count, 3, 5, 3)
            coarse = np.random.default_rng(number).integers(0, 256, size)
            frames = np.kron(coarse, np.ones((1, 16, 16, 1))).astype(np.uint8)
            write_video(folder / f"part'{number}.mp4", frames, 15, {})
        return sorted(folder.glob("*.mp4"))

    def test_joining(self, parts, tmp_path):
        said = {"request": REQUEST.to_dict(), "note": "ü"}
        join_videos(parts, tmp_path / "whole.mp4", said)
        np.testing.assert_array_equal(
            read_clip(tmp_path / "whole.mp4"), np.concatenate([read_clip(part) for part in parts])
        )
        assert read_settings(tmp_path / "whole.mp4").request == REQUEST

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda part: part.unlink(), id="missing"),
            pytest.param(lambda part: part.write_bytes(b""), id="empty"),
            pytest.param(lambda part: part.write_bytes(part.read_bytes()[:-300]), id="cut-off"),
        ],
    )
    def test_a_part_that_cannot_be_read_leaves_what_was_there(self, parts, tmp_path, damage):
        join_videos(parts, tmp_path / "whole.mp4", {})
        before = (tmp_path / "whole.mp4").read_bytes()
        damage(parts[1])
        with pytest.raises(OSError, match="cannot write .*whole.mp4"):
            join_videos(parts, tmp_path / "whole.mp4", {})
        assert (tmp_path / "whole.mp4").read_bytes() == before

    @pytest.mark.parametrize("size", [(13, 48, 80, 3), (1, 16, 16, 3), (2, 16, 144, 3)])
    def test_without_loss(self, tmp_path, size):
        frames = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        write_video(tmp_path / "end.mp4", frames, 15, {}, lossless=True)
        np.testing.assert_array_equal(read_clip(tmp_path / "end.mp4"), frames)
        write_video(tmp_path / "lossy.mp4", frames, 15, {})
        assert not np.array_equal(read_clip(tmp_path / "lossy.mp4"), frames)
