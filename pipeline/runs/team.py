"""The ranks behind a pipeline: forms their group, hands each job to all, and forms it anew after one was lost."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.parallel.launch import NO_MEMORY, Followers, Place, RankLost, abort, end_with_parent, fail, join
from pipeline.parallel.ranks import ONE_RANK, Group, Ranks
from pipeline.request.video import Cancelled


class Team:
    """The ranks of one pipeline, seen from one of them. A team of one is only this process.

    place: this process among those that somebody else started, or None if rank 0 starts the others itself.
    size: number of ranks.
    target, arguments: of the program of the others, see `Followers`.
    """

    def __init__(
        self, place: Place | None = None, size: int = 1, target: str = "", arguments: dict[str, Any] | None = None
    ) -> None:
        self.size = size
        self.rank = 0 if place is None else place.rank
        self._place = place
        self._program = target, arguments or {}
        self._store = None if place is None else place.store()
        self._followers: Followers | None = None
        self._ranks: Ranks | None = ONE_RANK if size == 1 else None
        if self.rank > 0:
            end_with_parent()
        elif size > 1:
            self._start()

    def _start(self) -> None:
        """Let the others load while this process does."""
        if self._place is None:
            self._followers = Followers(*self._program, self.size)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """A block in which this rank loads. If it fails, the others are ended."""
        try:
            yield
        except Exception:
            if self.rank == 0:
                self.close()
            raise

    def form(self, device: torch.device) -> Ranks:
        """The group of all ranks, once they have loaded. Starts those again that were lost.

        Raises RankLost if one of them cannot load.
        """
        if self._followers is not None and not self._followers.alive:
            self._part()  # one was lost between two jobs
        if self._ranks is None:
            if self.rank == 0 and self._followers is None:
                self._start()
            store = self._store if self._followers is None else self._followers.store
            assert store is not None  # somebody started the ranks
            try:
                self._ranks = join(store, self.rank, self.size, device, self._followers)
            except RankLost:
                self._part()
                raise
            if self.rank == 0:
                atexit.unregister(self.close)
                atexit.register(self.close)  # behind what ends this process's own group, so that it runs before
        return self._ranks

    @contextmanager
    def job(self, device: torch.device, job: Any) -> Iterator[Ranks]:
        """On rank 0: a block in which all ranks run the job. What it raises on all ranks leaves the team as it is.

        Raises:
            RankLost: another rank ended. The next job starts all of them again.
            torch.OutOfMemoryError: another rank ran out of memory; the same.
        """
        ranks = self.form(device)
        if not isinstance(ranks, Group):
            yield ranks
            return
        try:
            ranks.next_job(job)
            yield ranks
        except BaseException as error:
            if ranks.settled:
                raise
            # an exchange failed because a rank is gone, or this one failed and the others wait for it
            why = "" if self._followers is None or _own(error) else self._followers.lost()
            self._part()
            if NO_MEMORY in why:
                raise torch.OutOfMemoryError(why) from error
            if why:
                raise RankLost(why) from error
            raise

    def _part(self) -> None:
        if self._followers is not None:
            self._followers.close()
            self._followers, self._ranks = None, None

    def close(self) -> None:
        """On rank 0: end the other ranks."""
        if self._place is not None and isinstance(self._ranks, Group) and self._ranks.settled:
            self._ranks.next_job(None)
        self._part()
        self._ranks = ONE_RANK if self.size == 1 else None  # so that the group can end
        abort()

    def follow(self, device: torch.device, run: Callable[[Ranks, Any], None]) -> None:
        """On the other ranks: run the jobs of rank 0, until it closes the team. Ends the process where that fails."""
        assert self._store is not None
        try:
            ranks = self.form(device)
            assert isinstance(ranks, Group)
            while True:
                try:
                    job = ranks.next_job()
                except RuntimeError:  # rank 0 ended without a word
                    return
                if job is None:
                    return
                try:
                    run(ranks, job)
                except (Cancelled, ValueError):
                    if not ranks.settled:
                        raise
        except BaseException as error:
            fail(self._store, self.rank, error)
        finally:
            self._ranks = None  # so that the group can end


def _own(error: BaseException) -> bool:
    """Whether the error comes from this process alone, so that no other rank need be waited for."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError, KeyboardInterrupt, SystemExit))
