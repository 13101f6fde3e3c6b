"""Cores, memory and open files, read from made-up /proc and /sys/fs/cgroup trees and once from the real ones."""

from __future__ import annotations

import mmap
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway import host

GIB = 1 << 30
Tree = Callable[[dict[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Writes files below a root that already holds a machine of 16 cores and 64 GiB, 60 of them free."""

    def build(files: dict[str, str]) -> Path:
        machine = {
            "sys/devices/system/cpu/online": "0-15\n",
            "proc/self/status": "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\nCpus_allowed_list:\t0-15\n",
            "proc/meminfo": f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {60 << 20} kB\nSwapTotal: 9 kB\n",
            "proc/self/cgroup": "0::/\n",
            "proc/self/limits": "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  524288  files\n",
        }
        for name, text in {**machine, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


def test_without_cgroup_or_affinity_all_cores_of_the_host_are_used(tree: Tree) -> None:
    assert host.cores(tree({})) == host.Cores(16.0, "host", 16, 16, None)


def test_affinity_below_the_host_is_the_number_of_cores(tree: Tree) -> None:
    found = host.cores(tree({"proc/self/status": "Cpus_allowed:\tff\nCpus_allowed_list:\t0-2,8,10-11\n"}))
    assert found == host.Cores(6.0, "affinity", 16, 6, None)


def test_allowed_processors_that_are_not_there_do_not_count(tree: Tree) -> None:
    files = {"sys/devices/system/cpu/online": "0-1\n", "proc/self/status": "Cpus_allowed_list:\t0-127\n"}
    assert host.cores(tree(files)) == host.Cores(2.0, "host", 2, 2, None)


@pytest.mark.parametrize("text", ["", "junk", "0-x", "1,,2"])
def test_a_list_of_processors_that_cannot_be_read_limits_nothing(tree: Tree, text: str) -> None:
    assert host.cores(tree({"proc/self/status": f"Cpus_allowed_list:\t{text}\n"})).affinity == 16


def test_a_quota_of_cgroup_v2_is_the_number_of_cores(tree: Tree) -> None:
    found = host.cores(tree({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "150000 100000\n"}))
    assert found == host.Cores(1.5, "cgroup v2 cpu.max", 16, 16, 1.5)


def test_a_quota_above_the_affinity_does_not_count(tree: Tree) -> None:
    files = {"proc/self/status": "Cpus_allowed_list:\t4-5\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}
    assert host.cores(tree(files)) == host.Cores(2.0, "affinity", 16, 2, 4.0)


def test_the_least_quota_of_nested_groups_counts_wherever_it_is(tree: Tree) -> None:
    files = {
        "proc/self/cgroup": "0::/kube/pod/app\n",
        "sys/fs/cgroup/kube/cpu.max": "800000 100000",
        "sys/fs/cgroup/kube/pod/cpu.max": "50000 100000",
        "sys/fs/cgroup/kube/pod/app/cpu.max": "max 100000",
    }
    assert host.cores(tree(files)).count == 0.5
    files["sys/fs/cgroup/kube/pod/app/cpu.max"] = "20000 100000"
    assert host.cores(tree(files)).count == 0.2


def test_a_group_beside_ours_does_not_count(tree: Tree) -> None:
    files = {"proc/self/cgroup": "0::/ours\n", "sys/fs/cgroup/other/cpu.max": "1000 100000"}
    assert host.cores(tree(files)).quota is None


def test_a_host_path_inside_a_container_falls_back_to_the_mounted_group(tree: Tree) -> None:
    files = {"proc/self/cgroup": "0::/system.slice/docker-1.scope\n", "sys/fs/cgroup/cpu.max": "200000 100000"}
    assert host.cores(tree(files)).count == 2.0


def test_a_group_outside_of_the_namespace_does_not_lead_out_of_the_tree(tree: Tree) -> None:
    files = {
        "proc/self/cgroup": "0::/../../../secret\n",
        "secret/cpu.max": "1000 100000",
        "sys/fs/cgroup/cpu.max": "max 100000",
    }
    assert host.cores(tree(files)).quota is None


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_a_quota_of_cgroup_v1_is_the_number_of_cores(tree: Tree, mount: str) -> None:
    files = {
        "proc/self/cgroup": "9:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n0::/docker/1\n",
        f"sys/fs/cgroup/{mount}/docker/1/cpu.cfs_quota_us": "300000\n",
        f"sys/fs/cgroup/{mount}/docker/1/cpu.cfs_period_us": "100000\n",
        f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us": "-1\n",
        f"sys/fs/cgroup/{mount}/cpu.cfs_period_us": "100000\n",
    }
    assert host.cores(tree(files)) == host.Cores(3.0, "cgroup v1 cpu.cfs_quota_us", 16, 16, 3.0)


def test_the_accounting_controller_of_v1_is_not_taken_for_the_cpu_controller(tree: Tree) -> None:
    files = {
        "proc/self/cgroup": "2:cpuacct:/a\n",
        "sys/fs/cgroup/cpuacct/a/cpu.cfs_quota_us": "1000",
        "sys/fs/cgroup/cpuacct/a/cpu.cfs_period_us": "100000",
    }
    assert host.cores(tree(files)).quota is None


@pytest.mark.parametrize("text", ["", "max 100000", "junk", "100000", "100000 0", "0 100000", "-5 100000"])
def test_a_quota_that_says_nothing_is_no_quota(tree: Tree, text: str) -> None:
    assert host.cores(tree({"sys/fs/cgroup/cpu.max": text})).quota is None


def test_an_empty_root_gives_what_the_operating_system_says(tmp_path: Path) -> None:
    count = os.cpu_count() or 1
    assert host.cores(tmp_path) == host.Cores(float(count), "host", count, count, None)
    assert host.memory(tmp_path) is None
    assert host.open_files(tmp_path) is None
    assert host.resident(root=tmp_path) is None


def test_without_a_cgroup_limit_the_memory_of_the_machine_counts(tree: Tree) -> None:
    assert host.memory(tree({"sys/fs/cgroup/memory.max": "max"})) == host.Memory(64 * GIB, "host", 64 * GIB, 60 * GIB)


@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
def test_a_limit_of_cgroup_v2_counts_and_file_caches_are_free(tree: Tree, name: str) -> None:
    files = {
        "proc/self/cgroup": "0::/app\n",
        f"sys/fs/cgroup/app/{name}": f"{2 * GIB}\n",
        "sys/fs/cgroup/app/memory.current": f"{GIB + 4096}\n",
        "sys/fs/cgroup/app/memory.stat": "anon 5\ninactive_file 4096\nactive_file 7\n",
    }
    assert host.memory(tree(files)) == host.Memory(2 * GIB, f"cgroup v2 {name}", 64 * GIB, GIB)


def test_the_tightest_group_above_decides_limit_and_free_memory_each(tree: Tree) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/app\n",
        "sys/fs/cgroup/pod/memory.max": f"{8 * GIB}",
        "sys/fs/cgroup/pod/memory.current": f"{7 * GIB}",
        "sys/fs/cgroup/pod/app/memory.max": f"{4 * GIB}",
        "sys/fs/cgroup/pod/app/memory.current": f"{GIB}",
    }
    assert host.memory(tree(files)) == host.Memory(4 * GIB, "cgroup v2 memory.max", 64 * GIB, GIB)


def test_a_limit_of_cgroup_v1_counts_and_its_huge_default_does_not(tree: Tree) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/1\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "9",
    }
    found = host.memory(tree(files))
    assert found is not None
    assert (found.limit, found.source, found.free) == (64 * GIB, "host", 60 * GIB)
    files["sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes"] = str(GIB)
    files["sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes"] = str(GIB // 2)
    files["sys/fs/cgroup/memory/docker/1/memory.stat"] = f"inactive_file 1\ntotal_inactive_file {GIB // 4}\n"
    assert host.memory(tree(files)) == host.Memory(GIB, "cgroup v1 memory.limit_in_bytes", 64 * GIB, 3 * GIB // 4)


def test_free_memory_is_never_negative(tree: Tree) -> None:
    files = {"sys/fs/cgroup/memory.max": str(GIB), "sys/fs/cgroup/memory.current": str(2 * GIB)}
    found = host.memory(tree(files))
    assert found is not None
    assert found.free == 0


def test_the_limit_of_open_files_is_read_and_may_be_unlimited(tree: Tree) -> None:
    assert host.open_files(tree({})) == host.OpenFiles(1024, 524288)
    unlimited = {"proc/self/limits": "Max open files            unlimited            unlimited            files\n"}
    assert host.open_files(tree(unlimited)) == host.OpenFiles(None, None)


@pytest.mark.parametrize(("soft", "cap"), [(1024, 512), (3, 1), (1, 1), (0, 1), (None, None)])
def test_connections_may_take_half_of_the_open_files(soft: int | None, cap: int | None) -> None:
    assert host.connection_cap(host.OpenFiles(soft, soft)) == cap


@pytest.mark.parametrize(
    ("memory", "workers", "setting", "limit"),
    [
        (host.Memory(4 << 30, "cgroup v2 memory.max", 64 << 30, 1 << 30), 2, 0, int((4 << 30) * 0.85 / 2)),
        (host.Memory(64 << 30, "host", 64 << 30, 32 << 30), 1, 0, int((64 << 30) * 0.85)),
        (host.Memory(4 << 30, "host", 4 << 30, 1 << 30), 2, 1 << 40, 1 << 40),
        (host.Memory(4 << 30, "host", 4 << 30, 1 << 30), 0, 0, int((4 << 30) * 0.85)),
        (None, 2, 0, 0),
        (None, 2, 1 << 30, 1 << 30),
    ],
)
def test_workers_share_the_memory_that_there_is(
    memory: host.Memory | None, workers: int, setting: int, limit: int
) -> None:
    assert host.worker_memory(memory, workers, setting) == limit


def test_without_a_known_limit_there_is_no_connection_cap() -> None:
    assert host.connection_cap(None) is None


def test_the_memory_of_a_process_is_read_with_its_peak(tree: Tree) -> None:
    root = tree({"proc/77/status": "VmHWM: 10 kB\nVmRSS: 20 kB\n", "proc/78/status": "Name: gone\nState: Z (zombie)\n"})
    assert host.resident(root=root) == host.Resident(1 << 20, 2 << 20)
    assert host.resident(77, root) == host.Resident(20480, 20480)
    assert host.resident(78, root) is None
    assert host.resident(79, root) is None


@pytest.mark.parametrize(
    ("cores", "sessions", "workers", "setting", "threads"),
    [
        (8.0, 1, 1, 0, 8),
        (8.0, 3, 1, 0, 2),
        (8.0, 2, 2, 0, 2),
        (8.0, 100, 1, 0, 1),
        (0.5, 1, 1, 0, 1),
        (1.9, 1, 1, 0, 1),
        (2.9999999999999996, 1, 1, 0, 3),
        (4.0, 0, 0, 0, 4),
        (2.0, 5, 5, 6, 6),
    ],
)
def test_the_cores_are_divided_rounded_down_and_never_to_nothing(
    cores: float, sessions: int, workers: int, setting: int, threads: int
) -> None:
    assert host.intra_op_threads(cores, sessions, workers, setting) == threads


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a Linux /proc")
def test_the_real_machine_agrees_with_the_operating_system() -> None:
    found = host.cores()
    assert found.affinity == len(os.sched_getaffinity(os.getpid()))
    assert 0 < found.count <= found.affinity <= found.host
    memory = host.memory()
    assert memory is not None
    assert memory.host == pytest.approx(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), rel=0.01)
    assert 0 < memory.free <= memory.limit <= memory.host
    assert host.open_files() == host.OpenFiles(*resource.getrlimit(resource.RLIMIT_NOFILE))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a Linux /proc")
def test_the_real_process_grows_by_what_it_touches() -> None:
    before = host.resident()
    # Not from the allocator, which may have memory left that was touched before.
    with mmap.mmap(-1, 64 << 20) as block:
        block[:] = bytes([1]) * len(block)
        after = host.resident()
    assert before is not None
    assert after is not None
    assert after.peak >= after.now
    assert after.now - before.now > 50 << 20


def test_a_folder_that_exists_is_tried_by_writing_and_left_empty(tmp_path: Path) -> None:
    found = host.place(tmp_path)
    assert (found.exists, found.refused) == (True, "")
    assert found.free > 0
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_judged_by_the_nearest_one_above_and_not_made(tmp_path: Path) -> None:
    found = host.place(tmp_path / "a" / "b")
    assert (found.exists, found.refused) == (False, "")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = host.place(tmp_path / "file")
    assert (place.exists, place.refused) == (True, "Not a directory")
    assert place.free > 0
    assert host.place(tmp_path / "file" / "below").refused == "Not a directory"


def test_a_folder_that_nobody_can_write_is_refused_even_to_root() -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs a Linux /proc")
    assert host.place(Path("/proc/self/fd")).refused


def test_a_port_that_is_taken_is_refused_and_free_again_afterwards() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        assert host.refused_port("127.0.0.1", port) == "Address already in use"
    assert host.refused_port("127.0.0.1", port) == ""
    assert host.refused_port("127.0.0.1", 0) == ""


def test_an_address_that_is_not_ours_is_refused() -> None:
    assert host.refused_port("192.0.2.1", 0) == "Cannot assign requested address"


def test_the_clock_tells_whether_it_is_synchronised_or_nothing() -> None:
    assert host.is_clock_synchronised() in (True, False, None)


def test_a_variable_is_read_as_a_c_library_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TEST_OF_C", "seen")
    assert host.c_variable("A_TEST_OF_C") == "seen"
    monkeypatch.delenv("A_TEST_OF_C")
    assert host.c_variable("A_TEST_OF_C") is None


def test_who_stands_back_does_so_as_a_session_too() -> None:
    """Linux may divide a core between sessions before it looks at what their processes are content with."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.setsid()
        host.stand_back(7)
        try:
            group = Path("/proc/self/autogroup").read_text()
        except OSError:
            group = ""
        os.write(write, f"{os.nice(0)} {group}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as told:
        words = told.read().split()
    assert int(words[0]) == os.nice(0) + 7
    assert not words[1:] or words[-1] == "7"
