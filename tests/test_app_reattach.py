"""Pages that come and go while a job runs: reload, second tab, lost connection, other visitors, a server's restart."""

from __future__ import annotations

import pytest
from app_server import running_page, until
from browser import (
    WAIT_MS,
    button,
    expect_playing,
    fill_number,
    generate,
    needs_chromium,
    notice,
    open_group,
    open_page,
    video,
)
from fake_pipeline import FakePipeline
from gradio_client import Client
from playwright.sync_api import expect

pytestmark = needs_chromium

STEPS = 9


@pytest.fixture
def page(page, fake):
    yield page
    until(lambda: not fake.running, "the last job")


def begin(page, fake) -> None:
    """Press Generate for a dense job of STEPS steps and wait until it runs."""
    before = len(fake.requests)
    page.get_by_label("Dense only").check()
    open_group(page, "Size, frames, steps, guidance, seed")
    fill_number(page, "number input for Denoising steps", STEPS)
    button(page, "Generate").click()
    until(lambda: len(fake.requests) > before and fake.running, "the run")


def opened(page, address: str) -> None:
    """Open the address in a further tab of the same visitor, or again in the same one."""
    page.set_default_timeout(WAIT_MS)
    page.goto(address, wait_until="domcontentloaded")
    expect(button(page, "Generate")).to_be_visible()


def reload(page) -> None:
    page.reload(wait_until="domcontentloaded")
    expect(button(page, "Generate")).to_be_visible()


def running(page) -> None:
    expect(page.locator('.tile[data-arm="dense"] .label')).to_contain_text(f"of {STEPS}")
    expect(button(page, "Stop")).to_be_enabled()


def test_reload_follows_the_running_job_to_its_result(page, address, fake):
    before = fake.steps_done
    with fake.held():
        begin(page, fake)
        prompt = fake.requests[-1].prompt
        reload(page)
        running(page)
        expect(page.locator('.tile[data-arm="dense"] canvas')).to_be_visible()
        expect(page.locator("#prompt textarea")).to_have_value(prompt)
        expect(page.get_by_label("Dense only")).to_be_checked()
    expect(notice(page)).to_contain_text("Done with seed")
    expect_playing(page, "dense")
    expect(page.locator("#report")).to_contain_text("Denoising")
    expect(button(page, "Generate")).to_be_enabled()
    assert fake.steps_done == before + STEPS


def test_reload_after_the_end_shows_the_last_result(page, fake):
    generate(page)
    made, figures = len(fake.requests), page.locator("#report").inner_text()
    reload(page)
    expect_playing(page, "dense")
    expect_playing(page, "sparse")
    expect(page.locator("#stage .figures")).to_contain_text("denoising speed-up")
    assert page.locator("#report").inner_text() == figures
    assert len(fake.requests) == made, "nothing was made again"


def test_stop_in_a_second_tab_ends_it_in_both(page, address, fake):
    with fake.held():
        begin(page, fake)
        second = page.context.new_page()
        opened(second, address)
        running(second)
        button(second, "Stop").click()
        for tab in (page, second):
            expect(notice(tab)).to_contain_text("Stopped")
            expect(button(tab, "Generate")).to_be_enabled()


def test_seven_tabs_on_a_running_job_leave_room_for_stop(page, address, fake):
    """A browser opens six connections to a server, and no tab holds one but that which began the job."""
    with fake.held():
        begin(page, fake)
        tabs = [page, *(page.context.new_page() for _ in range(6))]
        for tab in tabs[1:]:
            opened(tab, address)
            running(tab)
        button(tabs[-1], "Stop").click()
        for tab in tabs:
            expect(notice(tab)).to_contain_text("Stopped")
            expect(button(tab, "Generate")).to_be_enabled()


def test_a_tab_without_the_stream_sees_the_job_go_on_and_its_end(page, address, fake):
    second = page.context.new_page()
    with fake.held():
        begin(page, fake)
        opened(second, address)
        running(second)
    expect(notice(second)).to_contain_text("Done with seed")
    expect_playing(second, "dense")
    expect(second.locator("#report")).to_contain_text("Denoising")


