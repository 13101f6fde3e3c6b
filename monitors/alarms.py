"""Alarms: the few messages that evidence turns into. They latch, say what they are about, and are acknowledged."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from monitors.evidence.findings import Finding
from monitors.evidence.pack import pack, unpack
from monitors.evidence.watches import Watch

__all__ = ["Acknowledgement", "Alarm", "Alarms"]

log = logging.getLogger("headgate.monitors")

KIND = "alarms"
FIELDS = {"alarms": bytes, "quiet_until": dict, "watches": dict, "raised": int, "forgotten": int}
SENTENCES = {
    "different-from-training": "the rows differ from those the model was trained on",
    "changed-since-last-week": "the rows differ from those of the epoch before",
    "labels-differ-from-training": "labels differ from those in training at the same score",
    "performs-worse": "the losses are higher than they may be",
    "scores-out-of-order": "the scores have changed over time",
}
LEARNED_SENTENCES = {
    "different-from-training": "the rows differ from the first ones, which its baseline was learned from",
    "performs-worse": "the losses are higher than those of the first labels",
}
"""Where there is nothing of the training data to compare with."""


WITHOUT_BASELINE = ("changed-since-last-week", "scores-out-of-order")
"""Kinds that compare rows with those before them."""


class Acknowledgement(msgspec.Struct, frozen=True):
    """Who has seen an alarm, when, and what they say about it."""

    by: str
    at_ns: int
    note: str = ""


class Alarm(msgspec.Struct, frozen=True):
    """A message that the evidence against "nothing has changed" has reached what the budget asks for.

    `id` is unique and the same when the same rows are read again. `log_m` and `log_threshold` are natural logarithms;
    `finding` says what it is about, as it was when the alarm was raised. Times are Unix nanoseconds. `baseline`: what
    "usual" means: "built" from training data, "learned" from the first live rows (or labels), or "none".
    `delivered`: whether the receiver of a webhook has taken it.
    """

    id: str
    watch: str
    model: str
    version: int
    kind: str
    budget: str
    raised_ns: int
    log_m: float
    log_threshold: float
    finding: Finding
    acknowledged: Acknowledgement | None = None
    baseline: str = "built"
    delivered: bool = False

    @property
    def sentence(self) -> str:
        """One sentence for a person."""
        what = SENTENCES.get(self.kind, self.kind)
        if self.baseline == "learned":
            what = LEARNED_SENTENCES.get(self.kind, what)
        since = f" since about {_clock(self.finding.began_ns)}" if self.finding.began_ns is not None else ""
        named = [f"{each.feature} (PSI {each.psi:.2f}, {each.largest[0]})" for each in self.finding.features[:3]]
        named += [f"{each.loss} {each.mean:.4g} over {each.bound:.4g}" for each in self.finding.losses[:3]]
        about = f": {'; '.join(named)}" if named else ""
        return f"{self.model} version {self.version}: {what}{since}, {self.finding.rows} rows{about}"

    def explain(self) -> dict[str, Any]:
        """Everything about the alarm, ready for JSON."""
        return {"sentence": self.sentence, **msgspec.to_builtins(self)}


class Alarms:
    """The watches of one model version, by name, and their alarms: at most one unacknowledged alarm for each watch.

    Feed the watches, then `check`. While an alarm is latched its watch raises no other; once it is acknowledged, the
    evidence starts anew, and a change that is still there raises the next alarm, unless quiet was asked for.
    """

    def __init__(
        self, model: str, version: int, watches: Mapping[str, Watch], *, baseline: str = "built", keep: int = 200
    ) -> None:
        """`baseline`: see `Alarm`. `keep`: how many alarms are remembered; older ones that are acknowledged are
        dropped, and counted.
        """
        self.model, self.version, self.watches, self.keep = model, version, dict(watches), keep
        self.baseline = baseline
        self.raised = 0
        self.forgotten = 0
        self._alarms: list[Alarm] = []
        self._quiet_until: dict[str, int] = {}

    @property
    def all(self) -> tuple[Alarm, ...]:
        """All alarms that are remembered, oldest first."""
        return tuple(self._alarms)

    @property
    def latched(self) -> tuple[Alarm, ...]:
        """Those that nobody has acknowledged."""
        return tuple(each for each in self._alarms if each.acknowledged is None)

    def check(self, now_ns: int) -> tuple[Alarm, ...]:
        """The alarms that are due at this time of the stream, now latched. Call it after every block."""
        due = []
        for name, watch in self.watches.items():
            if (
                watch.log_m < watch.log_threshold
                or self._is_latched(name)
                or now_ns < self._quiet_until.get(name, now_ns)
            ):
                continue
            due.append(self._raise(name, watch, now_ns))
        return tuple(due)

    def _is_latched(self, name: str) -> bool:
        return any(each.watch == name for each in self.latched)

    def _raise(self, name: str, watch: Watch, now_ns: int) -> Alarm:
        alarm = Alarm(
            id=hashlib.sha256(f"{name} {self.model} {self.version} {now_ns} {self.raised}".encode()).hexdigest()[:32],
            watch=name,
            model=self.model,
            version=self.version,
            kind=watch.kind,
            budget=str(watch.budget),
            raised_ns=now_ns,
            log_m=watch.log_m,
            log_threshold=watch.log_threshold,
            finding=watch.finding(),
            baseline="none" if watch.kind in WITHOUT_BASELINE else self.baseline,
        )
        self.raised += 1
        self._alarms.append(alarm)
        self._forget()
        return alarm

    def _forget(self) -> None:
        while len(self._alarms) > self.keep:
            oldest = next((each for each in self._alarms if each.acknowledged is not None), None)
            if oldest is None:
                return
            self._alarms.remove(oldest)
            self.forgotten += 1

    def acknowledge(
        self, alarm_id: str, by: str, at_ns: int, note: str = "", quiet_until_ns: int | None = None
    ) -> Alarm:
        """Take note of an alarm: its watch starts anew, and says nothing before `quiet_until_ns` of the stream.

        Acknowledging twice changes nothing: the first acknowledgement stays. Raises KeyError for an unknown alarm.
        """
        place = next((index for index, each in enumerate(self._alarms) if each.id == alarm_id), None)
        if place is None:
            raise KeyError(alarm_id)
        alarm = self._alarms[place]
        if alarm.acknowledged is not None:
            return alarm
        name = alarm.watch
        if name in self.watches:
            self.watches[name].restart()
        if quiet_until_ns is not None:
            self._quiet_until[name] = quiet_until_ns
        self._alarms[place] = msgspec.structs.replace(alarm, acknowledged=Acknowledgement(by, at_ns, note))
        return self._alarms[place]

    def deliver(self, alarm_id: str) -> bool:
        """Note that the receiver of a webhook has an alarm; False where there is none of that id."""
        for place, alarm in enumerate(self._alarms):
            if alarm.id == alarm_id:
                self._alarms[place] = msgspec.structs.replace(alarm, delivered=True)
                return True
        return False

    def value(self) -> dict[str, dict[str, Any]]:
        """By watch: its evidence as a natural logarithm (None: none yet), what an alarm takes, budget and latch."""
        return {
            name: {
                "kind": watch.kind,
                "baseline": "none" if watch.kind in WITHOUT_BASELINE else self.baseline,
                "budget": str(watch.budget),
                "log_m": watch.log_m if watch.log_m > float("-inf") else None,
                "log_threshold": watch.log_threshold,
                "latched": self._is_latched(name),
            }
            for name, watch in self.watches.items()
        }

    def to_bytes(self) -> bytes:
        """The alarms and the state of every watch; equal histories give equal bytes."""
        state = {
            "alarms": msgspec.json.encode(self._alarms),
            "quiet_until": self._quiet_until,
            "watches": {name: watch.to_bytes() for name, watch in self.watches.items()},
            "raised": self.raised,
            "forgotten": self.forgotten,
        }
        return pack(KIND, state)

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not that of alarms.

        A watch whose state is of another form, since other blocks or classes of time are asked for now, begins anew.
        """
        state = unpack(KIND, data, FIELDS)
        try:
            alarms = msgspec.json.decode(state["alarms"], type=list[Alarm])
        except msgspec.MsgspecError as error:
            raise ValueError(f"the alarms in the state cannot be read: {error}") from error
        for name, watch in self.watches.items():
            try:
                watch.load(state["watches"][name])
            except (KeyError, ValueError) as error:
                watch.restart()
                facts = {"model": self.model, "version": self.version, "watch": name, "reason": str(error)}
                log.warning("evidence begins anew", extra={"event": "evidence-anew", **facts})
        self._alarms, self._quiet_until = alarms, dict(state["quiet_until"])
        self.raised, self.forgotten = state["raised"], state["forgotten"]


def _clock(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
