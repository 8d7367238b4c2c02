"""The first screen: a pair that was made before, its figures, what it looked at, and the words of a small model."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from app_server import running_page, until
from browser import button, expect_playing, fill_number, generate, needs_chromium, notice, open_group, open_page, reload
from fake_pipeline import CHECKPOINT, FakePipeline
from playwright.sync_api import expect

from bsa import BSAConfig, Grid
from pipeline import EMBEDDED_CHECKPOINT, compare, inspect_checkpoint
from pipeline.media.attention_record import AttentionRecord, record_path
from ui.premade import ID, Premade
from ui.views.stage import download_name

BSA = BSAConfig(sparsity=0.75, chunk_q=Grid(2, 2, 2), chunk_k=Grid(2, 2, 2))  # 3x2x3 blocks on 5x4x6 tokens
PROMPT = "a red square moves from left to right"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pair as the command line leaves it."""
    folder = tmp_path_factory.mktemp("premade")
    pair = compare(FakePipeline(), CHECKPOINT.request(PROMPT, seed=5, bsa=BSA), lambda update: None, folder)
    (folder / "report.json").write_text(json.dumps(pair.to_dict()))
    return folder


@pytest.fixture(scope="module")
def address(folder, fake, tmp_path_factory):
    known = replace(CHECKPOINT, bsa=BSA, vocabulary=inspect_checkpoint(EMBEDDED_CHECKPOINT).vocabulary)
    with running_page(fake, tmp_path_factory.mktemp("outputs"), known, shown_first=Premade.read(folder)) as address:
        yield address


# the pair -------------------------------------------------------------------------------------------------------


def test_a_premade_pair_says_what_its_own_report_says(folder):
    first = Premade.read(folder)
    report = json.loads((folder / "report.json").read_text())
    assert first.about == f"Pre-made with fake-longcat on a machine that it does not name: “{PROMPT}”, seed 5. " + (
        "Generate makes your own."
    )
    assert first.job.comparison.speedup == report["speedup"]
    assert first.job.results["dense"].seconds == report["dense"]["seconds"]


@pytest.mark.parametrize("harm", ["no folder", "no video", "no report", "bad report", "foreign video"])
def test_a_damaged_one_is_left_out(folder, tmp_path, harm, caplog):
    for file in folder.iterdir() if harm != "no folder" else ():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if harm == "no video":
        (tmp_path / "dense.mp4").unlink()
    elif harm == "no report":
        (tmp_path / "report.json").unlink()
    elif harm == "bad report":
        (tmp_path / "report.json").write_text("[1]")
    elif harm == "foreign video":
        (tmp_path / "sparse.mp4").write_bytes(b"not a video")
    assert Premade.read(tmp_path) == Premade()
    assert "cannot be shown" in caplog.text


def test_the_one_of_this_repository_is_small_and_whole():
    first = Premade.read()
    assert first.job is not None and "longcat-tiny" in first.about
    assert sum(file.stat().st_size for file in first.job.folder.iterdir()) < 700_000
    assert AttentionRecord.load(record_path(first.job.results["sparse"].video)).selections.size
    assert first.job.request.prompt == inspect_checkpoint(EMBEDDED_CHECKPOINT).vocabulary.default


@needs_chromium
def test_it_plays_at_once_with_its_figures_and_gives_way_to_a_run(page, folder):
    pair = Premade.read(folder).job.comparison
    expect_playing(page, "dense")
    expect_playing(page, "sparse")
    expect(page.locator(".about")).to_contain_text("Pre-made with fake-longcat")
    figures = page.locator("#stage .figures li")
    expect(figures).to_have_count(4)
    expect(figures.nth(0)).to_contain_text(f"{pair.speedup:.2f}×")
    expect(figures.nth(1)).to_contain_text(f"{pair.psnr:.1f} dB")
    below = page.locator(".figures").bounding_box()["y"] - page.locator(".stage").bounding_box()["y"]
    assert below > page.locator(".stage").bounding_box()["height"], "the figures are not under the videos"
    generate(page)
    expect(page.locator(".about")).to_be_hidden()
    reload(page)
    expect_playing(page, "dense")
    expect(page.locator(".about")).to_be_hidden()  # a visitor with runs sees the last one


