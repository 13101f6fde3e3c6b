"""The files of the journal: ids, frames, headers; every cut and every flipped bit is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.journal import frames, ids, schema
from gateway.journal.frames import Frame, FrameFile, Torn
from gateway.journal.schema import Column, SegmentSpec

PAYLOADS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def packed(payloads: list[bytes]) -> bytes:
    return frames.MAGIC + b"".join(map(frames.pack, payloads))


def spec() -> SegmentSpec:
    columns = (*schema.meta_columns(), Column("input", "x", "<f4", (3,), 0))
    prefix = ids.new_prefix().decode()
    return schema.lay_out(SegmentSpec(prefix, "m", 1, "ab" * 32, 1, "boot", 100, columns, (), {"x": "full"}))


@given(PAYLOADS)
def test_frames_are_read_as_they_were_written(payloads: list[bytes]) -> None:
    found = list(frames.scan(packed(payloads)))
    assert [item.payload for item in found if isinstance(item, Frame)] == payloads
    assert len(found) == len(payloads)


@given(PAYLOADS.filter(bool), st.data())
def test_wherever_a_file_is_cut_the_frames_before_are_good_and_the_rest_is_reported(
    payloads: list[bytes], data: st.DataObject
) -> None:
    whole = packed(payloads)
    cut = data.draw(st.integers(len(frames.MAGIC), len(whole) - 1))
    found = list(frames.scan(whole[:cut]))
    good = [item.payload for item in found if isinstance(item, Frame)]
    assert good == payloads[: len(good)]
    end = len(packed(good))
    torn = [item for item in found if isinstance(item, Torn)]
    assert torn == ([] if end == cut else [Torn(end, cut - end, torn[0].reason)])


@given(PAYLOADS.filter(bool), st.data())
def test_a_flipped_bit_is_noticed(payloads: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(packed(payloads))
    at = data.draw(st.integers(len(frames.MAGIC), len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    found = list(frames.scan(bytes(whole)))
    good = [item.payload for item in found if isinstance(item, Frame)]
    assert isinstance(found[-1], Torn)
    assert good == payloads[: len(good)]
    assert len(good) < len(payloads)


def test_a_file_of_frames_is_appended_to_and_never_made_twice(tmp_path: Path) -> None:
    file = FrameFile(tmp_path / "a.side")
    first = file.append(b"one", b"two")
    second = file.append(b"three")
    file.sync()
    file.close()
    found = {item.offset: item.payload for item in frames.scan((tmp_path / "a.side").read_bytes()) if item}
    assert (found[first], found[second]) == (b"one", b"three")
    with pytest.raises(FileExistsError):
        FrameFile(tmp_path / "a.side")
    with pytest.raises(ValueError, match="a frame holds 1 to"):
        frames.pack(b"")


@given(st.integers(0, 2**32 - 1), st.none() | st.integers(0, 10**8))
def test_an_id_says_where_its_prediction_is(row: int, part: int | None) -> None:
    prefix = ids.new_prefix().decode()
    text = str(ids.PredictionId(prefix, row, part))
    assert ids.parse(text) == (prefix, row, part)


@pytest.mark.parametrize(
    "text",
    ["", "x", "123e4567-e89b-12d3-a456-426614174000", ids.new_id() + "#", ids.new_id() + "#01", ids.new_id().upper()],
    ids=["nothing", "a word", "another version", "an empty part", "a part with a zero", "capitals"],
)
def test_what_is_no_id_of_ours_is_none(text: str) -> None:
    assert ids.parse(text) is None


def test_a_header_is_read_as_it_was_written() -> None:
    made = spec()
    assert schema.unpack_header(schema.pack_header(made)) == made
    assert made.control_at % schema.PAGE == 0
    offsets = [column.offset for column in made.columns]
    assert offsets == sorted(set(offsets))
    assert all(offset % schema.PAGE == 0 for offset in offsets)


@given(st.data())
def test_a_header_with_a_flipped_bit_is_refused(data: st.DataObject) -> None:
    made = spec()
    header = bytearray(schema.pack_header(made))
    length = len(bytes(header).rstrip(b"\0"))
    header[data.draw(st.integers(0, length - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="."):
        schema.unpack_header(bytes(header))


@pytest.mark.parametrize("data", [b"", b"HGSEGM1\n", b"\0" * 4096], ids=["nothing", "a cut head", "zeros"])
def test_what_is_no_segment_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="header|segment"):
        schema.unpack_header(data)
