"""English and Chinese: the catalogue is complete and has nothing to spare, and the page shows it."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from app_server import running_page
from browser import Watch, fill_number, needs_chromium, notice, open_group, open_page, reload
from fake_pipeline import CHECKPOINT, FakePipeline
from playwright.sync_api import expect

from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint
from ui.form.inputs import EXAMPLES
from ui.form.plan_panel import UNTRAINED
from ui.look.language import catalogue
from ui.tasks.start import CLIP_CHOSEN, PICTURE_CHOSEN

ROOT = Path(__file__).parent.parent
HOLE = re.compile(r"\{[#=]?\w+\}")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# Written by Gradio's own front end, so no source of this project has them.
GRADIO = {
    "Drop File Here",
    "- or -",
    "Click to Upload",
    "Click to upload or drop files",
    "File upload",
    "Use via API",
    "Settings",
    "Reset to default value",
    "Gradio footer navigation",
    "number input for {a}",
    "range slider for {a}",
}
# Units, file types, and terms that are the same in Chinese; and what the fake checkpoint is called.
AS_THEY_ARE = {
    "Ctrl",
    "Enter",
    "Esc",
    "Shift",
    "PSNR",
    "PSNR {x}",
    "SSIM",
    "CSV",
    "JSON",
    "GiB",
    "CPU",
    "{x} GiB",
    "LongCat 480p",
    "720p with BSA",
}
# What these say stays off the page.
NO_PANELS = (
    *("endpoints", "parameters", "calls", "child", "guard", "hosts", "bodies", "login", "store", "language"),
    "enhance",
)


class Markup(HTMLParser):
    """The texts of a template that people see or hear."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found |= {value for name, value in attributes if name in ("aria-label", "title", "placeholder") and value}

    def handle_data(self, data):
        self.found.add(data.strip())