def test_an_idle_tab_takes_up_what_another_tab_began(page, address, fake):
    second = page.context.new_page()
    opened(second, address)
    expect(button(second, "Generate")).to_be_enabled()
    with fake.held():
        begin(page, fake)
        second.bring_to_front()
        running(second)
        button(second, "Stop").click()
        expect(notice(page)).to_contain_text("Stopped")


def test_a_closed_page_ends_nothing(browser, address, fake):
    page, before = open_page(browser, address), fake.steps_done
    with fake.held():
        begin(page, fake)
        state = page.context.storage_state()
        page.context.close()
    until(lambda: not fake.running, "the end of the run")
    assert fake.steps_done == before + STEPS
    page = open_page(browser, address, storage_state=state)
    expect_playing(page, "dense")
    page.context.close()


def test_a_waiting_job_is_taken_up_too(page, browser, address, fake):
    with fake.held():
        begin(page, fake)
        other = open_page(browser, address)
        other.get_by_label("Dense only").check()
        button(other, "Generate").click()
        expect(notice(other)).to_contain_text("Waiting for 1 other job")
        reload(other)
        expect(notice(other)).to_contain_text("Waiting for 1 other job")
    expect(notice(other)).to_contain_text("Done with seed")
    other.context.close()


def test_visitors_do_not_see_each_other(page, browser, address, fake):
    with fake.held():
        begin(page, fake)
        other = open_page(browser, address)
        expect(button(other, "Generate")).to_be_enabled()
        expect(button(other, "Stop")).to_be_disabled()
    expect(notice(page)).to_contain_text("Done with seed")
    reload(other)
    expect(button(other, "Generate")).to_be_enabled()
    other.get_by_role("tab", name="History").click()
    expect(other.locator(".history-empty")).to_be_visible()
    assert video(other, "dense").get_attribute("src") is None
    page.get_by_role("tab", name="History").click()
    job = page.locator(".history-run").first.get_attribute("data-job")
    client = Client(address, verbose=False)
    answers = []
    for function in client.config["dependencies"]:
        if function["targets"] and function["targets"][0][1] in ("select", "edit", "delete"):
            answer = post(address, function, {"job": job})
            assert job not in answer.replace(f'"job":"{job}"', ""), "the other's job came back"
            assert ".mp4" not in answer
            answers.append(answer)
    assert sum("This run is gone." in answer for answer in answers) == 2, (
        "select and edit of the history were not found"
    )
    reload(page)
    expect_playing(page, "dense")
    other.context.close()


def post(address: str, function: dict, event_data: dict) -> str:
    """Call an event of the page as a stranger would, with made-up inputs."""
    import httpx

    body = {"fn_index": function["id"], "session_hash": "stranger", "event_data": event_data}
    body["data"] = [None] * len(function["inputs"])
    return httpx.post(f"{address}/gradio_api/run/predict", json=body, timeout=120).text


def test_the_apps_own_files_are_not_served(address, outputs):
    import httpx

    for name in ("key", "jobs.sqlite"):
        assert (outputs / ".app" / name).is_file()
        for path in (outputs / ".app" / name, outputs / "x" / ".." / ".app" / name):
            assert httpx.get(f"{address}/gradio_api/file={path}").status_code == 403


def test_results_survive_a_restart_of_the_server(browser, tmp_path):
    with running_page(FakePipeline(), tmp_path) as address:
        page = open_page(browser, address)
        generate(page)
        state = page.context.storage_state()
        page.context.close()
    with running_page(FakePipeline(), tmp_path) as address:
        port = address.rpartition(":")[2]
        for origin in state["origins"]:
            origin["origin"] = f"http://127.0.0.1:{port}"
        page = open_page(browser, address, storage_state=state)
        expect_playing(page, "dense")
        expect_playing(page, "sparse")
        expect(page.locator("#stage .figures")).to_contain_text("denoising speed-up")
        page.context.close()
