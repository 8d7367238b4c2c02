"""Memory limits of control groups, which containers, systemd and SLURM put a process into."""

from __future__ import annotations

from pathlib import Path

# version -> where it is mounted, and its files with the limit and the use
_FILES = {
    2: ("sys/fs/cgroup", "memory.max", "memory.current"),
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def free_in_cgroups(root: Path = Path("/")) -> list[int]:
    """Bytes that are free under each limit on this process: of its own groups and of all groups around them.

    root: where proc and sys are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version = 2
        elif "memory" in controllers.split(","):
            version = 1
        else:
            continue
        mount, limit, used = _FILES[version]
        # In a container the path may be the host's, of which the mount shows the end at most: its root has the limit.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders = [root.joinpath(mount, *parts[:depth]) for depth in range(len(parts), -1, -1)]
        found += [_free(folder / limit, folder / used, folder / "memory.stat") for folder in folders]
    return [free for free in found if free is not None]


def _free(limit: Path, used: Path, statistics: Path) -> int | None:
    """Bytes that a group has left. Its page cache counts as free. None if there is no limit."""
    try:
        most = limit.read_text().strip()
        if not most.isdecimal() or int(most) > 2**60:  # "max", or the huge number that version 1 writes instead
            return None
        stat = dict(line.split() for line in statistics.read_text().splitlines())
        # version 1 counts the groups below under another name, and they are in its use
        cached = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
        return max(1, int(most) - int(used.read_text()) + int(cached))
    except (OSError, ValueError):
        return None
