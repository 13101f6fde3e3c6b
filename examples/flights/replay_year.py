"""Send April to December 2013 to a server: every departure as a request, then what became of it as labels.

Departures go out in their order, labels between them as they become known: some twice, some before their prediction,
some that contradict each other or are corrected, some after the join window, some for flights that nobody asked about.
The same seed says the same. What was sent, and what was answered, is kept in two Parquet files.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from examples.flights.year import LATE_STEP, Said, inputs_of, load_year, plan, steps_of

URL = "http://127.0.0.1:8080"
MODEL = "flights"
CONNECTIONS = 4
BATCH_LINES = 500
TRIES = 8
SETTLE_S = 0.5
"""So much later than its join window a label is sent that is to be late."""

CHALLENGED_FROM = 7
"""From this month on, the first that version 2 has not learned from, every second request is one of version 2."""

OVERLOAD = (429, 503)


class SendError(Exception):
    """The server answered what no later step can go on from."""


class Client:
    """Connections to one server, one a thread. An overloaded server is asked again after the pause it asks for."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 80
        self._own = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._all:
            connection.close()

    def post(self, path: str, body: bytes) -> Any:
        """The JSON of a reply with status 200. Raises SendError, OSError."""
        for attempt in range(TRIES):
            connection = getattr(self._own, "connection", None)
            if connection is None:
                connection = self._own.connection = http.client.HTTPConnection(self._host, self._port, timeout=60)
                self._all.append(connection)
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                reply = connection.getresponse()
                data = reply.read()
            except (http.client.HTTPException, ConnectionError):
                # A connection that was idle is closed by the server; all that is sent may be sent again.
                connection.close()
                if attempt == TRIES - 1:
                    raise
                continue
            if reply.status == 200:
                return json.loads(data)
            if reply.status not in OVERLOAD or attempt == TRIES - 1:
                raise SendError(f"POST {path} was answered {reply.status}: {data[:300].decode(errors='replace')}")
            time.sleep(min(float(reply.headers.get("Retry-After", 1)), 5.0))
        raise AssertionError("unreachable")


class Pace:
    """When what may be sent: at most `rate` requests a second, and no step before its share of `seconds`."""

    def __init__(self, rate: float, seconds: float, steps: int) -> None:
        self._gap_s = 1 / rate
        self._step_s = seconds / steps
        self._began = self._next = time.monotonic()

    def request(self) -> None:
        """Wait until another request may go out."""
        now = time.monotonic()
        if self._next > now:
            time.sleep(self._next - now)
        self._next = max(self._next, now - 1.0) + self._gap_s

    def step(self, number: int) -> None:
        """Wait until a step may begin."""
        time.sleep(max(0.0, self._began + number * self._step_s - time.monotonic()))


