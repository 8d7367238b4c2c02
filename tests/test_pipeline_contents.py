"""What a component's weight files hold: every name, shape and type is looked at before anything is loaded."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import MODEL_INDEX, write_tiny_checkpoint

from pipeline import EMBEDDED_CHECKPOINT, LongCatPipeline, inspect_checkpoint
from pipeline.checkpoint.expected import expected_weights, linear_layers
from pipeline.checkpoint.shape import ModelShape

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


def change(file, **changes):
    """Other weights in a file, by name; None takes one away."""
    weights = load_file(file) | changes
    save_file({name: weight for name, weight in weights.items() if weight is not None}, file)


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def shapes_of(module):
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


class TestNames:
    """Against the models themselves, built without memory for their weights where the class allows it."""

    @pytest.fixture(autouse=True)
    def fastvideo(self, tiny_pipeline):
        """Ready for its classes to be made."""

    @pytest.mark.parametrize(
        "config",
        [{}, {"hidden_size": 96, "num_attention_heads": 4, "depth": 3, "mlp_ratio": 3, "patch_size": (2, 2, 2)}],
    )
    def test_of_the_transformer(self, config):
        from fastvideo.configs.models.dits.longcat import LongCatVideoConfig
        from fastvideo.models.dits.longcat import LongCatTransformer3DModel

        its = LongCatVideoConfig()
        its.update_model_arch(config)
        with torch.device("meta"):
            model = LongCatTransformer3DModel(its, {})
        assert expected_weights("transformer", config) == shapes_of(model)
        layers = {name: part for name, part in model.named_modules() if hasattr(part, "output_size")}
        assert linear_layers(config) == {name: tuple(part.weight.shape) for name, part in layers.items()}

    @pytest.mark.parametrize("projection", ["gated-gelu", "relu"])
    def test_of_the_text_encoder(self, projection):
        from transformers import UMT5Config, UMT5EncoderModel

        config = UMT5Config(d_model=48, d_kv=16, d_ff=80, num_layers=3, num_heads=2, feed_forward_proj=projection)
        with torch.device("meta"):
            shapes = shapes_of(UMT5EncoderModel(config))
        del shapes["encoder.embed_tokens.weight"]  # shared.weight by another name
        assert expected_weights("text_encoder", config.to_dict()) == shapes

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"base_dim": 8, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, False]},
            {"base_dim": 8, "decoder_base_dim": 16, "attn_scales": [0.5], "in_channels": 12, "out_channels": 12},
        ],
    )
    def test_of_the_vae(self, config):
        from fastvideo.configs.models.vaes import WanVAEConfig
        from fastvideo.models.vaes.wanvae import AutoencoderKLWan

        for encoder in (True, False):
            its = WanVAEConfig(load_encoder=encoder)
            its.update_model_arch(config)
            assert expected_weights("vae", config, encoder) == shapes_of(AutoencoderKLWan(its))


def write_header(file, shapes, dtype):
    """A weight file of the right length with nothing in it, which takes no room on the disk."""
    size, end, header = {"BF16": 2, "F32": 4}[dtype], 0, {}
    for name, shape in shapes.items():
        begin, end = end, end + size * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


def test_the_real_layout_is_read_by_its_headers(tiny_checkpoint, tmp_path):
    """As FastVideo's converter leaves it: the transformer in one file, the text encoder in five with an index."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "real"))
    configs = {
        "transformer": {"_class_name": MODEL_INDEX["transformer"][1]},
        "vae": {"_class_name": MODEL_INDEX["vae"][1]},
        "text_encoder": {
            "architectures": ["UMT5EncoderModel"],
            **{"d_model": 4096, "d_ff": 10240, "num_heads": 64, "num_layers": 24, "vocab_size": 256384},
            **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        },
    }
    for part, config in configs.items():
        for file in (folder / part).iterdir():
            file.unlink()
        (folder / part / "config.json").write_text(json.dumps(config))
    write_header(folder / "transformer/model.safetensors", expected_weights("transformer", {}), "BF16")
    write_header(folder / "vae/diffusion_pytorch_model.safetensors", expected_weights("vae", {}), "F32")
    text = list(expected_weights("text_encoder", configs["text_encoder"]).items())
    index = {}
    for number in range(5):
        name = f"model-0000{number + 1}-of-00005.safetensors"
        write_header(folder / "text_encoder" / name, dict(text[number::5]), "F32")
        index |= dict.fromkeys((key for key, _ in text[number::5]), name)
    (folder / "text_encoder/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    info = inspect_checkpoint(folder)
    assert info.parameters == 13_581_071_424
    shape = ModelShape.read(info)
    assert (shape.text_encoder, shape.vae) == (5_680_910_336, 126_892_531)


def test_the_embedded_one_is_accepted():
    assert inspect_checkpoint(EMBEDDED_CHECKPOINT).parameters > 0


def scaled_fp8(path):
    weights = load_file(path / TEXT_ENCODER)
    scaled = {name: weight.to(torch.float8_e4m3fn) if weight.ndim == 2 else weight for name, weight in weights.items()}
    scales = {name.replace(".weight", ".scale_weight"): torch.ones(1) for name in weights if weights[name].ndim == 2}
    save_file(scaled | scales, path / TEXT_ENCODER)


def two_with_the_same(path):
    """An index over two files that both hold a weight."""
    weights = load_file(path / TRANSFORMER)
    save_file(weights, path / "transformer/a.safetensors")
    name = "blocks.0.ffn.w1.weight"
    save_file({name: weights[name]}, path / "transformer/b.safetensors")
    index = dict.fromkeys(weights, "a.safetensors") | {name: "b.safetensors"}
    (path / "transformer/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(scaled_fp8, "as F8_E4M3, and weights are read as F32, F16, BF16", id="scaled-fp8"),
        pytest.param(
            lambda path: change(path / TEXT_ENCODER, **{QUERY.replace("weight", "scale_weight"): torch.ones(1)}),
            "has encoder.block.0.layer.0.SelfAttention.q.scale_weight, which LongCat's text_encoder does not have",
            id="scales",
        ),
        *(
            pytest.param(
                lambda path, part=part: change(path / TEXT_ENCODER, **{QUERY.replace("q.w", f"{part}.w"): None}),
                f"lacks 1 of the 12 weights of its config.json, such as {QUERY.replace('q.w', f'{part}.w')}",
                id=f"no-{part}",
            )
            for part in "qkv"
        ),
        pytest.param(
            lambda path: change(path / TRANSFORMER, **{"blocks.0.ffn.w1.weight": None}),
            "lacks 1 of the 68 weights",
            id="transformer-lacks",
        ),
        pytest.param(
            lambda path: change(path / TRANSFORMER, **{"blocks.0.attn.qkv.weight": torch.ones(2, 2)}),
            "has blocks.0.attn.qkv.weight, which LongCat's transformer does not have",
            id="transformer-has-more",
        ),
        pytest.param(
            lambda path: change(path / TRANSFORMER, **{"blocks.0.ffn.w1.weight": torch.ones(256, 64).int()}),
            "has blocks.0.ffn.w1.weight as I32",
            id="integers",
        ),
        pytest.param(
            lambda path: change(path / VAE, **{"decoder.conv_in.bias": None}), "decoder.conv_in.bias", id="vae-lacks"
        ),
        pytest.param(
            lambda path: change(path / VAE, **{"encoder.conv_in.bias": None}), "encoder.conv_in.bias", id="no-encoder"
        ),
        pytest.param(
            lambda path: change(path / VAE, **{"loss.weight": torch.ones(1)}), "has loss.weight, which", id="vae-more"
        ),
        pytest.param(
            lambda path: change(path / VAE, **{"quant_conv.bias": torch.ones(4)}),
            "has quant_conv.bias as [4], and by its config.json it is [32]",
            id="shape",
        ),
        pytest.param(
            lambda path: edit_json(path / "transformer/config.json", hidden_size=128),
            "has patch_embed.proj.weight as [64, 16, 1, 2, 2], and by its config.json it is [128, 16, 1, 2, 2]",
            id="other-size",
        ),
        pytest.param(
            lambda path: edit_json(path / "transformer/config.json", depth=3), "lacks 27 of the 95", id="other-depth"
        ),
        pytest.param(
            lambda path: edit_json(path / "transformer/config.json", depth=10**9),
            "depth is 1000000000, not a whole number from 1 to 1000",
            id="endless",
        ),
        pytest.param(
            lambda path: edit_json(path / "vae/config.json", dim_mult="wide"),
            "vae/config.json is unusable: dim_mult is w",
            id="text-for-numbers",
        ),
        pytest.param(
            lambda path: edit_json(path / "transformer/config.json", patch_size=3),
            "transformer/config.json is unusable: its sizes cannot be read",
            id="number-for-list",
        ),
        pytest.param(
            lambda path: edit_json(path / "text_encoder/config.json", quantization_config={"quant_method": "fp8"}),
            "text_encoder/config.json has a quantization_config",
            id="quantised-by-configuration",
        ),
        pytest.param(
            lambda path: (
                (path / TRANSFORMER).rename(path / "transformer/a.safetensors"),
                shutil.copy(path / "transformer/a.safetensors", path / "transformer/b.safetensors"),
            ),
            "holds a.safetensors and b.safetensors, and nothing says which of them counts",
            id="two-sets",
        ),
        pytest.param(two_with_the_same, "has blocks.0.ffn.w1.weight in two of its files", id="twice"),
    ],
)
def test_contents_that_are_refused(folder, damage, says):
    damage(folder)
    with pytest.raises(ValueError, match="^[^\n]+$") as refusal:
        inspect_checkpoint(folder)
    assert says in str(refusal.value)
    assert str(folder) in str(refusal.value)


