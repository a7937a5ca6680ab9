"""Scores on disk: what comes back, what is refused, and what a kill leaves."""

import json
import shutil

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mde.errors import UserError
from mde.evaluation import scores as module
from mde.evaluation.scores import Scores

RUNS, DOMAINS = ("a", "b", "c"), ("law", "news")
OF = [[f"{run} on {domain}" for domain in DOMAINS] for run in RUNS]


@pytest.fixture
def table(monkeypatch):
    """[T, K]: 100 tokens of law, 37 of news, in several chunks each."""
    monkeypatch.setattr(module, "_CHUNK", 16)
    table = -np.random.default_rng(0).gamma(1.0, 3.0, (137, 3)).astype(np.float32)
    table[5, 1] = -np.inf  # impossible, which is legal
    return table


@pytest.fixture
def scores(tmp_path, table):
    scores = Scores(tmp_path)
    for k, run in enumerate(RUNS):
        scores.write(run, "law", OF[k][0], table[:100, k])
        scores.write(run, "news", OF[k][1], table[100:, k])
    return scores


@pytest.fixture
def columns(scores):
    return scores.columns(RUNS, DOMAINS, OF)


def test_a_table_comes_back_to_the_last_bit(columns, table):
    assert (columns.shape, columns.dtype, columns.ndim, len(columns)) == ((137, 3), np.float32, 2, 137)
    assert_array_equal(columns[:], table)
    assert_array_equal(np.asarray(columns), table)
    assert np.asarray(columns, np.float64).dtype == np.float64


def test_few_tokens_take_little_room(tmp_path):
    Scores(tmp_path).write("run", "news", "of", np.full(1000, -2.5, np.float32))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 4 * 1000 + 2000


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (99, 101), (0, 100), (100, 137), (3, 130), (50, 50), (136, 999), (None, 7), (-5, None)]
)
def test_a_slice_is_the_slice_of_the_table(columns, table, start, stop):
    assert_array_equal(columns[start:stop], table[start:stop])


@pytest.mark.parametrize("index", [3, slice(0, 9, 2), (slice(0, 2), 1)])
def test_what_does_not_stream_is_no_index(columns, index):
    with pytest.raises(IndexError, match="expected a slice"):
        columns[index]


def test_only_the_chunks_of_a_slice_are_read(columns, scores, tmp_path, table):
    for path in (tmp_path / "b" / "law" / "log_probs" / "c").iterdir():
        if path.name not in ("1", "2"):
            path.unlink()
    assert_array_equal(columns[20:40], table[20:40])
    with pytest.raises(UserError, match=r"b/law/log_probs: damaged or missing.*mde score"):
        columns[:]


def test_the_loss_is_the_mean_in_float64(scores, table):
    assert scores.find("a", "news", OF[0][1]).loss == -table[100:, 0].astype(np.float64).mean()
    assert scores.find("a", "news", OF[0][1]).tokens == 37
    assert scores.find("b", "law", OF[1][0]).loss == np.inf


def test_a_score_of_something_else_is_none(scores):
    assert scores.find("a", "law", "another run") is None
    assert scores.find("nobody", "law", OF[0][0]) is None
    with pytest.raises(UserError, match=r"a/law: no score of this run on this text; run `mde score`"):
        scores.columns(RUNS, DOMAINS, [["another text", OF[0][1]], *OF[1:]])


def test_a_score_replaces_the_one_before(scores, table):
    scores.write("a", "law", "new", table[:3, 0])
    assert scores.find("a", "law", OF[0][0]) is None
    assert scores.find("a", "law", "new").tokens == 3
    assert_array_equal(scores.columns("a", ["law"], [["new"]])[:], table[:3, :1])


def test_a_write_that_is_cut_short_leaves_no_score_and_can_be_repeated(scores, table, monkeypatch, tmp_path):
    """Killed after the array, before the record of it: the old record must not vouch for the new array."""
    with monkeypatch.context() as patch:
        patch.setattr(module.json, "dumps", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scores.write("a", "law", "new", table[:3, 0])
    assert (tmp_path / "a" / "law" / "log_probs").exists()
    assert scores.find("a", "law", "new") is scores.find("a", "law", OF[0][0]) is None
    assert scores.write("a", "law", "new", table[:3, 0]) == scores.find("a", "law", "new")


def test_what_is_not_a_number_is_named(scores):
    with pytest.raises(UserError, match=r"run 'a', domain 'law': the log-prob of scored token 2 is nan"):
        scores.write("a", "law", "new", np.float32([-1, -np.inf, np.nan, np.nan]))
    assert scores.find("a", "law", OF[0][0]).tokens == 100  # what was there stays


def _cut(directory):
    chunk = directory / "log_probs" / "c" / "1"
    chunk.write_bytes(chunk.read_bytes()[:-3])


def _lose(directory):
    shutil.rmtree(directory / "log_probs")


def _shorten(directory):
    about = directory / "log_probs" / "zarr.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"shape": [90]}))


def _scribble(directory):
    (directory / "score.json").write_text('{"of": "x"}')


@pytest.mark.parametrize("damage", [_cut, _lose, _shorten, _scribble])
def test_damage_is_an_error_that_names_the_place(scores, tmp_path, damage):
    damage(tmp_path / "c" / "law")
    with pytest.raises(UserError, match=r"c/law/(log_probs|score.json).*mde score"):
        scores.columns(RUNS, DOMAINS, OF)[:]


@pytest.mark.parametrize("file", ["score.json", "log_probs/zarr.json", "log_probs/c/1"])
def test_what_cannot_be_read_is_not_called_damaged(scores, tmp_path, file):
    """A link to itself, which even root cannot read."""
    path = tmp_path / "c" / "law" / file
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(UserError, match=r"c/law/.*: cannot be read \(.*symbolic links.*; nothing was deleted"):
        scores.columns(RUNS, DOMAINS, OF)[:]


def test_a_bucket_that_did_not_answer_has_not_damaged_anything(scores, monkeypatch):
    """What TensorStore says after its last try."""

    def refuse(*_):
        raise ValueError(
            'ABORTED: Error opening "zarr3" driver: Error reading gs://bucket/x/zarr.json: All 2 retry attempts '
            "failed: CURL error Could not connect to server"
        )

    monkeypatch.setattr(module, "open_array", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(ABORTED: "):
        scores.columns(RUNS, DOMAINS, OF)


def test_a_place_that_cannot_be_written_to_is_a_user_error(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"run/news: cannot write \(.*Not a directory"):
        Scores(tmp_path).write("run", "news", "of", np.full(10, -2.5, np.float32))
