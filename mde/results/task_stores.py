"""The end tasks of `mde prepare`: read, reported on, and kept as a store of right and one of wrong answers each."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mde.data import tokens
from mde.errors import UserError
from mde.study import RIGHT, WRONG, Study, digest

NEXT = "-next"  # ends the names of tasks that are made out of a domain's held-out text
_READ = 2_000  # documents that such a task is made of


class TaskStores:
    """The end tasks of one preparation.

    Attributes:
      asked: the tasks that are read from files (`mde.domains.end_tasks.EndTask`).
      continued: the domains out of whose held-out text others are made.
      names: of all tasks, in the study's order.
      sources: by task, where its examples come from.
    """

    def __init__(self, study: Study, asked: Sequence[Any], continued: Sequence[str], count: int, settings: Any):
        self.asked, self.continued = list(asked), list(continued)
        self.sources: dict[str, Any] = {}
        self.names = [*(task.name for task in asked), *(domain + NEXT for domain in continued)]
        self._study, self._count, self._settings = study, count, settings
        self._examples: dict[str, list[Any]] = {}

    @property
    def digests(self) -> list[str]:
        """Of each task's examples that are in files, to which training text is compared."""
        return [self.sources[task.name]["digest"] for task in self.asked]

    def read(self, tally: Any) -> list[list[Any]]:
        """Reads the files and counts what is no example; returns it as [path, line, reason, detail] each.

        Raises:
          UserError: the first of these if `on_error` is "fail"; a task without an example.
        """
        from mde.domains import end_tasks
        from mde.domains.reading import Problem

        problems: list[list[Any]] = []
        for task in self.asked:
            found: list[Any] = []
            wrong: list[Any] = []
            for each in end_tasks.examples(task, self._settings.max_document_bytes):
                (wrong if isinstance(each, Problem) else found).append(each)
                if wrong and self._settings.on_error == "fail":
                    raise UserError(f"{_told(wrong[0])} (task {task.name!r})")
            if not found:
                first = f": {_told(wrong[0])}" if wrong else ""
                raise UserError(f"task {task.name!r} has no example{first}")
            for problem in wrong:
                tally.add(task.name, problem.reason, 1, 0)
            problems += map(list, wrong)
            self._examples[task.name] = found
            about = {key: value for key, value in dataclasses.asdict(task).items() if value is not None}
            self.sources[task.name] = {
                "description": f"end task {task.name}", "source": task.files, **about,
                "examples": len(found), "digest": digest(found),
            }  # fmt: skip
        return problems

    def runs(self) -> list[np.ndarray]:
        """The runs of words of questions and right answers, which training text must not repeat."""
        from mde.domains import hygiene

        if not self._settings.overlap_words:
            return []
        texts = (
            example.context + example.delimiter + choice
            for examples in self._examples.values()
            for example in examples
            for choice in itertools.compress(example.choices, example.right)
        )
        return [hygiene.grams(text, self._settings.overlap_words) for text in texts]

    def write(self, tokenizer: Any, recipe: str, stores: Mapping[str, Any]) -> dict[str, Any]:
        """Makes the tasks of held-out text, writes all stores and says what is in them, as `study.json` keeps it.

        Args:
          tokenizer: the study's.
          recipe: its name.
          stores: what is said of the domains' stores.
        """
        from mde.domains import continuations, end_tasks, passes

        for domain in self.continued:
            texts = _texts(tokens.TokenStore(self._study.root / "tokens" / domain / RIGHT), tokenizer)
            made = continuations.continuations(texts, self._count, self._settings.seed)
            if not made:
                raise UserError(f"continuations of {domain!r}: its held-out text is too short for one")
            self._examples[domain + NEXT] = made
            of = [stores[f"{domain}/{RIGHT}"]["digest"], self._count, self._settings.seed]
            self.sources[domain + NEXT] = {
                "description": f"which of four texts goes on, held-out text of {domain}",
                "source": f"{domain}/{RIGHT}", "examples": len(made), "digest": digest(of),
            }  # fmt: skip
        dtype = passes.token_type(tokenizer.vocab_size)
        about: dict[str, Any] = {}
        for name, examples in self._examples.items():
            encoded = list(end_tasks.encoded(tokenizer, examples))
            for split in (RIGHT, WRONG):
                answers = [answer for right, answer in encoded if right == (split == RIGHT)]
                if answers:
                    wanted = digest([recipe, self.sources[name]["digest"], split])
                    store = tokens.write_answers(self._study.root / "tokens" / name / split, answers, wanted, dtype)
                    about[f"{name}/{split}"] = {
                        "tokens": store.n_tokens, "documents": store.n_documents,
                        "bytes": store.n_bytes, "digest": wanted,
                    }  # fmt: skip
        return about


def _told(problem: Any) -> str:
    return f"{problem.path}, line {problem.line}: {problem.reason}: {problem.detail}"


def _texts(store: tokens.TokenStore, tokenizer: Any) -> list[str]:
    """The texts of a store's first documents, without START and end-of-text."""
    bounds = store.bounds[: _READ + 1]
    return [tokenizer.decode(store.read(a + 1, b - 1).tokens.tolist()) for a, b in itertools.pairwise(bounds)]
