"""`mde score`: log-probabilities of the evaluation tokens under every run, and the losses they add up to."""

import sys
from typing import Any

import numpy as np

from mde import hosts
from mde.errors import check_positive
from mde.results.scored_text import evaluation_table, score_choices, score_runs, seq_len
from mde.study import RIGHT, WRONG, Study


def score(
    study: Study, tokens_per_domain: int = 8192, examples_per_task: int = 1000, batch_size: int | None = None
) -> None:
    """Scores the experts and the proxy runs; stopped at any time, it goes on with the domain that it was at.

    Args:
      study: a study with trained runs.
      tokens_per_domain: whole documents of each evaluation domain are taken until they have this many tokens.
      examples_per_task: so many of an end task's first examples are taken, with all their choices.
      batch_size: windows that a device takes at a time; by default as many as keep it busy.
    """
    check_positive(tokens_per_domain=tokens_per_domain, examples_per_task=examples_per_task)
    if batch_size is not None:
        check_positive(batch_size=batch_size)
    about: dict[str, Any] = {"tokens_per_domain": tokens_per_domain, "batch_size": batch_size}
    if study.tasks:
        about["examples_per_task"] = examples_per_task
    runs = list(study.mixtures().index)
    _warn_of_long_answers(study)
    losses = score_runs(study, about, runs)
    accuracies = score_choices(study, about, runs)
    study.write_json("scoring.json", about)
    study.write_table("evaluation.csv", evaluation_table(study, about))
    if accuracies is not None:
        study.write_table("accuracies.csv", accuracies)
    study.write_table("losses.csv", losses)


def _warn_of_long_answers(study: Study) -> None:
    """Says of which tasks some answers are longer than what the models read at a time."""
    for task in study.tasks:
        stores = [study.store(task, split) for split in (RIGHT, WRONG) if f"{task}/{split}" in study.about["stores"]]
        count = sum(int((np.diff(store.bounds) - store.answers > seq_len(study)).sum()) for store in stores)
        if count and hosts.is_first():
            print(
                f"warning: task {task!r}: {count} answers are longer than the {seq_len(study)} tokens that the models "
                "read; their beginnings are not scored",
                file=sys.stderr,
            )
