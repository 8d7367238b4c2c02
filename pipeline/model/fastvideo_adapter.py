"""The only module that uses FastVideo (0.2.1): its loaders, its stages, and the set-up that they need in this process.

FastVideo's entry point starts a worker process that reports no progress and kills its parent with SIGQUIT on any error.
So this module loads FastVideo's LongCat components itself and calls the stages one by one. The denoising loop and the
transformer's forward pass are this project's (`denoising.py`, `forward.py`), because FastVideo's hard-code bfloat16 and
cannot mask the padding of prompts, which a checkpoint may ask for.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint.layout import FASTVIDEO, Layout, layout_of, split_weight
from pipeline.checkpoint.safetensors_files import has_encoder, read_json, stored_precision, stored_weights
from pipeline.checkpoint.tokenizer import load_tokenizer
from pipeline.checkpoint.view import linked
from pipeline.machine.quiet import quiet
from pipeline.model.denoising import check_finite
from pipeline.model.schedule import longcat_sigmas
from pipeline.model.vae_layout import suit_cpu
from pipeline.parallel.ranks import leave
from pipeline.parallel.strips import Strips
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.request.video import LATENT_PIXELS, MAX_PROMPT_TOKENS, VideoRequest
from pipeline.weights import Net
from pipeline.weights.lora import LoraSwitch
from pipeline.weights.offload import LayerByLayer, Offload, place

NO_LOOPBACK = (
    "FastVideo's layers need torch.distributed, which finds no network interface of its own here; turn the loopback "
    "on with `ip link set lo up`"
)

_device_in_use: str | None = None


@dataclass
class TextStates:
    """Encoded prompts: states [rows, L, E], mask [rows, L]. With guidance, the negative prompt is the first row."""

    states: Tensor
    mask: Tensor


class FastVideoLongCat:
    """LongCat's components, as FastVideo loads them.

    dtype: that the transformer computes in.
    zero_text_padding: whether the transformer was trained to see padded text as zero vectors.
    lora: attaches adapters to the transformer.
    encodes: whether the VAE has an encoder.
    offload: brings the transformer's blocks to the device, or None.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        loras: Mapping[str, Path] | None = None,
        weights: LoadOptions = AS_STORED,
        reads_text: bool = True,
    ) -> None:
        """Load all weights from `path` to `device`, kept as `weights` says: bfloat16 on CUDA. On the CPU the text
        encoder is fp32, and so is the rest unless the precision is "bf16".

        loras: adapter name -> file. An adapter is loaded when it is used.
        reads_text: whether to load the text encoder; only one rank of several needs it.

        Raises:
            ValueError: the weights do not fit FastVideo's LongCat classes or cannot be quantised, or this process
                already uses another device.
            RuntimeError: the installed FastVideo is not the version that this adapter is written for.
        """
        self.offload: Offload | None = None
        self._visiting: LayerByLayer | None = None
        with _quiet():
            _prepare_process(device)
            self._load(path, device, weights, reads_text)
        if weights:
            self._place(weights)
        self.lora = LoraSwitch(self.transformer, loras or {})

    def _load(self, path: Path, device: torch.device, weights: LoadOptions, reads_text: bool) -> None:
        from fastvideo.configs.pipelines.longcat import LongCatT2V480PConfig
        from fastvideo.fastvideo_args import FastVideoArgs
        from fastvideo.pipelines.basic.longcat.longcat_pipeline import LongCatPipeline

        class HostLongCatPipeline(LongCatPipeline):
            """Loads to host memory. FastVideo's offload options cannot: without FSDP, only the device counts."""

            def load_modules(self, *args: Any, **kwargs: Any) -> Any:
                with _loading_to_host():
                    return super().load_modules(*args, **kwargs)

        layout = layout_of(path)
        config = LongCatT2V480PConfig()
        precision = "bf16" if device.type == "cuda" or weights.precision == "bf16" else "fp32"
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        config.dit_precision = config.vae_precision = precision
        if device.type == "cpu":
            config.vae_decode_precision = "fp32"  # that of the latents: any other would turn on CUDA's autocast
        if weights and device.type == "cuda":
            # In the stored dtype, weights are pages of the files; converted, all of them would be in memory at once.
            config.dit_precision = stored_precision(path / layout.transformer, path)
        # FastVideo's text encoder fails on a CPU in bfloat16: its norms are fp32 there.
        config.text_encoder_precisions = ("bf16" if device.type == "cuda" else "fp32",)
        self.encodes = has_encoder(stored_weights(path / "vae", path))
        config.vae_config.load_encoder = self.encodes
        try:
            # FastVideo's own tokenizer loader runs Python from the checkpoint's folder.
            ready = {"tokenizer": load_tokenizer(path / "tokenizer")}
            if not reads_text:
                ready["text_encoder"] = torch.nn.Identity()
            kind = HostLongCatPipeline if weights else LongCatPipeline
            with linked(path) as view, _reading(layout):
                self._args = FastVideoArgs.from_kwargs(
                    model_path=str(view),
                    pipeline_config=config,
                    num_gpus=1,
                    # FastVideo offloads by default. FSDP and the offload hooks require CUDA, and the hooks are attached
                    # to block.forward, which this project's forward pass does not call.
                    dit_cpu_offload=False,
                    dit_layerwise_offload=False,
                    text_encoder_cpu_offload=False,
                    image_encoder_cpu_offload=False,
                    vae_cpu_offload=False,
                    use_fsdp_inference=False,
                    pin_cpu_memory=False,
                )
                self._pipeline = kind(str(view), self._args, loaded_modules=ready)
                self._pipeline.post_init()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"FastVideo cannot load the checkpoint {path}: {reason}; check that its files belong together"
            ) from error

        modules = self._pipeline.modules
        self.device = device
        self.transformer: Net = modules["transformer"].eval().requires_grad_(False)
        self.scheduler = modules["scheduler"]
        self._vae: Net = modules["vae"].requires_grad_(False)
        if device.type == "cpu":
            suit_cpu(self._vae)
        self._tokenizer = modules["tokenizer"]
        self.zero_text_padding = layout.pads_with_zeros(read_json(path / layout.configs["transformer"], path))

    def _place(self, weights: LoadOptions) -> None:
        """Move the components from host memory to the place where they run."""
        encoder: Net = self._pipeline.modules["text_encoder"]
        if weights.offload and hasattr(encoder, "encoder"):
            self._visiting = LayerByLayer(encoder, encoder.encoder.block, self.device)
        else:
            encoder.to(self.device)
        self._vae.to(self.device)
        self.offload = place(self.transformer, self.device, self.dtype, weights)
        torch.cuda.empty_cache()  # frees what rounding left behind

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a prompt for the text encoder, without truncation."""
        clean = self._args.pipeline_config.preprocess_text_funcs[0](text)
        return len(self._tokenizer(clean, add_special_tokens=True, truncation=False)["input_ids"])

    def start(self, request: VideoRequest) -> Any:
        """Make FastVideo's state of one generation. Pass it through the methods below in their order."""
        from fastvideo.pipelines.pipeline_batch_info import ForwardBatch

        batch = ForwardBatch(
            data_type="video",
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed,
            height=request.height,
            width=request.width,
            num_frames=4 * request.latent_shape[0] - 3,  # includes the padding of a refinement
            fps=request.fps,
            num_inference_steps=request.steps,
            guidance_scale=float(request.guidance_scale),
            max_sequence_length=MAX_PROMPT_TOKENS,
            # By default FastVideo would use its scheduler's spacing, which is not LongCat's.
            sigmas=longcat_sigmas(request.steps, use_distill=request.use_distill),
            # By default FastVideo would draw the noise in the text encoder's dtype; the original draws fp32.
            latents=_noise(request, self.transformer.in_channels) if request.start.source is None else None,
            prompt_attention_mask=[],
            negative_attention_mask=[],
        )
        return self._pipeline.input_validation_stage(batch, self._args)

    def encode_text(self, batch: Any) -> TextStates:
        """Raises ValueError if the encoder makes NaN, before FastVideo's stage fails at it with a TypeError."""

        def check(_: Any, __: Any, out: Any) -> None:
            check_finite(out.last_hidden_state, "the text encoder", self.lora.active)

        with contextlib.ExitStack() as stack:
            if self._visiting is not None:
                stack.enter_context(self._visiting.on_device())
            stack.callback(self._pipeline.modules["text_encoder"].register_forward_hook(check).remove)
            batch = self._pipeline.prompt_encoding_stage(batch, self._args)
        states, masks = list(batch.prompt_embeds), list(batch.prompt_attention_mask)
        if batch.do_classifier_free_guidance:
            states = batch.negative_prompt_embeds + states
            masks = batch.negative_attention_mask + masks
        return TextStates(torch.cat(states), torch.cat(masks))

    def set_timesteps(self, batch: Any) -> None:
        self._pipeline.timestep_preparation_stage(batch, self._args)

    def initial_latents(self, batch: Any) -> Tensor:
        """Set the scheduler's timesteps and return the noise, fp32 [1, C, T, H, W]."""
        self.set_timesteps(batch)
        return self._pipeline.latent_preparation_stage(batch, self._args).latents

    def encode(
        self, pixels: Tensor, generator: torch.Generator, on_frame: Callable[[], None], strips: Strips | None = None
    ) -> Tensor:
        """Encode pixels, fp32 [1, 3, 4 n - 3, height, width] in -1 to 1, to normalised latents, fp32 [1, C, n, h, w].

        generator: draws from the VAE's posterior, on the CPU. on_frame: called after each latent frame.
        strips: how ranks divide the rows.

        Raises:
            ValueError: the checkpoint's VAE has no encoder.
        """
        if not self.encodes:
            raise ValueError(
                "the checkpoint's VAE has no encoder, which an image or a clip needs; use one with the whole VAE"
            )
        weight = self._vae.quant_conv.weight
        hook = self._vae.encoder.register_forward_hook(lambda *_: on_frame())
        try:
            if strips is None:
                posterior = self._vae.encode(pixels.to(weight))
            else:
                with strips.divided(self._vae.encoder):
                    posterior = self._vae.encode(strips.cut(pixels, LATENT_PIXELS).to(weight))
        finally:
            hook.remove()
            self._vae.clear_cache()
        mean, std = posterior.mean.float(), posterior.std.float()
        if strips is not None:
            mean, std = strips.gather(mean), strips.gather(std)
        latents = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
        centre, spread = (
            torch.tensor(getattr(self._vae.config, name), device=mean.device).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return (latents - centre) / spread

    def decode(
        self,
        batch: Any,
        latents: Tensor,
        on_frame: Callable[[], None],
        strips: Strips | None = None,
        together: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> Tensor:
        """Decode latents [1, C, T, H, W] to pixels, fp32 [1, 3, frames, height, width] in 0 to 1.

        on_frame: called after each latent frame. strips: how ranks divide the rows; the result is this rank's strip.
        together: see `Ranks.together`. Raises ValueError if the decoder makes NaN.
        """

        def decoded(_: Any, __: Any, out: Tensor) -> None:
            with together():
                check_finite(out, "the VAE", self.lora.active)
            on_frame()

        batch.latents = latents
        # The VAE decodes the latent frames in order and keeps the features that the next one needs.
        hook = self._vae.decoder.register_forward_hook(decoded)
        try:
            if strips is None:
                return self._pipeline.decoding_stage(batch, self._args).output
            with strips.divided(self._vae.decoder):
                return self._pipeline.decoding_stage.decode(strips.cut(latents), self._args)
        finally:
            hook.remove()
            self._vae.clear_cache()

    def decode_frame(self, latents: Tensor) -> Tensor:
        """Decode one latent frame [1, C, 1, h, w] to pixels [1, 3, 1, 8h, 8w] in 0 to 1, outside any generation."""
        return self._pipeline.decoding_stage.decode(latents, self._args)


def _quiet() -> contextlib.AbstractContextManager[None]:
    """Hide FastVideo's output while loading (notes on kernels, a bar per file), unless its log was asked for."""
    return contextlib.nullcontext() if "FASTVIDEO_LOGGING_LEVEL" in os.environ else quiet()


def _noise(request: VideoRequest, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(request.seed)
    return torch.randn(1, channels, *request.latent_shape, generator=generator)


def _prepare_process(device: torch.device) -> None:
    """Set up FastVideo's state of the process: logging, replacements for the CPU, the process group."""
    global _device_in_use
    if _device_in_use not in (None, str(device)):
        raise ValueError(f"this process already runs FastVideo on {_device_in_use}; start another process for {device}")
    # When imported, FastVideo sets the root logger to DEBUG on stdout, unless told not to.
    os.environ.setdefault("FASTVIDEO_CONFIGURE_LOGGING", "0")
    # Even at ERROR it reports a missing NPU. Anything important is raised, not logged.
    logging.getLogger("fastvideo").setLevel(os.environ.get("FASTVIDEO_LOGGING_LEVEL", "CRITICAL"))
    # FastVideo's device is "cuda:" + LOCAL_RANK. It knows of no other ranks: they share work that it does not do.
    os.environ.update(LOCAL_RANK=str(device.index or 0), RANK="0", WORLD_SIZE="1")
    try:
        import fastvideo  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"FastVideo cannot be imported ({error}); run `make install`") from error
    if device.type == "cpu":
        _support_cpu()
    if not torch.distributed.is_initialized():
        # FastVideo's layers ask for their rank. An in-memory store needs neither a port nor environment variables.
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
        except RuntimeError as error:
            if "find interface" not in str(error):
                raise
            # gloo binds to the host's address even if there is no other rank
            raise RuntimeError(NO_LOOPBACK) from error
        atexit.register(leave)  # that of several ranks, if it has taken this one's place
    _device_in_use = str(device)


def _support_cpu() -> None:
    """Replace what keeps FastVideo 0.2.1 from running on the CPU, or on the CPU of a machine with a GPU."""
    from fastvideo import platforms
    from fastvideo.distributed import parallel_state
    from fastvideo.pipelines.stages import base
    from fastvideo.platforms.cpu import CpuPlatform

    # FastVideo takes every device besides CUDA and NPU for "mps". Its modules import this function by name, so only a
    # replacement of the function's code reaches all of them.
    def cpu_device() -> torch.device:
        return torch.device("cpu")

    _expect(parallel_state, "get_local_torch_device").__code__ = cpu_device.__code__

    # The CPU platform names no attention backend, but the constructors of LongCat's layers require one. The text
    # encoder and the transformer must be built, although this project never calls that backend.
    _expect(CpuPlatform, "get_attn_backend_cls")
    CpuPlatform.get_attn_backend_cls = classmethod(lambda *_: "fastvideo.attention.backends.sdpa.SDPABackend")

    # Its platform is CUDA's wherever NVML lists a GPU, whether or not PyTorch can use it and is meant to. Modules that
    # are imported already hold the platform by its name.
    _expect(platforms, "_current_platform")
    platforms._current_platform = CpuPlatform()
    for name, module in list(sys.modules.items()):
        if name.startswith("fastvideo.") and "current_platform" in vars(module):
            vars(module)["current_platform"] = platforms._current_platform

    # The log of its stages (FASTVIDEO_STAGE_LOGGING) waits for the GPU before it reads the clock.
    cuda = SimpleNamespace(is_available=lambda: False, synchronize=lambda: None)
    base.torch = SimpleNamespace(device=torch.device, cuda=cuda)


@contextlib.contextmanager
def _loading_to_host() -> Iterator[None]:
    """A block in which FastVideo's device is the CPU."""
    from fastvideo.distributed import parallel_state

    function = _expect(parallel_state, "get_local_torch_device")
    before, function.__code__ = function.__code__, (lambda: torch.device("cpu")).__code__
    try:
        yield
    finally:
        function.__code__ = before


@contextlib.contextmanager
def _reading(layout: Layout) -> Iterator[None]:
    """A block in which FastVideo reads a transformer's weights under its own names, whatever they are in the files.

    Fused projections are handed on in parts that share their memory, so there is no second copy of them.
    """
    from fastvideo.models.loader import fsdp_load

    read = _expect(fsdp_load, "safetensors_weights_iterator")

    def split(*args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        for name, weight in read(*args, **kwargs):
            yield from split_weight(name, weight)

    fsdp_load.safetensors_weights_iterator = read if layout is FASTVIDEO else split
    try:
        yield
    finally:
        fsdp_load.safetensors_weights_iterator = read


def _expect(owner: Any, name: str) -> Any:
    if not hasattr(owner, name):
        raise RuntimeError(
            f"{getattr(owner, '__name__', owner)} has no {name}; the adapter fits FastVideo 0.2.1, "
            "install the versions of requirements.txt"
        )
    return getattr(owner, name)
