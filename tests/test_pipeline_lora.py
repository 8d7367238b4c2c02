"""LoRA adapters: LongCat's files and FastVideo's, against the original's results and against merged weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from latents import assert_parity, final_latents
from safetensors.torch import save_file
from tiny_checkpoint import lora_weights, write_lora

from pipeline import LongCatPipeline, inspect_checkpoint
from pipeline.weights.lora import load_lora

PREFIX, HYPHEN = "lora___lorahyphen___", "___lorahyphen___"
# LongCat's fused layers and what FastVideo splits them into
FUSED = {
    "attn.qkv": ["self_attn.to_q", "self_attn.to_k", "self_attn.to_v"],
    "cross_attn.kv_linear": ["cross_attn.to_k", "cross_attn.to_v"],
}
RENAMED = {
    "attn.proj": "self_attn.to_out",
    "cross_attn.q_linear": "cross_attn.to_q",
    "cross_attn.proj": "cross_attn.to_out",
    "adaLN_modulation.1": "adaln_linear_1",
    "y_embedder.y_proj.0": "caption_embedder.linear_1",
    "t_embedder.mlp.2": "time_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "final_layer.adaln_linear",
    "final_layer.linear": "final_layer.proj",
}


def weight_changes(seed: int = 5) -> dict[str, torch.Tensor]:
    """FastVideo's layer name -> what the adapter would add to its weight matrix, worked out in fp64."""
    stored, changes = lora_weights(seed), {}
    for key in [key for key in stored if key.endswith(".lora_down.weight")]:
        name = key.removesuffix(".lora_down.weight")
        ups = [stored[other] for other in stored if other.startswith(f"{name}.lora_up")]
        module = name.removeprefix(PREFIX).replace(HYPHEN, ".")
        change = torch.block_diag(*ups).double() @ stored[key].double() * 0.5
        block, inner = (module[: len("blocks.0.")], module[len("blocks.0.") :]) if "blocks" in module else ("", module)
        targets = FUSED.get(inner, [RENAMED.get(inner, inner)])
        changes |= {block + target: rows for target, rows in zip(targets, change.chunk(len(targets)), strict=True)}
    return changes


def fastvideo_layout() -> dict[str, torch.Tensor]:
    """The same adapter as FastVideo's converter writes it: lora_A, lora_B and lora_alpha of every split layer."""
    weights = {}
    for name, change in weight_changes().items():
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        rank = int((s > 1e-9 * s[0]).sum())
        weights[f"{name}.lora_A"] = (s[:rank, None] * vh[:rank]).float().contiguous()
        weights[f"{name}.lora_B"] = (2 * u[:, :rank]).float().contiguous()
        weights[f"{name}.lora_alpha"] = torch.tensor(0.5 * rank)
    return weights


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint, tmp_path_factory):
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("lora") / "longcat-random")
    write_lora(folder, "cfg_step_lora")
    (folder / "lora" / "converted").mkdir()
    save_file(fastvideo_layout(), folder / "lora" / "converted" / "model.safetensors")
    return LongCatPipeline.load(folder, device="cpu")


def few_steps(pipeline, lora):
    prompt, size = "a red circle bounces &amp; spins  🙂", {"height": 48, "width": 32, "num_frames": 9}
    return pipeline.info.request(prompt, seed=7, bsa=None, lora=lora, steps=4, **size)


@pytest.mark.parametrize("lora", [pytest.param("distill", id="longcat"), pytest.param("converted", id="fastvideo")])
def test_latents_of_the_original(pipeline, monkeypatch, lora):
    """generate_t2v of the original after load_lora and enable_loras, in both layouts of the file."""
    request = few_steps(pipeline, lora)
    if lora == "converted":
        request = replace(few_steps(pipeline, "distill"), lora=lora, bsa=None)
    assert (request.use_distill, request.guidance_scale) == (True, 1.0)
    assert_parity(final_latents(pipeline, request, monkeypatch), "distilled-lora")


def test_the_fast_forward_adds_it_as_well(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline, "forward", "fast")
    assert_parity(final_latents(pipeline, few_steps(pipeline, "distill"), monkeypatch), "distilled-lora")


