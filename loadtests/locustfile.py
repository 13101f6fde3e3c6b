"""Users with think time, for locust: each asks the models that ship, waits as a person or a service would, asks again.

``make loadtest`` runs it (loadtests/users.py). It is no benchmark: it shows latencies, errors and growth under a load
that comes and goes, where the benchmark shows how much fits.
"""

# locust is in an environment of its own, which the type checker does not see.
# mypy: disable-error-code="import-not-found,misc,untyped-decorator"

from __future__ import annotations

import itertools
import random
import uuid
from collections import deque
from typing import Any

from locust import FastHttpUser, LoadTestShape, between, constant_pacing, events, tag, task

from loadtests import bodies, shapes

BODIES = {
    (model, form): bodies.make(model, form, rows=1, count=256)
    for model in ("tiny", "flights")
    for form in ("json", "binary")
}


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """The one option of ours."""
    parser.add_argument("--pattern", choices=shapes.SHAPES, default="step", help="how the number of users changes")


class Client(FastHttpUser):
    """What all users have in common: asking a model and looking at the answer."""

    abstract = True
    connection_timeout = 5.0
    network_timeout = 10.0

    def on_start(self) -> None:
        """Every user begins somewhere else in the list of requests."""
        start = hash(id(self)) % 256
        self.turns = {key: itertools.islice(itertools.cycle(each), start, None) for key, each in BODIES.items()}

    def infer(self, model: str, form: str = "json", version: str = "") -> str:
        """Ask; anything but an answer of that model with outputs is a failure. Returns the id of the prediction."""
        slot = f"/versions/{version}" if version else ""
        body = next(self.turns[model, form])
        name = f"{model}{slot} {form}"
        with self.client.post(
            f"/v2/models/{model}{slot}/infer", data=body.content, headers=body.headers, name=name, catch_response=True
        ) as reply:
            if reply.status_code != 200:
                reply.failure(f"{reply.status_code}: {(reply.text or '')[:200]}")
            elif f'"model_name":"{model}"'.encode() not in reply.content or b'"outputs":[{' not in reply.content:
                reply.failure("no answer of this model")
            return str(reply.headers.get("Headgate-Prediction-Id") or "") if reply.status_code == 200 else ""


class Desk(Client):
    """A person at a departure desk: a flight now and then, sometimes a look at what the model is."""

    weight = 5
    wait_time = between(0.5, 2.0)

    @tag("flights")
    @task(8)
    def flight(self) -> None:
        """Will it be late?"""
        self.infer("flights")

    @tag("flights")
    @task(2)
    def challenger(self) -> None:
        """The same question to the version on trial."""
        self.infer("flights", version="challenger")

    @tag("metadata")
    @task(1)
    def metadata(self) -> None:
        """What takes this model?"""
        self.client.get("/v2/models/flights", name="flights metadata")


class Service(Client):
    """Another program, which asks in a steady rhythm, by binary tensors as often as in JSON."""

    weight = 4
    wait_time = constant_pacing(0.1)

    @tag("tiny")
    @task
    def json(self) -> None:
        """A request in JSON."""
        self.infer("tiny")

    @tag("tiny")
    @task
    def binary(self) -> None:
        """A request with binary tensors."""
        self.infer("tiny", "binary")


class Airline(Client):
    """Asks about its flights when they leave, and says later which of them were late."""

    weight = 2
    wait_time = between(0.2, 1.0)

    def on_start(self) -> None:
        """No flight of its own is in the air yet."""
        super().on_start()
        self.in_the_air: deque[str] = deque()

    @tag("flights")
    @task
    def departure(self) -> None:
        """Will it be late?"""
        if prediction := self.infer("flights"):
            self.in_the_air.append(prediction)

    @tag("feedback")
    @task
    def arrival(self) -> None:
        """The flight that left first has landed; most are not late."""
        if not self.in_the_air:
            return
        event = {
            "prediction_id": self.in_the_air.popleft(),
            "name": "late",
            "value": random.random() < 0.2,
            "source": {"type": "SYSTEM", "id": "airline"},
        }
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        with self.client.post(
            "/v1/feedback", json=event, headers=headers, name="feedback", catch_response=True
        ) as reply:
            if reply.status_code != 201 or b'"matched"' not in reply.content:
                reply.failure(f"{reply.status_code}: {(reply.text or '')[:200]}")


class Watcher(Client):
    """The monitoring system and the load balancer."""

    weight = 1
    wait_time = constant_pacing(1.0)

    @tag("watch")
    @task
    def ready(self) -> None:
        """May I send traffic?"""
        self.client.get("/v2/health/ready", name="ready")

    @tag("watch")
    @task
    def metrics(self) -> None:
        """A scrape."""
        self.client.get("/metrics", name="metrics")


class Pattern(LoadTestShape):
    """The number of users over time, from --users, --run-time and --pattern."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Users and how many may start in a second; None ends the test."""
        options = self.runner.environment.parsed_options
        peak = options.num_users or 50
        users = shapes.users_at(options.pattern, self.get_run_time(), peak, options.run_time or 60)
        return None if users is None else (users, float(max(1, peak)))
