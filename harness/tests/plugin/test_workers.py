"""Cores and memory by the control groups of a made-up tree, of both versions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.plugin import workers

GIB = 1 << 30


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, 16 GiB."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=16 * GIB))


class Tree:
    def __init__(self, folder: Path) -> None:
        self.mounted, self.of_process = folder / "cgroup", folder / "self"
        self.mounted.mkdir()

    def is_in(self, *lines: str) -> None:
        self.of_process.write_text("".join(f"{line}\n" for line in lines))

    def write(self, group: str, **files: str) -> None:
        folder = self.mounted / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(f"{content}\n")

    def found(self) -> tuple[int, int]:
        where = (self.mounted, self.of_process)
        return workers.cores(*where), workers.available_bytes(*where)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_no_groups(tree: Tree) -> None:
    assert tree.found() == (8, 16 * GIB)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("", 8), ("x y", 8)],
)
def test_a_quota_of_version_2(tree: Tree, quota: str, cores: int) -> None:
    tree.write("", cgroup__controllers="cpu memory")
    tree.write("job", cpu__max=quota)
    tree.is_in("0::/job")
    assert tree.found() == (cores, 16 * GIB)


def test_memory_of_version_2_without_what_can_be_reclaimed(tree: Tree) -> None:
    tree.write("", cgroup__controllers="cpu memory")
    stat = f"anon {GIB}\ninactive_file {GIB}"
    tree.write("job", memory__max=str(4 * GIB), memory__current=str(3 * GIB), memory__stat=stat)
    tree.is_in("0::/job")
    assert tree.found() == (8, 2 * GIB)


def test_each_group_above_limits_as_well(tree: Tree) -> None:
    tree.write("", cgroup__controllers="cpu memory")
    tree.write("ci", cpu__max="300000 100000", memory__max=str(6 * GIB), memory__current=str(5 * GIB))
    tree.write("ci/job", cpu__max="400000 100000", memory__max=str(4 * GIB), memory__current=str(GIB))
    tree.write("ci/job/test", cpu__max="max 100000", memory__max="max", memory__current="1")
    tree.is_in("0::/ci/job/test")
    assert tree.found() == (3, GIB)


def test_a_container_sees_its_own_group_at_the_top(tree: Tree) -> None:
    tree.write("", cgroup__controllers="cpu", cpu__max="100000 100000")
    tree.is_in("0::/system.slice/docker-1234.scope")
    assert tree.found() == (1, 16 * GIB)


def test_version_1(tree: Tree) -> None:
    tree.write("cpu,cpuacct/job", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    tree.write("memory/job", memory__limit_in_bytes=str(2 * GIB), memory__usage_in_bytes=str(GIB))
    tree.is_in("4:memory:/job", "3:cpu,cpuacct:/job", "1:name=systemd:/job")
    assert tree.found() == (2, GIB)


def test_version_1_without_limits(tree: Tree) -> None:
    tree.write("cpu/job", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    tree.write("memory/job", memory__limit_in_bytes=str(2**63 - 4096), memory__usage_in_bytes=str(GIB))
    tree.is_in("4:memory:/job", "3:cpu:/job")
    assert tree.found() == (8, 16 * GIB)


def test_a_group_that_is_over_its_limit_has_nothing(tree: Tree) -> None:
    tree.write("", cgroup__controllers="memory")
    tree.write("job", memory__max=str(GIB), memory__current=str(2 * GIB))
    tree.is_in("0::/job")
    assert tree.found() == (8, 0)
