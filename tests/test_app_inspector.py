"""Inside the attention: what the page lights up is what the record says, which the fake pipeline writes for real."""

from __future__ import annotations

import base64
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from app_server import running_page
from browser import Watch, button, generate, needs_chromium
from fake_pipeline import CHECKPOINT, FakePipeline, draw, write_mp4, write_record
from playwright.sync_api import expect

from bsa import BSAConfig, Grid
from pipeline.media.attention_record import AttentionRecord, record_path
from ui.jobs.job import VideoJob
from ui.views import inspector

BSA = BSAConfig(sparsity=0.75, chunk_q=Grid(2, 2, 2), chunk_k=Grid(2, 2, 2))  # 3x2x3 blocks on 5x4x6 tokens


# what the page is told ------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    """A function that makes a finished sparse job with files on the disk, without a page."""

    def make(**changes):
        request = CHECKPOINT.request("-", **{"bsa": BSA, **changes})
        job = VideoJob(request, side_by_side=False, owner="me")
        job.results["sparse"] = SimpleNamespace(video=tmp_path / "sparse.mp4", request=request, bsa_active=True)
        write_mp4(job.results["sparse"].video, draw(request), request.fps)
        write_record(job.results["sparse"].video, request)
        return job

    return make


def panel_over(job):
    """What hands out keys, and the component with the functions that the browser calls; who asks is the request."""
    worker = SimpleNamespace(find=lambda job_id, owner: job if (job_id, owner) == (job.id, job.owner) else None)
    keys = inspector.Keys(SimpleNamespace(worker=worker, owner=lambda request: request))
    return keys, inspector.Inspector(keys)


def test_only_the_owner_gets_a_key_and_only_keys_open_a_record(finished):
    job = finished()
    keys, panel = panel_over(job)
    assert keys.invite(job.id, "somebody else") == {"key": "", "why": inspector.GONE}
    assert keys.invite("other", "me") == {"key": "", "why": inspector.GONE}
    key = keys.invite(job.id, "me")["key"]
    assert panel.overview(key)["grid"] == (5, 4, 6)
    for wrong in ("", job.id, key[:-1], None, 3, {"key": key}):
        assert panel.overview(wrong) == {"why": inspector.GONE}
        assert panel.look({"key": wrong, "step": 0, "layer": 0, "block": 0}) == {"why": inspector.GONE}
    assert panel.look("nothing") == {"why": inspector.GONE}
    for place in ({"step": 9}, {"layer": -1}, {"block": 18}, {"block": 1.5}, {"block": True}, {"step": None}):
        assert set(panel.look({"key": key, "step": 0, "layer": 0, "block": 0} | place)) == {"why"}


def test_why_there_is_nothing_to_look_into(finished):
    job = finished()
    keys, panel = panel_over(job)
    key = keys.invite(job.id, "me")["key"]
    record_path(job.results["sparse"].video).write_bytes(b"damaged")
    assert panel.overview(key) == {"why": inspector.NO_RECORD}
    record_path(job.results["sparse"].video).unlink()
    assert panel.overview(key) == panel.look({"key": key}) == {"why": inspector.NO_RECORD}
    assert keys.invite(job.id, "me")["why"] == inspector.NO_RECORD
    job.results["sparse"].bsa_active = False
    assert keys.invite(job.id, "me")["why"] == inspector.SINGLE_FRAME
    job.results = {"dense": job.results["sparse"]}
    assert keys.invite(job.id, "me")["why"] == inspector.DENSE_ONLY


