"""The fast door byte by byte: however a request is cut, joined to others or spelt, its answer is the same."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.connection import MAX_PIPELINED
from gateway.http.head import MAX_HEADS
from gateway.types import Array
from tests.http.alone import alone, values_of
from tests.http.messages import HEADS, KINDS, chunked, document, message
from tests.http.rig import Connection, Rig, run, settle
from tests.inference.fakes import FakeSession, echo, servable

# -- however it is cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_cut_at_any_byte_is_answered_as_a_whole_one(kind: str) -> None:
    rig = Rig(servable())
    request = KINDS[kind]

    async def main() -> None:
        wanted = await alone(rig, request)
        connection = rig.connect()
        for at in range(1, len(request)):
            connection.transport.written = b""
            connection.send(request[:at], request[at:])
            await settle(rig)
            assert connection.masked() == [wanted], at
        connection.transport.written = b""
        connection.send(*(request[at : at + 1] for at in range(len(request))))
        await settle(rig)
        assert connection.masked() == [wanted]
        rig.assert_at_rest()

    run(main)


@pytest.mark.parametrize("first", KINDS)
def test_two_requests_in_one_piece_are_answered_in_their_order(first: str) -> None:
    rig = Rig(servable())

    async def main() -> None:
        wanted = {kind: await alone(rig, request) for kind, request in KINDS.items()}
        for second in KINDS:
            connection = rig.connect()
            connection.send(KINDS[first] + KINDS[second])
            await settle(rig)
            assert connection.masked() == [wanted[first], wanted[second]], second
            assert connection.transport.reading
        rig.assert_at_rest()

    run(main)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_requests_cut_anywhere_are_answered_in_their_order(data: st.DataObject) -> None:
    rig = Rig(servable())
    kinds = data.draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=6))
    stream = b"".join(KINDS[kind] for kind in kinds)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=6)))
    pauses = data.draw(st.lists(st.booleans(), min_size=len(cuts) + 1, max_size=len(cuts) + 1))

    async def main() -> None:
        wanted = {kind: await alone(rig, KINDS[kind]) for kind in kinds}
        connection = rig.connect()
        for start, stop, pause in zip([0, *cuts], [*cuts, len(stream)], pauses, strict=True):
            connection.send(stream[start:stop])
            if pause:
                await settle(rig)
        await settle(rig)
        assert connection.masked() == [wanted[kind] for kind in kinds]
        assert not connection.is_over
        assert connection.transport.reading
        rig.assert_at_rest()

    run(main)


@given(sizes=st.lists(st.integers(1, 40), max_size=20), cut=st.integers(1, 60))
def test_a_body_in_any_chunks_is_the_same_body(sizes: list[int], cut: int) -> None:
    rig = Rig(servable())
    request = message(chunked(document(1, 2, 3), *sizes), "Transfer-Encoding: chunked", length=False)

    async def main() -> None:
        connection = rig.connect()
        connection.send(*(request[at : at + cut] for at in range(0, len(request), cut)))
        await settle(rig)
        (reply,) = connection.replies()
        assert values_of(reply) == [1, 2, 3]

    run(main)


def test_more_requests_than_may_wait_are_all_answered_and_then_read_on() -> None:
    rig = Rig(servable())

    async def main() -> None:
        connection = rig.connect()
        for count in (MAX_PIPELINED, MAX_PIPELINED + 1, 2 * MAX_PIPELINED, 1):
            connection.transport.written = b""
            connection.send(*(message(document(number)) for number in range(count)))
            assert connection.transport.reading == (count < MAX_PIPELINED)
            await settle(rig)
            assert [values_of(reply) for reply in connection.replies()] == [[number] for number in range(count)]
            assert connection.transport.reading, "it is never read again"
        rig.assert_at_rest()

    run(main)


# -- seen before or new


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_was_seen_is_answered_as_a_new_one(name: str) -> None:
    rig = Rig(servable())
    given_id = "abc" if name.startswith("id") and "of" not in name and "bad" not in name else None

    async def main() -> None:
        seen = []
        for value in (1, 2, 3):
            connection = rig.connect()
            connection.send(message(document(value), *HEADS[name]))
            await settle(rig)
            *_, reply = connection.replies()
            if given_id is not None:
                assert reply.headers["x-request-id"] == given_id
            masked = reply.masked()
            seen.append(([each.status for each in connection.replies()], masked.headers, connection.is_over))
            connection.lose()
        assert seen[0] == seen[1] == seen[2]

    run(main)


def test_a_remembered_head_gives_nobody_the_request_id_of_another() -> None:
    rig = Rig(servable())

    async def main() -> None:
        found = []
        for number in range(4):
            own = [f"X-Request-Id: id-{number}"] if number % 2 == 0 else []
            connection = rig.connect()
            connection.send(message(document(number), *own))
            await settle(rig)
            (reply,) = connection.replies()
            found.append(reply.headers["x-request-id"])
        assert found[0] == "id-0"
        assert found[2] == "id-2"
        assert len(set(found)) == 4

    run(main)


SAME_SIZE = {
    "plain": "X-Any: any-thing-at-all!",
    "gzip": "Accept-Encoding:    gzip",
    "id": "X-Request-Id: four-words",
    "other id": "X-Request-Id: five-words",
}
"""Header lines that make heads of one size."""


def test_heads_of_one_size_are_never_taken_for_each_other() -> None:
    """Any three of them one behind the other, each whole or in two pieces; first where none is known, then again."""
    rig = Rig(servable())
    assert len({len(line) for line in SAME_SIZE.values()}) == 1
    orders = itertools.product(SAME_SIZE, repeat=3)
    cuts = list(itertools.product([False, True], repeat=3))

    async def main() -> None:
        for order in orders:
            rig.gateway.heads.clear()
            for in_pieces in [*cuts, *cuts]:
                connection = rig.connect()
                for name, cut in zip(order, in_pieces, strict=True):
                    request = message(document(1), SAME_SIZE[name])
                    connection.send(*([request[:-9], request[-9:]] if cut else [request]))
                await settle(rig)
                for name, reply in zip(order, connection.replies(), strict=True):
                    assert ("content-encoding" in reply.headers) == (name == "gzip"), (order, in_pieces)
                    own = SAME_SIZE[name].rpartition(" ")[2]
                    assert (reply.headers["x-request-id"] == own) == name.endswith("id"), (order, in_pieces)
                connection.lose()

    run(main)


def test_a_continued_header_line_is_not_joined_to_another_header_by_what_is_remembered() -> None:
    """Folded lines are refused, wherever a line stands that is left out of what is remembered."""
    rig = Rig(servable())

    async def main() -> None:
        for _ in range(3):
            for headers in (
                ["Accept-Encoding: gzip"],
                ["Accept-Encoding: gzip\r\nX-Request-Id: abc\r\n , deflate"],
                ["Accept-Encoding: gzip\r\n , deflate"],
            ):
                connection = rig.connect()
                connection.send(message(document(1), *headers))
                await settle(rig)
                (reply,) = connection.replies()
                assert reply.status == (200 if "\r\n" not in headers[0] else 400), headers

    run(main)


def test_heads_are_remembered_in_bounds_and_long_ones_never() -> None:
    rig = Rig(servable())

    async def main() -> None:
        connection = rig.connect()
        for number in range(MAX_HEADS + 10):
            connection.send(message(document(1), f"X-Other: {number}"))
            if number % MAX_PIPELINED == 0:
                await settle(rig)
        await settle(rig)
        assert 0 < len(rig.gateway.heads) <= MAX_HEADS
        before = len(rig.gateway.heads)
        connection.send(message(document(1), "X-Other: " + "a" * 3000))
        await settle(rig)
        assert len(rig.gateway.heads) == before
        assert len(connection.replies()) == MAX_HEADS + 11

    run(main)


# -- counting


def test_every_reply_is_counted_by_its_status() -> None:
    rig = Rig(servable())

    async def main() -> None:
        wanted: dict[str, int] = {}
        for kind, request in itertools.chain(KINDS.items(), KINDS.items()):
            connection = rig.connect()
            connection.send(request)
            await settle(rig)
            status = str(connection.replies()[0].status)
            wanted[status] = wanted.get(status, 0) + 1
            assert rig.statuses() == wanted, kind

    run(main)


def test_a_model_that_fails_is_answered_with_500_and_the_connection_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def fails_on_two(inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        if (inputs["x"] == 2).any():
            raise RuntimeError("secret")
        return echo(inputs, outputs)

    rig = Rig(servable(FakeSession(fails_on_two)))

    async def main() -> None:
        connection: Connection = rig.connect()
        connection.send(*(message(document(value)) for value in (1, 2, 3)))
        await settle(rig)
        one, two, three = connection.replies()
        assert (values_of(one), values_of(three)) == ([1], [3])
        assert two.status == 500
        assert b"secret" not in two.body
        assert not connection.is_over

    run(main)
