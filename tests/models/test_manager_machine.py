"""The manager under any sequence of events: what must hold at every published state, whatever happens."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.errors import HeadgateError, LoadRejected, LoadUnavailable, UnknownModel
from gateway.inference.call import Call
from gateway.models.config import ModelConfig
from gateway.models.servable import Servable
from gateway.models.source import VersionFiles
from gateway.models.table import ModelTable, ServingTable
from gateway.models.wishes import AliasMove, ModelWishes
from tests.models.fakes import Lifecycle, config_of, files_of

VERSIONS = st.integers(1, 3)
LOOKS = st.sampled_from([0, 2, 2])
"""Steps until the next event: two are enough for the manager to see what changed, none lets changes pile up."""


class WatchedTable(ServingTable):
    """Remembers every table that was published."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[ModelTable | None] = [None]

    def publish(self, models: Mapping[str, ModelTable]) -> None:
        super().publish(models)
        self.history.append(models.get("m"))


class ManagerMachine(RuleBasedStateMachine):
    """Files come, change and go, trials end well or badly, requests begin and end, operators wish."""

    def __init__(self) -> None:
        super().__init__()
        self.table = WatchedTable()
        self.life = Lifecycle(table=self.table)
        self.files: dict[int, VersionFiles] = {}
        self.config = config_of()
        self.toml_is_broken = False
        self.refused: dict[str, HeadgateError] = {}
        self.requests: list[Call] = []
        self.edition = 0
        self.seen = 1
        self.retired: set[int] = set()
        self.kept: list[Servable] = []

    @initialize(champion=st.sampled_from([None, 2]))
    def a_first_version_serves(self, champion: int | None) -> None:
        self.model_toml_is_written(1, champion)
        self.files_appear_or_change(2, True)
        self.time_passes(1.0, 2)
        for _ in range(2):
            self.life.jobs.run()
            self.time_passes(1.0, 1)
        assert self.life.ready() == [2]

    # -- the folder

    @rule(version=VERSIONS, complete=st.sampled_from([True, True, False]), looks=LOOKS)
    def files_appear_or_change(self, version: int, complete: bool, looks: int = 0) -> None:
        self.edition += 1
        self.files[version] = files_of(version, str(self.edition), "" if complete else "half of it")
        self.time_passes(1.0, looks)

    @rule(version=VERSIONS, looks=LOOKS)
    def files_vanish(self, version: int, looks: int) -> None:
        self.files.pop(version, None)
        self.time_passes(1.0, looks)

    @rule(count=st.integers(1, 2), champion=st.none() | VERSIONS, looks=LOOKS)
    def model_toml_is_written(self, count: int, champion: int | None, looks: int = 0) -> None:
        self.config = config_of(count=count, aliases={"champion": champion} if champion is not None else {})
        self.toml_is_broken = False
        self.time_passes(1.0, looks)

    @rule()
    def model_toml_is_damaged(self) -> None:
        self.toml_is_broken = True

    @rule(error=st.sampled_from([None, OSError(5, "Input/output error")]))
    def the_folder_fails_or_recovers(self, error: OSError | None) -> None:
        self.life.source.error = error

    # -- the loads

    @precondition(lambda self: self.life.jobs.jobs)
    @rule(error=st.sampled_from([None, None, None, LoadRejected("bad"), LoadUnavailable("later"), RuntimeError("bug")]))
    def a_job_ends(self, error: Exception | None) -> None:
        def verdict(*_: object) -> HeadgateError | None:
            if error is not None and not isinstance(error, HeadgateError):
                raise error
            return error

        self.life.loader.checked = self.life.loader.loaded = verdict
        self.life.jobs.run()
        self.time_passes(0.05, 1)

    # -- the requests

    @rule(slot=st.none() | VERSIONS.map(str) | st.just("champion"))
    def a_request_begins(self, slot: str | None) -> None:
        try:
            self.requests.append(self.life.begin(slot))
        except HeadgateError:
            return

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def a_request_ends(self, data: st.DataObject) -> None:
        self.life.end(self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1))))

    # -- the operators

    @rule(
        held=st.sets(VERSIONS, max_size=2),
        pinned=st.sets(VERSIONS, max_size=1),
        all_held=st.sampled_from([False, False, False, True]),
        champion=st.none() | VERSIONS,
    )
    def an_operator_wishes(self, held: set[int], pinned: set[int], all_held: bool, champion: int | None) -> None:
        moves = {"champion": AliasMove(champion, self.config.aliases.get("champion"))} if champion else {}
        wishes = ModelWishes(moves, all_held, tuple(sorted(held - pinned)), tuple(sorted(pinned)))
        self.life.manager.wishes.put("m", wishes)

    # -- time

    @rule(seconds=st.sampled_from([0.05, 1.0, 1.0, 1.0, 20.0, 400.0]), steps=st.integers(1, 3))
    def time_passes(self, seconds: float, steps: int) -> None:
        for _ in range(steps):
            self.life.now += seconds
            self.step()

    def step(self) -> None:
        config: ModelConfig | None = None if self.toml_is_broken else self.config
        if self.files:
            error = "model.toml is damaged" if self.toml_is_broken else ""
            self.life.put(*self.files.values(), config=config, error=error)
        else:
            self.life.source.folders.pop("m", None)
        self.life.manager.step(self.life.now)
        for before, after in zip(self.table.history[self.seen - 1 :], self.table.history[self.seen :], strict=False):
            self.check(before, after)
        self.seen = len(self.table.history)

    # -- what must hold

    def check(self, before: ModelTable | None, after: ModelTable | None) -> None:
        """From one published state to the next."""
        old, new = (dict(table.ready) if table else {} for table in (before, after))
        if old and not new:
            assert not self.could_serve(set(old)), "the last ready version was withdrawn though another is wanted"
        for version, servable in old.items():
            if new.get(version) is not servable:
                self.retired.add(id(servable))
                self.kept.append(servable)
        assert not {id(servable) for servable in new.values()} & self.retired, "a state moved backwards"
        aliases = (dict(table.aliases) if table else {} for table in (before, after))
        was, now = (known.get("champion") for known in aliases)
        if was != now and now is not None and was in new:
            assert now in new, "an alias left a ready version for one that is not"

    def could_serve(self, serving: set[int]) -> set[int]:
        """The versions that are neither excluded nor refused nor without files; what serves may have newer, bad ones.

        From outside of the policy.
        """
        entry = self.life.manager.entries.get("m")
        if entry is None:
            return set()
        wishes = self.life.manager.wishes.get("m")
        found = set()
        for version, record in entry.records.items():
            if record.files is None or wishes.excludes(version):
                continue
            failure = record.failure
            refused = failure is not None and failure.identity == entry.identity(record.files)
            if version in serving or (record.files.complete and not refused):
                found.add(version)
        return found

    @invariant()
    def a_version_with_requests_is_never_released(self) -> None:
        entry = self.life.manager.entries.get("m")
        for servable in (call.servable for call in self.requests):
            assert servable.in_flight > 0
            assert entry is not None
            record = entry.records[servable.version]
            assert record.servable is servable or any(each is servable for each in record.draining)

    @invariant()
    def a_model_is_loaded_one_version_at_a_time(self) -> None:
        assert len(self.life.jobs.jobs) <= 1

    @invariant()
    def what_is_said_of_a_version_is_so(self) -> None:
        model = self.table.models.get("m")
        if model is None:
            return
        assert [status.version for status in model.statuses] == sorted({status.version for status in model.statuses})
        assert {status.version for status in model.statuses if status.state == "READY"} == set(model.ready)
        for status in model.statuses:
            assert status.state in ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")
            assert status.reason or status.state == "READY"

    @invariant()
    def without_a_champion_the_highest_answers_and_with_one_no_other(self) -> None:
        try:
            model = self.table.model("m")
        except UnknownModel:
            return
        default = model.default()
        champion = model.aliases.get("champion")
        if champion is not None:
            assert default is model.ready.get(champion)
        elif model.ready:
            assert default is model.ready[max(model.ready)]

    def teardown(self) -> None:
        """When all goes well from here on, what should serve does, and nothing else is left."""
        self.life.source.error = None
        self.toml_is_broken = False
        self.life.manager.wishes.put("m", ModelWishes())
        while self.requests:
            self.life.end(self.requests.pop())
        self.files = {version: files_of(version, f"final{version}") for version in self.files}
        self.life.loader.checked = self.life.loader.loaded = lambda *_: None
        for _ in range(60):
            self.life.now += 500.0
            self.step()
            while self.life.jobs.jobs:
                self.life.jobs.run()
        champion = self.config.aliases.get("champion")
        wanted = set(sorted(self.files)[-self.config.versions.count :]) | ({champion} & set(self.files))
        assert set(self.life.ready()) == wanted
        entry = self.life.manager.entries.get("m")
        assert entry is None or not any(record.draining for record in entry.records.values())
        assert all(servable.in_flight == 0 for servable in self.kept)


ManagerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestManager = ManagerMachine.TestCase
