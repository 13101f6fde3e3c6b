"""The flights year in accelerated time: a server of its own, nine months in four minutes, and pictures of what it saw.

Records carry the time at which they came, so in the demo a month is what was sent in its share of the run, and
everything that model.toml says in days or years is shortened alike. The pictures are drawn from the series that the
admin port showed while it ran.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import argparse
import json
import math
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from examples.flights.chart import Line, Panel, png
from examples.flights.replay_year import Replay, SendError, replay_year, summary
from examples.flights.year import BEGIN, DAY

HERE = Path(__file__).parent
DAYS = 275
MONTHS = ("Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SCRAPE_S = 2.0
START_S = 60.0
LEAST_WINDOW_S = 60.0
"""What model.toml takes for the window of drift."""

LARGEST_PSI = 1.0
"""Where the picture of drift ends: by summer no temperature is one of winter."""

LEAST_ROWS = 300
"""Figures that rest on fewer are left out."""

Key = tuple[str, ...]


class Scrape(NamedTuple):
    """What the admin port showed: values by metric name and labels (their values, in the order of their names)."""

    day: float
    values: Mapping[tuple[str, Key], float]


class Speed(NamedTuple):
    """How the year fits into `seconds`."""

    seconds: float

    @property
    def day_s(self) -> float:
        """A day of 2013, in seconds of the run."""
        return self.seconds / DAYS

    @property
    def month_s(self) -> float:
        """The ninth part of the run."""
        return self.seconds / len(MONTHS)

    @property
    def join_window_s(self) -> int:
        """The thirty days of model.toml."""
        return max(2, round(30 * self.day_s))

    def model_toml(self, shipped: str) -> str:
        """The shipped model.toml in the time of the run. Raises ValueError where it does not say what is shortened."""
        changes = {
            'maturity = "1d"': f'maturity = "{max(1, round(self.day_s))}s"',
            'join_window = "30d"': f'join_window = "{self.join_window_s}s"',
            "[monitor.performance]\n": f"[monitor]\n"
            f'alarm_budget = "1 per {365 * self.day_s / 3600:.4f} hour"\n'
            f"window_s = {max(LEAST_WINDOW_S, self.month_s):.1f}\nblock_s = 1\n\n"
            f"[monitor.performance]\nwindow_s = {self.month_s:.1f}\n",
        }
        for old, new in changes.items():
            if shipped.count(old) != 1:
                raise ValueError(f"model.toml must have {old.strip()!r} once")
            shipped = shipped.replace(old, new)
        tomllib.loads(shipped)
        return shipped


@contextmanager
def serving(models: Path, scratch: Path) -> Iterator[tuple[str, str]]:
    """A server on free ports of loopback; gives its address and that of its admin port. Raises OSError."""
    log = scratch / "server.log"
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(models), "--data", str(scratch / "data")]
    command += ["--host", "127.0.0.1", "--port", "0", "--admin-port", "0", "--workers", "1"]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, cwd=HERE.parents[1]) as process,
    ):
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], START_S)
            line = process.stdout.readline().decode() if ready else ""
            if " on http://" not in line:
                raise OSError(f"the server did not start: {log.read_text()[-2000:]}")
            url = line.strip().rpartition(" on ")[2]
            _wait_ready(url, process, log)
            yield url, _admin_of(log)
        finally:
            process.terminate()


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/v2/models/flights/versions/2/ready", timeout=5):
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text()[-2000:]
                raise OSError(f"the server did not become ready ({error}); it logged {said}") from error
        time.sleep(0.2)


def _admin_of(log: Path) -> str:
    """The address of the admin port, from the line that the server logs when all of its processes have started."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        # The last line may be half written.
        lines = [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]
        found = [str(line["admin"]) for line in lines if line.get("event") == "started"]
        if found:
            return found[0]
        time.sleep(0.2)
    raise OSError("the server did not log where its admin port is")


