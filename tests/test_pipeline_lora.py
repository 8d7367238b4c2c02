"""LoRA adapters: LongCat's files and FastVideo's, against the original's results and against merged weights."""

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


def weight_changes() -> dict[str, torch.Tensor]:
    """FastVideo's layer name -> what the adapter would add to its weight matrix, worked out in fp64."""
    stored, changes = lora_weights(5), {}
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


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        pytest.param(renamed("blocks___lorahyphen___1", f"blocks{HYPHEN}7"), "adapts the layer blocks.7", id="deeper"),
        pytest.param(lora_weights(5, rank=4) | {f"{PREFIX}final_layer{HYPHEN}linear.lora_up.weight": torch.ones(8, 4)},
                     r"has products of \[8, 4\] and \[4, 64\] for final_layer.proj, which is 64 x 64", id="other-size"),
        pytest.param(without("ffn___lorahyphen___w2.lora_up"), "is incomplete at blocks.0.ffn.w2", id="no-up"),
        pytest.param({"blocks.0.attn.weight": torch.ones(2, 2)}, "which no LongCat LoRA has", id="not-a-lora"),
        pytest.param({}, "is empty", id="empty"),
    ],
)  # fmt: skip
def test_files_for_other_models_are_refused(pipeline, tmp_path, tensors, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_lora(change(tensors, tmp_path), pipeline._model.transformer)


def test_a_damaged_file_changes_nothing(pipeline, tmp_path, monkeypatch):
    whole = pipeline.info.loras["distill"].read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    switch = pipeline._model.lora
    switch.use("distill")
    monkeypatch.setattr(switch, "_files", {"cut": cut})
    with pytest.raises(ValueError, match="cannot be read .*copy or download it again"):
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
