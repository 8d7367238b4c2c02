"""Limits of memory in control groups, in folders that stand for proc and sys."""

import pytest

from pipeline.machine import memory
from pipeline.machine.cgroups import free_in_cgroups
from pipeline.machine.device import DeviceName

V2 = ("sys/fs/cgroup", "memory.max", "memory.current")
V1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")


def group(root, version, path, limit, used="0", stat="anon 0"):
    mount, *names = version
    folder = root / mount / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip((*names, "memory.stat"), (limit, used, stat)):
        (folder / name).write_text(f"{text}\n")


def own_groups(root, text):
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(text)


def test_a_container_has_its_limit_at_the_root(tmp_path):
    own_groups(tmp_path, "0::/\n")
    group(tmp_path, V2, "", "1000000", "700000", "anon 500\ninactive_file 200000")
    assert free_in_cgroups(tmp_path) == [500_000]


def test_own_group_and_those_around_it(tmp_path):
    """As of systemd and SLURM: the tightest may be any of them."""
    own_groups(tmp_path, "0::/slurm/job_7/step_0\n")
    group(tmp_path, V2, "slurm/job_7/step_0", "max")
    group(tmp_path, V2, "slurm/job_7", "5000", "1000")
    group(tmp_path, V2, "slurm", "9000", "8500")
    group(tmp_path, V2, "other", "1")
    assert free_in_cgroups(tmp_path) == [4000, 500]


def test_version_1(tmp_path):
    own_groups(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/slurm/job_7\n1:name=systemd:/y\n")
    group(tmp_path, V1, "", str(2**63 - 4096))  # no limit
    group(tmp_path, V1, "slurm/job_7", "5000", "4000", "inactive_file 1\ntotal_inactive_file 200")
    assert free_in_cgroups(tmp_path) == [1200]


@pytest.mark.parametrize("path", ["/docker/0123/inner", "/../.."])
def test_a_path_of_the_host_in_a_container(tmp_path, path):
    own_groups(tmp_path, f"0::{path}\n")
    group(tmp_path, V2, "", "100", "40")
    assert free_in_cgroups(tmp_path) == [60]


def test_nothing_is_there(tmp_path):
    assert free_in_cgroups(tmp_path) == []
    own_groups(tmp_path, "0::/a\n")
    assert free_in_cgroups(tmp_path) == []


def test_the_tightest_limit_counts(monkeypatch):
    monkeypatch.setattr(memory, "free_in_cgroups", lambda: [4000, 500])
    assert memory.available_memory(DeviceName("cpu")) == 500