class Scraper:
    """Reads the admin port every other second, in a thread, until it is stopped."""

    def __init__(self, admin: str, speed: Speed) -> None:
        self._admin, self._speed = admin, speed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper")
        self._began = 0.0
        self.scrapes: list[Scrape] = []

    def start(self) -> None:
        """Begin; the year begins now."""
        self._began = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End after another look."""
        self._stop.set()
        self._thread.join()
        self.scrapes.append(self.look())

    def look(self) -> Scrape:
        """One scrape."""
        with urllib.request.urlopen(f"{self._admin}/metrics", timeout=30) as reply:
            text = reply.read().decode()
        values = {
            (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if "_bucket" not in sample.name
        }
        return Scrape((time.monotonic() - self._began) / self._speed.day_s, values)

    def _run(self) -> None:
        while not self._stop.wait(SCRAPE_S):
            self.scrapes.append(self.look())


# -- what is drawn


def ticks() -> list[tuple[float, str]]:
    """The first of each month, in days since the first of April."""
    firsts = [(pd.Timestamp(2013, month, 1, tz="UTC") - BEGIN) / DAY for month in range(4, 13)]
    return list(zip(firsts, MONTHS, strict=True))


def series(scrapes: Sequence[Scrape], metric: str, labels: Key, rests_on: tuple[str, Key]) -> list[tuple[float, float]]:
    """The points of one series up to the end of the year; NaN where it was not there, or rests on too few rows."""
    return [
        (
            each.day,
            each.values.get((metric, labels), math.nan) if each.values.get(rests_on, 0) >= LEAST_ROWS else math.nan,
        )
        for each in scrapes
        if each.day <= DAYS
    ]


def drift_lines(scrapes: Sequence[Scrape], version: str, most: int = 6) -> list[Line]:
    """PSI of the inputs and outputs that drifted most on average."""
    found: dict[str, list[tuple[float, float]]] = {}
    for metric, labels in sorted({key for each in scrapes for key in each.values}):
        if metric == "headgate_drift_score" and labels[1:] == ("flights", "psi", version):
            rests_on = ("headgate_drift_samples", (labels[0], "flights", version))
            found[labels[0]] = series(scrapes, metric, labels, rests_on)
    means = {name: [y for _, y in points if math.isfinite(y)] for name, points in found.items()}
    strongest = sorted((name for name in means if means[name]), key=lambda name: -sum(means[name]) / len(means[name]))
    return [Line(_named(name, max(means[name])), found[name], at) for at, name in enumerate(strongest[:most])]


def _named(name: str, highest: float) -> str:
    """A name that says how high its line would go where the picture ends before."""
    return name if highest <= LARGEST_PSI else f"{name} (to {highest:.1f})"


def performance_lines(scrapes: Sequence[Scrape], metric: str) -> list[Line]:
    """Realised and estimated, of both versions."""
    lines = []
    for version in ("1", "2"):
        for kind in ("realised", "estimated"):
            key = (kind, metric, "flights", version)
            points = series(scrapes, "headgate_performance_ratio", key, ("headgate_performance_samples", key))
            lines.append(Line(f"version {version}, {kind}", points, int(version) - 1, dashed=kind == "estimated"))
    return lines


def by_month(scrapes: Sequence[Scrape], lines: Sequence[Line]) -> list[list[str]]:
    """A row for each month with each line's last value in it."""
    firsts = [first for first, _ in ticks()]
    rows = []
    for month, first, end in zip(MONTHS, firsts, [*firsts[1:], DAYS + 1], strict=True):
        cells = [month]
        for line in lines:
            own = [y for x, y in line.points if first <= x < end and math.isfinite(y)]
            cells.append(f"{own[-1]:.3f}" if own else "")
        rows.append(cells)
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def alarm_marks(alarms: Sequence[Mapping[str, Any]], began_ns: int, speed: Speed) -> list[tuple[float, str]]:
    """When each alarm was raised, in days of the year, and what it says."""
    marks = []
    for alarm in alarms:
        day = (alarm["raised_ns"] - began_ns) / 1e9 / speed.day_s
        marks.append((day, f"{alarm['watch']}, version {alarm['version']}"))
    return sorted(marks)


