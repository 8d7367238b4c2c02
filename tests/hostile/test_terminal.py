"""Text from strangers on its way to a terminal: shown, never obeyed."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bsa import BSAConfig
from pipeline import VideoRequest, cli_command, python_code
from pipeline.cli.main import main
from pipeline.request.sentences import CONTROLS, VisibleFormatter, one_line, visible
from pipeline.request.start import FromClip

REQUEST = VideoRequest(
    prompt="a", height=64, width=64, num_frames=29, steps=2, guidance_scale=1.5, seed=1, fps=15, bsa=BSAConfig()
)
WHERE = {"model_path": Path("w"), "device": "cpu", "compare": False, "output": "again.mp4"}
TEXTS = [
    pytest.param("a\x03touch pwned\n", id="interrupt-and-newline"),
    pytest.param("a\ntouch pwned\n", id="newline"),
    pytest.param("a\r\ntouch pwned", id="carriage-return"),
    pytest.param("\x1b[201~\ntouch pwned\n", id="end-of-bracketed-paste"),
    pytest.param("\x1b]0;title\x07\x1b[2J", id="escape-sequences"),
    pytest.param("a\x15\x04\x1a\x7f\x08\x16", id="line-editing"),
    pytest.param("\x9b31m\x85next", id="c1"),
    pytest.param("\u202eright to left\u2066\u2028\u2029", id="directions"),
    pytest.param("it's \\ back\\\\ $HOME `id` !! \\047\n", id="quotes-and-a-newline"),
    pytest.param("\n1 2 \x011", id="digits-after-an-escape"),
    pytest.param("!\n'!x'", id="history"),
]


def printed_by_bash(words: str, folder: Path) -> list[str]:
    """Arguments that a command line passes on."""
    show = "import sys; sys.stdout.buffer.write('\\0'.join(sys.argv[1:]).encode(errors='surrogateescape'))"
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(show)} {words}"
    (folder / "line.sh").write_text(line, encoding="utf-8", newline="")
    done = subprocess.run(["bash", "line.sh"], cwd=folder, capture_output=True, check=True)
    assert [file.name for file in folder.iterdir()] == ["line.sh"]
    return done.stdout.decode(errors="surrogateescape").split("\0")


@pytest.mark.parametrize("text", TEXTS)
def test_the_command_is_printable_and_means_the_same(text, tmp_path):
    line = cli_command(replace(REQUEST, prompt=f"x{text}", negative_prompt=text + "y"), **WHERE)
    assert not CONTROLS.search(line)
    said = printed_by_bash(line.removeprefix("python "), tmp_path)
    assert f"--prompt=x{text}" in said and f"--negative-prompt={text}y" in said


@pytest.mark.parametrize("name", ["a\nb", "a\udcff\x1bb", "it's"])
def test_so_are_names_of_files(name, tmp_path):
    start = FromClip(video=f"/{name}.mp4")
    lora = name.replace("\udcff", "")  # which has to be text
    request = replace(REQUEST, guidance_scale=1.0, lora=lora, start=start, num_frames=30)
    line = cli_command(request, **WHERE | {"model_path": Path(name), "output": name, "device": name})
    assert not CONTROLS.search(line)
    said = printed_by_bash(line.removeprefix("python "), tmp_path)
    for word in (f"/{name}.mp4", f"--lora={lora}", f"--model-path={name}", f"--output={name}", f"--device={name}"):
        assert word in said


@pytest.mark.parametrize("change", [{"prompt": "a\0"}, {"negative_prompt": "\0"}, {"lora": "a\0b"}])
def test_a_null_character_is_refused_wherever_it_is(change):
    with pytest.raises(ValueError, match="has a null character, which no command line can carry"):
        cli_command(replace(REQUEST, **change), **WHERE)


@pytest.mark.parametrize("text", TEXTS)
def test_the_program_is_printable(text):
    request = replace(REQUEST, prompt=f"x{text}", negative_prompt=text)
    code = python_code(request, **WHERE | {"model_path": Path(text), "output": text})
    assert not CONTROLS.search(code.replace("\n", ""))
    assert repr(f"x{text}") in code


@pytest.mark.parametrize("text", [*TEXTS, pytest.param("half \ud800 a character", id="surrogate")])
def test_messages_are_printable(text):
    for said in (visible(text), one_line(ValueError(text))):
        assert not CONTROLS.search(said)
    record = logging.LogRecord("ui", logging.INFO, __file__, 1, "name %s", (text,), None)
    assert not CONTROLS.search(VisibleFormatter().format(record))


def test_what_is_harmless_stays_as_it_is():
    for text in ("🎈👩‍👩‍👧 Ball é 球", "it's \"quoted\" \\ back"):
        assert visible(text) == one_line(text) == text


def test_a_traceback_keeps_its_lines():
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        record = logging.LogRecord("ui", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    lines = VisibleFormatter().format(record).split("\n")
    assert len(lines) > 3 and lines[-1] == r"ValueError: \x1b[2J"


def test_the_command_line_says_a_hostile_name(tmp_path, capsys):
    folder = tmp_path / "a\x1b[2J\nb"
    folder.mkdir()
    assert main(["info", f"--model-path={folder}"]) == 2
    said = capsys.readouterr().err
    assert r"a\x1b[2J" in said and not CONTROLS.search(said.rstrip("\n"))
