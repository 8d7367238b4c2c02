"""Engines on other machines: what crosses the wire, and what is lost when a machine is. The wire is one in this process
in most tests, and a Ray cluster of two local machines where Ray is installed."""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_server import until
from fake_pipeline import CHECKPOINT, draw

from pipeline import Cancelled, FromClip, FromImage
from pipeline.engine import ray_cluster
from pipeline.engine.node import Node
from pipeline.engine.parent import EngineDied
from pipeline.engine.ray_cluster import RayCluster
from pipeline.engine.remote import LOST, LinkLost, RemoteEngine
from pipeline.media.attention_record import record_path
from ui.jobs.job import VideoJob
from ui.jobs.worker import Worker

SMALL = {"width": 32, "height": 32, "num_frames": 5, "steps": 2, "guidance_scale": 1.0}
TARGET = "fake_engine:load"


def request_of(prompt: str = "a red ball", **fields):
    return CHECKPOINT.request(prompt, **SMALL | fields)


class Wire:
    """A link to a node in this process. All that crosses it is written and read as on a network."""

    def __init__(self, target, arguments):
        self.node = Node(target, arguments)
        self.cut = False

    def stream(self, method, *arguments):
        for message in getattr(self.node, method)(*pickle.loads(pickle.dumps(arguments))):
            if self.cut:
                raise LinkLost("the cable was cut")
            yield pickle.loads(pickle.dumps(message))

    def generate(self, request, sources, name, task):
        return self.stream("generate", request, [[source.read_bytes()] for source in sources], name, task)

    def cancel(self, task):
        self.node.cancel(task)

    def end(self):
        self.node.close()


class Wires:
    """A cluster with room for any number of engines."""

    def __init__(self):
        self.placed = []

    def place(self, target, arguments):
        self.placed.append(Wire(target, arguments))
        return self.placed[-1]


@pytest.fixture(scope="module")
def engine():
    engine = RemoteEngine(Wires(), TARGET, path="first", step_seconds=0.02)
    engine.start(lambda text: None)
    yield engine
    engine.close()


class TestWire:
    def test_a_video_comes_back_whole(self, engine, tmp_path):
        request, steps = request_of(steps=3), []
        result, frames = engine.generate_frames(request, steps.append, tmp_path / "sparse.mp4")
        assert np.array_equal(frames, draw(request))
        assert (result.request, result.video) == (request, tmp_path / "sparse.mp4")
        assert result.video.stat().st_size > 0
        assert {path.name for path in tmp_path.iterdir()} == {"sparse.mp4", record_path(result.video).name}
        assert [update.step for update in steps if update.phase == "denoise"] == [0, 1, 2, 3]
        assert next(update for update in steps if update.preview).preview().dtype == np.uint8
        assert not list(engine._link.node._folder.iterdir()), "nothing stays there"

    def test_the_file_that_it_begins_with_goes_there(self, engine, tmp_path):
        image = tmp_path / "image"
        image.write_bytes(b"picture" * 1000)
        request = replace(request_of(), bsa=None, start=FromImage(image=str(image)))
        made = engine._link.node._engine.generate_frames

        def look(here, on_step, output):
            assert Path(here.start.image) != image
            assert Path(here.start.image).read_bytes() == image.read_bytes()
            return made(here, on_step, output)

        engine._link.node._engine.generate_frames = look
        try:
            result, _ = engine.generate_frames(request, None, tmp_path / "dense.mp4")
        finally:
            engine._link.node._engine.generate_frames = made
        assert result.request.start.image == str(image)

    def test_the_refined_frames_of_a_window_go_there_too(self, engine, tmp_path):
        """Two files, even of one name."""
        files = [tmp_path / folder / "clip.mp4" for folder in ("clip", "refined")]
        for file in files:
            file.parent.mkdir()
            file.write_bytes(file.parent.name.encode())
        start = FromClip(video=str(files[0]), refined=str(files[1]), cond_frames=2)
        made, seen = engine._link.node._engine.generate_frames, []

        def look(here, on_step, output):
            seen.extend(Path(name).read_bytes() for name in (here.start.video, here.start.refined))
            return made(here, on_step, output)

        engine._link.node._engine.generate_frames = look
        try:
            request = replace(request_of(), num_frames=6, lora="refine", start=start, bsa=None)
            result, _ = engine.generate_frames(request, None, tmp_path / "dense.mp4")
        finally:
            engine._link.node._engine.generate_frames = made
        assert seen == [b"clip", b"refined"] and result.request.start == start

    def test_readings_are_of_its_machine(self, engine):
        until(lambda: engine.reading().total > 0, "a reading")
        there = engine.reading()
        assert there.resources.process_rss > 0
        assert 0 < there.available <= 2 * there.total
        assert (engine.pid, engine.torch_memory()) == (None, None)

    @pytest.mark.parametrize(
        ("prompt", "kind", "sentence"),
        [
            pytest.param("refuse", ValueError, "width 1 is odd; try 2", id="ours"),
            pytest.param("out of memory", MemoryError, "CUDA out of memory", id="memory"),
        ],
    )
    def test_errors_keep_their_kinds(self, engine, tmp_path, prompt, kind, sentence):
        with pytest.raises(kind, match=sentence):
            engine.generate_frames(request_of(prompt), None, tmp_path / "sparse.mp4")
        assert engine.alive
        assert not list(tmp_path.iterdir()), "no half of a file"

    def test_stopping(self, engine, tmp_path):
        def stop(update):
            if update.step == 2:
                raise Cancelled

        with pytest.raises(Cancelled):
            engine.generate_frames(request_of(steps=900), stop, tmp_path / "sparse.mp4")
        assert engine.call("fake_engine:describe")[0]["pid"] != os.getpid()

    def test_a_stop_that_comes_late_does_not_stop_the_next(self, engine, tmp_path):
        stopped = engine._task

        def late(update):
            engine._link.cancel(stopped)

        result, _ = engine.generate_frames(request_of(steps=4), late, tmp_path / "sparse.mp4")
        assert result.video.is_file()

    def test_death_of_its_process_and_of_its_machine(self, tmp_path):
        cluster, ends = Wires(), []
        engine = RemoteEngine(cluster, TARGET, path="first", step_seconds=0.02)
        engine.on_exit = lambda: ends.append(engine.why)
        with closing(engine):
            engine.start(lambda text: None)
            with pytest.raises(EngineDied, match="the engine was killed while it worked"):
                engine.generate_frames(request_of("die by kill"), None, tmp_path / "sparse.mp4")
            assert (engine.alive, len(ends)) == (False, 1)
            engine.start(lambda text: None)

            def cut(update):
                cluster.placed[-1].cut = True

            with pytest.raises(EngineDied, match="the machine that made it is gone"):
                engine.generate_frames(request_of(steps=50), cut, tmp_path / "sparse.mp4")
            assert (engine.alive, ends[1:]) == (False, [LOST])
            assert not list(tmp_path.iterdir())


