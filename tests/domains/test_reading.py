"""Files as streams: every format, every way to be broken, told by file and line."""

import gzip
import itertools
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mde.domains import reading
from mde.domains.reading import Piece, Problem, Record

LIMIT = 1000
LINES = ['{"text": "one"}', "", '{"text": "two é"}', "  ", '{"text": "three"}']
RECORDS = [Record(1, {"text": "one"}), Record(3, {"text": "two é"}), Record(5, {"text": "three"})]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def read(path, **settings):
    return list(reading.json_records(Piece(str(path), **settings), LIMIT))


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("end", ["", "\n"])
def test_json_lines(tmp_path, suffix, end):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](("\n".join(LINES) + end).encode()))
    assert read(path) == RECORDS


def test_frames_one_after_the_other(tmp_path):
    first, second = ("\n".join(lines).encode() for lines in (LINES[:3], LINES[3:]))
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(PACK[suffix](first + b"\n") + PACK[suffix](second))
        assert read(path) == RECORDS


@given(
    st.lists(st.text("ab\r", max_size=7)), st.booleans(), st.integers(1, 9), st.lists(st.integers(0, 60), max_size=4)
)
def test_of_neighbouring_ranges_each_line_belongs_to_one(tmp_path_factory, lines, end, block, cuts):
    path = tmp_path_factory.getbasetemp() / "ranges.txt"
    content = ("\n".join(lines) + ("\n" if end else "")).encode()
    path.write_bytes(content)
    bounds = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_BLOCK", block)
        pieces = [Piece(str(path), *pair) for pair in itertools.pairwise(bounds)]
        found = [b"".join(reading.blocks(piece)) for piece in pieces]
        assert b"".join(found) == content
        assert all(part.endswith(b"\n") for part in list(filter(None, found))[:-1])
        before = [reading._lines_before(piece)() for piece in pieces if piece.start]
        assert before == [b"".join(found[:i]).count(b"\n") for i, p in enumerate(pieces) if p.start]


@given(st.binary(max_size=60).map(lambda data: data.replace(b"\r", b"\n")), st.integers(1, 7), st.integers(0, 12))
def test_lines_are_those_of_split_and_none_where_too_long(data, block, limit):
    expected = data.split(b"\n")
    expected = expected[:-1] if not expected[-1] else expected
    stream = (data[i : i + block] for i in range(0, len(data), block))
    assert list(reading.lines(stream, limit)) == [line if len(line) <= limit else None for line in expected]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b"nonsense", "not_json", "Expecting value"),
        (b'{"text": "a"', "not_json", "delimiter"),
        (b"[1]", "not_json", "expected a JSON object, found list"),
        (b"[" * 900, "not_json", ""),
        (b'{"text": "\xff"}', "invalid_utf8", "can't decode byte 0xff"),
        (b'{"text": "' + b"a" * LIMIT + b'"}', "too_large", "more than 1,000 bytes"),
    ],
)
def test_a_bad_line_is_told_and_passed_over(tmp_path, line, reason, detail):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "two"}')
    first, problem, last = read(path)
    assert (first.line, last) == (1, Record(3, {"text": "two"}))
    assert isinstance(problem, Problem)
    assert problem[:3] == (str(path), 2, reason)
    assert detail in problem.detail


def test_a_bad_line_of_a_range_is_told_by_its_line_in_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" * 10 + b"bad\n" + b"{}\n")
    assert [found.line for found in read(path, start=16, stop=36) if isinstance(found, Problem)] == [11]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_broken_frames(tmp_path, suffix):
    """What came before the break is read. (Deflate goes on for a while where bytes were garbled, and says so later.)"""
    path = tmp_path / f"a.jsonl{suffix}"
    numbered = [json.dumps({"text": f"{i} {i**9}"}) for i in range(20_000)]
    whole = PACK[suffix]("\n".join(numbered).encode())
    path.write_bytes(whole[: len(whole) * 3 // 4])
    *records, problem = read(path)
    assert 5_000 < len(records) < 20_000
    assert [json.dumps(record.value) for record in records] == numbered[: len(records)]
    assert problem[:3] == (str(path), len(records) + 1, "broken_file")
    path.write_bytes(whole[: len(whole) * 3 // 4] + bytes(200) + whole[len(whole) * 3 // 4 + 200 :])
    *records, problem = read(path)
    assert [json.dumps(record.value) for record in records[:5_000]] == numbered[:5_000]
    assert problem.reason == "broken_file"
    path.write_bytes(b"no such format")
    assert [found.reason for found in read(path)] == ["broken_file"]


def test_a_missing_file_is_told(tmp_path):
    assert [found.reason for found in read(tmp_path / "a.jsonl")] == ["broken_file"]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"text": f"row {i}", "meta": {"name": "x"}, "other": i} for i in range(10)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    expected = [Record(i + 1, {"text": f"row {i}", "meta": {"name": "x"}}) for i in range(10)]
    columns = ["text", "meta"]
    assert list(reading.parquet_records(Piece(str(path)), columns)) == expected
    assert list(reading.parquet_records(Piece(str(path), 1, 3), columns)) == expected[4:]
    assert next(iter(reading.parquet_records(Piece(str(path)), ["absent"]))).value == rows[0]
    path.write_bytes(path.read_bytes()[:-50])
    (problem,) = reading.parquet_records(Piece(str(path)), columns)
    assert problem[:3] == (str(path), 1, "broken_file")


def test_a_text_is_a_file(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("ä\nb\n".encode()))
    assert list(reading.text_records(Piece(str(path)), LIMIT)) == [Record(1, "ä\nb\n")]
    path.write_bytes(gzip.compress(b"x" * (LIMIT + 1)))
    assert [found.reason for found in reading.text_records(Piece(str(path)), LIMIT)] == ["too_large"]
    path = tmp_path / "b.txt"
    path.write_bytes(b"fine\nnot \xff\n")
    assert [found[1:3] for found in reading.text_records(Piece(str(path)), LIMIT)] == [(2, "invalid_utf8")]


@given(st.text("ab \n", max_size=300), st.integers(1, 50))
def test_parts_make_up_the_text(tmp_path_factory, text, characters):
    path = tmp_path_factory.getbasetemp() / "parts.txt"
    path.write_text(text)
    records = list(reading.part_records(Piece(str(path)), characters, LIMIT))
    assert "".join(record.value for record in records) == text + ("" if text.endswith("\n") or not text else "\n")
    assert all(len(record.value) < 2 * characters for record in records)
    assert all(len(record.value) >= characters for record in records[:-1])
    lines = [record.line for record in records]
    assert lines == sorted(lines)


def test_fields():
    value = {"text": "a", "meta": {"set.name": "b", "list": [{"t": "c"}, {"t": "d"}]}, "x.y": 1}
    assert reading.field(value, "text") == "a"
    assert reading.field(value, "meta.set.name") == "b"
    assert reading.field(value, "meta.list.1.t") == "d"
    assert reading.field(value, "meta.list.*.t") == "c\n\nd"
    assert reading.field(value, "x.y") == 1
    with pytest.raises(KeyError) as error:
        reading.field(value, "meta.lists")
    assert error.value.args == ("lists", ["list", "set.name"])
    for path in ("meta.list.7", "text.a"):
        with pytest.raises(KeyError):
            reading.field(value, path)
