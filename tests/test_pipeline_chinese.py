"""Chinese prompts for a model that knows English words alone: what it reads, and what it does not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pipeline import EMBEDDED_CHECKPOINT, VideoRequest, inspect_checkpoint
from pipeline.checkpoint.vocabulary import Reading, Vocabulary
from pipeline.cli.long_command import read_long
from pipeline.cli.main import main
from pipeline.cli.parser import build_parser
from training.vocabulary import vocabulary
from ui.form.read import LONG, form_long, form_request
from ui.form.restore import form_values
from ui.form.words import read_prompts
from ui.look.language import catalogue

INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
KNOWN = INFO.vocabulary

STORY = ["红球上升", "a cat sleeps", "猫猫"]
READ = ("a red ball rises", "a cat sleeps", "猫猫")  # what has nothing that it knows stays


def test_each_segment_of_a_long_video_is_read_by_itself():
    """On the page, on the command line, and while somebody types."""
    form = form_values(INFO.request("-")) | {"task": LONG, "segments": 3, "keep_by": "top-k"}
    form["prompt"] = "\n".join(STORY)
    assert form_long(INFO, form, form_request(INFO, form)).prompts == READ
    words = ["generate", "--task=long", *(f"--prompt={prompt}" for prompt in STORY)]
    assert read_long(build_parser().parse_args(words), INFO).prompts == READ
    told = read_prompts(INFO, STORY)
    assert told == {"english": "a red ball rises / a cat sleeps / …", "unknown": ["cat", "sleeps", "猫猫"]}


@pytest.mark.parametrize(
    ("prompt", "english", "unknown"),
    [
        pytest.param(
            "一颗大的粉色爱心在日落时的海面上跳动", "a large pink heart pulses over the sea at sunset", "", id="whole"
        ),
        pytest.param("一个橙色的星星", "an orange star", "", id="article"),
        pytest.param("弹跳的红球", "a red ball bounces", "", id="motion first"),
        pytest.param("球是红色的，弹跳着。", "a red ball bounces", "", id="said afterwards"),
        pytest.param(
            "红球弹跳，旋转的蓝色方块，在绿色山丘上",
            "a red ball bounces and a blue square spins over green hills",
            "",
            id="two, with a comma",
        ),
        pytest.param(
            "弹跳的红球旋转的蓝方块", "a red ball bounces and a blue square spins", "", id="two, without a comma"
        ),
        pytest.param("红球和蓝球上升", "a red ball and a blue ball rises", "", id="two of a kind"),
        pytest.param("上下跳动的星星", "a star bounces", "", id="the longest phrase counts"),
        pytest.param("白色十字在灰色的背景前", "a white cross on a grey background", "", id="backdrop"),
        pytest.param(
            "夜晚的城市上空绽放烟花", "colourful fireworks explode over a city at night", "", id="something happens"
        ),
        pytest.param("黄昏，群山下雪", "snow falling over snowy mountains at sunset", "", id="in the mountains"),
        pytest.param("白天雪山前的红球", "a red ball in front of snowy mountains during the day", "", id="hour"),
        pytest.param("海上日落", "the sea at sunset", "", id="a landscape at rest"),
        pytest.param("猫在厨房里看红色的球", "a red ball", "猫 厨房 看", id="unknown ones"),
        pytest.param("小狗看大的红球", "a large red ball", "小狗看", id="a size inside an unknown word"),
        pytest.param("猫猫狗，猫猫狗", "", "猫猫狗", id="nothing known, said once"),
        pytest.param("红色 Ball 弹跳 in the kitchen", "a red ball bounces", "kitchen", id="both languages"),
        pytest.param("红色 balloon", "red", "balloon", id="a word's beginning is no word"),
    ],
)
def test_what_it_reads(prompt, english, unknown):
    assert KNOWN.read(prompt) == Reading(english, tuple(unknown.split()))
    assert KNOWN.unknown(english) == []
    asked = INFO.request(prompt)
    assert asked.prompt == (english or prompt)
    assert VideoRequest.from_dict(asked.to_dict()) == asked


def test_the_chinese_of_the_palette_is_read_as_what_its_buttons_write():
    said = catalogue()
    phrases = [phrase for group in KNOWN.groups.values() for phrase in group] + list(KNOWN.sentences)
    for phrase in phrases:
        bare = re.sub("^(?:in front of|over|on|in) ", "", phrase)  # a place alone is a landscape
        found = KNOWN.read(said[phrase])
        assert found.english in (phrase, bare, f"a {phrase}") and found.unknown == ()


def test_every_english_phrase_of_the_table_is_known():
    english = {said for words in KNOWN.chinese.values() for said in words.values()}
    assert [said for said in english if KNOWN.unknown(said)] == []


def test_english_is_left_alone_and_so_is_every_prompt_of_a_model_without_a_table():
    assert KNOWN.read("a red ball bounces") is None
    assert replace(KNOWN, chinese={}).read("红球") is None
    assert replace(INFO, vocabulary=None).request("红球").prompt == "红球"


@pytest.mark.parametrize(
    "table",
    [
        pytest.param([], id="a list"),
        pytest.param({"thing": ["球"]}, id="words in a list"),
        pytest.param({"animal": {"猫": "cat"}}, id="an unknown kind"),
        pytest.param({"thing": {"球": 3}}, id="a number"),
        pytest.param({"thing": {"": "ball"}}, id="an empty word"),
        pytest.param({"thing": {"球" * 301: "ball"}}, id="a long word"),
    ],
)
def test_a_bad_table_is_refused(table):
    with pytest.raises(ValueError, match="chinese"):
        Vocabulary.of(vocabulary() | {"chinese": table})


def test_the_command_line_says_what_is_read(tmp_path, capsys):
    """Before anything is loaded, so also where the rest cannot run."""
    assert main(["generate", "--prompt", "猫看红球", "--width", "17", "--output", str(tmp_path / "x.mp4")]) == 2
    assert "longcat-tiny reads: a red ball; it does not know 猫看" in capsys.readouterr().err
