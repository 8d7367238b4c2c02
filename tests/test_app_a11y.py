"""The page without a mouse, without colours, without sight, and by touch: in Chromium, over the fake pipeline."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from app_server import running_page
from browser import button, needs_chromium, notice, open_memory, open_page
from fake_pipeline import FakePipeline
from playwright.sync_api import expect

pytestmark = needs_chromium

AXE = importlib.util.find_spec("axe_playwright_python")
# What plain Gradio has itself: the icon of its settings has the same name as the text beside it.
GRADIO = {"image-redundant-alt"}
TABS = ("result", "inspector", "history", "sweep_tab")

UNNAMED = """() => [...document.querySelectorAll('button, a[href], input, select, textarea, [role="slider"],' +
        ' [role="img"], [role="progressbar"], [tabindex="0"], video, canvas[role]')]
    .filter((node) => node.checkVisibility() && !node.closest('[aria-hidden="true"]') && node.type !== 'file')
    .filter((node) => ![...['aria-label', 'aria-labelledby', 'title'].map((name) => node.getAttribute(name)),
        node.textContent.trim(), ...[...(node.labels || [])].map((label) => label.textContent.trim())].some(Boolean))
    .map((node) => node.outerHTML.slice(0, 200))"""
SMALL = """() => [...document.querySelectorAll('.player, .live, .history, .code, .inside, .sweep, #header')]
    .flatMap((root) => [...root.querySelectorAll('button, a[href], input[type="range"]')])
    .filter((node) => node.checkVisibility())
    .map((node) => [node.outerHTML.slice(0, 120), node.getBoundingClientRect()])
    .filter(([, box]) => box.height && box.height < 43.5)
    .map(([html, box]) => `${box.height} px: ${html}`)"""
SPOKEN = """async (seconds) => {
    let said = 0;
    const watch = new MutationObserver((changes) => (said += changes.length));
    document.querySelectorAll('[role="status"], [role="alert"], [aria-live="polite"]').forEach((node) =>
        watch.observe(node, { subtree: true, childList: true, characterData: true }));
    await new Promise((end) => setTimeout(end, 1000 * seconds));
    return said;
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running_page(
        FakePipeline(step_seconds=0.02), tmp_path_factory.mktemp("outputs"), model_switch=True
    ) as address:
        yield address


def opened(browser, address, theme="light", language="en-US", **context):
    """A page with a finished pair, all settings open."""
    page = open_page(browser, f"{address}/?__theme={theme}", locale=language, **context)
    page.add_style_tag(content="* { transition: none !important; }")  # a colour on its way is no colour to judge
    for group in page.locator("#settings button.label-wrap").all():
        group.click()
    open_memory(page)
    page.locator("#generate").click()
    expect(page.locator("#notice .notice[data-kind=done]")).to_be_visible()
    expect(page.locator(".player")).to_have_attribute("data-pair", "true")
    return page


def each_tab(page):
    for name in TABS:
        page.locator(f'#details button[role="tab"][data-tab-id="{name}"]:visible').click()
        if name == "inspector":
            expect(page.locator(".inside")).to_have_attribute("data-state", "ready")
        yield name


def tab_to(page, locator):
    for _ in range(200):
        if locator.evaluate("node => node === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"200 times Tab do not reach {locator}")


@pytest.mark.skipif(AXE is None, reason="axe-playwright-python, which brings axe-core, is not installed")
@pytest.mark.parametrize(
    ("theme", "language"),
    [pytest.param("light", "en-US", id="light"), pytest.param("dark", "zh-CN", id="dark-chinese")],
)
def test_axe_finds_nothing_that_is_not_gradios(browser, address, theme, language):
    page = opened(browser, address, theme, language)
    page.evaluate((Path(AXE.origin).parent / "axe.min.js").read_text("utf-8"))
    found = set()

    def look(where):
        page.mouse.move(0, 0)
        for rule in page.evaluate("async () => (await axe.run()).violations"):
            if rule["id"] not in GRADIO:
                found.update((where, rule["id"], node["html"][:120]) for node in rule["nodes"])

    for mode in ("wipe", "heat", "blind", "side"):
        page.locator(f'.modes [data-mode="{mode}"]').click()
        look(mode)
    for name in each_tab(page):
        look(name)
    assert not found
    page.context.close()


def test_without_a_mouse(browser, address):
    page = open_page(browser, address)
    tab_to(page, page.locator("#generate"))
    page.keyboard.press("Enter")
    expect(notice(page)).to_contain_text("Done with seed")
    expect(page.locator(".player")).to_have_attribute("data-playing", "true")
    for mode in ("wipe", "heat", "blind"):
        tab_to(page, page.locator(f'.modes [data-mode="{mode}"]'))
        page.keyboard.press("Enter")
        expect(page.locator(".player")).to_have_attribute("data-mode", mode)
    tab_to(page, button(page, "A is better"))
    assert page.evaluate("document.activeElement.matches(':focus-visible')")
    page.keyboard.press("Enter")
    expect(page.locator(".tally-text")).to_contain_text("Your votes: ")
    tab_to(page, page.locator(".transport .play"))
    page.keyboard.press("Space")
    expect(page.locator(".player")).to_have_attribute("data-playing", "false")
    for name in TABS:
        tab_to(page, page.locator(f'#details button[role="tab"][data-tab-id="{name}"]:visible'))
        page.keyboard.press("Enter")
        if name == "inspector":
            expect(page.locator(".inside")).to_have_attribute("data-state", "ready")
            expect(page.locator(".inside")).to_have_attribute("data-at", re.compile(" 0$"))
            tab_to(page, page.locator(".inside-strip"))
            page.keyboard.press("ArrowRight")
            expect(page.locator(".inside")).to_have_attribute("data-at", re.compile(" 1$"))
    expect(page.locator("#sweep_run")).to_be_visible()
    page.keyboard.press("Tab")
    tab_to(page, page.locator("#generate"))  # round the whole page: nothing holds the focus
    page.context.close()


def test_on_a_phone_every_control_has_a_name_and_room_for_a_finger(browser, address):
    page = opened(browser, address, width=390, height=844, has_touch=True, is_mobile=True)
    unnamed, small = set(), set()
    for _ in each_tab(page):
        unnamed.update(page.evaluate(UNNAMED))
        small.update(page.evaluate(SMALL))
    assert unnamed == set()
    assert small == set()
    page.context.close()


def test_a_page_at_rest_is_quiet(browser, address):
    """Readings come in every second, and are no news; nothing moves where motion is unwanted."""
    page = opened(browser, address, language="zh-CN", reduced_motion="reduce")
    expect(page.locator(".player")).to_have_attribute("data-playing", "false")
    assert page.evaluate("[...document.querySelectorAll('video')].every((video) => video.paused)")
    # on a slow machine the news of the run may take a while; what is no news would come in each of these times
    assert any(page.evaluate(SPOKEN, 3) == 0 for _ in range(10)), "a screen reader would read the same again and again"
    page.context.close()