def test_everybody_may_inspect_it_and_nobody_gets_other_files(address, folder):
    import httpx
    from gradio_client import Client

    found = Client(address, verbose=False).predict(ID, api_name="/inspect")
    assert found["recall"] > 0
    assert httpx.get(f"{address}/gradio_api/file={folder}/dense.mp4").status_code == 200
    assert httpx.get(f"{address}/gradio_api/file={folder.parent}/other.mp4").status_code in (403, 404)


# what it looked at ----------------------------------------------------------------------------------------------


@needs_chromium
def test_a_click_on_the_playing_video_lights_what_it_looked_at(page, folder):
    record = AttentionRecord.load(record_path(folder / "sparse.mp4"))
    expect_playing(page, "sparse")
    button(page, "Pause").click()
    page.get_by_label("Frame", exact=True).fill("6")  # latent frame 2, query blocks 6 to 11
    expect(page.locator(".player")).to_have_attribute("data-settled", "true")
    box = page.locator('.tile[data-arm="sparse"] video').bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.25 * box["height"])  # upper right
    expect(page.locator(".look-bar")).to_have_attribute("data-on", "8")
    stored = record.sampled
    step, layer = stored.steps[len(stored.steps) // 2], stored.layers[len(stored.layers) // 2]
    mass = record.recall_of(step, layer, 8).mean()
    expect(page.locator(".look-text")).to_contain_text(f"hold {100 * mass:.1f}% of its attention")
    expect(page.locator(".look-text")).to_contain_text("measured on one of its tokens")
    expect(page.locator(".player")).to_have_attribute("data-playing", "false")  # it chose, and did not play
    assert lit(page) == {
        block for block in range(6, 12) if any(block in record.kept(step, layer, h, 8) for h in (0, 1))
    }
    button(page, "Play").click()
    seen = page.evaluate(
        """async () => {
            const seen = new Set();
            for (let i = 0; i < 600 && seen.size < 3; i += 1) {
                seen.add(document.querySelector('canvas.look').dataset.t);
                await new Promise(requestAnimationFrame);
            }
            return seen.size;
        }"""
    )
    assert seen > 2, "the overlay stands still while the video plays"
    page.keyboard.press("Escape")
    expect(page.locator("canvas.look")).to_have_count(0)


def lit(page):
    """The key blocks of this moment that are not darkened, by the corner of their area, which has no line."""
    rows = page.locator("canvas.look").evaluate(
        """canvas => [0, 1].map((h) => [0, 1, 2].map((w) => canvas.getContext('2d').getImageData(
            Math.round(canvas.width * (w + 0.25) / 3), Math.round(canvas.height * (h + 0.25) / 2), 1, 1).data[3]))"""
    )
    return {6 + 3 * h + w for h, row in enumerate(rows) for w, alpha in enumerate(row) if alpha < 100}


@needs_chromium
def test_the_overlay_by_keyboard_and_its_way_to_more(page):
    expect_playing(page, "sparse")
    page.locator(".player").focus()
    page.keyboard.press("l")
    expect(page.locator(".look-bar")).to_have_attribute("data-on", re.compile(r"\d"))
    before = page.locator(".look-bar").get_attribute("data-on")
    page.keyboard.press("Shift+ArrowLeft")
    expect(page.locator(".look-bar")).to_have_attribute("data-on", str(int(before) - 1))
    button(page, "More inside the attention").click()
    expect(page.locator(".inside")).to_have_attribute("data-state", "ready")
    page.locator('.modes [data-mode="blind"]').click()
    expect(page.locator("canvas.look")).to_have_count(0)


# views ----------------------------------------------------------------------------------------------------------


@needs_chromium
def test_wipe_and_difference_are_as_large_as_side_by_side_and_nothing_is_black_around(page):
    expect_playing(page, "sparse")
    tile = page.locator('.tile[data-arm="dense"] .frame')
    beside = tile.bounding_box()
    for mode in ("wipe", "heat"):
        page.locator(f'.modes [data-mode="{mode}"]').click()
        stacked = tile.bounding_box()
        assert stacked["width"] >= beside["width"] and stacked["height"] >= beside["height"]
    page.locator('.modes [data-mode="side"]').click()
    for width, height in ((1440, 500), (1013, 777)):  # a low window, and a width that divides into no whole pixels
        page.set_viewport_size({"width": width, "height": height})
        shape = tile.bounding_box()
        assert shape["width"] / shape["height"] == pytest.approx(96 / 64, rel=0.01)


@needs_chromium
def test_zoom_is_the_same_for_both_and_follows_the_pointer(page):
    expect_playing(page, "sparse")
    zoom = page.locator(".zoom")
    expect(zoom).to_have_text("Zoom 1×")
    zoom.click()
    expect(zoom).to_have_text("Zoom 2×")
    page.locator('.tile[data-arm="dense"] .frame').hover(position={"x": 10, "y": 10})
    scales = page.locator(".tile video").evaluate_all(
        "videos => videos.map((video) => [getComputedStyle(video).scale, getComputedStyle(video).transformOrigin])"
    )
    assert scales[0] == scales[1] and scales[0][0] == "2"
    page.locator(".player").focus()
    page.keyboard.press("z")
    page.keyboard.press("z")
    expect(zoom).to_have_text("Zoom 1×")
    page.keyboard.press("2")
    expect(page.locator(".player")).to_have_attribute("data-mode", "wipe")
    page.keyboard.press("f")
    expect(page.locator(".player .full")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        pytest.param({"prompt": "A red ball!", "seed": 7}, "a-red-ball-seed7-sparsity0.75.mp4", id="plain"),
        pytest.param({"prompt": "A/../b\\c:?*", "bsa": None}, "a-b-c-seed0-dense.mp4", id="no path"),
        pytest.param({"prompt": "…"}, "video-seed0-sparsity0.75.mp4", id="nothing left"),
        pytest.param({"prompt": "红球 弹跳"}, "红球-弹跳-seed0-sparsity0.75.mp4", id="chinese"),
        pytest.param({"prompt": "word " * 40}, f"{'-'.join(['word'] * 12)}-seed0-sparsity0.75.mp4", id="long"),
        pytest.param({"bsa": BSAConfig(0.5, 0.9)}, "x-seed0-sparsity0.5-cdf0.9.mp4", id="both rules"),
    ],
)
def test_downloads_are_named_after_prompt_seed_and_sparsity(changes, name):
    assert download_name(CHECKPOINT.request(**{"prompt": "x", "seed": 0} | changes)) == name


