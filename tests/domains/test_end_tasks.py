"""Examples of end tasks out of files in any layout, and out of plain text."""

import json

import numpy as np
import pytest

from mde.domains import continuations, end_tasks
from mde.domains.end_tasks import Example
from mde.domains.reading import Problem
from mde.domains.tokenizers import ByteTokenizer
from mde.errors import UserError


def lines(path, records):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records))
    return str(path)


def read(place, **layout):
    (task,) = end_tasks.parse({"t": {"files": place, **layout}}, None)
    return list(end_tasks.examples(task, 10_000))


def test_the_plain_layout_takes_an_index_or_the_text(tmp_path):
    place = lines(
        tmp_path / "t.jsonl",
        [
            {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1},
            {"question": "2 + 3 =", "choices": ["5", "6"], "answer": "5"},
            {"question": "2 + 4 =", "choices": ["5", "6"], "answer": True},
        ],
    )
    assert read(place) == [
        Example("2 + 2 =", ("3", "4"), (False, True)),
        Example("2 + 3 =", ("5", "6"), (True, False)),
        Example("2 + 4 =", ("5", "6"), (False, True)),
    ]


def test_labels_may_be_given_by_a_field_or_in_the_layout(tmp_path):
    record = {"q": "?", "a": "x", "b": "y", "key": "B", "names": ["A", "B"]}
    place = lines(tmp_path / "t.jsonl", [record])
    layout = {"context": "Q: {q}", "choices": ["{a}!", "{b}"], "answer": "key"}
    expected = [Example("Q: ?", ("x!", "y"), (False, True))]
    assert read(place, labels=["A", "B"], **layout) == read(place, labels="names", **layout) == expected


def test_flags_make_several_answers_right_and_items_see_their_record(tmp_path):
    questions = [
        {"q": "who?", "answers": [{"text": "I", "ok": 1}, {"text": "you", "ok": 0}, {"text": "we", "ok": 1}]},
        {"q": "when?", "answers": [{"text": "now", "ok": 0}, {"text": "then", "ok": 1}]},
    ]
    place = lines(tmp_path / "t.jsonl", [{"passage": {"text": "P.", "questions": questions}}])
    layout = {"each": "passage.questions", "choices": "answers.*.text", "answer": "answers.*.ok"}
    assert read(place, context="{passage.text} {q}", **layout) == [
        Example("P. who?", ("I", "you", "we"), (True, False, True)),
        Example("P. when?", ("now", "then"), (False, True)),
    ]


def test_a_task_without_choices_has_its_answer(tmp_path):
    place = lines(tmp_path / "t.jsonl", [{"question": "?", "answer": {"value": "42", "aliases": ["x"]}}])
    expected = [Example("?", ("42",), (True,))]
    assert read(place, choices=None, answer="answer.value") == expected
    assert read(place, choices=None, answer="{answer.value}") == expected


GOOD = {"question": "?", "choices": ["a", "b"], "answer": 0}


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ("{not json\n", "not_json", ""),
        ("[1]\n", "not_json", "expected a JSON object, found list"),
        ({"choices": ["a"], "answer": 0}, "missing_field", "unknown field 'question'"),
        ({"question": "?", "choice": ["a"], "answer": 0}, "missing_field", "'choices': did you mean 'choice'"),
        ({"question": "?", "choices": ["a"]}, "missing_field", "unknown field 'answer'"),
        ({"question": "?", "choices": "ab", "answer": 0}, "missing_field", "holds str, not a list"),
        ({"question": ["?"], "choices": ["a"], "answer": 0}, "missing_field", "expected text, found list"),
        ({"question": "?", "choices": [], "answer": 0}, "empty", "no choices"),
        ({"question": "?", "choices": ["a", " "], "answer": 0}, "empty", "choice 1 is empty"),
        ({"question": "?", "choices": ["a", "b"], "answer": 2}, "not_a_choice", "answer 2 of 2 choices"),
        ({"question": "?", "choices": ["a", "b"], "answer": -1}, "not_a_choice", "answer -1 of 2 choices"),
        ({"question": "?", "choices": ["a", "b"], "answer": "c"}, "not_a_choice", "answer 'c' is none of 'a', 'b'"),
        ('{"question": "\\ud800", "choices": ["a"], "answer": 0}\n', "invalid_utf8", "surrogates not allowed"),
    ],
)
def test_what_is_no_example_is_told_with_its_line_and_the_others_are_read(tmp_path, record, reason, detail):
    place = lines(tmp_path / "t.jsonl", [GOOD, record, GOOD])
    first, problem, last = read(place)
    assert isinstance(problem, Problem)
    assert (problem.path, problem.line, problem.reason) == (place, 2, reason)
    assert detail in problem.detail
    assert first == last == Example("?", ("a", "b"), (True, False))


