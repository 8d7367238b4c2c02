"""Checkpoints from strangers: nothing in the folder runs, whatever it says, and nothing in it hangs the reader."""

import json
import os
import shutil

import pytest
import torch
from fake_hub import FakeHub, serving

from pipeline import inspect_checkpoint
from pipeline.checkpoint.download import fetch_checkpoint, is_hub_id
from pipeline.checkpoint.tokenizer import load_tokenizer
from pipeline.checkpoint.trust import is_known
from pipeline.cli.main import main
from pipeline.model.fastvideo_adapter import FastVideoLongCat

PAYLOAD = "from pathlib import Path\nPath({marker!r}).touch()\nclass Evil: pass\nclass EvilProcessor(Evil): pass\n"


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    """A copy of the checkpoint to make hostile."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "hostile")


def edit(file, **changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def processor_with_code(path, marker):
    """FastVideo's loader of tokenizers opens this with trust_remote_code."""
    edit(path / "tokenizer/config.json", processor_type="x", _name_or_path=str(path / "tokenizer"))
    edit(path / "tokenizer/processor_config.json", auto_map={"AutoProcessor": "evil.EvilProcessor"})
    (path / "tokenizer/evil.py").write_text(PAYLOAD.format(marker=str(marker)))


def tokenizer_with_code(path, marker):
    edit(path / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Evil"]})
    (path / "tokenizer/evil.py").write_text(PAYLOAD.format(marker=str(marker)))


CODE = [
    pytest.param(processor_with_code, id="processor"),
    pytest.param(tokenizer_with_code, id="tokenizer"),
]


@pytest.mark.parametrize("attack", CODE)
def test_code_in_the_folder_is_refused_by_the_command_line(folder, tmp_path, capsys, attack):
    attack(folder, marker := tmp_path / "ran")
    output = tmp_path / "video.mp4"
    arguments = ["generate", "--prompt=x", f"--model-path={folder}", "--device=cpu", f"--output={output}"]
    assert main(arguments) == 2
    assert "holds the code tokenizer/evil.py" in capsys.readouterr().err
    assert not marker.exists() and not output.exists()


@pytest.mark.parametrize("attack", CODE)
def test_the_loader_runs_nothing_either(folder, tmp_path, attack):
    """Called as if the inspection had missed it."""
    attack(folder, marker := tmp_path / "ran")
    model = FastVideoLongCat(folder, torch.device("cpu"))
    assert model.count_tokens("ab") == 3
    assert not marker.exists()


def text(name, content):
    def write(path):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(content)

    return write


def nested(depth=100_000):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        pytest.param(text("setup.py", ""), "holds the code setup.py", id="python"),
        pytest.param(text("vae/evil.PY", ""), "holds the code vae/evil.PY", id="python-in-capitals"),
        pytest.param(text("vae/x/y.pyc", ""), "holds the code vae/x/y.pyc", id="bytecode-in-a-folder"),
        pytest.param(text("evil.pkl", ""), "holds the code evil.pkl", id="pickle"),
        pytest.param(text("vae/encoder.jit", ""), "holds the code vae/encoder.jit", id="torchscript"),
        pytest.param(text("vae/native.so", ""), "holds the code vae/native.so", id="library"),
        pytest.param(
            lambda path: edit(path / "vae/config.json", auto_map={"AutoModel": "evil.Evil"}),
            "vae/config.json has auto_map",
            id="auto-map",
        ),
        pytest.param(
            lambda path: edit(path / "text_encoder/config.json", nested=[{"auto_map": {"AutoConfig": "a--b.C"}}]),
            "text_encoder/config.json has auto_map",
            id="auto-map-inside",
        ),
        pytest.param(
            lambda path: edit(path / "scheduler/other.json", auto_map={"a": "b"}),
            "scheduler/other.json has auto_map",
            id="auto-map-in-another-file",
        ),
        pytest.param(
            lambda path: edit(path / "model_index.json", custom_pipeline="someone/evil"),
            "model_index.json has custom_pipeline",
            id="custom-pipeline",
        ),
        pytest.param(
            lambda path: edit(path / "tokenizer/config.json", processor_type="x", _name_or_path="someone/evil"),
            "tokenizer/config.json has processor_type",
            id="processor-type",
        ),
        pytest.param(
            lambda path: edit(path / "model_index.json", gemma_model_path="/etc"),
            "model_index.json has gemma_model_path",
            id="gemma",
        ),
        pytest.param(
            lambda path: edit(path / "model_index.json", boundary_ratio=0.9),
            "has a boundary_ratio",
            id="two-transformers",
        ),
        pytest.param(
            lambda path: edit(path / "model_index.json", evil=["evil", "Evil"]), "the component 'evil'", id="component"
        ),
        pytest.param(
            lambda path: edit(path / "model_index.json", vae=["fastvideo.evil", "AutoencoderKLWan"]),
            "for vae, not diffusers's AutoencoderKLWan",
            id="library-of-a-component",
        ),
        pytest.param(
            lambda path: edit(path / "model_index.json", transformer=[None, None]),
            "for transformer, not diffusers's",
            id="component-that-is-not-there",
        ),
        pytest.param(
            lambda path: edit(path / "model_index.json", vae=["diffusers", ["AutoencoderKLWan"]]),
            "for vae, not",
            id="class-as-a-list",
        ),
        pytest.param(
            lambda path: edit(path / "text_encoder/config.json", architectures=["LTX2GemmaTextEncoderModel"]),
            "names the unknown class 'LTX2GemmaTextEncoderModel'",
            id="architecture",
        ),
        pytest.param(
            lambda path: edit(path / "text_encoder/config.json", architectures=[{"a": 1}]),
            "names the unknown class",
            id="architecture-object",
        ),
        pytest.param(
            lambda path: edit(path / "tokenizer/tokenizer_config.json", tokenizer_class="EvilTokenizer"),
            "names the unknown class 'EvilTokenizer'",
            id="tokenizer-class",
        ),
        pytest.param(
            lambda path: edit(path / "scheduler/scheduler_config.json", shift=[1]), "has the shift [1]", id="shift-list"
        ),
        pytest.param(
            lambda path: edit(path / "scheduler/scheduler_config.json", shift=10**400), "has the shift", id="shift-huge"
        ),
        pytest.param(
            lambda path: edit(path / "scheduler/scheduler_config.json", shift=float("nan")), "shift nan", id="shift-nan"
        ),
        pytest.param(text("model_index.json", nested()), "model_index.json is nested too deeply", id="nested-index"),
        pytest.param(text("vae/config.json", nested()), "vae/config.json is nested too deeply", id="nested-config"),
        pytest.param(text("lora/notes.json", nested()), "lora/notes.json is nested too deeply", id="nested-other"),
        pytest.param(text("lora/notes.json", "{"), "lora/notes.json is not valid JSON", id="other-json-cut-off"),
        pytest.param(
            lambda path: edit(path / "generation_config.json", height=16e30),
            "has unusable settings: height",
            id="height-huge",
        ),
        pytest.param(
            lambda path: edit(path / "generation_config.json", fps="\ud800"),
            "has unusable settings: fps",
            id="surrogate",
        ),
        pytest.param(
            lambda path: edit(path / "generation_config.json", num_frames=None),
            "has unusable settings: num_frames",
            id="no-frames",
        ),
        pytest.param(
            lambda path: edit(path / "transformer/config.json", bsa_params={"chunk_3d_shape_q": 10**400}),
            "unusable bsa_params",
            id="chunk-huge",
        ),
        pytest.param(
            lambda path: edit(path / "transformer/config.json", bsa_params={"sparsity": [1]}),
            "unusable bsa_params",
            id="sparsity-list",
        ),
    ],
)
def test_refused_at_inspection(folder, capsys, attack, says):
    attack(folder)
    with pytest.raises(ValueError, match="^[^\n]+$") as refusal:
        inspect_checkpoint(folder)
    assert says in str(refusal.value)
    assert main(["info", f"--model-path={folder}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "generation_config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/special_tokens_map.json",
        "lora/distill.safetensors",
        "extra",
    ],
)
def test_a_pipe_for_a_file_does_not_hang(folder, name):
    file = folder / name
    file.unlink(missing_ok=True)
    file.parent.mkdir(exist_ok=True)
    os.mkfifo(file)
    with pytest.raises(ValueError, match="is neither a file nor a folder"):
        inspect_checkpoint(folder)


