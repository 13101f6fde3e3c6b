"""The bell: who waits for it hears it at once, and who does not listen is not hurt by it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
import uvloop

from gateway.workers import bell
from gateway.workers.bell import Bell

AGES_S = 60.0


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_who_waits_hears_it_and_a_ring_before_the_wait_counts_once(make: type[asyncio.AbstractEventLoop]) -> None:
    async def listen() -> list[str]:
        mine, heard = Bell(), []
        for _ in range(2):
            bell.ring(os.getpid())
            await asyncio.sleep(0)
        await mine.wait(AGES_S)
        heard.append("before")
        asyncio.get_running_loop().call_later(0.01, bell.ring, os.getpid())
        await mine.wait(AGES_S)
        heard.append("while waiting")
        await mine.wait(0.01)
        heard.append("not at all")
        return heard

    with asyncio.Runner(loop_factory=make) as runner:
        heard = runner.run(asyncio.wait_for(listen(), AGES_S / 2))
    assert heard == ["before", "while waiting", "not at all"]


def test_a_process_that_does_not_listen_is_not_hurt_by_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        bell.ring(other.pid)
        other.communicate(b"\n", 60)
    assert other.returncode == 0


def test_ringing_at_nobody_or_at_one_that_has_ended_is_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    bell.ring(ended.pid)
    bell.ring(0)