class Replay:
    """One run. `predictions` and `said` hold what was sent and answered, a row each, in the order of sending."""

    def __init__(self, client: Client, year: pd.DataFrame, run: str, window_s: float) -> None:
        self._client = client
        self._year = year
        self._run = run
        self._window_s = window_s
        self._ids: dict[int, tuple[str, float]] = {}
        self._lines: dict[tuple[int, int], tuple[dict[str, Any], str]] = {}
        self.predictions: list[dict[str, Any]] = []
        self.said: list[dict[str, Any]] = []

    def go(self, steps: dict[int, list[Said]], pace: Pace, tell: Any) -> None:
        """Send everything. Raises SendError, OSError."""
        late = deque(steps.pop(LATE_STEP, []))
        by_step = dict(tuple(self._year.groupby("step", sort=True)))
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for step in range(min(-1, *steps), max([*steps, *by_step]) + 1):
                pace.step(max(step, 0))
                if step in by_step:
                    self._predict(by_step[step], pool, pace)
                self._say(step, steps.get(step, []))
                self._say(step, self._due(late))
                tell(step)
        while late:
            time.sleep(max(0.0, self._ready(late[0]) - time.monotonic()))
            self._say(LATE_STEP, self._due(late))

    # -- predictions

    def _predict(self, day: pd.DataFrame, pool: ThreadPoolExecutor, pace: Pace) -> None:
        waiting = []
        for number, rows in day.groupby("request", sort=True):
            pace.request()
            waiting.append(pool.submit(self._ask, int(number), rows))
        for each in waiting:
            self.predictions += each.result()

    def _ask(self, number: int, rows: pd.DataFrame) -> list[dict[str, Any]]:
        version = 2 if rows["month"].iloc[0] >= CHALLENGED_FROM and number % 2 else 1
        request_id = f"{self._run}-{number}"
        document = {"id": request_id, "inputs": inputs_of(rows)}
        reply = self._client.post(f"/v2/models/{MODEL}/versions/{version}/infer", json.dumps(document).encode())
        answered = time.monotonic()
        prediction_id = reply["parameters"]["prediction_id"]
        outputs = {each["name"]: each["data"] for each in reply["outputs"]}
        found = []
        for place, flight in enumerate(rows.index.tolist()):
            self._ids[flight] = prediction_id, answered
            found.append(
                {
                    "flight": flight,
                    "request_id": request_id,
                    "row": place,
                    "prediction_id": prediction_id,
                    "version": int(reply["model_version"]),
                    "answered_label": outputs["label"][place],
                    "answered_late": outputs["probabilities"][2 * place + 1],
                }
            )
        return found

    # -- labels

    def _due(self, late: deque[Said]) -> list[Said]:
        found = []
        while late and self._ready(late[0]) <= time.monotonic():
            found.append(late.popleft())
        return found

    def _ready(self, said: Said) -> float:
        """When (monotonic) what is to be late may be sent: the prediction was made before its answer was here."""
        if said.flight not in self._ids:
            return float("inf")
        return self._ids[said.flight][1] + self._window_s + SETTLE_S

    def _say(self, step: int, all_said: Sequence[Said]) -> None:
        for at in range(0, len(all_said), BATCH_LINES):
            some = all_said[at : at + BATCH_LINES]
            lines = [self._line(said) for said in some]
            body = b"\n".join(json.dumps(line).encode() for line in lines)
            reply = self._client.post("/v1/feedback:batch", body)
            for said, line, answer in zip(some, lines, reply["results"], strict=True):
                self._lines[said.flight, said.number] = line, answer.get("feedback_id", "")
                self.said.append(
                    {
                        "step": step,
                        "flight": said.flight,
                        "meant": said.meant,
                        "feedback_id": answer.get("feedback_id", ""),
                        "status": answer.get("status", answer.get("code", "")),
                        "replayed": bool(answer.get("replayed")),
                        "prediction_id": line.get("prediction_id", ""),
                        "request_id": line.get("request_id", ""),
                        "row": line.get("row", 0),
                        "value": line["value"],
                        "source": line["source"]["id"],
                        "observed_at": line["observed_at"],
                        "supersedes": line.get("supersedes", ""),
                        "key": line["idempotency_key"],
                    }
                )

    def _line(self, said: Said) -> dict[str, Any]:
        if said.resends:
            return self._lines[said.flight, 0][0]
        about = f"cancelled-{said.number}" if said.flight < 0 else f"{said.flight}-{said.number}"
        line = {
            "name": "late",
            "value": said.value,
            "source": {"type": "SYSTEM", "id": said.source},
            "idempotency_key": f"{self._run}-{about}",
        }
        if said.flight < 0:
            return line | {"request_id": f"{self._run}-{about}", "model": MODEL, "observed_at": "2013-12-31T00:00:00Z"}
        row = self._year.loc[said.flight]
        line["observed_at"] = row["landed"].strftime("%Y-%m-%dT%H:%M:%SZ")
        line["row"] = int(row["row"])
        if said.by_request:
            return line | {"request_id": f"{self._run}-{row['request']}", "model": MODEL}
        if said.corrects:
            line["supersedes"] = self._lines[said.flight, 0][1]
        return line | {"prediction_id": self._ids[said.flight][0]}

    def save(self, folder: Path) -> None:
        """Write ``predictions.parquet`` (with the inputs and the truth) and ``feedback.parquet``."""
        folder.mkdir(parents=True, exist_ok=True)
        sent = pd.DataFrame(self.predictions).merge(
            self._year.drop(columns=["row", "request"]), left_on="flight", right_index=True, validate="one_to_one"
        )
        sent.to_parquet(folder / "predictions.parquet", index=False)
        pd.DataFrame(self.said).to_parquet(folder / "feedback.parquet", index=False)


