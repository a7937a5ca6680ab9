import json

import numpy as np
import pytest
from helpers import random_documents, write_store
from numpy.testing import assert_array_equal

from mde.data import tokens
from mde.data.tokens import START, TokenStore
from mde.errors import UserError

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12, 2]]
STREAM = [0, 5, 6, 7, 0, 8, 0, 9, 10, 11, 12, 2]  # by hand: START before every document
NUMBERS = [1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3]


@pytest.fixture(params=["in memory", "on disk"])
def store(tmp_path, request, monkeypatch):
    if request.param == "on disk":
        monkeypatch.setattr(tokens, "_IN_MEMORY", 0)
    return write_store(tmp_path / "store", DOCUMENTS)


def test_a_store_gives_back_what_was_written(store):
    assert_array_equal(store.read(0, 12).tokens, STREAM)
    assert_array_equal(store.read(0, 12).segments, NUMBERS)
    assert_array_equal(store.bounds, [0, 4, 6, 12])
    assert_array_equal(store.bytes, [30, 10, 50])
    assert (store.n_tokens, store.n_documents, store.n_bytes, store.digest) == (12, 3, 90, "digest")


def test_start_begins_every_document_and_nothing_else(store):
    assert_array_equal(np.flatnonzero(store.read(0, 12).tokens == START), store.bounds[:-1])


def test_document_numbers_begin_at_one_wherever_a_read_begins(store):
    assert_array_equal(store.read(5, 9).tokens, [8, 0, 9, 10])
    assert_array_equal(store.read(5, 9).segments, [1, 2, 2, 2])


def test_past_the_end_comes_padding_of_document_zero(store):
    assert_array_equal(store.read(10, 15).tokens, [12, 2, 0, 0, 0])
    assert_array_equal(store.read(10, 15).segments, [1, 1, 0, 0, 0])


def test_a_range_of_documents_reads_as_the_store_that_only_has_these(store, tmp_path):
    view, alone = store.documents(1, 3), write_store(tmp_path / "alone", DOCUMENTS[1:])
    for begin in range(alone.n_tokens):
        for end in range(begin + 1, alone.n_tokens + 4):
            assert_array_equal(view.read(begin, end).tokens, alone.read(begin, end).tokens)
            assert_array_equal(view.read(begin, end).segments, alone.read(begin, end).segments)
    for name in ("n_tokens", "n_documents", "n_bytes", "bounds", "bytes"):
        assert_array_equal(getattr(view, name), getattr(alone, name))
    assert view.whole_documents(3) == alone.whole_documents(3)
    assert view.windows(3) == alone.windows(3)
    assert view.digest == "digest[1:3]"
    assert_array_equal(view.documents(1, 2).read(0, 6).tokens, [0, 9, 10, 11, 12, 2])
    assert store.n_tokens == 12  # the store is as it was


def test_windows_overlap_by_one_token_and_cover_the_store(store):
    windows = [store.window(i, 4).tokens for i in range(store.windows(4))]
    assert_array_equal(windows, [[0, 5, 6, 7, 0], [0, 8, 0, 9, 10]])
    assert store.windows(11) == 1  # 11 predicted tokens need 12
    assert store.windows(12) == 0


def test_every_token_but_the_first_is_the_target_of_one_window(store):
    targets = np.concatenate([store.window(i, 1).tokens[1:] for i in range(store.windows(1))])
    assert_array_equal(targets, STREAM[1:])


@pytest.mark.parametrize(
    ("at_least", "expected"),
    [(1, (4, 30)), (4, (4, 30)), (5, (6, 40)), (6, (6, 40)), (7, (12, 90)), (12, (12, 90)), (1000, (12, 90))],
)
def test_whole_documents_are_the_fewest_that_suffice(store, at_least, expected):
    assert store.whole_documents(at_least) == expected


def test_many_flushes_and_chunks_change_nothing(tmp_path, monkeypatch):
    documents = random_documents(300, seed=0)
    whole = write_store(tmp_path / "one", documents)
    monkeypatch.setattr(tokens, "_CHUNK", 16)
    monkeypatch.setattr(tokens, "_BLOCK", 256)
    monkeypatch.setattr(tokens, "_IN_MEMORY", 0)
    cut = write_store(tmp_path / "many", documents)
    assert cut.n_tokens == whole.n_tokens > 10 * 16 * 16
    expected = np.concatenate([[START, *d] for d in documents])
    assert_array_equal(cut.read(0, cut.n_tokens).tokens, expected)
    assert_array_equal(cut.bounds, whole.bounds)
    assert_array_equal(cut.read(100, 2000).segments, whole.read(100, 2000).segments)


