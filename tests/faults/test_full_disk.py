"""A disk that is really full: a small file system under the journal of a real server, filled to its last page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults.watch import logged, total
from tests.servers import Server

pytestmark = pytest.mark.faults

SIZE = 8 << 20
DROPPED = 'headgate_journal_lost_total{reason="dropped"}'


class Disk:
    """A file system of its own at `folder`."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no page free."""
        with self._ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert shutil.disk_usage(self._ballast.parent).free == 0

    def make_room(self) -> None:
        """Give it all back."""
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Where the server that is started with ``--data tmp_path/data`` has its journal."""
    folder = tmp_path / "data" / "journal"
    folder.mkdir(parents=True)
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield Disk(folder)
    # Lazily: the server may still be about to end.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def ask(server: Server, name: str = "") -> tuple[int, dict[str, str], Any]:
    """One request; its record needs a frame where it has a name."""
    item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    status, headers, body = server.request(
        "POST", "/v2/models/echo/infer", {"inputs": [item]} | ({"id": name} if name else {})
    )
    return status, headers, json.loads(body)


def is_kept(server: Server, answer: Any) -> bool:
    return server.request("GET", f"/v1/predictions/{answer['parameters']['prediction_id']}")[0] == 200


def test_on_a_full_disk_predictions_go_on_and_their_missing_records_are_counted(
    models: Path, tmp_path: Path, disk: Disk, start_server: Callable[..., Server]
) -> None:
    """1. The disk is full before the first request. 2. Five requests. 3. There is room again.
    Result: all are answered; five are counted as dropped; then records are kept again.
    """
    server = start_server(models, "--data", str(tmp_path / "data"))
    disk.fill()
    answers = [ask(server) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200] * 5
    server.wait_for(lambda: total(server, DROPPED) == 5, 10, "what was dropped is counted")
    assert total(server, "headgate_journal_errors_total") >= 1
    assert logged(server, "journal-failed", reason="No space left on device")
    assert not any(is_kept(server, answer) for _, _, answer in answers)
    disk.make_room()
    server.wait_for(lambda: is_kept(server, ask(server)[2]), 20, "records are kept again")


def test_where_records_are_required_a_full_disk_is_503_until_there_is_room_again(
    models: Path, tmp_path: Path, disk: Disk, start_server: Callable[..., Server]
) -> None:
    """1. The disk is filled while a segment is open: its rows have their room, the frames beside them soon have none.
    2. There is room again. Result: whatever was answered is kept; the rest was refused; then everything goes on.
    """
    server = start_server(models, "--data", str(tmp_path / "data"), "--journal-required")
    replies = [ask(server, "the first")]
    disk.fill()
    while replies[-1][0] == 200 and len(replies) < 100:
        replies.append(ask(server, f"{len(replies)} " + "x" * 200))
    status, headers, refusal = replies.pop()
    assert (status, refusal["code"]) == (503, "not-ready")
    assert int(headers["retry-after"]) >= 1
    assert ask(server, "y" * 200)[0] == 503
    assert server.request("GET", "/v2/health/ready")[0] == 200
    assert [status for status, _, _ in replies] == [200] * len(replies)
    assert all(is_kept(server, answer) for _, _, answer in replies)
    disk.make_room()
    server.wait_for(lambda: ask(server, "z" * 200)[0] == 200, 20, "it answers again")
    assert is_kept(server, ask(server, "the last")[2])