def written(node: ast.AST) -> str | None:
    """A string or f-string of a source; what it fills in is {x}."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{x}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def said_by(path: Path) -> set[str]:
    """What a panel gives to Gradio to show (labels, hints, names of buttons and tabs), and the sentences that it keeps
    as constants."""
    tree, found = ast.parse(path.read_text("utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found |= {written(word.value) for word in node.keywords if word.arg in ("label", "info", "placeholder")}
            if ast.unparse(node.func) in ("gr.Button", "gr.Tab", "gr.Accordion", "gr.Markdown", "notice_html"):
                found |= {written(text) for text in node.args[:1]}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            texts = {written(part) for part in ast.walk(node.value)} - {None}
            found |= {text for text in texts if re.fullmatch(r"[A-Z{][^<>_\n|]* [^<>_\n|]*", text)}
    parts = {part.strip() for text in found - {None} for part in re.split(r"\*+", text)}  # Markdown's, which cut a text
    return parts - set(EXAMPLES.values())


def page_texts() -> dict[str, str]:
    """text -> where it is from"""
    found = {}
    for path in sorted((ROOT / "ui").rglob("*.py")):
        if path.stem not in NO_PANELS:
            found |= dict.fromkeys(said_by(path), path.name)
    for path in sorted((ROOT / "ui/static").glob("*.html")):
        found |= dict.fromkeys(Markup(path.read_text("utf-8")).found, path.name)
    return {HOLE.sub("{x}", re.sub(r"\{(\w+)[^}]*\}", r"{\1}", text)): where for text, where in found.items()}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running_page(FakePipeline(step_seconds=0.02), tmp_path_factory.mktemp("outputs")) as address:
        yield address


@pytest.fixture
def page(browser, address):
    """As somebody sees it whose browser is Chinese."""
    page = open_page(browser, address, locale="zh-CN")
    expect(page.get_by_role("button", name="生成", exact=True)).to_be_enabled()
    yield page
    page.context.close()


def test_placeholders_match():
    wrong = {key for key, said in catalogue().items() if sorted(HOLE.findall(key)) != sorted(HOLE.findall(said))}
    assert not wrong


def test_every_entry_is_used():
    """The words of each entry are in the sources, between what is filled in."""
    text = "\n".join(path.read_text("utf-8") for path in (ROOT / "ui/static").glob("*.*") if path.stem != "language")
    for path in [path for folder in ("ui", "pipeline", "bsa") for path in (ROOT / folder).rglob("*.py")]:
        texts = {written(node) for node in ast.walk(ast.parse(path.read_text("utf-8")))} - {None}
        text += "\n".join(texts)
    text += (ROOT / "assets/longcat-tiny/judge/config.json").read_text("utf-8")  # the answers of its classifier
    text += (ROOT / "assets/longcat-tiny/vocabulary.json").read_text("utf-8")
    text = re.sub(r"\s+", " ", text).lower()
    cut = re.compile(rf"{HOLE.pattern}|[,;:().÷×·]|\b(?:or|over|newest|all|frames?|\d+)\b")
    missing = {
        (key, part)
        for key in catalogue().keys() - GRADIO
        for part in cut.split(key.replace("number of frames", "num_frames").replace("CDF", "cdf"))
        if len(part.strip()) > 2 and part.strip().lower() not in text
    }
    assert not missing


@needs_chromium
def test_everything_that_the_sources_say_has_chinese(page):
    """Each text is put on the page, numbers in its places, and becomes Chinese there."""
    texts = page_texts()
    told = page.evaluate(
        """async (texts) => {
            const nodes = texts.map((text) => document.createElement('p'));
            nodes.forEach((node, i) => (node.textContent = texts[i]));
            document.body.append(...nodes);
            await new Promise(setTimeout);
            return nodes.map((node) => (node.remove(), node.textContent));
        }""",
        [text.replace("{x}", "7") for text in texts],
    )
    missing = {
        (where, text)
        for (text, where), said in zip(texts.items(), told, strict=True)
        if re.search(r"[A-Za-z]{2}", HOLE.sub("", text)) and not CHINESE.search(said) and text not in AS_THEY_ARE
    }
    assert not missing


@needs_chromium
def test_a_chinese_browser_gets_a_chinese_page_that_can_be_switched(page):
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page).to_have_title("视频生成的块稀疏注意力")
    page.get_by_label("提示词", exact=True).fill("Stop")
    page.get_by_role("button", name="生成", exact=True).click()
    expect(notice(page)).to_have_text(re.compile(r"^已完成，随机种子 \d+。$"))
    for name in ("结果", "注意力内部", "历史", "扫描"):
        page.get_by_role("tab", name=name).click()
    expect(page.get_by_label("行", exact=True)).to_have_value("稀疏度")
    page.get_by_role("tab", name="历史").click()
    expect(page.locator(".history-prompt")).to_have_text("Stop")
    expect(page.locator(".history-title b")).to_have_text("稠密与稀疏")
    page.locator(".live-fold").click()
    expect(page.locator(".live-windows button")).to_have_text(["本次运行", "2 分钟", "15 分钟", "1 小时"])

    page.get_by_role("button", name="English", exact=True).click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(notice(page)).to_have_text(re.compile(r"^Done with seed \d+\.$"))
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("Stop")
    expect(page.locator(".history-title b")).to_have_text("Dense and sparse")
    left = [line for line in page.locator("body").inner_text().splitlines() if CHINESE.search(line)]
    assert left == ["中文"]

    reload(page)
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()
    expect(page.locator("html")).to_have_attribute("lang", "en")


@needs_chromium
def test_refusals_keep_their_numbers_in_chinese(page):
    open_group(page, "尺寸、帧数、步数、引导强度、种子")
    fill_number(page, "宽度", 830)
    expect(page.locator("#plan")).to_contain_text("宽度 830 不是 16 的倍数；可用 816 或 832。")


@needs_chromium
def test_sentences_that_follow_each_other_are_translated_one_by_one(page):
    """A size at the end of one must not take in the next."""
    size = {"from_width": 640, "from_height": 480, "width": 832, "height": 480}
    texts = [
        f"{PICTURE_CHOSEN.format(**size)} {UNTRAINED.format(name='LongCat')}",
        f"{CLIP_CHOSEN.format(count=13, frames=61, **size)} {UNTRAINED.format(name='LongCat')}",
    ]
    for text in texts:
        page.evaluate("text => (document.querySelector('#notice p, #plan p').textContent = text)", text)
        said = page.locator("#notice p, #plan p").first
        expect(said).to_have_text(re.compile(r"^视频.*832 × 480 生成。LongCat 只训练过由文本开头。所给的帧[^a-z]*$"))


@needs_chromium
def test_an_english_browser_gets_english_and_says_nothing_wrong(browser, address):
    watch = Watch()
    page = open_page(browser, address, watch)
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.get_by_role("button", name="中文", exact=True).click()
    expect(page.locator("#generate")).to_have_text("生成")
    expect(page.get_by_role("button", name="中文", exact=True)).to_have_attribute("aria-pressed", "true")
    assert watch.complaints == []
    page.context.close()


def test_what_the_included_model_knows_has_chinese():
    """A Chinese page offers its prompts in Chinese; what a button writes is what the model knows."""
    known, said = inspect_checkpoint(EMBEDDED_CHECKPOINT).vocabulary, catalogue()
    phrases = [phrase for group in known.groups.values() for phrase in group] + list(known.sentences)
    assert [phrase for phrase in phrases if not CHINESE.search(said.get(phrase, ""))] == []


@needs_chromium
def test_a_chinese_palette_writes_what_the_model_knows(browser, tmp_path):
    checkpoint = replace(CHECKPOINT, vocabulary=inspect_checkpoint(EMBEDDED_CHECKPOINT).vocabulary)
    with running_page(FakePipeline(), tmp_path, checkpoint) as address:
        page = open_page(browser, address, locale="zh-CN")
        prompt, default = page.locator("#prompt textarea"), checkpoint.vocabulary.default
        expect(prompt).to_have_value(CHINESE)  # the default, which the model reads as the English one
        expect(page.locator(".words-read")).to_have_text(f"fake-longcat 读到的是：{default}")
        page.get_by_role("button", name="English", exact=True).click()
        expect(prompt).to_have_value(default)
        page.get_by_role("button", name="中文", exact=True).click()
        expect(prompt).to_have_value(CHINESE)
        for name in ("红色", "星星", "旋转", "夜晚的城市上空"):
            page.locator(".words").get_by_role("button", name=name, exact=True).click()
        expect(page.locator("#prompt textarea")).to_have_value(re.compile("red star spins over a city at night$"))
        page.get_by_label("图片生成视频").click()
        page.locator(".pictures button").nth(1).click()
        expect(page.locator("#start-image .filename")).to_contain_text("star")  # a file keeps its name
        page.context.close()