def test_the_embedding_by_its_second_name_is_known(folder):
    whole = ModelShape.read(inspect_checkpoint(folder))
    embedding = load_file(folder / TEXT_ENCODER)["shared.weight"]
    change(folder / TEXT_ENCODER, **{"encoder.embed_tokens.weight": embedding.clone()})
    assert ModelShape.read(inspect_checkpoint(folder)) == whole


def test_a_second_set_of_weights_is_neither_counted_nor_read(tiny_checkpoint, tmp_path):
    """And brackets in a path, with which FastVideo's search for files would find nothing."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "a [new] checkpoint"))
    other = write_tiny_checkpoint(tmp_path / "other", seed=9)
    for name in (TRANSFORMER, TEXT_ENCODER, VAE):
        for stem in ("a.safetensors", "zz.fp16.safetensors"):
            shutil.copy(other / name, folder / Path(name).parent / stem)
    info = inspect_checkpoint(folder)
    assert info.parameters == inspect_checkpoint(tiny_checkpoint).parameters
    assert ModelShape.read(info) == ModelShape.read(inspect_checkpoint(tiny_checkpoint))
    model = LongCatPipeline.load(folder, device="cpu")._model
    weights = load_file(folder / TRANSFORMER)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.transformer.state_dict().items())
    weights = load_file(folder / VAE)
    assert all(torch.equal(weight, weights[name]) for name, weight in model._vae.state_dict().items())
    embedding = model._pipeline.modules["text_encoder"].shared.weight
    assert torch.equal(embedding[:320], load_file(folder / TEXT_ENCODER)["shared.weight"])