def jobs_survive(worker: Worker, lose) -> None:
    """Two jobs run, a machine is lost with the engine of one of them, and both are made. lose: called for that."""
    until(lambda: worker.message == "first is ready", "both engines")
    jobs = [worker.submit(VideoJob(request_of(f"clip {n}", steps=60), False)) for n in range(2)]
    until(lambda: all(job.update is not None and job.update.step > 1 for job in jobs), "both under way")
    lose()
    more = [worker.submit(VideoJob(request_of(f"clip {n}"), False)) for n in range(2, 6)]
    until(lambda: all(job.over for job in (*jobs, *more)), "all jobs")
    assert [(job.state, job.error) for job in (*jobs, *more)] == [("done", "")] * 6
    assert sum(job.lost for job in jobs) == 1
    for number, job in enumerate((*jobs, *more)):
        result = job.results["sparse"]
        assert result.request.prompt == f"clip {number}"
        assert result.video.parent == job.folder
        assert result.video.is_file()


def test_a_lost_machine_costs_its_job_once(tmp_path):
    cluster = Wires()
    engines = [RemoteEngine(cluster, TARGET, path="first", step_seconds=0.02) for _ in range(2)]

    def lose():
        engines[1]._link.cut = True

    with closing(Worker(engines, tmp_path, "first").start()) as worker:
        jobs_survive(worker, lose)


class TestRoom:
    @pytest.mark.parametrize(
        ("room", "engines", "each", "remedy"),
        [
            pytest.param([4, 4], 3, 4, "3 engines of 4 GPUs .* 2 machines .* 4, 4 GPUs; use --engines 2", id="3x4"),
            pytest.param([3, 3], 3, 2, "use --engines 2 or fewer, or add machines$", id="none is on two machines"),
            pytest.param([2, 4], 1, 8, "use --gpus 4 or fewer, or add machines$", id="too many for each machine"),
            pytest.param([0], 1, 1, "use --device cpu, or add machines$", id="no GPU at all"),
        ],
    )
    def test_more_than_there_is(self, room, engines, each, remedy):
        with pytest.raises(ValueError, match=remedy):
            ray_cluster._check_room(room, engines, each, "GPU")

    def test_processors_are_divided(self):
        nodes = [{"CPU": 8.0}, {"CPU": 4.0}]
        assert [ray_cluster._processors(nodes, engines) for engines in (1, 2, 3, 5, 99)] == [8, 4, 4, 2, 1]

    def test_without_ray(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match="^--ray needs the package ray, which is not installed; `pip install"):
            RayCluster("auto", 1, 1)


class TestRay:
    """The real thing, with two machines that are processes of this one."""

    def test_a_killed_machine_costs_its_job_once(self, tmp_path, monkeypatch):
        ray = pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the machines' processes import our modules
        small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        local = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **small})
        local.add_node(**small)
        cluster = None
        try:
            with pytest.raises(ValueError, match="3 engines of 1 processor each do not fit: the 2 machines .* 1, 1"):
                RayCluster(local.address, 3, 1)
            cluster = RayCluster(local.address, 2, 1)
            engines = [RemoteEngine(cluster, TARGET, path="first", step_seconds=0.05) for _ in range(2)]

            def lose():
                """Kill the second machine, which has one of the two engines; the first is the cluster's head."""
                local.remove_node(local.list_all_nodes()[1], allow_graceful=False)

            with closing(Worker(engines, tmp_path, "first").start()) as worker:
                jobs_survive(worker, lose)
                until(lambda: worker.message == "first is ready on 1 of 2 engines", "the engine that is left")
                local.add_node(**small)
                until(lambda: worker.message == "first is ready", "the engine on another machine")
        finally:
            if cluster is not None:
                cluster.close()
            local.shutdown()
            assert not ray.is_initialized()
