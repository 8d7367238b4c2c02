"""The pipeline: load a LongCat checkpoint once, then make videos with dense or block sparse attention."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.checkpoint.info import EMBEDDED_CHECKPOINT, CheckpointInfo, inspect_checkpoint
from pipeline.checkpoint.shape import ModelShape
from pipeline.estimate.calibrate import measure
from pipeline.estimate.choose_attention import choose_attention
from pipeline.estimate.estimator import Estimator
from pipeline.machine.device import rank_devices
from pipeline.machine.memory import available_memory, held_memory
from pipeline.media.write import prepare_output
from pipeline.model.content import Contents, read_contents
from pipeline.model.preview import LatentColours
from pipeline.parallel.launch import Place
from pipeline.parallel.ranks import Ranks
from pipeline.request.choose_forward import checked_forward
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.request.result import OnStep, VideoResult
from pipeline.request.video import MAX_PROMPT_TOKENS, VideoRequest
from pipeline.runs.make_video import Job, VideoMaker
from pipeline.runs.plan import Plan, plan
from pipeline.runs.team import Team
from pipeline.weights.fp8 import check_device
from pipeline.weights.precision import choose_precision, measured

logger = logging.getLogger("pipeline")


class LongCatPipeline:
    """A loaded checkpoint. Generations run one at a time; calls from several threads queue up.

    record: whether a sparse generation also writes what it attended to, as `<stem>.attention.npz` beside the video
        (see `pipeline.media.attention_record`). May be set at any time; changes no video, and its time is not counted.
    forward: "plain", "fast" or "auto", see `choose_forward`. May be set at any time.
    weights: how those of the model are kept.
    team: the ranks that make each video together.
    """

    def __init__(
        self,
        info: CheckpointInfo,
        device: torch.device,
        model: Any,
        colours: LatentColours,
        record: bool = False,
        forward: str = "auto",
        weights: LoadOptions = AS_STORED,
        team: Team | None = None,
        contents: Contents | None = None,
    ) -> None:
        self.info = info
        self.device = device
        self.record = record
        self.forward = checked_forward(forward)
        self.weights = weights
        self._model = model
        self._maker = VideoMaker(info, device, model, colours, weights, contents)
        self._team = team or Team()
        self._lock = threading.Lock()
        self._last: Plan | None = None
        self._last_dense: Plan | None = None
        self._estimator = Estimator(info, device, weights=weights)

    @classmethod
    def load(
        cls,
        path: str | Path = EMBEDDED_CHECKPOINT,
        device: str = "auto",
        on_message: Callable[[str], None] | None = None,
        record: bool = False,
        forward: str = "auto",
        quantization: str | None = None,
        offload: bool = False,
        gpus: int = 1,
        precision: str = "auto",
        lora_dir: str | Path | None = None,
    ) -> LongCatPipeline:
        """Load the checkpoint folder `path`.

        Under torchrun this returns on rank 0 only; the others serve it until it ends, and then leave the program.

        Args:
            device: "auto" (CUDA where there is a GPU), "cpu", "cuda" or "cuda:N".
            on_message: called with a short sentence before each slow part.
            record, forward: see the class.
            quantization: "fp8" for 8-bit weights and products in the transformer's blocks, half the memory, which
                changes the videos; on CUDA from compute capability 8.9 on. "fp8+attention" computes block sparse
                attention in 8 bits as well, on CUDA only.
            offload: keep the transformer's blocks and the text encoder in host memory, from where they visit the GPU
                for their turn; changes no video. On the CPU it saves nothing.
            gpus: number of GPUs that make each video together, from the chosen one on; under torchrun its processes.
                Each loads the weights.
                These three need the fast forward.
            precision: "bf16" or "fp32" for weights and activations, or "auto": bf16 on GPUs and on CPUs that are
                faster in it, fp32 on others. The log says why.
            lora_dir: a folder with further adapters, see `inspect_checkpoint`.

        Raises:
            ValueError: the folder is not a complete LongCat checkpoint, the device does not exist or cannot run such
                weights or this precision, or its memory or the host's cannot hold them.
            RuntimeError: the installed FastVideo is not the expected one, or another rank could not load.
        """
        say = on_message or (lambda message: None)
        place = Place.given()
        if place is not None and place.rank > 0:
            say = logger.debug  # rank 0 says the same
            logger.setLevel(logging.WARNING)
        if place is not None and gpus not in (1, place.size):
            raise ValueError(f"{place.size} processes were started, and gpus is {gpus}; leave gpus out")
        weights = LoadOptions(quantization, offload, gpus if place is None else place.size, precision)
        weights.check_forward(checked_forward(forward))
        info = inspect_checkpoint(path, lora_dir)
        colours = LatentColours.from_config(info.defaults)
        chosen = rank_devices(device, weights.gpus)[0 if place is None else place.rank]
        weights.check_attention(chosen.type)
        if weights.quantization is not None and chosen.type == "cuda":
            check_device(chosen)
        weights = _settle_precision(weights, chosen, info)
        Estimator(info, chosen, weights=weights).check_load()
        say("Importing FastVideo")
        from pipeline.model.fastvideo_adapter import FastVideoLongCat

        kept = f" with {weights}" if weights else ""
        say(f"Loading {info.name} ({info.parameters / 1e6:,.1f} M parameters) to {chosen}{kept}")
        arguments = {"path": str(info.path.resolve()), "device": device, **weights.of_one.arguments}
        if info.lora_dir is not None:
            arguments["lora_dir"] = str(info.lora_dir)
        team = Team(place, weights.gpus, f"{__name__}:{load_rank.__name__}", arguments)
        with team.loading():
            model = FastVideoLongCat(info.path.resolve(), chosen, info.loras, weights.of_one, reads_text=team.rank == 0)
            if colours is None:
                # no colours stored with the checkpoint: measure them on its own VAE
                colours = LatentColours.fit(model.decode_frame, model.transformer.in_channels, chosen)
        logger.info("Loaded %s (%s transformer parameters) to %s", info.name, f"{info.parameters:,}", chosen)
        padding = "attended to, as zeros" if model.zero_text_padding else "masked"
        logger.info("The padding of prompts is %s (text_tokens_zero_pad)", padding)
        pipeline = cls(info, chosen, model, colours, record, forward, weights, team, read_contents(info.path))
        if team.rank > 0:
            team.follow(chosen, pipeline._follow)
            raise SystemExit(0)
        team.form(chosen)
        return pipeline

    def generate(
        self, request: VideoRequest, on_step: OnStep | None = None, output: Path | str | None = None
    ) -> VideoResult:
        """Make one video, or refine a clip. Where frames are given, they are the first of the video.

        Args:
            on_step: called with the progress; whatever it raises (`Cancelled` to stop) ends the generation
                and leaves the pipeline ready for the next.
            output: an .mp4 file; None for one in a new temporary folder.

        Raises:
            ValueError: the output cannot be written, a prompt has more tokens than the text encoder reads, the
                checkpoint lacks the adapter, the image or clip cannot be read, or the video cannot fit into memory.
            OSError: the video could not be written; the message says where it was kept.
            torch.OutOfMemoryError: the video is too large for the GPU.
        """
        return self.generate_frames(request, on_step, output)[0]

    def generate_frames(
        self, request: VideoRequest, on_step: OnStep | None = None, output: Path | str | None = None
    ) -> tuple[VideoResult, np.ndarray]:
        """Like `generate`, with the decoded frames as well: uint8 [frames, height, width, 3], before compression."""
        output = prepare_output(output)
        with self._lock:
            self.check_tokens(request)
            plan = self.plan(request)
            job = Job(plan, self.record, self._maker.is_warm(plan), self._beside(plan))
            with self._team.job(self.device, job) as ranks:
                made = self._maker.make(job, on_step or (lambda update: None), output, ranks)
            assert made is not None  # this is rank 0
            self._last = None if job.beside is not None else plan  # once for each pair is enough
            if not plan.work.sparse:
                self._last_dense = plan
            return made

    def _beside(self, plan: Plan) -> Plan | None:
        """The video made before that this one will be compared with, by all signs: a sparse one with its dense one,
        however many other sparse ones were made since, and a dense one with the sparse one right before it."""
        other = self._last_dense if plan.work.sparse else self._last
        if other is None or other.work.sparse == plan.work.sparse:
            return None
        if plan.request.teacache_thresh:  # a step beside which one would be timed may be skipped
            return None
        pair = (other, plan) if plan.work.sparse else (plan, other)
        if pair[0].request != pair[1].request.dense:
            return None
        # kept keys and values are those of one forward and one attention; of the two, dense attention can read both
        alike = plan.work.sparse and plan.forward.name == other.forward.name
        return other if alike or not plan.work.cached else None

    def _follow(self, ranks: Ranks, job: Job) -> None:
        """Do this rank's part of a job of rank 0."""
        self._maker.make(job, lambda update: None, Path(), ranks)

    def plan(self, request: VideoRequest) -> Plan:
        """The plan that `generate` will follow. Raises ValueError if it would refuse the request."""
        return plan(
            self.info,
            request,
            self.weights,
            self.device,
            forward=self.forward,
            estimator=self._estimator,
            available=self._available(),
        )

    def _available(self) -> int:
        """Bytes that a generation may take, its weights included."""
        return available_memory(self.device) + held_memory(self.device)

    def choose_attention(self, request: VideoRequest, store: Path | None = None) -> VideoRequest:
        """The request with the attention that suits it on this machine, dense or sparse; its `auto` says why.

        A machine that was never measured is measured first, for about three seconds.

        store: JSON file with the measurements of earlier runs; None for those of this pipeline alone.
        """
        estimator = self._estimator if store is None else Estimator(self.info, self.device, store, self.weights)
        if not estimator.calibrated:
            estimator.calibrate(measure(self))
        return choose_attention(request, self.info.sparse, estimator.estimate, self._available())

    def check_tokens(self, request: VideoRequest) -> None:
        """ValueError for a prompt that is too long for the text encoder. `generate` checks this too."""
        for label, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt)):
            count = self._model.count_tokens(text)
            if count > MAX_PROMPT_TOKENS:
                raise ValueError(
                    f"the {label} has {count} tokens, LongCat reads {MAX_PROMPT_TOKENS} and the rest would have no "
                    f"effect; shorten it to {100 * MAX_PROMPT_TOKENS // count} % of its length"
                )

    @contextmanager
    def exclusive(self) -> Iterator[Any]:
        """The loaded model, while no generation runs; for measurements."""
        with self._lock:
            yield self._model

def _settle_precision(weights: LoadOptions, device: torch.device, info: CheckpointInfo) -> LoadOptions:
    """The same options with a precision instead of "auto" where there is a choice, on a CPU."""
    choice = choose_precision(weights, device, ModelShape.read(info).hidden)
    if device.type != "cpu":
        return weights
    if weights.precision == "auto" and choice.name == "bf16":
        choice = measured(choice)
    logger.info("The model computes in %s because %s", *choice)
    return replace(weights, precision=choice.name)


def load_rank(**arguments: Any) -> None:
    """The program of a process that `Team` starts: load the checkpoint, and serve rank 0 until it ends."""
    LongCatPipeline.load(**arguments)