@pytest.mark.parametrize(
    ("flags", "detail"),
    [([0, 0], "no choice is flagged"), ([1, 2], "flag 2, expected 0 or 1"), ([1, None], "flag None")],
)
def test_flags_that_make_no_answer(tmp_path, flags, detail):
    record = {"question": "?", "choices": [{"text": "a", "ok": flags[0]}, {"text": "b", "ok": flags[1]}]}
    place = lines(tmp_path / "t.jsonl", [record])
    (problem,) = read(place, choices="choices.*.text", answer="choices.*.ok")
    assert problem.reason == "not_a_choice"
    assert detail in problem.detail


def test_labels_that_are_none_of_the_choices(tmp_path):
    place = lines(tmp_path / "t.jsonl", [{**GOOD, "answer": "C", "names": ["A", "B"]}])
    (problem,) = read(place, labels="names")
    assert problem[2:] == ("not_a_choice", "answer 'C' is none of A, B")


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ({"t": {"file": "x"}}, "unknown setting of task 't' 'file': did you mean 'files'"),
        ({"t": {"context": "x"}}, "task 't': expected 'files'"),
        ({"t t": "x"}, "task 't t': a name has"),
        ({"t": {"files": "x", "format": "text"}}, "unknown format of task 't' 'text'"),
        ({"t": ["x.jsonl"]}, r"task 't': \['x.jsonl'\], expected a place"),
        ({"t": {"files": "x", "choices": [1]}}, r"task 't': choices = \[1\], expected text"),
    ],
)
def test_what_is_no_task(tasks, expected):
    with pytest.raises(UserError, match=expected):
        end_tasks.parse(tasks, None)


def test_a_text_file_is_no_task(tmp_path):
    (tmp_path / "t.txt").write_text("text")
    with pytest.raises(UserError, match=r"t\.txt is neither JSON lines nor Parquet by its name"):
        read(str(tmp_path / "t.txt"))


def test_places_begin_at_the_root():
    (a, b) = end_tasks.parse({"a": "x.jsonl", "b": "tfds:x:test"}, "gs://bucket")
    assert (a.files, b.files) == ("gs://bucket/x.jsonl", "tfds:x:test")


def test_answers_begin_where_the_context_ends():
    """By hand with bytes as tokens: white space that ends a context is the answer's, and an empty context is START."""
    made = [
        Example("ab", ("c", "de"), (True, False)),
        Example("q \n", ("x",), (True,), ""),
        Example("", ("y",), (True,), ""),
    ]
    found = [(right, *answer) for right, answer in end_tasks.encoded(ByteTokenizer(), made)]
    text = lambda tokens: bytes(int(t) - 3 for t in tokens[1:])  # noqa: E731
    assert [(right, text(tokens), begins, size, example) for right, tokens, begins, size, example in found] == [
        (True, b"ab c", 3, 1, 0),
        (False, b"ab de", 3, 2, 0),
        (True, b"q \nx", 2, 1, 1),
        (True, b"y", 1, 1, 2),
    ]
    assert all(tokens[0] == ByteTokenizer.start for _, tokens, *_ in found)


@pytest.fixture(scope="module")
def prose():
    rng = np.random.default_rng(0)
    return [" ".join(f"w{n}" for n in rng.integers(0, 10_000, 150)) for _ in range(20)]


def test_continuations_go_on_in_their_own_text_and_wrong_ones_are_of_others(prose):
    made = continuations.continuations(prose, 60, seed=1)
    assert len(made) == 60
    places = set()
    for context, choices, right, delimiter in made:
        assert (delimiter, len(set(choices)), sum(right)) == ("", 4, 1)
        (owner,) = (text for text in prose if context + choices[right.index(True)] in text)
        assert not any(
            context + choice in owner for choice, is_right in zip(choices, right, strict=True) if not is_right
        )
        assert all(choice[0] == " " for choice in choices)
        assert all(continuations.ANSWER <= len(choice) <= continuations.LONGEST for choice in choices)
        places.add(right.index(True))
    assert places == {0, 1, 2, 3}
    assert made == continuations.continuations(prose, 60, seed=1)
    assert made != continuations.continuations(prose, 60, seed=2)


def test_too_little_text_makes_no_task(prose):
    assert continuations.continuations(prose[:1], 60, seed=0) == []
    assert continuations.continuations(["short"] * 9, 60, seed=0) == []
