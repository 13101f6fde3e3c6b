"""The lifecycle's outside things, small and under a test's control: source, loader, executor, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from gateway.errors import HeadgateError
from gateway.inference.admission import Quotas
from gateway.inference.call import Call
from gateway.inference.pipeline import Pipeline
from gateway.models.config import ModelConfig, VersionRule
from gateway.models.manager import Manager
from gateway.models.manifest import Lineage
from gateway.models.quarantine import Report
from gateway.models.servable import Servable
from gateway.models.session import Session
from gateway.models.source import ModelFolder, Source, VersionFiles
from gateway.models.table import ServingTable
from gateway.models.wishes import WishBook
from gateway.oip.limits import Limits
from gateway.telemetry.counters import VersionCounters
from gateway.telemetry.store import CounterStore
from gateway.types import Contract
from tests.inference.fakes import FakeDoor, FakeSession

DEFAULTS = ModelConfig()
Verdict = Callable[[str, int], HeadgateError | None]


class FakeServable(Servable):
    """Notes that it was withdrawn."""

    def __init__(self, withdrawn: list[int], *args: Any) -> None:
        super().__init__(*args)
        self._withdrawn = withdrawn

    def withdraw(self) -> None:
        self._withdrawn.append(self.version)


class FakeLoader:
    """A loader whose results are arguments: why a version fails to pass or to load, or None."""

    def __init__(self, checked: Verdict = lambda *_: None, loaded: Verdict = lambda *_: None) -> None:
        self.checked, self.loaded = checked, loaded
        self.checks: list[tuple[str, int]] = []
        self.withdrawn: list[int] = []
        self.closed = False

    def check(self, model: str, files: VersionFiles, config: ModelConfig) -> Report:
        self.checks.append((model, files.version))
        _raise(self.checked(model, files.version))
        return report(files.fingerprint)

    def load(
        self, model: str, files: VersionFiles, config: ModelConfig, found: Report, counters: VersionCounters
    ) -> Servable:
        _raise(self.loaded(model, files.version))
        session = cast(Session, FakeSession())
        return FakeServable(self.withdrawn, model, files.version, session, config, found, Lineage(), counters)

    def close(self) -> None:
        self.closed = True


class FakeSource:
    """A folder as the test says it is."""

    def __init__(self) -> None:
        self.folders: dict[str, ModelFolder] = {}
        self.error: OSError | None = None

    def scan(self) -> dict[str, ModelFolder]:
        _raise(self.error)
        return dict(self.folders)


class AtOnce(Executor):
    """Runs what is submitted before `submit` returns."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        _run(future, fn, args, kwargs)
        return future


class ByHand(Executor):
    """Keeps what is submitted until the test runs it."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[Any], Any, tuple[Any, ...], dict[str, Any]]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append((future, fn, args, kwargs))
        return future

    def run(self, index: int = 0) -> None:
        """Run one of the jobs to its end."""
        _run(*self.jobs.pop(index))


class Lifecycle:
    """A manager with fakes around it, a clock that the test moves, and the pipeline that takes requests.

    One model is called ``m`` by default.
    """

    def __init__(
        self, loader: FakeLoader | None = None, wishes: WishBook | None = None, table: ServingTable | None = None
    ) -> None:
        self.source = FakeSource()
        self.loader = loader or FakeLoader()
        self.jobs = ByHand()
        self.table = table or ServingTable()
        self.pipeline = Pipeline(self.table, CounterStore(), Limits(), Quotas(64, 64, 64, 1.0), 60.0, 60.0)
        self.now = 1000.0
        self.counters: dict[tuple[str, int], VersionCounters] = {}
        self.manager = Manager(
            cast(Source, self.source),
            self.loader,
            self.table,
            wishes or WishBook(None),
            self.jobs,
            lambda model, version: self.counters.setdefault((model, version), VersionCounters()),
            poll_s=1.0,
            scanner=AtOnce(),
        )

    def put(
        self, *found: int | VersionFiles, model: str = "m", config: ModelConfig | None = DEFAULTS, error: str = ""
    ) -> None:
        """Make the model's folder hold these versions; a number stands for complete files."""
        files = [files_of(each) if isinstance(each, int) else each for each in found]
        self.source.folders[model] = ModelFolder(model, config, error, {each.version: each for each in files})

    def begin(self, slot: str | None = None) -> Call:
        """A request that is being answered until its call is ended."""
        return self.pipeline.admit(("m", slot), FakeDoor(), 0)

    def end(self, call: Call) -> None:
        """Its last word is said."""
        self.pipeline.abandon(call)

    @contextmanager
    def request(self, slot: str | None = None) -> Iterator[Servable]:
        """A request that is being answered meanwhile, by what it holds."""
        call = self.begin(slot)
        yield call.servable
        self.end(call)

    def step(self, times: int = 1) -> None:
        """Move the clock by a poll and step."""
        for _ in range(times):
            self.now += 1.0
            self.manager.step(self.now)

    def settle(self) -> None:
        """Step and run jobs until a look at the source changes nothing more."""
        self.step(2)
        for _ in range(50):
            if not self.jobs.jobs:
                self.step(2)
                if not self.jobs.jobs:
                    return
            while self.jobs.jobs:
                self.jobs.run()
                self.step()
        raise AssertionError("the lifecycle does not come to rest")

    def ready(self, model: str = "m") -> list[int]:
        """The versions that answer."""
        table = self.table.models.get(model)
        return sorted(table.ready) if table is not None else []

    def state(self, version: int, model: str = "m") -> tuple[str, str]:
        """State and reason as the index shows them."""
        status = self.table.model(model).status(version)
        assert status is not None
        return status.state, status.reason


def files_of(version: int, fingerprint: str = "a", waiting: str = "") -> VersionFiles:
    """Files of a version."""
    return VersionFiles(version, Path("nowhere"), f"{version}{fingerprint}", not waiting, False, waiting)


def config_of(policy: str = "latest", count: int = 1, **more: Any) -> ModelConfig:
    """A model.toml."""
    rule = VersionRule(cast(Any, policy), count, tuple(more.pop("only", ())))
    return ModelConfig(versions=rule, **more)


def report(sha256: str = "") -> Report:
    """What quarantine might report."""
    return Report(
        contract=Contract((), ()),
        sha256=sha256,
        size=1,
        verified=False,
        producer="",
        opsets={},
        memory_bytes=0,
        load_s=0.0,
        run_s=None,
        batch_run_s=None,
        golden_samples=0,
        unranked=(),
        notes=(),
    )


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _run(future: Future[Any], fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        future.set_result(fn(*args, **kwargs))
    except BaseException as error:
        future.set_exception(error)