def draw(
    out: Path, scrapes: Sequence[Scrape], alarms: Sequence[Mapping[str, Any]], began_ns: int, speed: Speed, told: str
) -> None:
    """Write the pictures and the page that shows them."""
    out.mkdir(parents=True, exist_ok=True)
    marks = alarm_marks(alarms, began_ns, speed)
    drift = drift_lines(scrapes, "1")
    auc, accuracy = performance_lines(scrapes, "roc_auc"), performance_lines(scrapes, "accuracy")
    window = max(LEAST_WINDOW_S, speed.month_s) / speed.day_s
    beyond = any(y > LARGEST_PSI for line in drift for _, y in line.points)
    pictures = {
        "drift": Panel(f"Drift of version 1 against January to March: PSI of {window:.0f} days", drift, 0.0,
                       LARGEST_PSI if beyond else None,
                       [mark for mark in marks if "performance" not in mark[1] and mark[1].endswith("1")]),
        "auc": Panel("Area under the ROC curve, of a month", auc,
                     marks=[mark for mark in marks if "performance" in mark[1]]),
        "accuracy": Panel("Accuracy, of a month", accuracy),
    }  # fmt: skip
    for name, panel in pictures.items():
        png(out / f"flights-{name}.png", [panel], ticks(), float(DAYS))
    page = PAGE.format(
        seconds=f"{speed.seconds:.0f}",
        day=f"{speed.day_s:.2f}",
        window=f"{window:.0f}",
        rows=LEAST_ROWS,
        told=told,
        drift=table(["end of", *(line.name for line in drift)], by_month(scrapes, drift)),
        auc=table(["end of", *(line.name for line in auc)], by_month(scrapes, auc)),
        accuracy=table(["end of", *(line.name for line in accuracy)], by_month(scrapes, accuracy)),
        alarms="\n".join(f"* {(BEGIN + day * DAY):%d %B}: {text}" for day, text in marks) or "None.",
    )
    (out / "flights-year.md").write_text(page)


PAGE = """# The flights year

<!-- Made by `make demo` (examples/flights/demo.py). -->

April to December 2013 as a server saw them: [the flights](../examples/flights/README.md) of nine months in {seconds}
seconds, each predicted when it left and labelled when it had landed. Version 1 has learned from January to March;
from July on every second request is answered by version 2, which has learned from January to June.

Records carry the time at which they came. So a day is {day} seconds here, and what `model.toml` says in days or years
is shortened alike: how long labels may come, what "now" means, and how often a false alarm may be raised. All numbers
are what the admin port showed to a scrape every two seconds.

```text
{told}
```

## Drift

How far the inputs and answers of the last {window} days are from the training data (PSI, without what finite samples
add to it). The seasons are what a model that has only seen winter does not know. The picture ends at 1; the table has
the rest.

![Drift of the inputs](flights-drift.png)

{drift}

Alarms, and when they were raised:

{alarms}

## Performance

Realised by the labels that came, for the predictions of the last month; estimated without labels, from how often each
score was right in training. Figures of fewer than {rows} rows are left out. Where both fall, flights have become harder
to tell; where the estimate stays and the realised figure falls, the model has become wrong about them.

![Area under the ROC curve](flights-auc.png)

{auc}

![Accuracy](flights-accuracy.png)

{accuracy}
"""


def run(flights: int | None, seconds: float, out: Path) -> int:
    """Serve, send, look, draw. Raises SendError, OSError."""
    speed = Speed(seconds)
    with tempfile.TemporaryDirectory(prefix="headgate-demo-") as folder:
        scratch = Path(folder)
        models = scratch / "models"
        left_out = shutil.ignore_patterns("*.py", "*.md", "__pycache__")
        shutil.copytree(HERE, models / "flights", ignore=left_out)
        toml = models / "flights" / "model.toml"
        toml.write_text(speed.model_toml(toml.read_text()))
        with serving(models, scratch) as (url, admin):
            print(f"flights is served on {url}, its metrics on {admin}/metrics; the year takes {seconds:.0f} s")
            scraper = Scraper(admin, speed)
            began_ns = time.time_ns()
            scraper.start()
            try:
                replay: Replay = replay_year(
                    url, scratch / "sent", flights=flights, seconds=seconds, window_s=speed.join_window_s, run="demo"
                )
            finally:
                scraper.stop()
            with urllib.request.urlopen(f"{admin}/api/alarms", timeout=30) as reply:
                alarms = json.load(reply)
    draw(out, scraper.scrapes, alarms, began_ns, speed, summary(replay))
    print(summary(replay))
    print(f"{len(scraper.scrapes)} scrapes; pictures and flights-year.md are in {out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and show the year."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.flights.demo",
        description="Serve the flights in accelerated time and draw their drift and performance.",
    )
    parser.add_argument("--flights", type=int, default=30_000, metavar="N", help="about so many (default: 30000)")
    parser.add_argument("--seconds", type=float, default=240.0, help="for nine months (default: 240)")
    parser.add_argument(
        "--out", type=Path, default=HERE.parents[1] / "docs", help="folder for pictures (default: docs)"
    )
    options = parser.parse_args(arguments)
    try:
        return run(options.flights, options.seconds, options.out)
    except (SendError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
