"""Adapters with a strength, and two at once: against weights that carry the products, and against the model alone."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pipeline_lora import weight_changes
from tiny_checkpoint import write_lora

from pipeline import LongCatPipeline, VideoRequest, inspect_checkpoint
from pipeline.request.values import Adapter, read_adapters
from pipeline.transformer.forward import longcat_forward
from pipeline.transformer.self_attention import DenseAttention
from pipeline.weights import lora as adapters

SEEDS = {"distill": 5, "style": 6}


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint, tmp_path_factory):
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("strengths") / "longcat-random")
    write_lora(folder, "cfg_step_lora", SEEDS["distill"])
    write_lora(folder, "style", SEEDS["style"])
    return LongCatPipeline.load(folder, device="cpu")


@pytest.fixture
def switch(pipeline):
    switch = pipeline._model.lora
    yield switch
    switch.use(None)


def forward(transformer):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 3, 4, 6, generator=generator)
    text, mask = torch.randn(1, 5, 32, generator=generator), torch.ones(1, 5)
    return longcat_forward(transformer, latents, torch.tensor([600.0]), text, mask, [DenseAttention()] * 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(None, (), id="none"),
        pytest.param("distill", (Adapter("distill"),), id="one"),
        pytest.param("style:0.7", (Adapter("style", 0.7),), id="strength"),
        pytest.param("style:-.5", (Adapter("style", -0.5),), id="negative"),
        pytest.param(" a:2 + b ", (Adapter("a", 2.0), Adapter("b")), id="two-with-spaces"),
        pytest.param("a:b:3.", (Adapter("a:b", 3.0),), id="colon-in-a-name"),
        pytest.param("a:b", (Adapter("a:b"),), id="no-number"),
        pytest.param("style:nan", (Adapter("style:nan"),), id="nan-is-a-name"),
        pytest.param("+a", (Adapter("+a"),), id="nothing-before"),
        pytest.param("a++b", (Adapter("a++b"),), id="nothing-between"),
        pytest.param("x+y:1", (Adapter("x+y:1"),), id="known-as-a-whole"),
    ],
)
def test_reading(text, expected):
    assert read_adapters(text, {"x+y:1"}) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("a+b+a:2", "has the adapter 'a' twice; name it once", id="twice"),
        pytest.param("a:10.5", "strength 10.5 of the adapter 'a' is outside -10 to 10; 1 is", id="strong"),
        pytest.param("a:-" + "9" * 400, "is outside -10 to 10", id="endless"),
    ],
)
def test_refused(text, says):
    with pytest.raises(ValueError, match=says):
        read_adapters(text)


def test_an_adapter_that_is_not_there_is_named(pipeline):
    with pytest.raises(ValueError, match="has no LoRA adapter 'mine' .there are distill, style.; put mine.safetensors"):
        pipeline.info.request("x", lora="distill+mine:0.5")


def test_a_request_is_checked(pipeline):
    request = pipeline.info.request("x", lora="style")
    with pytest.raises(ValueError, match="has the adapter 'style' twice"):
        replace(request, lora="style+style:0.5")


def test_the_settings_of_the_few_step_adapter_come_with_it(pipeline):
    request = pipeline.info.request("x", lora="style:0.5+distill")
    assert (request.steps, request.use_distill, request.guidance_scale) == (16, True, 1.0)
    assert VideoRequest.from_dict(request.to_dict()) == request


def test_refining_needs_its_own(pipeline):
    with pytest.raises(ValueError, match="the adapter 'refine' is for refining a clip"):
        pipeline.info.request("x", lora="style+refine:0.5")


@pytest.mark.parametrize(
    "strengths",
    [
        pytest.param({"distill": 1.0}, id="one"),
        pytest.param({"distill": 0.3}, id="weaker"),
        pytest.param({"style": -1.5}, id="backwards"),
        pytest.param({"distill": 0.5, "style": 1.25}, id="two"),
        pytest.param({"style": 1.0, "distill": 0.0}, id="one-of-two-off"),
    ],
)
def test_against_merged_weights(pipeline, switch, strengths):
    """Equal up to fp32 rounding of a few hundred products; the adapters change the output by 0.1 and more."""
    transformer = pipeline._model.transformer
    switch.use("+".join(str(Adapter(*one)) for one in strengths.items()))
    adapted = forward(transformer)
    switch.use(None)
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    try:
        for name, strength in strengths.items():
            for layer, change in weight_changes(SEEDS[name]).items():
                transformer.get_submodule(layer).weight.add_((strength * change).float())
        merged = forward(transformer)
    finally:
        transformer.load_state_dict(before)
    assert (forward(transformer) - merged).abs().max() > 0.1
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)


def test_off_is_the_model_alone_to_the_last_bit(pipeline, switch):
    transformer = pipeline._model.transformer
    base, weights = forward(transformer), {name: w.clone() for name, w in transformer.state_dict().items()}
    for lora in ("distill+style:0.5", "style:2", "distill", "distill:0", None):
        switch.use(lora)
        off = lora in ("distill:0", None)
        assert torch.equal(forward(transformer), base) == off
        assert any(hasattr(module, "lora") for module in transformer.modules()) != off
    assert all(torch.equal(weight, weights[name]) for name, weight in transformer.state_dict().items())


def test_another_strength_reads_no_file_again(switch, monkeypatch):
    switch.use("distill+style")
    monkeypatch.setattr(adapters, "load_lora", lambda *_: pytest.fail("a file is read"))
    switch.use("style:0.5+distill:0.25")
    switch.use("style")


def test_one_that_cannot_be_read_leaves_both_on(pipeline, switch, tmp_path, monkeypatch):
    monkeypatch.setattr(switch, "_files", {**pipeline.info.loras, "cut": tmp_path / "cut.safetensors"})
    (tmp_path / "cut.safetensors").write_bytes(pipeline.info.loras["style"].read_bytes()[:2000])
    switch.use("distill+style:0.5")
    before = forward(pipeline._model.transformer)
    with pytest.raises(ValueError, match="cannot be read"):
        switch.use("style+cut")
    assert switch.active == "distill+style:0.5"
    assert torch.equal(forward(pipeline._model.transformer), before)


def test_half_the_strength_is_half_the_scale_in_the_file(pipeline, tmp_path):
    """Also in the fast forward and in a whole video, bit for bit: 0.5 is exact."""
    halved = {
        name: tensor / 2 if name.endswith("alpha_scale") else tensor
        for name, tensor in load_file(pipeline.info.loras["style"]).items()
    }
    save_file(halved, tmp_path / "halved.safetensors")
    switch = pipeline._model.lora
    files = {**pipeline.info.loras, "halved": tmp_path / "halved.safetensors"}
    info = replace(pipeline.info, loras=files)
    size = {"height": 48, "width": 32, "num_frames": 9, "steps": 2, "seed": 4, "bsa": None}
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(switch, "_files", files)
        patch.setattr(pipeline, "info", info)
        patch.setattr(pipeline, "forward", "fast")
        for lora in ("style:0.5", "halved"):
            made.append(pipeline.generate_frames(info.request("x", lora=lora, **size))[1])
    np.testing.assert_array_equal(*made)


def test_any_file_of_the_folder_has_a_name(pipeline):
    assert set(inspect_checkpoint(pipeline.info.path).loras) == set(SEEDS)
