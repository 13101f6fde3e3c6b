"""What msgspec knows of a class is found out before there are threads."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from gateway import structs
from tests.http.rig import Rig

RACE = """
import sys, threading, types
import msgspec
from gateway import structs

SOURCE = '''
from __future__ import annotations
import msgspec
class Inner(msgspec.Struct, frozen=True):
    a: str
    b: tuple[int, ...] = ()
class Outer(msgspec.Struct, frozen=True):
    many: tuple[Inner, ...]
    kept: dict[str, str] = {}
'''
THREADS = 4
sys.setswitchinterval(1e-6)
for index in range(400):
    module = types.ModuleType(f"module{index}")
    sys.modules[module.__name__] = module
    exec(SOURCE, module.__dict__)
    structs.prepare()
    together = threading.Barrier(THREADS)
    found = []
    def decode():
        together.wait()
        found.append(msgspec.json.decode(b'{"many":[{"a":"q","b":[1,2]}],"kept":{"z":"y"}}', type=module.Outer))
    threads = [threading.Thread(target=decode) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == THREADS
"""


def test_threads_may_decode_a_prepared_class_for_the_first_time_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_gateway_is_prepared_when_it_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = []
    monkeypatch.setattr(structs, "prepare", lambda: prepared.append(True))
    assert Rig().gateway
    assert prepared


def test_a_class_that_cannot_be_decoded_keeps_no_other_from_being_prepared() -> None:
    class Odd(msgspec.Struct):
        either: set[int] | Rig

    structs.prepare()
    with pytest.raises(TypeError):
        msgspec.json.Decoder(Odd)