def summary(replay: Replay) -> str:
    """What was sent, for people."""
    versions = Counter(each["version"] for each in replay.predictions)
    requests = len({each["request_id"] for each in replay.predictions})
    shares = ", ".join(f"{count:,} by version {version}" for version, count in sorted(versions.items()))
    lines = [f"{len(replay.predictions):,} flights predicted in {requests:,} requests: {shares}"]
    lines.append(f"{len(replay.said):,} lines of feedback, which are meant to be and were answered:")
    told = Counter((each["meant"], "replayed" if each["replayed"] else each["status"]) for each in replay.said)
    lines += [f"  {meant:11} {answered:9} {count:8,}" for (meant, answered), count in sorted(told.items())]
    return "\n".join(lines)


def replay_year(
    url: str,
    out: Path,
    *,
    flights: int | None = None,
    seed: int = 7,
    rate: float = 2000.0,
    seconds: float = 0.0,
    window_s: float = 0.0,
    run: str = "",
) -> Replay:
    """Load the year, send it, keep what was sent in `out`; see `main` for the options. Raises SendError, OSError."""
    year = load_year(flights)
    client = Client(url)
    replay = Replay(client, year, run or f"year-{int(time.time())}", window_s)
    steps = steps_of(year)
    shown = sys.stderr.isatty()

    def tell(step: int) -> None:
        if shown:
            filled = min(step + 1, steps) * 30 // steps
            print(f"\r2013 [{'#' * filled:30}] {len(replay.predictions):,} of {len(year):,}", end="", file=sys.stderr)

    try:
        replay.go(plan(year, seed, late=window_s > 0), Pace(rate, seconds, steps), tell)
    finally:
        client.close()
        if shown:
            print(file=sys.stderr)
        if replay.predictions:
            replay.save(out)
    return replay


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and send the year."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.flights.replay_year",
        description="Send the departures of April to December 2013 to a Headgate server as fast as it takes them, or "
        "in a given time, and then, as they landed, whether they were late.",
    )
    parser.add_argument("--url", default=URL, help=f"address of the server (default: {URL})")
    parser.add_argument("--flights", type=int, metavar="N", help="about so many, evenly over the year (default: all)")
    parser.add_argument("--seed", type=int, default=7, help="of what is sent twice, early and so on (default: 7)")
    parser.add_argument("--rate", type=float, default=2000.0, help="most requests a second (default: 2000)")
    parser.add_argument("--seconds", type=float, default=0.0, help="for the whole year (default: as fast as it goes)")
    parser.add_argument(
        "--join-window",
        type=float,
        default=0.0,
        metavar="S",
        help="the declared join window in seconds: some labels wait until it is over (default: nothing is late)",
    )
    parser.add_argument("--out", type=Path, default=Path("year"), help="folder for what was sent (default: year)")
    parser.add_argument("--run", default="", help="begins every request id and key (default: made from the time)")
    options = parser.parse_args(arguments)
    try:
        replay = replay_year(
            options.url,
            options.out,
            flights=options.flights,
            seed=options.seed,
            rate=options.rate,
            seconds=options.seconds,
            window_s=options.join_window,
            run=options.run,
        )
    except (SendError, OSError) as error:
        print(f"replay_year: {error}", file=sys.stderr)
        return 1
    print(summary(replay))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
