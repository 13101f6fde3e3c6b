"""The webhook: what is sent, how it is signed, what is tried again, what is counted; and one real endpoint."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import random
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from monitors.webhook import Event, Reply, Webhook, cloud_event, post, secret_of, signature

EVENT = cloud_event("a1", "dev.headgate.alarm", "/models/m", "m/1", 1_700_000_000_000_000_000, {"psi": 0.3})


class FakeClock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        self.waits.append(seconds)
        self.time += seconds
        return stop.is_set()


class Endpoint:
    """Answers as it is told: replies, or errors to raise; the last one for ever."""

    def __init__(self, *answers: Reply | Exception) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[bytes, dict[str, str]]] = []

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        self.seen.append((body, dict(headers)))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def hook(endpoint: Endpoint, **settings: object) -> Webhook:
    return Webhook(endpoint, [b"secret"], clock=FakeClock(), jitter=random.Random(1), **settings)  # type: ignore[arg-type]


def test_an_event_is_a_cloud_event_in_structured_mode() -> None:
    document = json.loads(EVENT.body)
    assert document == {
        "specversion": "1.0",
        "id": "a1",
        "source": "/models/m",
        "type": "dev.headgate.alarm",
        "subject": "m/1",
        "time": "2023-11-14T22:13:20Z",
        "datacontenttype": "application/json",
        "data": {"psi": 0.3},
    }


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of the specification's reference libraries: id, timestamp, body and secret with a known result."""
    secret = secret_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    made = signature([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_every_secret_signs_while_one_is_being_replaced() -> None:
    both = signature([b"old", b"new"], "a", 1, b"x").split(" ")
    assert both == [signature([each], "a", 1, b"x") for each in (b"old", b"new")]
    assert both[0] != both[1]


def test_a_delivery_carries_id_time_signature_and_type() -> None:
    endpoint = Endpoint(Reply(204))
    webhook = hook(endpoint, headers={"Authorization": "Bearer x"})
    assert webhook.deliver(EVENT) == "delivered"
    body, headers = endpoint.seen[0]
    expected = hmac.new(b"secret", b"a1.1700000000." + body, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()
    assert headers["webhook-id"] == "a1"
    assert headers["webhook-timestamp"] == "1700000000"
    assert headers["Content-Type"].startswith("application/cloudevents+json")
    assert headers["Authorization"] == "Bearer x"


@pytest.mark.parametrize(
    "answer", [Reply(500), Reply(503), Reply(429), Reply(408), OSError("no"), http.client.BadStatusLine("x")]
)
def test_what_may_pass_is_tried_again_after_growing_pauses(answer: Reply | Exception) -> None:
    endpoint = Endpoint(answer, answer, answer, answer, Reply(200))
    webhook = hook(endpoint)
    assert webhook.deliver(EVENT) == "delivered"
    clock = webhook.clock
    assert isinstance(clock, FakeClock)
    assert all(base / 2 <= waited <= base for base, waited in zip((1, 2, 4, 8), clock.waits, strict=True))
    assert webhook.retried == 4
    assert len({headers["webhook-id"] for _, headers in endpoint.seen}) == 1
    assert len({headers["webhook-timestamp"] for _, headers in endpoint.seen}) > 2
    assert webhook.last_error is None


@pytest.mark.parametrize("status", [301, 302, 400, 401, 404, 410, 422])
def test_a_final_answer_is_taken_as_final(status: int) -> None:
    endpoint = Endpoint(Reply(status))
    webhook = hook(endpoint)
    assert webhook.deliver(EVENT) == "refused"
    assert len(endpoint.seen) == 1
    assert webhook.last_error == f"status {status}"


def test_pauses_have_an_upper_bound_and_trying_has_an_end() -> None:
    webhook = hook(Endpoint(Reply(500)), longest_pause_s=60, give_up_s=3600)
    assert webhook.deliver(EVENT) == "expired"
    clock = webhook.clock
    assert isinstance(clock, FakeClock)
    assert max(clock.waits) <= 60
    assert 3400 < sum(clock.waits) <= 3600


@pytest.mark.parametrize(
    ("said", "waited"),
    [("120", 120), ("Tue, 14 Nov 2023 22:15:20 GMT", 120), ("99999999", 300), ("soon", 1), ("", 1), ("-5", 1)],
)
def test_retry_after_is_heeded_within_reason(said: str, waited: float) -> None:
    webhook = hook(Endpoint(Reply(503, said), Reply(200)))
    assert webhook.deliver(EVENT) == "delivered"
    clock = webhook.clock
    assert isinstance(clock, FakeClock)
    assert clock.waits[0] == pytest.approx(waited, abs=0.5)


def test_a_full_queue_drops_and_counts_and_never_waits() -> None:
    webhook = hook(Endpoint(Reply(200)), capacity=2)
    assert [webhook.send(EVENT) for _ in range(5)] == [True, True, False, False, False]
    assert webhook.dropped["full"] == 3
    assert webhook.value()["waiting"] == 2
    webhook.close()
    assert webhook.dropped["closed"] == 2
    assert not webhook.send(EVENT)
    assert webhook.dropped["closed"] == 3


def test_a_defect_of_ours_costs_one_event_and_not_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    """1. What is told of deliveries raises at the first one. Result: it is counted and logged, the second arrives."""
    told, done = [], threading.Event()

    def on_delivered(event_id: str) -> None:
        told.append(event_id)
        if len(told) == 1:
            raise RuntimeError("a defect")
        done.set()

    webhook = hook(Endpoint(Reply(200)), on_delivered=on_delivered)
    webhook.send(EVENT)
    webhook.send(EVENT)
    webhook.start()
    assert done.wait(10)
    webhook.close()
    assert webhook.dropped["failed"] == 1
    assert "a defect" in caplog.text


def test_closing_ends_a_delivery_that_waits() -> None:
    attempted = threading.Event()

    def failing(body: bytes, headers: Mapping[str, str]) -> Reply:
        attempted.set()
        return Reply(500)

    webhook = Webhook(failing, [b"s"], first_pause_s=1000, longest_pause_s=1000)
    webhook.start()
    webhook.send(EVENT)
    assert attempted.wait(10)
    webhook.close(timeout_s=10)
    assert webhook.dropped["closed"] == 1


@pytest.mark.parametrize("wrong", ["a b", "a.b", "", "a\r\nx: y", "ä", "x" * 257])
def test_an_id_that_could_be_misread_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="event id"):
        cloud_event(wrong, "t", "/s", "s", 0, {})


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        cloud_event("a", "t", "/s", "s", 0, {"psi": float("nan")})


@pytest.mark.parametrize("url", ["ftp://h/x", "h/x", "https://", "https://user:pw@h/x", "file:///etc/passwd"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="webhook URL"):
        post(url, 1)


@pytest.mark.parametrize("secrets", [[], [b""], [b"a", b""]])
def test_a_webhook_without_a_secret_is_refused(secrets: list[bytes]) -> None:
    with pytest.raises(ValueError, match="secret"):
        Webhook(Endpoint(Reply(200)), secrets)


def test_a_secret_that_is_not_base64_is_refused() -> None:
    assert secret_of("plain") == b"plain"
    with pytest.raises(ValueError, match="base64"):
        secret_of("whsec_%%%")


class Server(ThreadingHTTPServer):
    """Keeps what it was sent; answers 503 first, then 202 with a body that nobody reads."""

    def __init__(self) -> None:
        self.bodies: list[tuple[bytes, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    """Answers for `Server`."""

    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append((body, {name.lower(): value for name, value in self.headers.items()}))
        self.send_response(503 if len(self.server.bodies) == 1 else 202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_real_endpoint_gets_each_event_once_it_is_willing(server: Server) -> None:
    """1. The endpoint refuses the first attempt. 2. Two events are sent. Result: both arrive, in order, signed."""
    arrived = threading.Event()
    delivered: list[str] = []

    def on_delivered(event_id: str) -> None:
        delivered.append(event_id)
        if len(delivered) == 2:
            arrived.set()

    url = f"http://127.0.0.1:{server.server_port}/hook?team=a"
    webhook = Webhook(post(url, 5), [b"k"], on_delivered=on_delivered, first_pause_s=0.01)
    webhook.start()
    webhook.send(EVENT)
    webhook.send(Event("b2", b"{}"))
    assert arrived.wait(10)
    webhook.close()
    assert delivered == ["a1", "b2"]
    assert webhook.value() | {"dropped": 0} == {
        "waiting": 0,
        "delivered": 2,
        "retried": 1,
        "dropped": 0,
        "last_error": None,
    }
    for body, headers in server.bodies:
        made = signature([b"k"], headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        assert headers["webhook-signature"] == made


def test_an_endpoint_that_is_not_there_is_an_error_and_no_traceback() -> None:
    with Server() as gone:
        port = gone.server_port
    webhook = Webhook(post(f"http://127.0.0.1:{port}/", 1), [b"k"], clock=FakeClock(), give_up_s=2)
    assert webhook.deliver(EVENT) == "expired"
    assert webhook.last_error == "ConnectionRefusedError"