@pytest.mark.parametrize("name", ["distill", "converted"])
def test_the_products_are_those_of_the_file(pipeline, name):
    transformer = pipeline._model.transformer
    layers = load_lora(pipeline.info.loras[name], transformer)
    expected = weight_changes()
    assert set(layers) == set(expected)
    for layer, lora in layers.items():
        torch.testing.assert_close(lora.up @ lora.down * lora.scale, expected[layer].float(), rtol=1e-4, atol=1e-5)


def test_taking_it_off_leaves_the_model_that_was_loaded(pipeline):
    """Bit for bit, in the weights and in the video."""
    before = {name: weight.clone() for name, weight in pipeline._model.transformer.state_dict().items()}
    request = few_steps(pipeline, None)
    _, plain = pipeline.generate_frames(request)
    _, adapted = pipeline.generate_frames(few_steps(pipeline, "distill"))
    assert not np.array_equal(plain, adapted)
    _, again = pipeline.generate_frames(request)
    np.testing.assert_array_equal(again, plain)
    after = pipeline._model.transformer.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def change(tensors, tmp_path):
    file = tmp_path / "changed.safetensors"
    save_file(tensors, file)
    return file


def renamed(old, new):
    return {key.replace(old, new): tensor for key, tensor in lora_weights(5).items()}


def without(part):
    return {key: tensor for key, tensor in lora_weights(5).items() if part not in key}


def adapter(module="blocks.0.ffn.w1", names=("lora_down.weight", "lora_up.weight"), **more):
    """A small adapter for one layer of 256 x 64."""
    tensors = {f"{module}.{names[0]}": torch.ones(4, 64), f"{module}.{names[1]}": torch.full((256, 4), 0.5)}
    return tensors | {f"{module}.{part}": tensor for part, tensor in more.items()}


@pytest.mark.parametrize(
    ("tensors", "scale"),
    [
        pytest.param(adapter(), 1.0, id="longcat"),
        pytest.param(adapter(alpha_scale=torch.tensor([0.25])), 0.25, id="longcat-scale"),
        pytest.param(adapter(names=("lora_A", "lora_B"), lora_alpha=torch.tensor(2)), 0.5, id="fastvideo"),
        pytest.param(adapter("base_model.model.blocks.0.ffn.w1", ("lora_A.weight", "lora_B.weight")), 1.0, id="peft"),
        pytest.param(
            adapter("base_model.model.blocks.0.ffn.w1", ("lora_A.default.weight", "lora_B.default.weight")),
            1.0,
            id="peft-named",
        ),
        pytest.param(adapter("transformer.blocks.0.ffn.w1", ("lora_A.weight", "lora_B.weight")), 1.0, id="diffusers"),
        pytest.param(adapter("transformer.blocks.0.ffn.w1", ("lora.down.weight", "lora.up.weight")), 1.0, id="older"),
        pytest.param(adapter("diffusion_model.blocks.0.ffn.w1", ("lora_A.weight", "lora_B.weight")), 1.0, id="comfyui"),
        pytest.param(adapter("lora_unet_blocks_0_ffn_w1", alpha=torch.tensor(8.0)), 2.0, id="kohya"),
        pytest.param(adapter("lora_transformer_blocks_0_ffn_w1", alpha=torch.tensor(8.0).half()), 2.0, id="kohya-half"),
    ],
)
def test_the_usual_names(pipeline, tmp_path, tensors, scale):
    layers = load_lora(change(tensors, tmp_path), pipeline._model.transformer)
    assert list(layers) == ["blocks.0.ffn.w1"]
    assert layers["blocks.0.ffn.w1"].scale == scale
    assert layers["blocks.0.ffn.w1"].up.shape == (256, 4)


