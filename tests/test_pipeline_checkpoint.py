"""Checkpoint folders: what is read from a whole one, and what is said about half of one."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_checkpoint import transformer_weights

from bsa import BSAConfig, Grid
from pipeline import LongCatPipeline, inspect_checkpoint


@pytest.fixture
def broken(tiny_checkpoint, tmp_path):
    """A copy of the checkpoint to damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "broken")


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_whole_checkpoint(tiny_checkpoint):
    info = inspect_checkpoint(tiny_checkpoint)
    assert info.name == "longcat-random"
    assert info.parameters == sum(weight.numel() for weight in transformer_weights(0).values())
    assert info.bsa == BSAConfig(sparsity=0.75)
    request = info.request("a red circle", seed=3)
    assert (request.height, request.width, request.num_frames, request.steps, request.fps) == (64, 64, 29, 3, 15)
    assert (request.guidance_scale, request.seed, request.bsa, request.use_distill) == (1.0, 3, info.bsa, False)


def test_symlinked_checkpoint(tiny_checkpoint, tmp_path):
    (tmp_path / "link").symlink_to(tiny_checkpoint)
    info = inspect_checkpoint(tmp_path / "link")
    assert (info.name, info.path) == ("longcat-random", tmp_path / "link")


def test_a_checkpoint_in_the_hubs_cache_is_called_as_on_the_hub(tiny_checkpoint, tmp_path):
    folder = tmp_path / "models--org--long-cat" / "snapshots" / ("0123456789" * 4)
    shutil.copytree(tiny_checkpoint, folder)
    assert inspect_checkpoint(folder).name == "long-cat"


def test_overrides_win_and_unknown_ones_are_refused(tiny_checkpoint):
    info = inspect_checkpoint(tiny_checkpoint)
    assert (
        info.request("x", bsa=None, steps=9).to_dict() | {"bsa": None, "steps": 9}
        == info.request("x", bsa=None, steps=9).to_dict()
    )
    with pytest.raises(ValueError, match="unknown request field 'colour'"):
        info.request("x", colour="red")


def test_without_generation_config_longcats_own_settings(broken):
    (broken / "generation_config.json").unlink()
    request = inspect_checkpoint(broken).request("x")
    assert (request.height, request.width, request.num_frames) == (480, 832, 93)
    assert (request.steps, request.guidance_scale, request.fps) == (50, 4.0, 15)


def test_generation_config_can_ask_for_the_distilled_schedule(broken):
    edit_json(broken / "generation_config.json", use_distill=True, num_inference_steps=16)
    request = inspect_checkpoint(broken).request("x")
    assert (request.use_distill, request.steps) == (True, 16)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({"enable_bsa": False}, None, id="off"),
        pytest.param({"enable_bsa": True, "bsa_params": None}, BSAConfig(), id="on-without-parameters"),
        pytest.param(
            {
                "enable_bsa": True,
                "bsa_params": {"sparsity": 0.5, "chunk_3d_shape_q": [2, 4, 8], "chunk_3d_shape_k": [4, 4, 4]},
            },
            BSAConfig(sparsity=0.5, chunk_q=Grid(2, 4, 8)),
            id="on-with-parameters",
        ),
    ],
)
def test_bsa_comes_from_the_transformer_config(broken, config, expected):
    edit_json(broken / "transformer" / "config.json", **config)
    assert inspect_checkpoint(broken).bsa == expected


@pytest.mark.parametrize("enabled", [True, False], ids=["on", "off"])
def test_unknown_bsa_params_are_named_and_change_nothing(broken, caplog, enabled):
    params = {"sparsity": 0.5, "sparsty": 0.9, "chunk_shape": [2, 2, 2]}
    edit_json(broken / "transformer" / "config.json", enable_bsa=enabled, bsa_params=params)
    info = inspect_checkpoint(broken)
    assert (info.sparse, info.bsa) == (BSAConfig(0.5), BSAConfig(0.5) if enabled else None)
    assert "unknown keys, which change nothing: chunk_shape, sparsty; known are sparsity, cdf_threshold" in caplog.text


