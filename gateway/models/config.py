"""`model.toml`: what a model's owner decides about all of its versions."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.feedback.rules import FeedbackRule, problem
from gateway.journal.keep import JournalRule
from gateway.models import performance
from gateway.models.manifest import is_alias
from gateway.models.performance import PerformanceRule

Positive = Annotated[int, Meta(ge=1)]


class VersionRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which versions are wanted: the `count` latest, all, or those of the list `only`."""

    policy: Literal["latest", "all", "specific"] = "latest"
    count: Positive = 1
    only: tuple[Positive, ...] = ()


class SessionRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ONNX Runtime options. `intra_op_threads` 0: the share of the cores that this machine gives a session.

    With `memory_arena` and `memory_pattern` off, models of variable shapes give memory back, at some cost in latency.
    """

    intra_op_threads: Annotated[int, Meta(ge=0, le=256)] = 0
    memory_arena: bool = True
    memory_pattern: bool = True


class Batching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether rows of several requests may run together, where quarantine proved that they may, and how many."""

    enabled: bool = True
    max_rows: Annotated[int, Meta(ge=1, le=65536)] = 64


class OutputRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of one output: class names by index, for the classification extension."""

    labels: tuple[str, ...] = ()


Budget = Annotated[str, Meta(pattern="^[0-9.]+ per ([0-9.]+ )?(model-)?(hour|day|week|month|quarter|year)s?$")]
Watch = Literal["training", "recent", "scores", "labels", "performance"]


class MonitorRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model is watched. `alarm_budget`: false alarms of each watch, such as ``1 per model-year``; `budgets`: of
    single ones, by name.

    `tolerance`: drift in PSI units that nobody wants to be told. `window_s`: what "now" means in the drift that is
    shown. `block_s`: how often evidence is looked at. `learn_rows`: of which a baseline is learned where a version has
    none, and `slices` the columns by whose values it is learned apart. `performance`: what feedback says about which
    output, where it does.
    """

    enabled: bool = True
    alarm_budget: Budget = "1 per model-year"
    budgets: dict[Watch, Budget] = {}
    tolerance: Annotated[float, Meta(ge=0, le=10)] = 0.01
    window_s: Annotated[float, Meta(ge=60, le=31_557_600)] = 86_400.0
    block_s: Annotated[float, Meta(ge=1, le=86_400)] = 300.0
    learn_rows: Annotated[int, Meta(ge=100, le=10_000_000)] = 5000
    slices: tuple[str, ...] = ()
    performance: PerformanceRule | None = None


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole `model.toml`; an absent file is all defaults. `nonfinite_inputs`: what NaN in an input gets."""

    description: str = ""
    versions: VersionRule = VersionRule()
    aliases: dict[str, Positive] = {}
    session: SessionRule = SessionRule()
    batching: Batching = Batching()
    outputs: dict[str, OutputRule] = {}
    nonfinite_inputs: Literal["accept", "refuse"] = "accept"
    journal: JournalRule = JournalRule()
    feedback: dict[str, FeedbackRule] = {}
    monitor: MonitorRule = MonitorRule()


def parse(data: bytes) -> ModelConfig:
    """Read a `model.toml`. Raises ValueError with one sentence that names the key."""
    try:
        config = msgspec.toml.decode(data, type=ModelConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"model.toml is not valid: {error}") from None
    for alias in config.aliases:
        if not is_alias(alias):
            raise ValueError(f"model.toml: alias {alias[:64]!r} must be a small letter and up to 31 of a-z 0-9 _ -")
    if config.versions.policy == "specific" and not config.versions.only:
        raise ValueError("model.toml: versions.policy 'specific' needs the list versions.only")
    for name, rule in config.feedback.items():
        wrong = problem(name, rule)
        if wrong is not None:
            raise ValueError(f"model.toml: {wrong}")
    judged = config.monitor.performance
    if judged is not None and (wrong := performance.problem(judged, config.feedback)) is not None:
        raise ValueError(f"model.toml: {wrong}")
    return config
