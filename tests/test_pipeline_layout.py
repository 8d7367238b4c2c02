"""Checkpoints in the original's layout: the same model, without conversion, and refused in a sentence where broken."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_hub import FakeHub, serving
from huggingface_hub import constants
from original_layout import original_weights, write_original
from safetensors.torch import load_file, save_file
from tiny_checkpoint import transformer_weights, write_lora

from pipeline import LongCatPipeline, inspect_checkpoint
from pipeline.checkpoint.download import fetch_checkpoint
from pipeline.checkpoint.expected import expected_weights
from pipeline.checkpoint.layout import FASTVIDEO, ORIGINAL
from pipeline.checkpoint.shape import ModelShape
from pipeline.cli.main import main
from pipeline.request.load_options import LoadOptions
from pipeline.transformer.forward import longcat_forward
from pipeline.transformer.self_attention import DenseAttention
from pipeline.weights.lora import load_lora

CONFIG = "dit/config.json"
SHARD = "dit/diffusion_pytorch_model-00001-of-00003.safetensors"
INDEX = "dit/diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def converted(tiny_checkpoint, tmp_path_factory):
    """In FastVideo's layout, with an adapter in LongCat's file format."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("fastvideo") / "longcat-random")
    (folder / "generation_config.json").unlink()
    write_lora(folder, "cfg_step_lora")
    return folder


@pytest.fixture(scope="module")
def original(converted, tmp_path_factory):
    return write_original(converted, tmp_path_factory.mktemp("original") / "LongCat-Video")


@pytest.fixture
def folder(original, tmp_path):
    """A copy to change."""
    return shutil.copytree(original, tmp_path / "LongCat-Video")


@pytest.fixture(scope="module")
def both(converted, original):
    return LongCatPipeline.load(converted, device="cpu"), LongCatPipeline.load(original, device="cpu")


def edit_json(file, **changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def request_of(pipeline, **changes):
    values = {"height": 64, "width": 64, "num_frames": 13, "steps": 2, "guidance_scale": 1.0, "seed": 3}
    return pipeline.info.request("a red circle", **values | changes)


def assert_same(ours, theirs):
    """Parts of a fused weight lie elsewhere in memory, and a CPU may sum their products in another order: fp32 values
    on the edge between two levels fall either way."""
    apart = np.abs(ours.astype(int) - theirs)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


class TestModel:
    def test_every_weight(self, both):
        ours, theirs = (pipeline._model.transformer.state_dict() for pipeline in both)
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_one_forward_pass(self, both):
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(1, 16, 3, 8, 8, generator=generator)
        text, mask = torch.randn(1, 7, 32, generator=generator), torch.ones(1, 7)
        outputs = [
            longcat_forward(
                pipeline._model.transformer, latents, torch.tensor([700.0]), text, mask, [DenseAttention()] * 2
            )
            for pipeline in both
        ]
        assert torch.equal(*outputs)
        assert outputs[0].std() > 0.1

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"bsa": None}, id="dense"),
            pytest.param({"guidance_scale": 3.0}, id="sparse-guided"),
            pytest.param({"lora": "distill"}, id="adapter"),
        ],
    )
    def test_videos(self, both, changes):
        assert_same(*(pipeline.generate_frames(request_of(pipeline, **changes))[1] for pipeline in both))

    def test_fused_projections_are_in_memory_once(self, both):
        """The parts share the memory of the whole, which has no room for a copy."""
        block = both[1]._model.transformer.blocks[0]
        for layers in (
            (block.self_attn.to_q, block.self_attn.to_k, block.self_attn.to_v),
            (block.cross_attn.to_k, block.cross_attn.to_v),
        ):
            weights = [layer.weight for layer in layers]
            assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
            assert weights[1].data_ptr() == weights[0].data_ptr() + weights[0].numel() * weights[0].element_size()

    @pytest.mark.parametrize("weights", [LoadOptions("fp8"), LoadOptions(None, True)], ids=str)
    def test_kept_otherwise(self, converted, original, weights):
        made = []
        for folder in (converted, original):
            pipeline = LongCatPipeline.load(folder, device="cpu", **weights.arguments)
            made.append(pipeline.generate_frames(request_of(pipeline, lora="distill"))[1])
        assert_same(*made)

    def test_its_adapters_reach_the_layers_that_the_converter_drops(self, both):
        layers = load_lora(both[1].info.loras["distill"], both[1]._model.transformer)
        dropped = {"caption_embedder.linear_1", "time_embedder.linear_2", "blocks.0.cross_attn.to_out"}
        assert dropped <= layers.keys()

    def test_fastvideos_loader_is_left_as_it_was(self, both):
        from fastvideo.models.loader import fsdp_load, weight_utils

        assert fsdp_load.safetensors_weights_iterator is weight_utils.safetensors_weights_iterator