@needs_chromium
def test_the_download_of_the_page_has_that_name(page):
    links = page.locator(".tile .save")
    expect(links.nth(0)).to_have_attribute("download", "a-red-square-moves-from-left-to-right-seed5-dense.mp4")
    with page.expect_download() as saved:
        links.nth(1).click()
    assert saved.value.suggested_filename == "a-red-square-moves-from-left-to-right-seed5-sparsity0.75.mp4"


# a run ----------------------------------------------------------------------------------------------------------


@needs_chromium
def test_the_time_left_is_told_from_the_first_step(page, fake):
    open_group(page, "Size, frames, steps, guidance, seed")
    fill_number(page, "number input for Denoising steps", 60)
    with fake.held():
        button(page, "Generate").click()
        until(lambda: fake.running, "the run")
        expect(page.locator('.tile[data-arm="dense"] .label')).to_have_text(
            re.compile(r"step 1 of 60 .*about \d+ .*left")
        )
        # what is under the picture is no longer that of the run before
        tile = page.locator('.tile[data-arm="dense"]')
        expect(tile.locator(".caption")).to_have_text("Each block of the video looks at every other block.")
        expect(tile.locator(".save")).to_be_hidden()
        button(page, "Stop").click()
        expect(notice(page)).to_contain_text("Stopped")
        expect(tile.locator(".caption")).to_contain_text("all of attention computed")
        expect(tile.locator(".save")).to_be_visible()


@needs_chromium
def test_a_phone_has_prompt_button_sparsity_and_result_within_two_screens(browser, tmp_path):
    """With the pair of this repository, which is square and so taller than those of the other tests."""
    info = inspect_checkpoint(EMBEDDED_CHECKPOINT)
    with running_page(FakePipeline(), tmp_path, info, shown_first=Premade.read()) as address:
        page = open_page(browser, address, width=390, height=844, is_mobile=True, has_touch=True)
        expect_playing(page, "sparse")
        parts = ("#prompt", "#generate", "#sparsity", '.tile[data-arm="dense"]', '.tile[data-arm="sparse"]', ".figures")
        boxes = [page.locator(part).bounding_box() for part in parts]
        tops = [box["y"] for box in boxes]
        assert tops == sorted(tops)
        assert boxes[-1]["y"] + boxes[-1]["height"] <= 2 * 844
        page.context.close()