def test_known_bsa_params_are_no_warning_and_ours_are_asked_for_by_name(broken, caplog):
    upstream = {"sparsity": 0.9375, "chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]}
    edit_json(broken / "transformer" / "config.json", enable_bsa=True, bsa_params=upstream)
    assert inspect_checkpoint(broken).bsa == BSAConfig(0.9375, selection="mean")
    ours = upstream | {"selection": "cells", "dense_steps": 1, "dense_layers": 2}
    edit_json(broken / "transformer" / "config.json", bsa_params=ours)
    assert inspect_checkpoint(broken).bsa == BSAConfig(0.9375, selection="cells", dense_steps=1, dense_layers=2)
    assert not caplog.records


def cut(file, to):
    content = file.read_bytes()
    file.write_bytes(content[:to])


def shard_index(folder):
    """An index that names a second shard, which is not there."""
    index = {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda path: (path / "model_index.json").unlink(), "model_index.json is missing", id="no-index"),
        pytest.param(lambda path: shutil.rmtree(path / "vae"), "vae/config.json is missing", id="no-vae"),
        pytest.param(
            lambda path: shutil.rmtree(path / "text_encoder"),
            "text_encoder/config.json is missing",
            id="no-text-encoder",
        ),
        pytest.param(
            lambda path: shutil.rmtree(path / "scheduler"),
            "scheduler/scheduler_config.json is missing",
            id="no-scheduler",
        ),
        pytest.param(
            lambda path: (path / "tokenizer/tokenizer.json").unlink(),
            "tokenizer/tokenizer.json is missing",
            id="no-tokenizer",
        ),
        pytest.param(
            lambda path: (path / WEIGHTS).unlink(),
            "transformer is incomplete: it holds no .safetensors file",
            id="no-weights",
        ),
        pytest.param(
            lambda path: shard_index(path / "transformer"),
            "model-00002-of-00002.safetensors is missing (1 of 2",
            id="no-shard",
        ),
        pytest.param(lambda path: cut(path / WEIGHTS, -100), "where its header announces", id="weights-cut-off"),
        pytest.param(lambda path: cut(path / WEIGHTS, 300), "is cut off in its header", id="weights-cut-in-header"),
        pytest.param(lambda path: cut(path / WEIGHTS, 3), "is cut off in its header", id="weights-three-bytes"),
        pytest.param(
            lambda path: (path / WEIGHTS).write_bytes(b"\x02" + bytes(7) + b"[]"),
            "damaged header",
            id="weights-wrong-header",
        ),
        pytest.param(
            lambda path: cut(path / "vae/config.json", 40), "vae/config.json is not valid JSON", id="json-cut-off"
        ),
        pytest.param(
            lambda path: (path / "vae/config.json").write_text("[]"), "holds a list, not an object", id="json-list"
        ),
        pytest.param(
            lambda path: (path / "vae/config.json").write_bytes(b"\xff\xfe"),
            "vae/config.json is not valid JSON",
            id="json-binary",
        ),
        pytest.param(
            lambda path: edit_json(path / "model_index.json", _class_name="WanPipeline"),
            "describes 'WanPipeline'",
            id="other-pipeline",
        ),
        pytest.param(
            lambda path: edit_json(path / "transformer/config.json", _class_name="LongCatVideoTransformer3DModel"),
            "is a 'LongCatVideoTransformer3DModel'",
            id="original-transformer",
        ),
        pytest.param(
            lambda path: edit_json(path / "vae/config.json", _class_name="AutoencoderKL"),
            "vae/config.json is a 'AutoencoderKL', not a 'AutoencoderKLWan'",
            id="other-vae",
        ),
        pytest.param(
            lambda path: (path / "scheduler/scheduler_config.json").write_text("{}"),
            "scheduler/scheduler_config.json is a None",
            id="scheduler-empty",
        ),
        pytest.param(
            lambda path: (path / "text_encoder/config.json").write_text("{}"),
            "text_encoder/config.json names no architectures",
            id="text-encoder-empty",
        ),
        pytest.param(
            lambda path: cut(path / "tokenizer/tokenizer.json", -100), "tokenizer.json is cut off", id="tokenizer-cut"
        ),
        pytest.param(
            lambda path: (path / "tokenizer/tokenizer.json").write_bytes(b""),
            "tokenizer.json is cut off",
            id="tokenizer-empty",
        ),
        pytest.param(lambda path: (path / WEIGHTS).write_bytes(b""), "cut off in its header (0 bytes)", id="no-bytes"),
        pytest.param(
            lambda path: (path / f"{WEIGHTS}.index.json").write_text('{"weight_map": ["a"]}'),
            "safetensors.index.json has a damaged weight_map",
            id="index-list",
        ),
        pytest.param(
            lambda path: (path / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": ["b"]}}'),
            "safetensors.index.json has a damaged weight_map",
            id="index-of-lists",
        ),
        pytest.param(
            lambda path: (shutil.rmtree(path / "vae"), (path / "vae").write_text("x")),
            "vae/config.json: Not a directory",
            id="file-for-folder",
        ),
        pytest.param(
            lambda path: edit_json(path / "generation_config.json", height=17),
            "generation_config.json has unusable settings: height 17 is not a multiple of 16",
            id="default-height",
        ),
        pytest.param(
            lambda path: edit_json(path / "generation_config.json", use_distill="no"),
            "use_distill 'no' is not true or false",
            id="default-schedule",
        ),
        pytest.param(
            lambda path: edit_json(path / "transformer/config.json", bsa_params=[1]),
            "unusable bsa_params: [1] is not an object",
            id="bsa-params-list",
        ),
        pytest.param(
            lambda path: edit_json(path / "transformer/config.json", bsa_params={"sparsity": 1.0}),
            "unusable bsa_params",
            id="bsa-params",
        ),
    ],
)
def test_damaged(broken, damage, says):
    damage(broken)
    with pytest.raises(ValueError, match="^[^\n]+$") as refusal:
        inspect_checkpoint(broken)
    assert says in str(refusal.value)
    assert str(broken) in str(refusal.value)


def test_weights_that_may_not_be_read(tiny_checkpoint, monkeypatch):
    def refuse(path, mode="r", *rest, **options):
        if mode == "rb" and path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *rest, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", refuse)  # chmod would not stop a test that runs as root
    with pytest.raises(ValueError, match=r"cannot read .*safetensors: Permission denied; check its permissions"):
        inspect_checkpoint(tiny_checkpoint)


def test_wrong_paths(tmp_path, tiny_checkpoint):
    with pytest.raises(ValueError, match="there is no checkpoint at .*nowhere"):
        inspect_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a file; pass the checkpoint's folder"):
        inspect_checkpoint(tiny_checkpoint / "model_index.json")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(
            lambda path: edit_json(path / "generation_config.json", latent_rgb_factors=[[1, 2]]),
            "latent_rgb_factors has shape",
            id="preview-colours",
        ),
        pytest.param(
            lambda path: edit_json(path / "generation_config.json", latent_rgb_factors="red"),
            "latent_rgb_bias are not tables of numbers",
            id="preview-colours-text",
        ),
    ],
)
def test_colours_that_do_not_fit(broken, damage, says):
    """These are found while loading, also in one sentence."""
    damage(broken)
    with pytest.raises(ValueError, match="^[^\n]+$") as refusal:
        LongCatPipeline.load(broken, device="cpu")
    assert says in str(refusal.value)