def test_names_of_kohyas_for_fused_projections(pipeline, tmp_path):
    """One product for all parts, and layers whose own names have underscores."""
    tensors = {
        "lora_unet_blocks_1_attn_qkv.lora_down.weight": torch.ones(4, 64),
        "lora_unet_blocks_1_attn_qkv.lora_up.weight": torch.arange(192.0).repeat(4, 1).T.contiguous(),
        "lora_unet_final_layer_adaln_linear.lora_down.weight": torch.ones(4, 32),
        "lora_unet_final_layer_adaln_linear.lora_up.weight": torch.ones(128, 4),
    }
    layers = load_lora(change(tensors, tmp_path), pipeline._model.transformer)
    assert set(layers) == {*(f"blocks.1.self_attn.to_{part}" for part in "qkv"), "final_layer.adaln_linear"}
    assert layers["blocks.1.self_attn.to_k"].up[0, 0] == 64


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        pytest.param({"r": 4, "lora_alpha": 8}, 2.0, id="alpha"),
        pytest.param({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0, id="rank-stabilised"),
        pytest.param({}, 1.0, id="nothing"),
    ],
)
def test_scales_beside_the_tensors(pipeline, tmp_path, settings, scale):
    """Of peft in a file of its own, and of diffusers in the file's metadata."""
    file = tmp_path / "adapter_model.safetensors"
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file(adapter(), file)
    assert load_lora(file, pipeline._model.transformer)["blocks.0.ffn.w1"].scale == scale
    file = tmp_path / "pytorch_lora_weights.safetensors"
    metadata = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
    save_file(adapter(), file, metadata={"lora_adapter_metadata": metadata})
    assert load_lora(file, pipeline._model.transformer)["blocks.0.ffn.w1"].scale == scale


DOWN, UP = "blocks.0.ffn.w1.lora_down.weight", "blocks.0.ffn.w1.lora_up.weight"
EIGHT_BITS = torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        pytest.param(renamed("blocks___lorahyphen___1", f"blocks{HYPHEN}7"), "adapts the layer blocks.7", id="deeper"),
        pytest.param(lora_weights(5, rank=4) | {f"{PREFIX}final_layer{HYPHEN}linear.lora_up.weight": torch.ones(8, 4)},
                     r"has products of \[8, 4\] and \[4, 64\] for final_layer.proj, which is 64 x 64", id="other-size"),
        pytest.param(without("ffn___lorahyphen___w2.lora_up"), "is incomplete at blocks.0.ffn.w2", id="no-up"),
        pytest.param({"blocks.0.attn.weight": torch.ones(2, 2)}, "which no LongCat LoRA has", id="not-a-lora"),
        pytest.param({}, "is empty", id="empty"),
        pytest.param(adapter() | {DOWN: torch.ones(0, 64), UP: torch.ones(256, 0)},
                     r"has products of \[256, 0\] and \[0, 64\] for blocks.0.ffn.w1, which is 256 x 64", id="rank-0"),
        pytest.param(adapter() | {DOWN: torch.tensor(1.0)}, r"products of \[256, 4\] and \[\]", id="scalar-down"),
        pytest.param(adapter() | {UP: torch.tensor(1.0)}, r"products of \[\] and \[4, 64\]", id="scalar-up"),
        pytest.param(adapter() | {DOWN: torch.ones(4, 64, 1, 1)}, r"and \[4, 64, 1, 1\]", id="convolution"),
        pytest.param(adapter() | {DOWN: torch.ones(4, 32)}, r"and \[4, 32\] for", id="other-inputs"),
        pytest.param(adapter() | {UP: torch.ones(256, 3)}, r"products of \[256, 3\]", id="two-ranks"),
        pytest.param(adapter(alpha=torch.ones(4)), r"alpha of \[4\], and a scale is one number", id="vector-alpha"),
        pytest.param(adapter(alpha_scale=torch.ones(2)), r"alpha_scale of \[2\]", id="vector-scale"),
        pytest.param(adapter() | {UP: torch.ones(256, 4).to(EIGHT_BITS)}, "as F8_E4M3, which is not", id="eight-bits"),
        pytest.param(adapter(dora_scale=torch.ones(256)), "has the key 'blocks.0.ffn.w1.dora_scale'", id="dora"),
        pytest.param(adapter() | adapter("transformer.blocks.0.ffn.w1"), "for one thing", id="twice"),
        pytest.param(adapter("text_encoder.encoder.block.0"), "adapts the layer text_encoder.encoder", id="text"),
        pytest.param(adapter("lora_te1_text_model_encoder"), "adapts the layer lora_te1", id="text-of-kohyas"),
        pytest.param(adapter("lora_unet_down_blocks_0"), "adapts the layer down_blocks_0", id="unet"),
    ],
)  # fmt: skip
def test_files_for_other_models_are_refused(pipeline, tmp_path, tensors, sentence):
    """By a look at the header, before any weight is loaded, and again when it is used."""
    file = change(tensors, tmp_path)
    info = replace(pipeline.info, loras={"mine": file})
    for refused in (lambda: info.request("x", lora="mine"), lambda: load_lora(file, pipeline._model.transformer)):
        with pytest.raises(ValueError, match=sentence) as refusal:
            refused()
        assert "\n" not in str(refusal.value)


