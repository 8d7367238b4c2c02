"""The processes of the ranks: who started this one, the start of the others, and the end of all when one is lost."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pipeline.machine.memory import out_of_memory
from pipeline.parallel.ranks import Group, leave
from pipeline.request.sentences import one_line

logger = logging.getLogger("pipeline")

HOST = "127.0.0.1"
WATCH_SECONDS = 0.2
END_SECONDS = 5.0  # that a rank which failed gets to end

KILLED = "its process was killed, which is what the system does when memory runs out"
ENDED = "its process ended with exit code {code}"
LOST = "GPU {rank} of {size} is lost: {why}; the others were stopped too, and the next video starts all of them again"
NO_MEMORY = "it ran out of memory; use a smaller size, fewer frames or more GPUs"


class RankLost(RuntimeError):
    """A rank ended in the middle of a job. The text is a sentence for people."""


@dataclass(frozen=True)
class Place:
    """This process among the ranks that torchrun, or `Followers`, started, with the address of their store.

    agent: whether the starter serves the store; otherwise rank 0 does.
    """

    rank: int
    size: int
    address: str
    port: int
    agent: bool

    @classmethod
    def given(cls) -> Place | None:
        """As the environment says; None for a process that was started by itself."""
        env = os.environ
        if "MASTER_PORT" not in env or int(env.get("WORLD_SIZE", "1")) == 1:
            return None
        agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(int(env["RANK"]), int(env["WORLD_SIZE"]), env["MASTER_ADDR"], int(env["MASTER_PORT"]), agent)

    def store(self) -> dist.TCPStore:
        """Join the store. Returns at once on rank 0, and on the others when it is there."""
        serves = self.rank == 0 and not self.agent
        return dist.TCPStore(self.address, self.port, self.size, serves, wait_for_workers=False)


def join(store: dist.Store, rank: int, size: int, device: torch.device, followers: Followers | None = None) -> Group:
    """Form the process group of all ranks, in place of the one in which this process was alone.

    Raises RankLost if one of the followers has ended instead of coming.
    """
    store.set(f"ready {rank}", "")
    while not store.check([f"ready {other}" for other in range(size)]):
        if followers is not None and not followers.alive:
            raise RankLost(followers.lost())
        time.sleep(WATCH_SECONDS)
    leave()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=dist.PrefixStore("ranks", store), rank=rank, world_size=size)
    return Group(device)


def fail(store: dist.Store, rank: int, error: BaseException) -> None:
    """End this process, and leave the reason in the store. Other ranks may be waiting for it in the middle of a step,
    so it cannot take another job."""
    logger.error("rank %d failed", rank, exc_info=error)
    memory = isinstance(error, Exception) and out_of_memory(error)
    with suppress(Exception):
        store.set(f"why {rank}", NO_MEMORY if memory else f"{type(error).__name__}: {one_line(error)}")
    os._exit(1)


def end_with_parent() -> None:
    """End this process when the one that started it is gone, even while it waits for a GPU."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="rank-parent", daemon=True).start()


class Followers:
    """The ranks 1 ... size - 1, which this process starts on its own machine and ends with itself.

    target: "module:function", called in each as function(**arguments).
    """

    def __init__(self, target: str, arguments: dict[str, Any], size: int) -> None:
        self.size = size
        _stay_on_this_host()
        door = socket.create_server((HOST, 0))  # by itself the store would listen on every network
        port = door.getsockname()[1]
        self.store = dist.TCPStore(HOST, port, size, True, wait_for_workers=False, master_listen_fd=door.detach())
        self._why = ""
        self._closed = threading.Event()
        self._ended = threading.Event()
        module, _, function = target.partition(":")
        program = f"import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {module} import {function} as run; "
        program += "run(**json.loads(sys.argv[2]))"
        command = [sys.executable, "-c", program, json.dumps(sys.path), json.dumps(arguments)]
        self._processes = {
            rank: subprocess.Popen(
                command,
                env=os.environ | self._environment(rank),
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__,  # a report may go to this process's standard output
                start_new_session=True,  # Ctrl-C is for this process, which ends them
            )
            for rank in range(1, size)
        }
        threading.Thread(target=self._watch, name="ranks-watch", daemon=True).start()

    def _environment(self, rank: int) -> dict[str, str]:
        place = {"RANK": rank, "WORLD_SIZE": self.size, "MASTER_ADDR": HOST, "MASTER_PORT": self.store.port}
        return {name: str(value) for name, value in place.items()}

    def lost(self) -> str:
        """Why there is no complete group any more, as a sentence; "" while there is one. Waits a moment: an exchange
        may fail before the process at its other end is gone."""
        self._ended.wait(END_SECONDS)
        return self._why

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    def close(self) -> None:
        """Kill them all."""
        self._closed.set()
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.kill()
        for process in self._processes.values():
            process.wait()
        self._ended.set()

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_SECONDS):
            if any(process.poll() is not None for process in self._processes.values()):
                # the first to go takes others with it, whose exchanges fail: the cause is to be among those seen
                time.sleep(WATCH_SECONDS)
                self._why = self._reason()
                logger.error("%s", self._why)
                self.close()
                abort()
                return

    def _reason(self) -> str:
        reasons = []
        for rank, process in self._processes.items():
            if (code := process.poll()) is not None:
                said = self._said(rank)
                unexpected = code == 1 and said != NO_MEMORY  # an error of Python, as a broken exchange is one
                why = said or (KILLED if code == -signal.SIGKILL else ENDED.format(code=code))
                reasons.append((unexpected, rank, why))
        _, rank, why = min(reasons)
        return LOST.format(rank=rank, size=self.size, why=why)

    def _said(self, rank: int) -> str:
        with suppress(Exception):
            if self.store.check([f"why {rank}"]):
                return self.store.get(f"why {rank}").decode()
        return ""


def _stay_on_this_host() -> None:
    """Let gloo and NCCL listen on the loopback alone, unless the environment names another interface."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if loopback is not None:
            os.environ.setdefault(variable, loopback)


def abort() -> None:
    """Leave the group at once. Exchanges on the GPU end that would wait for ever for a rank that is gone."""
    if dist.is_initialized() and torch.cuda.is_initialized():
        with suppress(Exception):
            dist.distributed_c10d._abort_process_group()
