"""The manager, stepped by hand, where versions fail and folders cannot be read."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from gateway.errors import HeadgateError, LoadUnavailable, NotReady
from gateway.models.manager import RETRY_S
from gateway.models.source import ModelFolder
from tests.models.fakes import FakeLoader, Lifecycle, config_of, files_of
from tests.models.stepping import BROKEN, serving

CROWDED = LoadUnavailable("no room just now")


# Failures and tries


def test_a_rejected_version_is_not_tried_again_until_its_files_change() -> None:
    life = Lifecycle(FakeLoader(lambda *_: BROKEN))
    life.put(1)
    life.settle()
    life.step(1000)
    assert life.loader.checks == [("m", 1)]
    life.loader.checked = lambda *_: None
    life.put(files_of(1, "b"))
    life.settle()
    assert life.ready() == [1]


def test_a_version_that_lacked_resources_is_tried_again_with_longer_and_longer_pauses() -> None:
    life = Lifecycle(FakeLoader(lambda *_: CROWDED))
    life.put(1)
    life.step(2)
    begun: list[float] = []
    while len(begun) < 7:
        if life.jobs.jobs:
            begun.append(life.now)
            life.jobs.run()
        life.step()
    pauses = [later - earlier for earlier, later in zip(begun, begun[1:], strict=False)]
    expected = [*RETRY_S, *RETRY_S[-1:] * 2]
    assert all(want <= got <= want + 2 for got, want in zip(pauses, expected, strict=True)), pauses
    assert life.state(1) == ("UNAVAILABLE", "no room just now")
    life.loader.checked = lambda *_: None
    life.step(301)
    life.settle()
    assert life.ready() == [1]


def test_the_pauses_begin_anew_when_the_files_change() -> None:
    life = Lifecycle(FakeLoader(lambda *_: CROWDED))
    life.put(1)
    life.settle()
    life.step(7)
    life.settle()
    assert len(life.loader.checks) == 2
    life.put(files_of(1, "b"))
    life.settle()
    assert len(life.loader.checks) == 3
    life.step(7)
    assert life.jobs.jobs


def test_a_failure_that_passes_does_not_displace_the_version_that_serves() -> None:
    life = serving(1, loader=FakeLoader(lambda _, version: CROWDED if version == 2 else None))
    life.put(1, 2)
    for _ in range(100):
        life.step()
        assert life.ready() == [1]
        while life.jobs.jobs:
            life.jobs.run()
            life.step()
            assert life.ready() == [1]


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (MemoryError(), "not enough memory to load it"),
        (RuntimeError("a path: /secret"), "an internal error stopped the load; see the log"),
    ],
)
def test_whatever_a_load_raises_ends_with_the_version_and_not_with_the_manager(
    raised: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def load(*_: object) -> HeadgateError | None:
        raise raised

    life = serving(1)
    life.loader.loaded = load
    life.put(1, 2)
    life.settle()
    assert life.ready() == [1]
    assert life.state(2) == ("UNAVAILABLE", reason)


# A source in trouble


def test_a_source_that_cannot_be_read_changes_nothing_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    life = serving(1)
    life.source.error = PermissionError(errno.EACCES, "Permission denied")
    life.step(5)
    assert life.ready() == [1]
    assert life.manager.source_error == "the model folder cannot be read (Permission denied)"
    assert [vars(record)["event"] for record in caplog.records].count("source-unavailable") == 1
    life.source.error = None
    life.put(1, 2)
    life.settle()
    assert (life.ready(), life.manager.source_error) == ([2], "")


def test_a_model_folder_that_cannot_be_read_changes_nothing_of_its_model() -> None:
    life = serving(1)
    life.source.folders["m"] = ModelFolder("m", None, "its folder cannot be read", readable=False)
    life.put(1, model="n")
    life.settle()
    assert (life.ready("m"), life.ready("n")) == ([1], [1])
    assert life.table.model("m").error == "its folder cannot be read"
    life.put(1, 2)
    life.settle()
    assert (life.ready("m"), life.table.model("m").error) == ([2], "")


def test_a_version_folder_that_cannot_be_read_serves_on() -> None:
    life = serving(1)
    life.put(replace(files_of(1), fingerprint="", complete=False, waiting="its folder cannot be read"))
    life.step(5)
    assert life.state(1) == ("READY", "")
    life.put(1)
    life.settle()
    assert life.loader.checks == [("m", 1)]


def test_a_model_toml_that_breaks_keeps_the_last_good_one_and_lets_nothing_new_in() -> None:
    life = Lifecycle()
    life.put(1, config=config_of("all", aliases={"champion": 1}))
    life.settle()
    life.put(1, 2, config=None, error="model.toml is not valid")
    life.settle()
    assert life.ready() == [1]
    assert life.table.model("m").error == "model.toml is not valid"
    assert life.table.model("m").aliases == {"champion": 1}
    assert life.state(2) == ("UNAVAILABLE", "model.toml is not valid")
    life.put(1, 2, config=config_of("all", aliases={"champion": 2}))
    life.settle()
    assert (life.ready(), life.table.model("m").aliases) == ([1, 2], {"champion": 2})


def test_a_model_toml_that_was_never_good_keeps_its_model_out_and_is_named() -> None:
    life = Lifecycle()
    life.put(1, config=None, error="model.toml is not valid")
    life.put(1, model="n")
    life.settle()
    assert (life.ready("m"), life.ready("n")) == ([], [1])
    with pytest.raises(NotReady, match=r"model\.toml is not valid"):
        life.table.find("m", None)