def test_a_rewritten_store_replaces_the_old_one(tmp_path, store):
    again = write_store(tmp_path / "store", [[9, 9, 9], [9], [9] * 5], digest="other")
    reopened = TokenStore(tmp_path / "store")
    for new in (again, reopened):
        assert_array_equal(np.unique(new.read(0, 12).tokens), [0, 9])
        assert new.digest == "other"
    shorter = write_store(tmp_path / "store", [[3]])
    assert_array_equal(shorter.read(0, shorter.n_tokens).tokens, [0, 3])


def test_a_write_that_is_interrupted_leaves_the_old_store_and_can_be_repeated(tmp_path, store):
    def interrupted():
        yield np.array([1, 2]), 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokens.write(tmp_path / "store", interrupted(), "other")
    assert_array_equal(TokenStore(tmp_path / "store").read(0, 12).tokens, STREAM)
    assert write_store(tmp_path / "store", [[3]]).n_documents == 1


def test_a_first_write_that_is_interrupted_leaves_no_store(tmp_path):
    with pytest.raises(ZeroDivisionError):
        tokens.write(tmp_path / "store", ((np.array([1 // 0]), 1) for _ in range(2)), "digest")
    with pytest.raises(UserError, match="store: no readable token store"):
        TokenStore(tmp_path / "store")


def _remove(directory):
    (directory / "store.json").unlink()


def _scribble(directory):
    (directory / "store.json").write_text("{")


def _forget_a_field(directory):
    (directory / "store.json").write_text(json.dumps({"tokens": 12}))


def _drop_an_array(directory):
    (directory / "bounds" / "zarr.json").unlink()


def _truncate_a_chunk(directory):
    (chunk,) = (path for path in (directory / "tokens" / "c").iterdir())
    chunk.write_bytes(chunk.read_bytes()[:-7])


def _lose_a_chunk(directory):
    (chunk,) = (path for path in (directory / "tokens" / "c").iterdir())
    chunk.unlink()


@pytest.mark.parametrize(
    "damage", [_remove, _scribble, _forget_a_field, _drop_an_array, _truncate_a_chunk, _lose_a_chunk]
)
def test_a_broken_store_is_a_user_error_that_names_the_directory(tmp_path, damage):
    write_store(tmp_path / "broken-store", DOCUMENTS)
    damage(tmp_path / "broken-store")
    with pytest.raises(UserError, match=r"broken-store.*mde prepare"):
        TokenStore(tmp_path / "broken-store")


def test_a_chunk_that_gets_lost_later_is_a_user_error_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_IN_MEMORY", 0)
    store = write_store(tmp_path / "broken-store", DOCUMENTS)
    _lose_a_chunk(store.directory)
    with pytest.raises(UserError, match=r"broken-store: no readable token store.*mde prepare"):
        store.read(0, 12)


@pytest.mark.parametrize("in_memory", [0, 100])
@pytest.mark.parametrize("file", ["store.json", "tokens/c/0", "bounds/zarr.json"])
def test_what_cannot_be_read_is_not_to_be_prepared_again(tmp_path, monkeypatch, file, in_memory):
    """A link to itself, which even root cannot read."""
    monkeypatch.setattr(tokens, "_IN_MEMORY", in_memory)
    write_store(tmp_path / "closed-store", DOCUMENTS)
    path = tmp_path / "closed-store" / file
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(UserError, match=r"closed-store: cannot be read \(.*symbolic links.*; nothing was deleted"):
        TokenStore(tmp_path / "closed-store").read(0, 12)


def test_a_store_that_cannot_be_written_is_a_user_error_and_what_its_text_raises_is_not(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/store: cannot write \(.*Not a directory"):
        write_store(tmp_path / "file" / "store", DOCUMENTS)

    def unreadable():
        yield np.array([1, 2]), 2
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        tokens.write(tmp_path / "store", unreadable(), "digest")


ANSWERS = [
    tokens.Answer(np.array([0, 5, 6, 7]), 2, 9, 0),
    tokens.Answer(np.array([0, 8]), 1, 4, 0),
    tokens.Answer(np.array([0, 9, 10, 11, 12]), 4, 3, 3),
]


def test_the_context_of_an_answer_has_its_documents_number_below_zero(tmp_path):
    store = tokens.write_answers(tmp_path / "store", ANSWERS, "digest", np.uint16)
    window = TokenStore(tmp_path / "store").read(0, 12)
    assert_array_equal(window.tokens, [0, 5, 6, 7, 0, 8, 0, 9, 10, 11, 12, 0])
    assert_array_equal(window.segments, [-1, -1, 1, 1, -2, 2, -3, -3, -3, -3, 3, 0])
    assert_array_equal(store.read(3, 8).segments, [1, -2, 2, -3, -3])
    assert (store.end_task, store.n_bytes) == (True, 16)
    assert_array_equal(store.answers, [2, 1, 4])
    assert_array_equal(store.examples, [0, 0, 3])
