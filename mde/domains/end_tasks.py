"""End tasks: examples of a context, its choices, and which of them are right, out of files of any layout.

A layout is said by paths into a record (`question.stem`, `choices.*.text`) and templates of them (`{question.stem}`).
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mde import buckets
from mde.data.tokens import Answer
from mde.domains import corpora, reading
from mde.domains.corpora import NAME, Corpus
from mde.domains.reading import Problem
from mde.domains.tokenizers import Tokenizer
from mde.errors import UserError, unknown

FORMATS = ("jsonl", "parquet", "tfds")
_BATCH = 1024  # examples that are tokenized at a time
_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclasses.dataclass(frozen=True)
class EndTask:
    """Where a task's examples lie and how they are read.

    Attributes:
        name: of the evaluation domain that it becomes.
        files: the place of its examples, as for a corpus.
        context: template of what a model reads before it answers.
        choices: path of the list of choices, or templates, one a choice; None if there is only the answer.
        answer: path of the right one: its text, its label or, without labels, its index from 0 (false is 0, true 1); a
            path with `*` holds a flag for each choice, of which several may be true. Without choices, a template of the
            answer.
        labels: path of the list of the choices' labels, or the labels.
        each: path of a list in a record, whose items are an example each; the record's own fields are seen from them.
        delimiter: what stands between context and answer.
        format: `jsonl` or `parquet`, or None to tell by the files' names.
    """

    name: str
    files: str
    context: str = "{question}"
    choices: str | Sequence[str] | None = "choices"
    answer: str = "answer"
    labels: str | Sequence[str | int] | None = None
    each: str | None = None
    delimiter: str = " "
    format: str | None = None


class Example(NamedTuple):
    """What a model is asked: the choices follow the context, each with the delimiter before it."""

    context: str
    choices: tuple[str, ...]
    right: tuple[bool, ...]
    delimiter: str = " "


class _UnfitError(Exception):
    """A record is no example: which of `reading.REASONS`, and what exactly is wrong."""

    args: tuple[str, str]


def parse(tasks: Mapping[str, Any], root: str | None) -> list[EndTask]:
    """The tasks that `prepare.tasks` says.

    Args:
        tasks: by name a place, or the arguments of `EndTask` as a mapping.
        root: the folder or bucket where relative places begin.

    Raises:
        UserError: an unknown argument or format, a name that cannot be a domain's, no place.
    """
    found = []
    for name, value in tasks.items():
        given = corpora.settings("task", name, value, EndTask, FORMATS[:2])
        if not NAME.fullmatch(name):
            raise UserError(f"task {name!r}: a name has letters, digits, '_', '-' and '.'")
        if root and not re.match(r"tfds:|\w+://", given["files"]):
            given["files"] = str(buckets.path(root) / given["files"])
        for key in ("choices", "labels"):
            given |= {key: tuple(given[key])} if isinstance(given.get(key), list) else {}
        found.append(EndTask(name, **given))
    return found


def corpus(task: EndTask) -> Corpus:
    """A task's files as a corpus whose records are read whole."""
    return Corpus(task.name, task.files, text_field="", format=task.format, trained=False)


def examples(task: EndTask, limit: int) -> Iterator[Example | Problem]:
    """The examples of a task in the order of its files, and what is none.

    Args:
        task: what to read.
        limit: bytes of the longest line.

    Raises:
        UserError: nothing is there, or files that are neither JSON lines nor Parquet.
    """
    for shard in corpora.shards(corpus(task)):
        if shard.format not in FORMATS:
            raise UserError(
                f"task {task.name!r}: {shard.pieces[0].path} is neither JSON lines nor Parquet by its name; "
                "give the task's 'format'"
            )
        for piece, record in corpora.records(shard, limit):
            if isinstance(record, Problem):
                yield record
                continue
            for found in _examples(task, record.value):
                yield found if isinstance(found, Example) else Problem(piece.path, record.line, *found)


def _examples(task: EndTask, value: Any) -> Iterator[Example | tuple[str, str]]:
    """The examples of a record; for those that are none, the reason and what exactly is wrong."""
    try:
        record = _plain(value)
        items = [record] if task.each is None else _listed(record, task.each)
    except (_UnfitError, KeyError, UnicodeError) as error:
        yield _problem(error)
        return
    for item in items:
        try:
            yield _example(task, {**record, **item} if isinstance(item, Mapping) else record)
        except (_UnfitError, KeyError, UnicodeError) as error:
            yield _problem(error)


