"""Keeps readings over time in bounded memory: every recent sample, and maxima over longer spans for older ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# (seconds per bucket, buckets): 3 minutes of samples at 10 Hz, maxima over 1 s for an hour and over 10 s for a day
TIERS = ((0.0, 1800), (1.0, 3600), (10.0, 8640))


class Peak(NamedTuple):
    """The largest value of a series, and the time at which it was measured."""

    value: float
    time: float


@dataclass(frozen=True)
class History:
    """Several series over the same times. A missing value is None."""

    times: list[float]
    series: dict[str, list[float | None]]


class Samples:
    """Named series over the same times. One thread adds; any other may read.

    A bucket keeps the maximum of each series with the time at which it was measured. A peak over an interval was
    therefore measured within that interval.
    """

    def __init__(self, tiers: tuple[tuple[float, int], ...] = TIERS) -> None:
        self._sizes = tiers
        self._lock = threading.Lock()
        self._tiers = [_Tier(*tier) for tier in tiers]

    def add(self, time: float, values: Mapping[str, float | None]) -> None:
        time = round(time, 3)  # rounded as in answers, so that "since the last one" finds exactly the new samples
        with self._lock:
            if time < self._tiers[0].newest:  # the clock was set back, so the order of the old samples is lost
                self._tiers = [_Tier(*tier) for tier in self._sizes]
            for tier in self._tiers:
                tier.add(time, values)

    @property
    def oldest(self) -> float:
        """Time of the first sample still kept, or infinity if there is none."""
        with self._lock:
            return min(tier.oldest for tier in self._tiers)

    def history(self, since: float = 0.0, until: float = float("inf"), points: int | None = None) -> History:
        """Samples with since < time <= until, from the finest tier that still has them.

        points: at most this many are returned; if there are more samples, each point is the maximum over an equal span.
        """
        with self._lock:
            rows = [tier.rows(since, min(until, limit)) for tier, limit in self._split()]
            names = sorted({name for tier in self._tiers for name in tier.values})
        times = np.concatenate([time for time, _ in rows])
        series = {
            name: np.concatenate([values.get(name, np.full(len(time), np.nan)) for time, values in rows])
            for name in names
        }
        if points is not None and len(times) > points:
            times, series = _thin(times, series, points)
        return History(
            times.tolist(),
            {name: _plain(values) for name, values in series.items() if not np.isnan(values).all()},
        )

    def peak(self, start: float, end: float) -> dict[str, Peak]:
        """The maximum of every series over start <= time <= end; series without a value there are left out."""
        peaks: dict[str, Peak] = {}
        with self._lock:
            for tier, limit in self._split():
                for name, peak in tier.peaks(start, end, limit):
                    if name not in peaks or peak.value > peaks[name].value:
                        peaks[name] = peak
        return peaks

    def _split(self) -> Iterator[tuple[_Tier, float]]:
        """Tiers from coarse to fine, each with the time at which a finer one takes over."""
        limit = float("inf")
        split = []
        for tier in self._tiers:
            split.append((tier, limit))
            limit = min(limit, np.nextafter(tier.oldest, 0.0))
        return reversed(split)


class _Tier:
    """A ring of buckets, each `width` seconds long. Width 0 gives every sample its own bucket."""

    def __init__(self, width: float, size: int) -> None:
        self.width = width
        self.size = size
        self.count = 0  # buckets begun since the start
        self.bucket = -1
        self.times = np.zeros(size)
        self.values: dict[str, np.ndarray] = {}
        self.taken: dict[str, np.ndarray] = {}

    @property
    def newest(self) -> float:
        return float(self.times[(self.count - 1) % self.size]) if self.count else float("-inf")

    @property
    def oldest(self) -> float:
        if not self.count:
            return float("inf")
        return float(self.times[self.count % self.size if self.count > self.size else 0])

    def add(self, time: float, values: Mapping[str, float | None]) -> None:
        bucket = int(time // self.width) if self.width else self.count
        if bucket != self.bucket or not self.count:
            self.bucket = bucket
            self.count += 1
            for column in self.values.values():
                column[(self.count - 1) % self.size] = np.nan
        slot = (self.count - 1) % self.size
        self.times[slot] = time
        for name, value in values.items():
            if value is None:
                continue
            if name not in self.values:
                self.values[name] = np.full(self.size, np.nan)
                self.taken[name] = np.zeros(self.size)
            if not self.values[name][slot] >= value:  # true also for NaN, when there is no value yet
                self.values[name][slot] = value
                self.taken[name][slot] = time

    def rows(self, since: float, until: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Times with since < time <= until, in order, and the values of each series at these times."""
        first = self.count % self.size if self.count > self.size else 0
        order = (first + np.arange(min(self.count, self.size))) % self.size
        order = order[(self.times[order] > since) & (self.times[order] <= until)]
        return self.times[order], {name: column[order] for name, column in self.values.items()}

    def peaks(self, start: float, end: float, limit: float) -> Iterator[tuple[str, Peak]]:
        for name, column in self.values.items():
            taken = self.taken[name]
            inside = (taken >= start) & (taken <= min(end, limit)) & ~np.isnan(column)
            if inside.any():
                slot = int(np.argmax(np.where(inside, column, -np.inf)))
                yield name, Peak(float(column[slot]), float(taken[slot]))


def _thin(times: np.ndarray, series: dict[str, np.ndarray], points: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    span = (times[-1] - times[0]) / points or 1.0
    bins = np.minimum(((times - times[0]) / span).astype(int), points - 1)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    ends = np.append(starts[1:], len(times)) - 1
    return times[ends], {name: np.fmax.reduceat(values, starts) for name, values in series.items()}


def _plain(values: np.ndarray) -> list[float | None]:
    """Values as floats, with None for NaN, which JSON does not have."""
    return [None if value != value else value for value in values.tolist()]
