"""Every request through both doors: the same status, the same headers and the same bytes, however it is sent."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.models.options import SessionOptions
from gateway.models.servable import Servable
from gateway.models.session import Session
from gateway.models.table import ModelTable, VersionStatus
from gateway.oip.datatypes import DATATYPES
from gateway.types import Array, Contract
from tests.hostile.wire import CORPUS, read_case
from tests.http.doors import APART, OTHERS, Doors, Repository
from tests.http.forms import BINARY_REPLIES, forms
from tests.http.messages import HEADS, INFER, KINDS, binary, chunked, document, message
from tests.http.rig import run
from tests.inference import bodies
from tests.inference.fakes import FakeSession, Run, echo, servable
from tests.oip import corpus

CASES = corpus.load()
FORMS = {(model, form): request for model, form, request in forms()}


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """All models of the corpus in onnxruntime, behind every door."""
    folder = corpus.write_models(tmp_path_factory.mktemp("doors"))
    sessions = {
        name: Session((folder / name / "1" / "model.onnx").read_bytes(), SessionOptions()) for name in corpus.MODELS
    }

    def make() -> list[Servable]:
        return [
            servable(
                cast(FakeSession, sessions[name]),
                contract,
                model=name,
                nonfinite="refuse" if name == "finite" else "accept",
            )
            for name, contract in corpus.MODELS.items()
        ]

    made = Doors(make)
    yield made
    for rig in made.rigs.values():
        rig.gateway.pipeline.close()


@pytest.fixture(scope="module")
def plain() -> Doors:
    """One small model behind every door; bodies have 4 KiB at most."""
    return Doors(lambda: [servable()], max_body_bytes=4096)


def request_of(case: Mapping[str, Any]) -> bytes:
    """A case of the corpus of bad requests as bytes."""
    headers = [
        f"{name}: {value}"
        for name, values in case.get("headers", {}).items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    body = corpus.build(case["body"]) if "body" in case else None
    if case.get("chunked"):
        headers.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body or b""), body or b"")
    elif body is not None:
        headers.append(f"Content-Length: {case.get('announce', len(body))}")
    path = case.get("path", f"/v2/models/{case['model']}/infer")
    return message(body or b"", *headers, method=case.get("method", "POST"), path=path, length=False)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_is_refused_alike_by_both_doors(name: str, doors: Doors) -> None:
    case = CASES[name]

    async def main() -> None:
        (reply,) = await doors.answers(request_of(case), name)
        assert reply.status == case["expect"]["status"]
        assert json.loads(reply.body)["code"] == case["expect"]["code"]

    run(main)


@pytest.mark.parametrize(("model", "form"), FORMS)
def test_a_good_request_is_answered_alike_by_both_doors(model: str, form: str, doors: Doors) -> None:
    async def main() -> None:
        (reply,) = await doors.answers(FORMS[model, form])
        assert reply.status == 200, reply
        is_binary = "inference-header-content-length" in reply.headers
        assert is_binary == (reply.headers["content-type"] == "application/octet-stream")
        assert is_binary == (form in BINARY_REPLIES)

    run(main)


# -- heads, spellings, raw bytes

BINARY_BODY = binary(1).partition(b"\r\n\r\n")[2]
LENGTH = BINARY_BODY.rindex(b"}") + 1
TWICE = ["Inference-Header-Content-Length: 5"] * 2

SPELLINGS: Mapping[str, tuple[bytes, int]] = {
    "version": (message(document(1), path="/v2/models/m/versions/1/infer"), 200),
    "absolute": (message(document(1), path="http://elsewhere:80" + INFER), 200),
    "query": (message(document(1), path=INFER + "?a=b"), 200),
    "encoded letter": (message(document(1), path="/v2/models/%6d/infer"), 200),
    "http 1.0": (message(document(1), version="1.0"), 200),
    "http 1.0, keep alive": (message(document(1), "Connection: keep-alive", version="1.0"), 200),
    "leading zeros": (message(document(1), f"Content-Length: {len(document(1)):030}", length=False), 200),
    "5000 leading zeros": (message(document(1), f"Content-Length: {len(document(1)):05000}", length=False), 200),
    "small letters": (message(BINARY_BODY, f"inference-header-content-length: {LENGTH}"), 200),
    "between spaces": (message(BINARY_BODY, f"Inference-Header-Content-Length:   {LENGTH}  "), 200),
    "coding in capitals": (message(gzip.compress(document(1)), "Content-Encoding: GZIP"), 200),
    "identity": (message(document(1), "Content-Encoding: identity", "Accept-Encoding: *"), 200),
    "empty coding": (message(document(1), "Content-Encoding:"), 200),
    "weights": (message(document(1), "Accept-Encoding: gzip;q=0.1, deflate;q=0.9"), 200),
    "refused codings": (message(document(1), "Accept-Encoding: gzip;q=0, deflate;q=0"), 200),
    "trailers": (
        message(
            chunked(document(1))[:-2] + b"Accept-Encoding: gzip\r\nX-Request-Id: other\r\nContent-Encoding: br\r\n\r\n",
            "Transfer-Encoding: chunked",
            "X-Request-Id: mine",
            length=False,
        ),
        200,
    ),
    "error under a coding": (message(b"{", "Accept-Encoding: gzip", "X-Request-Id: mine"), 400),
    "too large": (message(b" " * 4097, "X-Request-Id: mine"), 413),
    "too large in chunks": (message(chunked(b" " * 5000, 2000), "Transfer-Encoding: chunked", length=False), 413),
    "announced as too large": (message(b"", "Content-Length: 4097", length=False), 413),
    "announced to nobody": (message(b"", "Content-Length: 4097", path="/v2/models/no/infer", length=False), 404),
    "too large when inflated": (message(gzip.compress(b" " * 5000), "Content-Encoding: gzip"), 413),
    "id behind a header that stands twice": (message(document(1), *TWICE, "X-Request-Id: mine"), 400),
    "two mistakes": (message(b"", "Content-Length: 4097", *TWICE, length=False), 400),
    "deadline": (message(document(1, parameters={"timeout": 1})), 504),
    "time for an answer": (message(document(1), "Headgate-Timeout-Ms: 5000"), 200),
    "time that is over": (message(document(1, parameters={"timeout": 1}), "Headgate-Timeout-Ms: 5000"), 504),
    "no time and then some": (message(document(1), "Headgate-Timeout-Ms: 0", "Headgate-Timeout-Ms: 5000"), 200),
    "no time": (message(document(1), "Headgate-Timeout-Ms: 0"), 400),
    "time in words": (message(document(1), "Headgate-Timeout-Ms: a second"), 400),
    "time without end": (message(document(1), "Headgate-Timeout-Ms: 1000000000000"), 400),
    "priority": (message(document(1, parameters={"priority": 2, "timeout": 5_000_000})), 200),
}
"""Requests to `m` that are spelt unusually, or wrong where a door looks by itself."""


@pytest.mark.parametrize("name", [*SPELLINGS, *KINDS])
def test_a_request_is_answered_alike_however_it_is_spelt(name: str, plain: Doors) -> None:
    request, status = SPELLINGS.get(name) or (KINDS[name], None)

    async def main() -> None:
        (reply,) = await plain.answers(request, name)
        assert reply.status == (status or reply.status), reply

    run(main)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("body", "status"), [(document(1), 200), (b"{", 400)], ids=["good", "bad"])
def test_headers_mean_the_same_to_both_doors(name: str, body: bytes, status: int, plain: Doors) -> None:
    async def main() -> None:
        *_, reply = await plain.answers(message(body, *HEADS[name]), name)
        assert reply.status == status

    run(main)


RAW = [path for path in sorted(CORPUS.glob("*/*.http")) if 408 not in read_case(path).statuses]
"""The others wait for more than comes."""


@pytest.mark.parametrize("path", RAW, ids=[path.stem for path in RAW])
def test_raw_bytes_are_taken_alike_by_both_doors(path: Path, doors: Doors) -> None:
    case = read_case(path)

    async def main() -> None:
        replies = await doors.answers(case.request, path.stem, but=OTHERS)
        assert [reply.status for reply in replies] == case.statuses

    run(main)


# -- any body

LINES = sorted({line for name, lines in HEADS.items() if name not in APART for line in lines})


def shaped(contract: Contract) -> Run:
    """A run whose outputs are what the contract says, one row for each row of the first input."""
    datatypes = {spec.name: spec.datatype for spec in contract.outputs}

    def output(name: str, rows: int) -> Array:
        if datatypes[name] == "BYTES":
            return np.array([f"row {row}" for row in range(rows)], object)
        return np.arange(rows).astype(DATATYPES[datatypes[name]].dtype).reshape(rows, 1)

    def run_it(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        first = next(iter(inputs.values()))
        return tuple(output(name, len(first) if first.ndim else 1) for name in outputs)

    return run_it


@pytest.fixture(scope="module")
def changing() -> Doors:
    """Doors whose versions change."""
    return Doors(lambda: [], ("fast", "httptools"))


@settings(max_examples=80, deadline=None, database=None)
@given(data=st.data())
def test_any_body_is_answered_alike_by_both_doors(changing: Doors, data: st.DataObject) -> None:
    contract = data.draw(bodies.contracts())
    odd = data.draw(bodies.oddities())
    drawn = [data.draw(bodies.bodies(contract, odd)) for _ in range(data.draw(st.integers(1, 2)))]
    coding = data.draw(st.sampled_from(["gzip", "deflate", "identity"]))
    headers = data.draw(st.lists(st.sampled_from(LINES), max_size=2))
    changing.serve(lambda: [servable(FakeSession(shaped(contract)), contract)])

    async def main() -> None:
        for body, length in drawn:
            packed = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[coding](body)
            own = [f"Inference-Header-Content-Length: {length}"] if length is not None else []
            await changing.answers(message(packed, f"Content-Encoding: {coding}", *own, *headers))

    run(main)


# -- what is no fault of the request


@pytest.mark.parametrize(
    "request_",
    [
        message(document(1), "X-Api-Key: someone", "X-Request-Id: mine"),
        message(b"{", "X-Api-Key: someone", "X-Request-Id: mine"),
        message(b"", "X-Api-Key: someone", "X-Request-Id: mine", "Content-Length: 5000", length=False),
    ],
    ids=["good", "wrong", "too large"],
)
def test_a_quota_a_full_queue_and_a_version_that_is_not_ready_come_before_the_body(request_: bytes) -> None:
    quotas = {"max_in_flight": 4, "max_in_flight_per_client": 1, "client_key_header": "x-api-key"}
    busy = Doors(lambda: [servable()], max_body_bytes=4096, **quotas)
    pipelines = [rig.gateway.pipeline for rig in busy.rigs.values()]

    async def assert_refused(status: int, code: str) -> None:
        (reply,) = await busy.answers(request_)
        assert (reply.status, json.loads(reply.body)["code"]) == (status, code)
        assert (reply.headers["retry-after"], reply.headers["x-request-id"]) == ("1", "mine")

    async def main() -> None:
        for pipeline in pipelines:
            pipeline.admission.admit("m", 0, 0.0, "someone")
        await assert_refused(429, "quota-exceeded")
        for pipeline in pipelines:
            for _ in range(3):
                pipeline.admission.admit("m", 0, 0.0, "")
        await assert_refused(429, "queue-full")
        for rig in busy.rigs.values():
            rig.gateway.table.publish({"m": ModelTable("m", {}, {}, (VersionStatus(1, "LOADING"),))})
        await assert_refused(503, "not-ready")

    run(main)


def test_a_model_that_fails_and_a_defect_of_ours_are_answered_alike(caplog: pytest.LogCaptureFixture) -> None:
    def fails(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        if (inputs["x"] == 2).any():
            raise RuntimeError("secret")
        return (np.array([object()]),) if (inputs["x"] == 3).any() else echo(inputs, outputs)

    found = Doors(lambda: [servable(FakeSession(fails))])

    async def main() -> None:
        for value, status, code in ((1, 200, None), (2, 500, "model-failed"), (3, 500, "internal")):
            (reply,) = await found.answers(message(document(value), "X-Request-Id: mine"))
            assert (reply.status, json.loads(reply.body).get("code")) == (status, code)
            assert b"secret" not in reply.body

    run(main)


def test_a_route_that_raises_is_answered_with_a_request_id_that_the_log_knows(
    plain: Doors, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind every server: one answer in the one shape, counted once, one line in the log, and the next request."""

    class Broken(Repository):
        async def load(self, name: str, version: int | None = None) -> None:
            raise RuntimeError("secret")

    for rig in plain.rigs.values():
        rig.gateway.repository = Broken()

    async def main() -> None:
        for own, seen in (([], "*"), (["X-Request-Id: mine"], "mine")):
            (reply,) = await plain.answers(message(b"", *own, path="/v2/repository/models/m/load"))
            assert (reply.status, reply.headers["x-request-id"], reply.headers["(ends)"]) == (500, seen, "False")
            document = json.loads(reply.body)
            assert (document["code"], document["request_id"]) == ("internal", seen)
            assert b"secret" not in reply.body
        lines = [record.__dict__ for record in caplog.records if record.levelname == "ERROR"]
        assert [line["event"] for line in lines] == ["internal-error"] * 24
        assert sum(line["request_id"] == "mine" for line in lines) == 12
        assert all("secret" in str(line["exc_info"]) for line in lines)

    run(main)