def test_a_pipe_behind_a_link_does_not_hang(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (folder / "vae/config.json").unlink()
    (folder / "vae/config.json").symlink_to(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is neither a file nor a folder"):
        inspect_checkpoint(folder)


def test_links_in_a_circle_end(folder):
    (folder / "vae/again").symlink_to(folder)
    assert inspect_checkpoint(folder).parameters


def test_code_behind_a_linked_folder_is_seen(folder, tmp_path):
    shutil.move(folder / "vae", tmp_path / "vae")
    (tmp_path / "vae/evil.py").touch()
    (folder / "vae").symlink_to(tmp_path / "vae")
    with pytest.raises(ValueError, match="holds the code vae/evil.py"):
        inspect_checkpoint(folder)


def test_a_folder_of_everything_is_not_searched_to_its_end(folder, monkeypatch):
    monkeypatch.setattr("pipeline.checkpoint.trust.MOST_ENTRIES", 5)
    with pytest.raises(ValueError, match="holds more than 5 files; pass the checkpoint's own folder"):
        inspect_checkpoint(folder)


def test_words_of_a_vocabulary_are_no_keys(folder):
    file = folder / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["auto_map"] = len(content["model"]["vocab"])
    file.write_text(json.dumps(content))
    assert inspect_checkpoint(folder).parameters


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/" + "a" * 5000, id="5000-characters"),
        pytest.param("a" * 5000, id="5000-characters-relative"),
        pytest.param("a/" + "b" * 5000, id="5000-characters-like-a-hub-id"),
        pytest.param("a/" * 2500, id="2500-folders"),
        pytest.param("a\0b", id="null"),
        pytest.param("/a\0b", id="null-absolute"),
        pytest.param("~nobody-of-this-name", id="no-home"),
        pytest.param("/\ud800", id="surrogate"),
    ],
)
def test_paths_that_no_file_system_takes(path, capsys):
    assert not is_hub_id(path)
    for read in (inspect_checkpoint, fetch_checkpoint):
        with pytest.raises(ValueError, match="^[^\n]+$"):
            read(path)
    assert main(["info", f"--model-path={path}"]) == 2
    assert len(capsys.readouterr().err) < 1000