# the words of the model -----------------------------------------------------------------------------------------


@needs_chromium
def test_the_palette_builds_a_prompt_and_marks_its_words(page, fake):
    prompt, words = page.locator("#prompt textarea"), page.locator(".words")
    expect(words.locator(".words-title")).to_contain_text("is a small model of")
    prompt.fill("")
    words.get_by_role("button", name="orange", exact=True).click()
    expect(prompt).to_have_value("an orange ball moves from left to right over green hills at sunset")
    words.get_by_role("button", name="star", exact=True).click()
    words.get_by_role("button", name="large", exact=True).click()
    expect(prompt).to_have_value("a large orange star moves from left to right over green hills at sunset")
    expect(words.get_by_role("button", name="green", exact=True)).to_have_attribute("aria-pressed", "false")
    words.get_by_role("button", name="large", exact=True).click()
    expect(prompt).to_have_value("an orange star moves from left to right over green hills at sunset")
    prompt.fill("an orange heart spins on a navy background")
    expect(words.get_by_role("button", name="heart", exact=True)).to_have_attribute("aria-pressed", "true")
    generate(page)
    assert fake.requests[-1].prompt == "an orange heart spins on a navy background"


@needs_chromium
def test_surprises_are_prompts_that_it_knows(page):
    vocabulary = inspect_checkpoint(EMBEDDED_CHECKPOINT).vocabulary
    seen = set()
    for _ in range(12):
        button(page, "Surprise me").click()
        seen.add(page.locator("#prompt textarea").input_value())
    assert len(seen) > 6
    assert [prompt for prompt in seen if vocabulary.unknown(prompt)] == []


@needs_chromium
def test_unknown_words_are_named_before_and_after_a_run(page):
    page.locator("#prompt textarea").fill("A cat in the kitchen looks at a red ball")
    expect(page.locator(".words-unknown")).to_have_text("Words that fake-longcat does not know: cat, kitchen, looks")
    generate(page)
    expect(notice(page)).to_contain_text("Words that fake-longcat does not know: cat, kitchen, looks.")
    page.locator("#prompt textarea").fill("a red ball bounces")
    expect(page.locator(".words-unknown")).to_have_text("")


@needs_chromium
def test_a_chinese_prompt_is_read_as_english_and_the_page_says_so(page, fake):
    page.locator("#prompt textarea").fill("厨房里的猫，日落时的海面上大的粉色爱心跳动")
    read = "a large pink heart pulses over the sea at sunset"
    expect(page.locator(".words-read")).to_have_text(f"fake-longcat reads: {read}")
    expect(page.locator(".words-unknown")).to_have_text("Words that fake-longcat does not know: 厨房, 猫")
    below = page.locator("#reading").bounding_box()["y"] - page.locator("#prompt").bounding_box()["y"]
    assert below < 300, "on a phone the palette is far below the prompt, and this must not be"
    heart = page.locator(".words").get_by_role("button", name="heart", exact=True)
    expect(heart).to_have_attribute("aria-pressed", "true")
    generate(page)
    assert fake.requests[-1].prompt == read
    expect(page.locator("#prompt textarea")).to_have_value("厨房里的猫，日落时的海面上大的粉色爱心跳动")
    page.locator(".words").get_by_role("button", name="star", exact=True).click()
    expect(page.locator("#prompt textarea")).to_have_value("a large pink star pulses over the sea at sunset")
    expect(page.locator(".words-read")).to_have_text("")


@needs_chromium
def test_a_checkpoint_that_understands_language_has_no_palette(browser, tmp_path):
    with running_page(FakePipeline(), tmp_path) as address:
        page = open_page(browser, address)
        expect(page.locator("#examples")).to_be_visible()
        expect(page.locator(".words")).to_be_hidden()
        expect(page.locator(".player")).to_have_attribute("data-pair", "false")  # and no pair where none is served
        page.context.close()
