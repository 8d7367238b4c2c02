"""What plan, estimate and options know of several GPUs, before any is touched."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint
from pipeline.checkpoint.shape import ModelShape
from pipeline.estimate import footprint
from pipeline.estimate.cost import exchange_seconds, reference_rates
from pipeline.estimate.estimator import Estimator
from pipeline.machine import device as devices
from pipeline.machine.device import DeviceName, expected_device, rank_devices
from pipeline.parallel.launch import Place
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.request.start import FromFrames
from pipeline.runs import team
from pipeline.runs.plan import plan, plan_to_load

TWO, FOUR, CUDA, CPU = LoadOptions(gpus=2), LoadOptions(gpus=4), DeviceName("cuda", 0), DeviceName("cpu")


@pytest.fixture(scope="module")
def info():
    return inspect_checkpoint(EMBEDDED_CHECKPOINT)


@pytest.fixture(scope="module")
def shape(info):
    return ModelShape.read(info)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [(TWO, "--gpus 2"), (LoadOptions("fp8", True, 4), "--quantization fp8 --offload --gpus 4"), (AS_STORED, "")],
    )
    def test_travel_in_words_arguments_and_videos(self, options, words):
        assert str(options) == words and bool(options) == bool(words)
        assert LoadOptions(**options.arguments) == options
        assert LoadOptions.from_versions(options.versions) == options
        assert all(isinstance(value, str) for value in options.versions.values())

    @pytest.mark.parametrize("odd", ["0", "-2", "two", "²", "99999", "", "1e3"])
    def test_what_is_no_number_in_a_video_is_one(self, odd):
        assert LoadOptions.from_versions({"gpus": odd}) == AS_STORED

    def test_each_gpu_keeps_its_weights_as_one_would(self):
        assert LoadOptions("fp8", True, 4).of_one == LoadOptions("fp8", True) and TWO.of_one == AS_STORED

    def test_smaller_ones_have_as_many_gpus(self):
        assert {options.gpus for options in FOUR.smaller()} == {4}
        assert [str(options.of_one) for options in FOUR.smaller()] == [str(less) for less in AS_STORED.smaller()]

    def test_none_is_refused(self):
        with pytest.raises(ValueError, match="gpus is 0; use 1 or more"):
            LoadOptions(gpus=0)


class TestPlan:
    def test_runs_the_fast_forward(self, info):
        choice = plan(info, info.request("a"), TWO, CPU).forward
        assert choice[:2] == ("fast", "--gpus 2 needs it")

    def test_refuses_chunks_that_share_no_order(self, info):
        request = info.request("a", bsa=BSAConfig(0.5, None, (3, 4, 4), (2, 4, 4)))
        with pytest.raises(ValueError, match="--gpus 2 needs the fast forward, which cannot run this request"):
            plan(info, request, TWO, CPU)

    def test_refuses_more_than_heads(self, info, shape):
        with pytest.raises(ValueError, match=f"{shape.heads} attention heads.*--gpus {shape.heads} or fewer"):
            plan_to_load(info, [], LoadOptions(gpus=shape.heads + 1), CPU)
        assert plan_to_load(info, [], LoadOptions(gpus=shape.heads), CPU) == []

    def test_refuses_more_than_tokens(self, info):
        request = info.request("a", height=16, width=16, num_frames=1, bsa=None)
        with pytest.raises(ValueError, match="2 GPUs cannot share 1 tokens"):
            plan(info, request, TWO, CPU)

    def test_refuses_more_than_tokens_of_the_given_frames(self, info):
        """Each step has four times as many, but the one latent frame that is given runs before them, alone."""
        start = FromFrames(video="x", cond_frames=1, enhance_hf=False)
        request = info.request("a", height=16, width=16, num_frames=17, bsa=None, start=start)
        with pytest.raises(ValueError, match="2 GPUs cannot share 1 tokens"):
            plan(info, request, TWO, CPU)
        uncached = replace(request, start=replace(start, kv_cache="off"))
        assert plan(info, uncached, TWO, CPU).work.fewest_tokens == 5


@pytest.fixture(scope="module")
def request_(info):
    return info.request("a", height=704, width=1280, num_frames=93)


class TestEstimate:
    def test_memory_of_the_fullest_gpu(self, shape, request_):
        one, two, four = (footprint.least_bytes(shape, request_, CUDA, options) for options in (AS_STORED, TWO, FOUR))
        resident = footprint.weight_bytes(shape, CUDA)
        # weights are on every GPU, tokens and pictures are shared
        assert one - resident == pytest.approx(2 * (two - resident), rel=0.01)
        assert two - resident == pytest.approx(2 * (four - resident), rel=0.01)

    def test_offload_takes_a_copy_of_the_blocks_for_each(self, shape):
        one, four = (footprint.host_bytes(shape, CUDA, LoadOptions(offload=True, gpus=n)) for n in (1, 4))
        assert four - one == 3 * shape.depth * footprint.block_bytes(shape, CUDA, AS_STORED)

    def test_volume_of_the_released_model(self, shape):
        """The counts of docs/multi_gpu.md, from the shapes: 4 tensors of 84,480 x 4,096 in 48 layers."""
        released, rates = replace(shape, hidden=4096, depth=48), reference_rates(CUDA)
        for ranks, gigabytes in ((2, 33.2), (4, 24.9)):
            seconds = 48 * exchange_seconds(released, 84480, 2, ranks, rates)
            assert seconds * rates.exchange / 1e9 == pytest.approx(gigabytes, abs=0.05)

    def test_time_falls_but_not_for_nothing(self, info, request_):
        def denoise(gpus, **changes):
            estimator = Estimator(info, CUDA, weights=LoadOptions(gpus=gpus))
            estimator.calibrate([{"part": "linear", "grid": [8, 16, 16], "seconds": 0.01}])
            return estimator.estimate(replace(request_, **changes)).seconds["denoise"]

        plain, guided = {"guidance_scale": 1.0}, {"guidance_scale": 4.0}
        assert denoise(1, **plain) / 2 < denoise(2, **plain) < denoise(1, **plain)
        # the halves of two ranks share nothing but the row that each takes
        assert denoise(2, **guided) == pytest.approx(denoise(1, **guided) / 2)


class TestDevices:
    @pytest.fixture
    def four(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    @pytest.mark.parametrize(
        ("asked", "count", "names"),
        [
            ("auto", 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
            ("cuda", 2, ["cuda:0", "cuda:1"]),
            ("cuda:2", 2, ["cuda:2", "cuda:3"]),
            ("cpu", 2, ["cpu", "cpu"]),
        ],
    )
    def test_from_the_chosen_one_on(self, four, asked, count, names):
        assert [str(device) for device in rank_devices(asked, count)] == names

    def test_too_many_are_refused(self, four):
        with pytest.raises(ValueError, match="3 GPUs from cuda:2 on.*this machine has 4.*--gpus 2 or fewer"):
            rank_devices("cuda:2", 3)

    def test_the_page_knows_without_torch(self, monkeypatch):
        gpus = tuple(SimpleNamespace(total=80 << 30, name="NVIDIA H100") for _ in range(2))
        monkeypatch.setattr(devices, "read_resources", lambda: SimpleNamespace(gpus=gpus))
        monkeypatch.setattr(devices, "visible_gpus", list)
        monkeypatch.setattr(devices, "gpu_of", lambda name: gpus[name.index])
        monkeypatch.setattr(devices.metadata, "version", lambda package: "2.12.0")
        assert expected_device("auto", 2) == DeviceName("cuda", 0)
        with pytest.raises(ValueError, match="3 GPUs from cuda:0 on.*has 2.*--gpus 2 or fewer"):
            expected_device("auto", 3)


def test_a_rank_lost_between_two_jobs_is_started_again(monkeypatch):
    started = []

    class Processes:
        alive, store = True, object()

        def __init__(self, target, arguments, size):
            self.asked, self.closed = (target, arguments, size), False
            started.append(self)

        def close(self):
            self.closed = True

    monkeypatch.setattr(team, "Followers", Processes)
    monkeypatch.setattr(team, "join", lambda store, *place: object())
    ranks = team.Team(None, 3, "module:load", {"path": "here"})
    first = ranks.form(torch.device("cpu"))
    assert ranks.form(torch.device("cpu")) is first and len(started) == 1
    started[0].alive = False
    assert ranks.form(torch.device("cpu")) is not first and started[0].closed
    assert [processes.asked for processes in started] == [("module:load", {"path": "here"}, 3)] * 2
    ranks.close()
    assert started[1].closed


@pytest.mark.parametrize(
    ("env", "place"),
    [
        pytest.param({}, None, id="alone"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None, id="as-fastvideo-sets-it"),
        pytest.param(
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            Place(1, 2, "127.0.0.1", 29500, False),
            id="started-by-rank-0",
        ),
        pytest.param(
            {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
            | {"TORCHELASTIC_USE_AGENT_STORE": "True"},
            Place(0, 3, "h", 1, True),
            id="torchrun",
        ),
    ],
)
def test_place_among_the_ranks(monkeypatch, env, place):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert Place.given() == place