class TestPadding:
    @pytest.mark.parametrize(
        ("layout", "config", "zeros"),
        [
            pytest.param(ORIGINAL, {"text_tokens_zero_pad": True}, True, id="original-released"),
            pytest.param(ORIGINAL, {"text_tokens_zero_pad": False}, False, id="original-masked"),
            pytest.param(ORIGINAL, {}, False, id="original-by-default"),
            pytest.param(FASTVIDEO, {"text_tokens_zero_pad": True}, True, id="fastvideo-released"),
            pytest.param(FASTVIDEO, {"text_tokens_zero_pad": False}, False, id="fastvideo-masked"),
            pytest.param(FASTVIDEO, {}, True, id="fastvideo-by-default"),
        ],
    )
    def test_by_configuration_and_layout(self, layout, config, zeros):
        """The defaults are those of the two classes: LongCatVideoTransformer3DModel and LongCatVideoArchConfig."""
        assert layout.pads_with_zeros(config) is zeros

    @pytest.mark.parametrize(("zeros", "says"), [(True, "attended to, as zeros"), (False, "masked")])
    def test_the_log_says_which(self, folder, caplog, zeros, says):
        edit_json(folder / CONFIG, text_tokens_zero_pad=zeros)
        with caplog.at_level(logging.INFO, "pipeline"):
            model = LongCatPipeline.load(folder, device="cpu")._model
        assert model.zero_text_padding is zeros
        assert f"The padding of prompts is {says} (text_tokens_zero_pad)" in caplog.messages


