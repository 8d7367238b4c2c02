"""Many jobs at once: the visible queue, its order, batches of prompts, and ids that are used once."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from app_server import until
from browser import (
    button,
    expect_playing,
    fill_number,
    generate,
    needs_chromium,
    notice,
    open_group,
    open_page,
    open_tab,
    video,
)
from fake_pipeline import CHECKPOINT
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect

from ui.form.batch import batch_forms, lines_of
from ui.form.own_presets import preset_values
from ui.form.sizes import frames_of, seconds_of, shaped
from ui.jobs.job import Job, VideoJob
from ui.jobs.queue import JobQueue
from ui.views.queue_panel import state_text
from ui.views.stage import differences, pair_view


class Barrier(Job):
    barrier = True


# the order ------------------------------------------------------------------------------------------------------


def queue_of(*names: str) -> tuple[JobQueue, dict[str, Job]]:
    """Waiting jobs in this order: the first letter is the owner, "|" is a barrier."""
    queue, jobs = JobQueue(100, 100, 10), {}
    for name in names:
        job = Barrier(owner="") if name == "|" else VideoJob(CHECKPOINT.request(name), False, owner=name[0])
        jobs[name] = job
        queue.put(job)
    return queue, jobs


@pytest.mark.parametrize(
    ("names", "job", "by", "after"),
    [
        pytest.param("a1 a2 a3", "a3", -1, "a1 a3 a2", id="earlier"),
        pytest.param("a1 a2 a3", "a1", 1, "a2 a1 a3", id="later"),
        pytest.param("a1 a2 a3", "a1", -1, None, id="first already"),
        pytest.param("a1 a2 a3", "a3", 1, None, id="last already"),
        pytest.param("a1 b1 b2 a2", "a2", -1, "a2 b1 b2 a1", id="others keep their turns"),
        pytest.param("b1 a1", "a1", -1, None, id="not past others"),
        pytest.param("a1 | a2", "a2", -1, None, id="not past a barrier"),
    ],
)
def test_a_job_changes_places_with_those_of_its_owner_alone(names, job, by, after):
    queue, jobs = queue_of(*names.split())
    assert queue.move(jobs[job], by) is (after is not None)
    assert [queue.take() for _ in jobs] == [jobs[name] for name in (after or names).split()]


def test_a_running_job_is_not_moved_and_comes_first():
    queue, jobs = queue_of("a1", "a2", "a3")
    queue.take()
    assert queue.move(jobs["a1"], 1) is False
    queue.move(jobs["a3"], -1)
    assert queue.live("a") == [jobs["a1"], jobs["a3"], jobs["a2"]]


def test_places_count_from_the_first_that_waits_also_while_a_model_is_loaded():
    queue, jobs = queue_of("a1", "a2", "a3")
    site = SimpleNamespace(worker=SimpleNamespace(queue=queue))

    def places(*names):
        return [state_text(site, jobs[name]) for name in names]

    assert places("a1", "a2", "a3") == [f"Number {place} of all that wait" for place in (1, 2, 3)]
    queue.take().state = "running"
    assert places("a1", "a2", "a3") == ["Being made", *(f"Number {place} of all that wait" for place in (1, 2))]
    queue.predict = lambda job: 60.0
    queue.predict_anew()
    assert places("a2", "a3") == [f"Number {at} of all that wait, starts in about {at} min" for at in (1, 2)]


def test_moves_and_takes_at_the_same_time_lose_nothing():
    queue, jobs = queue_of(*(f"a{number}" for number in range(40)))
    taken = []
    mover = threading.Thread(target=lambda: [queue.move(job, -1) for _ in range(20) for job in jobs.values()])
    mover.start()
    taken += [queue.take() for _ in range(40)]
    mover.join()
    assert set(taken) == set(jobs.values()) and len(queue) == 0


# many prompts ---------------------------------------------------------------------------------------------------


def test_lines_come_from_the_field_and_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("three\r\n\n  four \n", encoding="utf-8")
    assert lines_of("one\n\n two\n", str(tmp_path / "a.txt")) == ["one", "two", "three", "four"]
    with pytest.raises(ValueError, match="there is no prompt"):
        lines_of(" \n", None)
    (tmp_path / "a.txt").write_bytes(b"x" * 300_000)
    with pytest.raises(ValueError, match="more than 256 KB"):
        lines_of("", str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        pytest.param(0, "0 seeds for each prompt make no video", id="none"),
        pytest.param(1.5, "seeds for each 1.5 is not a whole number", id="half"),
        pytest.param(11, "22 jobs are more than the 20 of yours", id="many"),
    ],
)
def test_too_many_are_refused_before_the_first(seeds, said):
    with pytest.raises(ValueError, match=said):
        next(batch_forms({"randomise": False, "seed": 0}, ["a", "b"], seeds))


# the page -------------------------------------------------------------------------------------------------------


def press(page, prompt):
    page.locator("#prompt textarea").fill(prompt)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".queue li").filter(has_text=prompt)).to_be_visible()


@needs_chromium
def test_generate_during_a_run_waits_in_a_queue_that_can_be_ordered(page, fake):
    generate(page)
    before = video(page, "dense").get_attribute("src")
    with fake.held():
        page.locator("#prompt textarea").fill("first")
        button(page, "Generate").click()
        until(lambda: fake.running, "the run")
        for prompt in ("second", "third", "fourth"):
            press(page, prompt)
        rows = page.locator(".queue li")
        expect(rows.locator("b")).to_have_text(["first", "second", "third", "fourth"])
        expect(rows.nth(0).locator("small")).to_contain_text("Being made")
        expect(rows.nth(2).locator("small")).to_contain_text("Number 2 of all that wait")
        button(page, "Earlier: fourth").click()
        expect(rows.locator("b")).to_have_text(["first", "second", "fourth", "third"])
        button(page, "Remove: second").click()
        expect(rows.locator("b")).to_have_text(["first", "fourth", "third"])
        # what was finished before stays to be seen in the tile whose turn has not come
        sparse = page.locator('.tile[data-arm="sparse"]')
        expect(sparse).to_have_attribute("data-state", "waits")
        assert sparse.locator("video").evaluate("video => getComputedStyle(video).filter") == "none"
        assert video(page, "dense").get_attribute("src") == before
    expect(page.locator(".queue")).to_be_hidden()
    expect(notice(page)).to_contain_text("Done with seed")
    until(lambda: [request.prompt for request in fake.requests[-6::2]] == ["first", "fourth", "third"], "all of them")
    expect(page.locator(".player")).to_have_attribute("data-pair", "true")
    expect_playing(page, "sparse")


@needs_chromium
def test_a_second_tab_shows_the_same_queue_and_another_visitor_none(browser, page, address, fake):
    with fake.held():
        page.locator("#prompt textarea").fill("one")
        button(page, "Generate").click()
        until(lambda: fake.running, "the run")  # or the second could come first
        press(page, "two")
        tab, stranger = page.context.new_page(), open_page(browser, address)
        tab.goto(address, wait_until="domcontentloaded")
        expect(tab.locator(".queue b")).to_have_text(["one", "two"])
        expect(stranger.locator(".queue")).to_be_hidden()
        button(tab, "Remove: two").click()
        expect(page.locator(".queue")).to_be_hidden()
        button(page, "Stop").click()
        expect(notice(page)).to_contain_text("Stopped")
        stranger.context.close()


@needs_chromium
def test_many_prompts_and_seeds_at_once(page, fake):
    made = len(fake.requests)
    open_group(page, "Size, frames, steps, guidance, seed")
    page.get_by_label("New seed each time").uncheck()
    fill_number(page, "Seed", 40)
    page.get_by_label("Dense only").check()
    open_group(page, "Many prompts, many seeds")
    page.get_by_label("Prompts, one on each line").fill("a\n\nb")
    fill_number(page, "Seeds for each", 2)
    button(page, "Add all to the queue").click()
    until(lambda: len(fake.requests) == made + 4, "four videos")
    assert [(one.prompt, one.seed) for one in fake.requests[made:]] == [("a", 40), ("a", 41), ("b", 40), ("b", 41)]
    expect(notice(page)).to_contain_text("Done with seed 41")


def test_an_id_names_one_job_and_is_refused_the_second_time(address):
    client = Client(address, verbose=False)
    first = client.predict("a", job_id="mine", seed=1, api_name="/generate")[1]
    with pytest.raises(AppError, match="was given to another job of yours, which is done; choose another, or null"):
        client.predict("b", job_id="mine", api_name="/generate")
    assert client.predict("mine", api_name="/result")["report"]["request"] == first["request"]


# two runs side by side ------------------------------------------------------------------------------------------


@needs_chromium
def test_two_runs_of_the_history_play_as_a_pair(page, fake):
    open_group(page, "Size, frames, steps, guidance, seed")
    page.get_by_label("New seed each time").uncheck()
    for seed in (7, 8):
        fill_number(page, "Seed", seed)
        generate(page)
    open_tab(page, "History")
    compare = page.locator(".history-compare")
    compare.nth(1).click()
    expect(compare.nth(1)).to_have_attribute("aria-pressed", "true")
    compare.nth(0).click()
    names = page.locator(".tile .name")
    expect(names).to_have_text(["seed 7", "seed 8"])
    expect(page.locator(".player")).to_have_attribute("data-pair", "true")
    expect_playing(page, "dense")
    expect_playing(page, "sparse")
    sources = [video(page, arm).get_attribute("src") for arm in ("dense", "sparse")]
    assert all(source.endswith("sparse.mp4") for source in sources) and sources[0] != sources[1]
    expect(page.locator(".figures")).to_be_hidden()  # the two were not measured against each other
    expect(page.locator('.modes [data-mode="blind"]')).to_be_hidden()
    page.locator(".history-open").nth(0).click()
    expect(names).to_have_text(["Dense attention", "Block sparse attention"])


def test_two_runs_of_unlike_length_are_refused():
    jobs = [VideoJob(CHECKPOINT.request("a", num_frames=frames), False) for frames in (9, 17)]
    for job in jobs:
        job.results["sparse"] = SimpleNamespace(request=job.request)
    with pytest.raises(ValueError, match="one has 9 frames and the other 17, so they cannot play together"):
        pair_view(*jobs)


@pytest.mark.parametrize(
    ("one", "two", "names"),
    [
        pytest.param({"seed": 1}, {"seed": 2}, ["seed 1", "seed 2"], id="seed"),
        pytest.param({"bsa": None}, {"seed": 3}, ["dense, seed 0", "sparsity 0.75, seed 3"], id="two things"),
        pytest.param({}, {}, ["First run", "Second run"], id="nothing"),
    ],
)
def test_a_pair_of_runs_is_named_after_what_differs(one, two, names):
    assert differences(*(CHECKPOINT.request(**{"prompt": "a", "seed": 0} | given) for given in (one, two))) == names


# sizes and presets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "shape", "size"),
    [
        pytest.param((832, 480), "16:9", (832, 480), id="LongCat's own"),
        pytest.param((832, 480), "1:1", (640, 608), id="LongCat's table has no square"),
        pytest.param((256, 256), "16:9", (336, 192), id="small"),
        pytest.param((256, 256), "9:16", (192, 336), id="upright"),
    ],
)
def test_a_shape_has_about_the_checkpoints_pixels(own, shape, size):
    checkpoint = replace(CHECKPOINT, defaults=CHECKPOINT.defaults | {"width": own[0], "height": own[1]})
    width, height = shaped(checkpoint, shape)
    assert (width, height) == size
    assert width * height == pytest.approx(own[0] * own[1], rel=0.05)


@pytest.mark.parametrize(("seconds", "frames"), [(0, 1), (0.1, 1), (1, 17), (4, 61), (4.1, 61)])
def test_seconds_become_a_number_of_frames_that_there_is(seconds, frames):
    assert frames_of(CHECKPOINT, seconds) == frames
    assert abs(seconds_of(CHECKPOINT, frames) - seconds) <= 2.5 / 15 + 0.05


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(None, id="nothing"),
        pytest.param({"width": "<b>"}, id="markup"),
        pytest.param({"prompt": "-", "width": 33}, id="no size"),
        pytest.param({"prompt": "-", "colour": 1}, id="unknown field"),
    ],
)
def test_a_bad_preset_is_a_sentence(settings):
    with pytest.raises(ValueError):
        preset_values(settings)


@needs_chromium
def test_a_shape_and_seconds_fill_the_size(page):
    open_group(page, "Size, frames, steps, guidance, seed")
    page.get_by_label("Shape", exact=True).click()
    page.get_by_role("option", name="9:16", exact=True).click()
    expect(page.get_by_label("Width", exact=True)).to_have_value("64")
    expect(page.get_by_label("Height", exact=True)).to_have_value("112")
    fill_number(page, "Seconds", 2)
    expect(page.get_by_label("Frames", exact=True)).to_have_value("29")


@needs_chromium
def test_a_preset_of_ones_own_lasts_and_travels_as_a_file(browser, page, address, tmp_path):
    open_group(page, "Chunk shapes and block selection")
    fill_number(page, "Query T", 2)
    open_group(page, "Presets and model")
    own = page.locator(".own")
    own.get_by_label("Name of the preset").fill("mine <i>")
    own.get_by_role("button", name="Save the form").click()
    expect(own.locator("li span")).to_have_text("mine <i>")
    with page.expect_download() as saved:
        own.get_by_role("button", name="Save all as a file").click()
    saved.value.save_as(tmp_path / "presets.json")
    fill_number(page, "Query T", 4)
    own.get_by_role("button", name="Use: mine <i>").click()
    expect(page.get_by_label("Query T", exact=True)).to_have_value("2")

    other = open_page(browser, address)
    open_group(other, "Presets and model")
    other.locator(".own-import input").set_input_files(tmp_path / "presets.json")
    other.get_by_role("button", name="Use: mine <i>").click()
    open_group(other, "Chunk shapes and block selection")
    expect(other.get_by_label("Query T", exact=True)).to_have_value("2")
    (tmp_path / "presets.json").write_text("[1, 2]")
    other.locator(".own-import input").set_input_files(tmp_path / "presets.json")
    expect(other.locator(".own-said")).to_have_text("This file has no presets")
    other.context.close()