def _problem(error: Exception) -> tuple[str, str]:
    if isinstance(error, _UnfitError):
        return error.args
    if isinstance(error, KeyError):
        return "missing_field", str(unknown("field", *error.args))
    return "invalid_utf8", str(error)


def _example(task: EndTask, record: Mapping[str, Any]) -> Example:
    context = _filled(task.context, record)
    if task.choices is None:
        answer = task.answer if _FIELD.search(task.answer) else f"{{{task.answer}}}"
        choices, right = [_filled(answer, record)], [True]
    else:
        if isinstance(task.choices, str):
            choices = list(map(_text, _listed(record, task.choices)))
        else:
            choices = [_filled(choice, record) for choice in task.choices]
        if not choices:
            raise _UnfitError("empty", "no choices")
        right = _right(task, record, choices)
    for i, choice in enumerate(choices):
        if not choice.strip():
            raise _UnfitError("empty", f"choice {i} is empty")
    for text in (context, *choices):
        text.encode()  # refuses half a surrogate pair
    return Example(context, tuple(choices), tuple(right), task.delimiter)


def _right(task: EndTask, record: Mapping[str, Any], choices: list[str]) -> list[bool]:
    """Which of the choices are right."""
    if "*" in task.answer.split("."):
        flags = list(map(_flag, _listed(record, task.answer)))
        if len(flags) != len(choices):
            raise _UnfitError("not_a_choice", f"{len(flags)} flags for {len(choices)} choices")
        if not any(flags):
            raise _UnfitError("not_a_choice", "no choice is flagged as right")
        return flags
    answer = reading.field(record, task.answer)
    if task.labels is not None:
        labels = _listed(record, task.labels) if isinstance(task.labels, str) else list(task.labels)
        known = list(map(str, labels))[: len(choices)]
        if str(answer) not in known:
            raise _UnfitError("not_a_choice", f"answer {answer!r} is none of {', '.join(known)}")
        return [label == str(answer) for label in known] + [False] * (len(choices) - len(known))
    if isinstance(answer, int):
        if not 0 <= answer < len(choices):
            raise _UnfitError("not_a_choice", f"answer {answer} of {len(choices)} choices, which count from 0")
        return [i == answer for i in range(len(choices))]
    if str(answer) not in choices:
        raise _UnfitError("not_a_choice", f"answer {answer!r} is none of {', '.join(map(repr, choices))}")
    return [choice == str(answer) for choice in choices]


def _filled(template: str, record: Mapping[str, Any]) -> str:
    return _FIELD.sub(lambda match: _text(reading.field(record, match[1])), template)


def _listed(record: Mapping[str, Any], path: str) -> list[Any]:
    """The list at a path, or what stands behind the `*` of it in each item of a list."""
    head, star, rest = path.partition(".*")
    found = reading.field(record, head)
    if not isinstance(found, list):
        raise _UnfitError("missing_field", f"field {head!r} holds {type(found).__name__}, not a list")
    return [reading.field(item, rest[1:]) for item in found] if star and rest else found


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise _UnfitError("missing_field", f"expected text, found {type(value).__name__} {value!r}")


def _flag(value: Any) -> bool:
    if value in (0, 1, "0", "1"):
        return bool(int(value))
    raise _UnfitError("not_a_choice", f"flag {value!r}, expected 0 or 1")


def _plain(value: Any) -> Any:
    """A record without NumPy's types and bytes, which TFDS has; a mapping of lists stays one."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value


def encoded(tokenizer: Tokenizer, examples: Sequence[Example]) -> Iterator[tuple[bool, Answer]]:
    """The choices of all examples as tokens, each with whether it is right.

    Context and choice are tokenized together, and the context's own number of tokens says where the choice begins, as
    lm-evaluation-harness does it; white space at the end of a context counts to the choice.
    """
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        contexts = tokenizer.encode_batch([example.context.rstrip() for example in batch])
        texts = [e.context + e.delimiter + choice for e in batch for choice in e.choices]
        wholes = iter(tokenizer.encode_batch(texts))
        for i, (example, context) in enumerate(zip(batch, contexts, strict=True)):
            for choice, right in zip(example.choices, example.right, strict=True):
                whole = next(wholes)[:-1]  # no end-of-text after an answer
                tokens = np.concatenate([[tokenizer.start], whole])
                begins = min(len(context), len(tokens) - 1)  # START stands where the context's end-of-text stood
                yield right, Answer(tokens, begins, len(choice.encode()), start + i)
