"""Content codings, held against zlib and gzip."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding
from gateway.oip.compression import MAX_MEMBERS, choose, deflate, inflate

COMPRESS = {"gzip": lambda body: gzip.compress(body, mtime=0), "deflate": zlib.compress}
DECOMPRESS = {"gzip": gzip.decompress, "deflate": zlib.decompress}
bodies = st.binary(max_size=200) | st.binary(min_size=1, max_size=4).map(lambda part: part * 5000)
codings = st.sampled_from(["gzip", "deflate"])


def attempt(body: bytes, coding: str) -> bytes | str | None:
    """What a body inflates to, or the field that its refusal names."""
    try:
        return inflate(body, coding, 1 << 20)
    except (InvalidRequest, PayloadTooLarge) as error:
        return error.field


@given(bodies, codings)
def test_both_directions_agree_with_the_standard_library(body: bytes, coding: str) -> None:
    assert inflate(COMPRESS[coding](body), coding, len(body)) == body
    assert DECOMPRESS[coding](deflate(body, coding)) == body
    assert inflate(deflate(body, coding), f" {coding.upper()} ", len(body)) == body


@given(bodies.filter(bool), codings)
def test_the_limit_is_exact(body: bytes, coding: str) -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        inflate(COMPRESS[coding](body), coding, len(body) - 1)
    assert refused.value.field == "body"


@given(bodies, codings, st.data())
def test_a_cut_off_body_is_refused(body: bytes, coding: str, data: st.DataObject) -> None:
    whole = COMPRESS[coding](body)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(InvalidRequest) as refused:
        inflate(cut, coding, 1 << 20)
    assert refused.value.field == "Content-Encoding"


@given(bodies, codings, st.data())
def test_a_damaged_body_is_refused_or_gives_the_same_bytes(body: bytes, coding: str, data: st.DataObject) -> None:
    damaged = bytearray(COMPRESS[coding](body))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    # Some bits of a gzip header, such as the time, mean nothing.
    assert attempt(bytes(damaged), coding) in (body, "Content-Encoding", "body")


@given(st.binary(max_size=60), codings)
def test_random_bytes_are_refused_or_inflated(body: bytes, coding: str) -> None:
    outcome = attempt(body, coding)
    assert outcome in ("Content-Encoding", "body") or outcome == DECOMPRESS[coding](body)


@given(st.lists(bodies, min_size=1, max_size=5), st.booleans())
def test_members_of_a_gzip_body_are_joined(parts: list[bytes], limited: bool) -> None:
    joined = b"".join(parts)
    body = b"".join(map(gzip.compress, parts))
    if limited and joined:
        with pytest.raises(PayloadTooLarge):
            inflate(body, "gzip", len(joined) - 1)
    else:
        assert inflate(body, "gzip", len(joined)) == joined


def test_only_so_many_members_are_taken() -> None:
    member = gzip.compress(b"a")
    assert inflate(member * MAX_MEMBERS, "gzip", 1000) == b"a" * MAX_MEMBERS
    with pytest.raises(InvalidRequest, match="more than"):
        inflate(member * (MAX_MEMBERS + 1), "gzip", 1000)


def test_output_at_the_edges_of_a_piece_is_whole() -> None:
    for size in ((1 << 20) - 1, 1 << 20, (1 << 20) + 1, 1 << 21):
        body = b"\0" * size
        assert inflate(zlib.compress(body), "deflate", size) == body
        with pytest.raises(PayloadTooLarge):
            inflate(zlib.compress(body), "deflate", size - 1)


@pytest.mark.parametrize("coding", [None, "", "identity", " Identity "])
def test_no_coding_leaves_the_body_as_it_is(coding: str | None) -> None:
    body = b"as it is"
    assert inflate(body, coding, 1) is body


@pytest.mark.parametrize(
    "coding", ["br", "zstd", "gzip, gzip", "gzip,deflate", "identity, gzip", "x-gzip", "g\u017cip", "*"]
)
def test_any_other_coding_is_refused_and_the_reply_names_those_there_are(coding: str) -> None:
    with pytest.raises(UnsupportedEncoding) as refused:
        inflate(b"", coding, 1)
    assert refused.value.headers == {"Accept-Encoding": "gzip, deflate"}
    assert refused.value.field == "Content-Encoding"


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZIP", "gzip"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "gzip"),
        ("deflate;q=1, gzip;q=0.5", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=0, deflate;q=0.1", "deflate"),
        ("br, zstd", None),
        ("gzip; q = 0.5", "gzip"),
        ("gzip;q=nan", None),
        ("gzip;q=high", None),
        ("identity", None),
        (",,,;;;", None),
    ],
)
def test_the_coding_of_a_reply_is_the_one_preferred(accept: str | None, coding: str | None) -> None:
    assert choose(accept) == coding


@given(st.text(max_size=30))
def test_any_text_of_accept_encoding_gives_a_coding_or_none(accept: str) -> None:
    assert choose(accept) in (None, "gzip", "deflate")