def test_a_layer_by_two_names_is_refused(pipeline, tmp_path):
    names = "lora_A", "lora_B"
    square = {f"blocks.0.{module}.{name}": torch.ones(4, 64) if name == names[0] else torch.ones(64, 4)
              for module in ("attn.proj", "self_attn.to_out") for name in names}  # fmt: skip
    with pytest.raises(ValueError, match="adapts the layer blocks.0.self_attn.to_out twice"):
        load_lora(change(square, tmp_path), pipeline._model.transformer)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param('{"lora_alpha": "two"}', "its lora_alpha is two, not a number", id="text"),
        pytest.param('{"lora_alpha": 1, "alpha_pattern": {"w1": 2}}', "scales of their own", id="pattern"),
        pytest.param("[" * 100_000, "nested too deeply", id="nested"),
        pytest.param("[]", "holds a list", id="list"),
    ],
)
def test_scales_that_are_not_understood(pipeline, tmp_path, settings, sentence):
    (tmp_path / "adapter_config.json").write_text(settings)
    save_file(adapter(), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=sentence):
        load_lora(tmp_path / "adapter_model.safetensors", pipeline._model.transformer)


def test_a_scale_that_is_no_number(pipeline, tmp_path):
    with pytest.raises(ValueError, match="has the scale nan for blocks.0.ffn.w1"):
        load_lora(change(adapter(alpha=torch.tensor(float("nan"))), tmp_path), pipeline._model.transformer)


def test_a_damaged_file_changes_nothing(pipeline, tmp_path, monkeypatch):
    whole = pipeline.info.loras["distill"].read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    switch = pipeline._model.lora
    switch.use("distill")
    monkeypatch.setattr(switch, "_files", {"cut": cut})
    with pytest.raises(ValueError, match="cannot be read: .*copy or download it again"):
        switch.use("cut")
    assert switch.active == "distill"
    assert hasattr(pipeline._model.transformer.blocks[0].ffn.w1, "lora")


class TestNames:
    def found(self, folder: Path, *files: str) -> dict[str, str]:
        for file in files:
            (folder / "lora" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "lora" / file).touch()
        return {name: str(path.relative_to(folder / "lora")) for name, path in inspect_checkpoint(folder).loras.items()}

    @pytest.fixture
    def folder(self, tiny_checkpoint, tmp_path):
        return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")

    def test_none(self, folder):
        assert self.found(folder) == {}

    def test_of_longcat(self, folder):
        files = "cfg_step_lora.safetensors", "refinement_lora.safetensors", "mine.safetensors"
        assert self.found(folder, *files) == dict(zip(("distill", "refine", "mine"), files, strict=True))

    def test_of_fastvideo(self, folder):
        files = "distilled/cfg_step_lora.safetensors", "refinement/pytorch_lora_weights.safetensors"
        assert self.found(folder, *files) == {"distill": files[0], "refine": files[1]}

    def test_one_that_is_not_there(self, tiny_pipeline):
        sentence = "has no LoRA adapter 'distill' .there is none.; put cfg_step_lora.safetensors into"
        with pytest.raises(ValueError, match=sentence):
            tiny_pipeline.info.request("x", lora="distill")

    def test_what_is_there_is_named(self, pipeline):
        with pytest.raises(ValueError, match="there are converted, distill"):
            pipeline.info.request("x", lora="mine")