def test_overview_and_blocks_are_those_of_the_record(finished):
    job = finished(bsa=replace(BSA, sparsity=None, cdf_threshold=0.5))
    record = AttentionRecord.load(record_path(job.results["sparse"].video))
    overview = inspector.run_overview(job, record)
    np.testing.assert_allclose(overview["recall"], record.recall.mean(axis=2).T, atol=1e-5)
    np.testing.assert_allclose(overview["density"], record.density.mean(axis=2).T, atol=1e-5)
    assert np.ptp(overview["density"]) > 0.01
    view = inspector.block_view(record, 2, 1, 7)
    bits = np.frombuffer(base64.b64decode(view["kept"]), np.uint8).reshape(2, 3)
    for head in (0, 1):
        kept = [block for block in range(18) if bits[head, block // 8] >> block % 8 & 1]
        assert kept == list(record.kept(2, 1, head, 7))
    np.testing.assert_allclose(view["recall"], record.recall_of(2, 1, 7), atol=1e-5)
    record.block_recall[:] = np.nan
    assert inspector.block_view(record, 0, 0, 0)["recall"] == [None, None]


@pytest.mark.parametrize(
    ("chunk_q", "chunk_k", "expected"),
    [
        pytest.param((2, 2, 2), (2, 2, 2), [(0, 0, 4), (2, 5, 12), (4, 13, 16)], id="alike"),
        pytest.param((2, 2, 2), (3, 2, 2), [(0, 0, 4), (2, 5, 8), (3, 9, 12), (4, 13, 16)], id="unlike"),
        pytest.param((9, 2, 2), (9, 2, 2), [(0, 0, 16)], id="all-time-in-one"),
    ],
)
def test_every_picture_belongs_to_one_query_and_one_key_block(finished, chunk_q, chunk_k, expected):
    job = finished(bsa=replace(BSA, chunk_q=Grid(*chunk_q), chunk_k=Grid(*chunk_k)))
    record = AttentionRecord.load(record_path(job.results["sparse"].video))
    overview = inspector.run_overview(job, record)
    assert [tuple(segment.values()) for segment in overview["segments"]] == expected
    assert overview["pictures"].startswith("data:image/jpeg;base64,")


def test_pictures_are_the_asked_frames(tmp_path):
    from io import BytesIO

    from PIL import Image

    frames = np.repeat(np.linspace(0, 255, 9).astype(np.uint8), 64 * 96 * 3).reshape(9, 64, 96, 3)
    write_mp4(tmp_path / "clip.mp4", frames, 15)
    strip = inspector.picture_strip(tmp_path / "clip.mp4", [1, 4, 8], 48)
    image = Image.open(BytesIO(base64.b64decode(strip.partition(",")[2])))
    assert image.size == (48, 96)
    levels = np.asarray(image.convert("L"), float).reshape(3, 32, 48).mean(axis=(1, 2))
    np.testing.assert_allclose(levels, frames[[1, 4, 8], 0, 0, 0], atol=6)  # two lossy codecs
    assert inspector.picture_strip(tmp_path / "none.mp4", [0], 48) == ""


# the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(outputs):
    with running_page(FakePipeline(), outputs, replace(CHECKPOINT, bsa=BSA)) as address:
        yield address


@pytest.fixture(scope="module")
def watch(tab, address):
    watch = Watch()
    watch.attach(tab, address)
    return watch


@pytest.fixture
def page(page, watch):
    yield page
    assert watch.foreign == [] and watch.complaints == []


def make_and_open(page, outputs):
    """Make a pair, open the tab; gives the record."""
    generate(page)
    page.get_by_role("tab", name=inspector.TAB).click()
    expect(inside(page)).to_have_attribute("data-state", "ready")
    newest = max(outputs.glob("*/sparse.attention.npz"), key=lambda path: path.stat().st_mtime_ns)
    return AttentionRecord.load(newest)


def inside(page):
    return page.locator("#inspector .inside")


def expect_lit(page, record, step, layer, head, block):
    """The page is at this place, and lights the blocks that the record has for it. head -1: any head."""
    expect(inside(page)).to_have_attribute("data-at", f"{step} {layer} {head} {block}")
    masks = record.masks(step, layer, block)
    kept = np.flatnonzero(masks.any(axis=0) if head < 0 else masks[head])
    assert inside(page).get_attribute("data-kept") == " ".join(map(str, kept))
    return kept


def click_block(page, picture, column, row, columns=3, rows=2):
    canvas = inside(page).locator(".inside-strip canvas").nth(picture)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.click(position={"x": (column + 0.5) * box["width"] / columns, "y": (row + 0.5) * box["height"] / rows})


@needs_chromium
def test_before_a_run_it_says_what_will_be_here(page):
    page.get_by_role("tab", name=inspector.TAB).click()
    expect(inside(page).get_by_role("status").first).to_contain_text("After a sparse run, this shows which blocks")
    expect(inside(page).locator(".inside-body")).to_be_hidden()


@needs_chromium
def test_a_clicked_block_lights_what_the_record_says(page, outputs):
    record = make_and_open(page, outputs)
    pictures = inside(page).locator(".inside-strip figcaption").all_inner_texts()
    assert pictures == ["frames 1–5", "frames 6–13", "frames 14–17"]
    for picture, column, row in ((0, 0, 0), (1, 2, 1), (2, 1, 0)):
        click_block(page, picture, column, row)
        block = (picture * 2 + row) * 3 + column
        expect_lit(page, record, 2, 1, -1, block)
        for head in (0, 1):
            button(page, f"Head {head + 1}").click()
            kept = expect_lit(page, record, 2, 1, head, block)
            sentence = inside(page).locator(".inside-sentence")
            mass = percent(record.recall_of(2, 1, block)[head])
            expect(sentence).to_contain_text(f"this block reads {len(kept)} of 18 blocks and with them {mass}")
            tokens = sum(token_count(record, number) for number in kept)
            expect(sentence).to_contain_text(f"by chance would hold {100 * tokens / 120:.1f}%")
        button(page, "All heads").click()


@needs_chromium
def test_the_maps_as_pictures_table_and_file(page, outputs):
    record = make_and_open(page, outputs)
    expect(inside(page).locator(".kept-text")).to_contain_text("measured on one of its tokens")

    def saved(name):
        with page.expect_download() as file:
            inside(page).get_by_role("button", name=name, exact=True).click()
        return file.value.suggested_filename, file.value.path()

    name, path = saved("CSV")
    table = np.genfromtxt(path, delimiter=",", names=True)
    assert name == "attention.csv" and table.dtype.names == ("step", "layer", "recall", "density")
    cells = table["step"].astype(int) - 1, table["layer"].astype(int) - 1
    np.testing.assert_allclose(table["recall"], record.recall.mean(axis=2)[cells], atol=1e-6)  # seven digits are told
    assert len(table) == record.recall.shape[0] * record.recall.shape[1]
    name, path = saved("NPZ, with every selection")
    path.rename(path.with_suffix(".npz"))
    np.testing.assert_array_equal(AttentionRecord.load(path.with_suffix(".npz")).selections, record.selections)
    for map_name, file in (("Attention kept", "attention-recall.png"), ("Density", "attention-density.png")):
        name, path = saved(f"{map_name}, PNG")
        assert name == file and path.read_bytes().startswith(b"\x89PNG")


def percent(share):
    return f"{100 * round(float(share), 7):.1f}%"  # seven digits are what the page gets


def token_count(record, block):
    t, h, w = np.unravel_index(block, record.k_blocks)
    sides = zip((t, h, w), record.grid, record.chunk_k, strict=True)
    return int(np.prod([min(chunk, size - at * chunk) for at, size, chunk in sides]))


# the greenest pixel across the middle of each block's upper edge, as [red, green, blue], in the order of the blocks
EDGES = """strip => [...strip.querySelectorAll('canvas')].flatMap((canvas) => {
    const context = canvas.getContext('2d');
    const edge = (row, column) => {
        const at = [(column + 0.5) * canvas.width / 3, row * canvas.height / 2];
        const { data } = context.getImageData(...at.map(Math.round), 1, 3);
        return [0, 4, 8].map((i) => [...data.slice(i, i + 3)]).reduce((best, one) => (one[1] > best[1] ? one : best));
    };
    return [0, 1].flatMap((row) => [0, 1, 2].map((column) => edge(row, column)));
})"""


@needs_chromium
def test_kept_blocks_are_drawn_lit_and_the_chosen_one_white(page, outputs):
    record = make_and_open(page, outputs)
    button(page, "Head 1").click()
    click_block(page, 1, 1, 0)
    kept = expect_lit(page, record, 2, 1, 0, 7)
    edges = inside(page).locator(".inside-strip").evaluate(EDGES)
    for block, (red, green, _) in enumerate(edges):
        if block == 7:
            assert min(edges[block]) > 240
        else:
            assert (green > 120 and green > red + 40) == (block in kept), (block, edges[block], kept)


@needs_chromium
def test_sliders_maps_and_keys_move_step_layer_and_block(page, outputs):
    record = make_and_open(page, outputs)
    body = inside(page)
    expect_lit(page, record, 2, 1, -1, 7)
    body.get_by_label("Step", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect_lit(page, record, 3, 1, -1, 7)
    body.get_by_label("Layer", exact=True).fill("0")
    expect_lit(page, record, 3, 0, -1, 7)

    canvas = body.locator('[data-map="recall"] canvas')
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 1.5 / 4, "y": box["height"] * 2.5 / 3})
    value = percent(record.recall.mean(axis=2)[1, 2])
    expect(body.locator('[data-map="recall"] output')).to_have_text(f"step 2, layer 3: {value}")
    canvas.click(position={"x": box["width"] * 1.5 / 4, "y": box["height"] * 2.5 / 3})
    expect_lit(page, record, 1, 2, -1, 7)
    expect(body.get_by_label("Step", exact=True)).to_have_attribute("aria-valuetext", "2 of 4")
    plot = body.locator('[data-map="density"] .plot')
    plot.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # stays at the edge
    expect_lit(page, record, 0, 1, -1, 7)
    mean = percent(record.density.mean(axis=2)[0, 1])
    expect(plot).to_have_attribute("aria-label", f"Density. step 1, layer 2: {mean}. Arrow keys choose step and layer")

    body.locator(".inside-strip").focus()
    for key, block in (("ArrowRight", 8), ("ArrowRight", 8), ("ArrowDown", 11), ("PageUp", 5), ("ArrowLeft", 4)):
        page.keyboard.press(key)
        expect_lit(page, record, 0, 1, -1, block)


@needs_chromium
def test_it_is_there_after_a_dense_run_too_and_says_why_it_is_empty(page, outputs):
    make_and_open(page, outputs)
    page.get_by_label("Dense only").check()
    button(page, "Generate").click()
    expect(inside(page).get_by_role("status").first).to_have_text(inspector.DENSE_ONLY)
    expect(inside(page)).to_have_attribute("data-state", "empty")


@needs_chromium
def test_it_is_there_again_after_a_reload(page, outputs):
    record = make_and_open(page, outputs)
    page.reload(wait_until="domcontentloaded")
    page.get_by_role("tab", name=inspector.TAB).click()
    expect(inside(page)).to_have_attribute("data-state", "ready")
    expect_lit(page, record, 2, 1, -1, 7)