def test_the_tokenizer_file_alone_decides(folder):
    """No class is looked up, whatever the settings name."""
    edit(folder / "tokenizer/tokenizer_config.json", tokenizer_class="EvilTokenizer", backend="evil", eos_token=["x"])
    tokenizer = load_tokenizer(folder / "tokenizer")
    assert type(tokenizer).__module__.startswith("transformers.")
    assert tokenizer("ab")["input_ids"][-1] == 1


def test_only_known_names_are_fetched(folder, tmp_path, monkeypatch):
    processor_with_code(folder, tmp_path / "ran")
    unwanted = ("tokenizer/evil.py", "tokenizer/processor_config.json", "tokenizer/config.json", "vae/model.bin")
    (folder / "vae/model.bin").touch()
    with serving(FakeHub(folder), monkeypatch, tmp_path / "cache") as hub:
        path = fetch_checkpoint(hub.repo)
    assert not [name for name in unwanted if name in hub.sent or (path / name).exists()]
    assert (path / "tokenizer/tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param("[]", "holds a list, not an object", id="list"),
        pytest.param(nested(), "is nested too deeply", id="nested"),
        pytest.param('{"_class_name": "LongCatPipeline", "evil": ["a", "B"]}', "component 'evil'", id="component"),
    ],
)
def test_an_index_on_the_hub_is_checked_before_weights_are_fetched(folder, tmp_path, monkeypatch, content, says):
    (folder / "model_index.json").write_text(content)
    with serving(FakeHub(folder), monkeypatch, tmp_path / "cache") as hub, pytest.raises(ValueError, match=says):
        fetch_checkpoint(hub.repo)
    assert not [name for name in hub.sent if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    "name",
    [
        "evil.py",
        "tokenizer/evil.py",
        "tokenizer/config.json",
        "tokenizer/processor_config.json",
        "tokenizer/spiece.model",
        "vae/model.bin",
        "vae/../evil.json",
        "../model_index.json",
        "model_index.json\n",
        "lora/a/b/c.safetensors",
        "transformer/sub/a.safetensors",
    ],
)
def test_unknown_names(name):
    assert not is_known(name)