class TestInspection:
    def test_facts(self, original, converted):
        ours, theirs = inspect_checkpoint(converted), inspect_checkpoint(original)
        paths = {"path": ours.path, "name": ours.name, "layout": FASTVIDEO, "loras": ours.loras}
        assert replace(theirs, **paths) == ours
        assert (theirs.name, theirs.layout, set(theirs.loras)) == ("LongCat-Video", ORIGINAL, {"distill"})
        assert ModelShape.read(theirs) == ModelShape.read(ours)

    @pytest.mark.parametrize("made", ["original", "converted"])
    def test_info(self, made, request, capsys):
        folder = request.getfixturevalue(made)
        assert main(["info", f"--model-path={folder}", "--json=-"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["layout"] == {"original": "the original's", "converted": "FastVideo's"}[made]
        assert report["parameters"] == sum(weight.numel() for weight in transformer_weights(0).values())

    def test_the_released_size(self):
        """Counted on the original's class with its defaults: 21 tensors in each of 48 blocks, and 14 others."""
        shapes = expected_weights("dit", {"_class_name": ORIGINAL.transformer_class, "num_heads": 32})
        assert len(shapes) == 48 * 21 + 14
        assert shapes["blocks.47.attn.qkv.weight"] == (3 * 4096, 4096)
        assert shapes["blocks.47.cross_attn.kv_linear.bias"] == (2 * 4096,)
        assert sum(np.prod(shape) for shape in shapes.values()) == 13_581_071_424

    def test_an_index_of_its_own_is_not_needed_and_does_no_harm(self, folder):
        edit_json(folder / "model_index.json", _class_name="LongCatVideoPipeline", dit=["longcat_video", "Dit"])
        assert inspect_checkpoint(folder).layout == ORIGINAL

    def test_beside_a_conversion_in_the_same_folder(self, folder, converted):
        shutil.copytree(converted / "transformer", folder / "transformer")
        shutil.copy(converted / "model_index.json", folder)
        assert inspect_checkpoint(folder).layout == FASTVIDEO

    def test_renaming_the_folder_does_not_make_a_conversion(self, folder):
        (folder / "dit").rename(folder / "transformer")
        with pytest.raises(ValueError, match="model_index.json is missing"):
            inspect_checkpoint(folder)


def change(file, **changes):
    weights = load_file(file) | changes
    save_file({name: weight for name, weight in weights.items() if weight is not None}, file)


def shard_of(folder, name):
    return folder / "dit" / json.loads((folder / INDEX).read_text())["weight_map"][name]


def with_weight(name, weight):
    """Another weight in place of one, or none."""
    return lambda folder: change(shard_of(folder, name), **{name: weight})


def write(name, content=""):
    def attack(folder):
        (folder / name).write_text(content)

    return attack


def pipe(name, linked=False):
    def attack(folder):
        (folder / name).unlink()
        target = folder.parent / "pipe" if linked else folder / name
        os.mkfifo(target)
        if linked:
            (folder / name).symlink_to(target)

    return attack


def point_outside(folder):
    """An index with a shard beside the checkpoint."""
    outside = shutil.copy(folder / SHARD, folder.parent / "outside.safetensors")
    weights = json.loads((folder / INDEX).read_text())["weight_map"]
    shard = Path(SHARD).name
    moved = {name: f"../../{Path(outside).name}" if file == shard else file for name, file in weights.items()}
    edit_json(folder / INDEX, weight_map=moved)


def code_behind_a_link(folder):
    shutil.move(folder / "dit", folder.parent / "elsewhere")
    (folder.parent / "elsewhere/modeling.py").touch()
    (folder / "dit").symlink_to(folder.parent / "elsewhere")


QKV = "blocks.1.attn.qkv.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda path: (path / SHARD).unlink(), "00001-of-00003.safetensors is missing (1 of 3", id="shard"),
        pytest.param(lambda path: (path / CONFIG).unlink(), "dit/config.json is missing", id="no-config"),
        pytest.param(lambda path: shutil.rmtree(path / "vae"), "vae/config.json is missing", id="no-vae"),
        pytest.param(
            lambda path: (path / SHARD).write_bytes((path / SHARD).read_bytes()[:-50]),
            "where its header announces",
            id="cut-off",
        ),
        pytest.param(with_weight(QKV, None), f"lacks 1 of the 56 weights of its config.json, such as {QKV}", id="less"),
        pytest.param(
            with_weight(QKV, torch.zeros(191, 64)),
            f"dit has {QKV} as [191, 64], and by its config.json it is [192, 64]",
            id="rows",
        ),
        pytest.param(
            lambda path: change(path / SHARD, **{"blocks.0.self_attn.to_q.weight": torch.zeros(64, 64)}),
            "has blocks.0.self_attn.to_q.weight, which LongCat's dit does not have",
            id="split-as-well",
        ),
        pytest.param(with_weight(QKV, torch.zeros(192, 64).to(torch.int8)), f"has {QKV} as I8", id="quantised"),
        pytest.param(
            lambda path: edit_json(path / CONFIG, num_heads=4),
            "q_norm.weight as [32], and by its config.json it is [16]",
            id="other-heads",
        ),
        pytest.param(
            lambda path: edit_json(path / CONFIG, num_heads=True), "num_attention_heads is True", id="heads-true"
        ),
        pytest.param(
            lambda path: edit_json(path / CONFIG, _class_name="LongCatVideoAvatarTransformer3DModel"),
            "dit/config.json describes 'LongCatVideoAvatarTransformer3DModel', not 'LongCatVideoTransformer3DModel'",
            id="avatar",
        ),
        pytest.param(
            lambda path: edit_json(path / CONFIG, _class_name="LongCatTransformer3DModel"),
            "describes 'LongCatTransformer3DModel'",
            id="half-converted",
        ),
        pytest.param(
            lambda path: edit_json(path / CONFIG, bsa_params=[1], enable_bsa=True),
            "dit/config.json has unusable bsa_params",
            id="bsa-params",
        ),
        pytest.param(write("dit/modeling.py"), "holds the code dit/modeling.py", id="python"),
        pytest.param(write("dit/weights.pkl"), "holds the code dit/weights.pkl", id="pickle"),
        pytest.param(code_behind_a_link, "holds the code dit/modeling.py", id="code-behind-a-link"),
        pytest.param(
            lambda path: edit_json(path / CONFIG, auto_map={"AutoModel": "a--b.C"}), "json has auto_map", id="auto-map"
        ),
        pytest.param(
            write("model_index.json", '{"custom_pipeline": "someone/evil"}'),
            "model_index.json has custom_pipeline",
            id="custom-pipeline",
        ),
        pytest.param(
            write("model_index.json", '{"_class_name": "EvilPipeline"}'), "unknown class 'EvilPipeline'", id="class"
        ),
        pytest.param(write(CONFIG, "[" * 100_000), "dit/config.json is nested too deeply", id="nested"),
        pytest.param(pipe(SHARD), "is neither a file nor a folder", id="pipe-for-a-shard"),
        pytest.param(pipe(CONFIG, linked=True), "is neither a file nor a folder", id="pipe-behind-a-link"),
        pytest.param(point_outside, "outside.safetensors is missing", id="shard-outside"),
        pytest.param(
            lambda path: (shutil.rmtree(path / "dit"), (path / "dit").write_text("")),
            "model_index.json is missing",
            id="file-for-folder",
        ),
    ],
)
def test_refused(folder, damage, says):
    damage(folder)
    with pytest.raises(ValueError, match="^[^\n]+$") as refusal:
        inspect_checkpoint(folder)
    assert says in str(refusal.value)
    assert str(folder) in str(refusal.value)


def test_names_and_shapes_against_the_tables(original):
    config = json.loads((original / CONFIG).read_text())
    weights = original_weights(transformer_weights(0))
    assert expected_weights("dit", config) == {name: tuple(weight.shape) for name, weight in weights.items()}


class TestHub:
    @pytest.fixture
    def hub(self, original, monkeypatch, tmp_path):
        with serving(FakeHub(original), monkeypatch, tmp_path / "cache") as hub:
            yield hub

    def test_fetched_whole_once_and_found_again_without_a_connection(self, hub, original, monkeypatch):
        path = fetch_checkpoint(hub.repo)
        assert inspect_checkpoint(path).layout == ORIGINAL
        for file in original.rglob("*"):
            if file.is_file():
                assert (path / file.relative_to(original)).read_bytes() == file.read_bytes()
        hub.sent.clear()
        assert fetch_checkpoint(hub.repo) == path
        assert hub.sent == {}
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        assert fetch_checkpoint(hub.repo) == path

    def test_of_two_layouts_one_is_fetched(self, hub, folder, converted):
        hub.root = folder
        shutil.copytree(converted / "transformer", folder / "transformer")
        shutil.copy(converted / "model_index.json", folder)
        assert inspect_checkpoint(fetch_checkpoint(hub.repo)).layout == FASTVIDEO
        assert not [name for name in hub.sent if name.startswith("dit/")]

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            pytest.param(
                lambda path: edit_json(path / CONFIG, _class_name="LongCatVideoAvatarTransformer3DModel"),
                "dit/config.json names 'LongCatVideoAvatarTransformer3DModel'; choose another",
                id="class",
            ),
            pytest.param(
                lambda path: (path / "vae/config.json").unlink(), "vae/config.json is missing; choose", id="no-vae"
            ),
            pytest.param(lambda path: (path / SHARD).unlink(), "00001-of-00003.safetensors is missing", id="no-shard"),
            pytest.param(with_weight(QKV, torch.zeros(191, 64)), "qkv.weight as [191, 64], and", id="shape"),
        ],
    )
    def test_refused_before_its_weights_are_fetched(self, hub, folder, damage, says):
        """The headers, of which more is read than these small files have, are all that comes of the weights."""
        damage(folder)
        hub.root = folder
        with pytest.raises(ValueError, match="^[^\n]+$") as refusal:
            fetch_checkpoint(hub.repo)
        assert says in str(refusal.value)
        assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))
