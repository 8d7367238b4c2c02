"""Settings that travel through the page: from a dropped video into the form, and out as code."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import numpy as np
import pytest
from browser import Watch, button, generate, needs_chromium, notice, open_page
from fake_pipeline import CHECKPOINT
from playwright.sync_api import expect
from test_app_browser import EVIL

from bsa import BSAConfig
from pipeline import FromClip
from pipeline.cli.parser import build_parser
from pipeline.cli.read import read_request
from pipeline.media.write import write_video
from ui.form.read import form_request
from ui.form.restore import form_values

REQUEST = CHECKPOINT.request(
    'it\'s a "ball"\nover two lines 🎈 \\ $(touch x)',
    negative_prompt="grey; a=b",
    seed=123_456_789,
    steps=9,
    guidance_scale=1.7,
    teacache_thresh=0.15,
    bsa=BSAConfig(sparsity=0.33, chunk_q=(1, 2, 3), chunk_k=(4, 2, 6)),
)
ATTENTION = [
    pytest.param(REQUEST.bsa, "sparse", id="sparsity"),
    pytest.param(BSAConfig(sparsity=None, cdf_threshold=0.77), "sparse", id="mass"),
    pytest.param(BSAConfig(sparsity=0.995, cdf_threshold=0.999), "both", id="both rules, beyond the sliders"),
    pytest.param(None, "dense", id="dense"),
]


@pytest.mark.parametrize(("bsa", "mode"), ATTENTION)
def test_the_form_says_the_same_request(bsa, mode):
    request = replace(REQUEST, bsa=bsa)
    values = form_values(request, side_by_side=mode == "both")
    unset = {f"chunk_{kind}_{axis}": 4 for kind in "qk" for axis in "thw"}
    unset |= {"sparsity": 0.5, "cdf_threshold": 0.5, "keep_by": "top-k"}
    assert form_request(CHECKPOINT, unset | values) == request
    assert (values["mode"], values["randomise"]) == (mode, False)


def drop(page, file) -> None:
    page.locator("#drop input[type=file]").set_input_files(file)


def video_of(request, path, **more):
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    write_video(path, frames, request.fps, {"request": request.to_dict(), "versions": {}, **more})
    return path


@needs_chromium
@pytest.mark.parametrize(("bsa", "mode"), ATTENTION)
def test_a_dropped_video_restores_the_whole_form(page, fake, tmp_path, bsa, mode):
    request = replace(REQUEST, bsa=bsa)
    drop(page, video_of(request, tmp_path / "old.mp4"))
    expect(notice(page)).to_have_text("The settings of old.mp4 are in the form. Press Generate to make it again.")
    expect(page.locator("#prompt textarea")).to_have_value(request.prompt)
    generate(page)
    assert fake.requests[-1] == request
    generate(page)
    assert fake.requests[-1] == request, "a new seed was drawn"


@needs_chromium
def test_a_video_that_was_downloaded_from_the_page(page, fake, tmp_path):
    page.locator("#prompt textarea").fill(EVIL)
    generate(page)
    wanted = fake.requests[-1]
    with page.expect_download() as download:
        page.locator('.tile[data-arm="sparse"] .save').click()
    download.value.save_as(tmp_path / "mine.mp4")
    page.locator("#prompt textarea").fill("something else")
    drop(page, tmp_path / "mine.mp4")
    expect(page.locator("#prompt textarea")).to_have_value(EVIL)
    generate(page)
    assert fake.requests[-1] == wanted
    assert page.evaluate("window.pwned") is None


@needs_chromium
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(b"this is no video", "Foreign.mp4 is not an MP4 video; use one from this program", id="text"),
        pytest.param(b"\0\0\0\x10ftypisom\0\0\0\0", "Foreign.mp4 does not say how it was made;", id="without settings"),
    ],
)
def test_a_foreign_file_is_one_sentence_and_changes_nothing(page, tmp_path, content, sentence):
    (tmp_path / "Foreign.mp4").write_bytes(content)
    page.locator("#prompt textarea").fill("as before")
    drop(page, tmp_path / "Foreign.mp4")
    expect(notice(page)).to_contain_text(sentence)
    expect(page.locator("#prompt textarea")).to_have_value("as before")
    generate(page)


@needs_chromium
def test_a_piece_of_a_long_video_is_refused_and_changes_nothing(page, tmp_path):
    """It begins with refined frames, without which Generate would make another video."""
    start = FromClip(video="window-002.source.mp4", refined="end.mp4", cond_frames=13)
    request = replace(REQUEST, start=start, lora="refine", num_frames=34, guidance_scale=1.0)
    page.locator("#prompt textarea").fill("as before")
    drop(page, video_of(request, tmp_path / "window-002.mp4"))
    expect(notice(page)).to_contain_text("Window-002.mp4 is a piece of a long video")
    expect(page.locator("#prompt textarea")).to_have_value("as before")


@needs_chromium
def test_what_the_form_cannot_say_is_said(page, tmp_path):
    request = replace(REQUEST, fps=24, use_distill=True, seed=2**60)
    drop(page, video_of(request, tmp_path / "other.mp4", checkpoint="wan <b>"))
    remarks = ("24 frames a second", f"seed {2**60} has more digits")
    for words in (*remarks, "made with the checkpoint wan <b>, and here is fake-longcat"):
        expect(notice(page)).to_contain_text(words)


@needs_chromium
def test_copied_code_describes_the_shown_videos(browser, address, fake):
    watch = Watch()
    page = open_page(browser, address, watch)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    expect(page.locator("#code .code")).to_be_hidden()
    page.locator("#prompt textarea").fill(REQUEST.prompt)
    generate(page)
    button(page, "Copy as CLI").click()
    expect(page.locator(".code-said")).to_have_text("Command copied")
    line = page.evaluate("navigator.clipboard.readText()")
    # as a shell reads it: a function in the place of python prints its words
    script = "python() { printf '%s\\0' \"$@\"; }\n" + line
    told = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    words = ["python", *told.stdout.decode().split("\0")[:-1]]
    assert words[:4] == ["python", "-m", "pipeline", "generate"]
    assert "--compare" in words
    assert read_request(build_parser().parse_args(words[3:]), CHECKPOINT) == fake.requests[-1]
    button(page, "Copy as Python").click()
    expect(page.locator(".code-said")).to_have_text("Program copied")
    code = page.evaluate("navigator.clipboard.readText()")
    assert repr(REQUEST.prompt) in code
    compile(code, "copied", "exec")
    expect(page.locator("#code pre")).to_have_text(code)
    assert watch.complaints == []
    page.context.close()
