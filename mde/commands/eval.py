"""`mde eval`: lm-evaluation-harness's own tasks on a run, a merged model or a mixture of experts."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np
import pandas as pd
from etils import epath

from mde.arguments import FLAT
from mde.buckets import write_aside
from mde.domains import tokenizers
from mde.errors import UserError, check_positive, unknown
from mde.evaluation.language_model import ExpertMixture
from mde.results import mixtures
from mde.results.trained_runs import load_run, model_config
from mde.study import Study, digest

Weights = Mapping[str, float] | str | None


@dataclass(frozen=True)
class Harness:
    """How lm-evaluation-harness runs its tasks.

    Attributes:
      include_path: a folder of task files beside the harness's own.
      num_fewshot: examples in each context; what each task says if None.
      limit: the first examples of each task that are asked, or the part of them if below 1.
      batch_size: texts at a time; by default as many as keep the device busy.
    """

    include_path: str | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_positive(batch_size=self.batch_size)


def eval(
    study: Study,
    tasks: Sequence[str],
    run: str | None = None,
    merged: Weights = None,
    mixture: Weights = None,
    tau: float = 0.0,
    harness: Annotated[Harness, FLAT] = Harness(),
    output: str | None = None,
) -> None:
    """Runs tasks of lm-evaluation-harness and prints their table; exactly one of run, merged and mixture says on what.

    Args:
      study: a study with trained runs.
      tasks: names of the harness's tasks.
      run: a run's name.
      merged: weights of the experts whose parameters are averaged: by domain, such as `wiki=.7 code=.3`, the
        name of a run, whose mixture is taken, `uniform`, `proportional` or `recommended`.
      mixture: weights of the experts whose probabilities are mixed, likewise.
      tau: exponent of the mixture's prefix posterior, 0 to 1; 0 is MDE.
      harness: how the harness runs them.
      output: the file to write, a JSON file, and beside it the table as CSV; below `evals/` in the study if None.

    Raises:
      UserError: none or several models, an unknown run, task or domain, weights off the simplex; lm-eval is missing.
    """
    given = {"run": run, "merged": merged, "mixture": mixture}
    chosen = [kind for kind, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise UserError(f"give one of --run, --merged and --mixture, got {', '.join(chosen) or 'none'}")
    if tau and mixture is None:
        raise UserError(f"tau={tau} is of a --mixture")
    if output is not None and output.endswith(".csv"):
        raise UserError(f"output={output!r}: expected the JSON file, {output[:-4]}.json; the table comes beside it")
    try:
        from mde.evaluation.downstream import HarnessModel, results_of
    except ImportError as error:
        raise UserError(f"lm-evaluation-harness is missing ({error}); pip install 'mde[eval]'") from error
    model, about = _model(study, chosen[0], given[chosen[0]], tau)
    tokenizer = tokenizers.load(study.whole.root / "tokenizer")
    length = study.read_json("training.json", "train")["settings"]["seq_len"]
    language_model = HarnessModel(model, tokenizer, length, harness.batch_size)
    found = results_of(language_model, tasks, harness.include_path, harness.num_fewshot, harness.limit)
    folder = (
        [] if harness.include_path is None else [os.path.abspath(harness.include_path)]
    )  # another's tasks may have the same names
    name = f"{about['name']}-{digest([about, list(tasks), harness.num_fewshot, harness.limit, *folder])}"
    path = epath.Path(output) if output else study.root / "evals" / f"{name}.json"
    table = _table(found)
    write_aside(path.with_suffix(".csv"), table.to_csv(index=False))
    write_aside(path, json.dumps({"model": about, **found}, indent=1, default=str))
    print(table.to_string(index=False, float_format="{:.4f}".format))
    print(f"see {path}")


def _model(study: Study, kind: str, value: Any, tau: float) -> tuple[ExpertMixture, dict[str, Any]]:
    """The language model that is asked for, and what it is."""
    config = model_config(study)
    if config.masked:
        raise UserError(
            "an encoder says nothing of the text that follows, which is what lm-evaluation-harness asks for"
        )
    if kind == "run":
        done = sorted(path.parent.name for path in (study.root / "runs").glob("*/run.json"))
        if value not in done:
            raise unknown(f"run of {study}", value, done)
        return ExpertMixture(config, [load_run(study, value, config)]), {"name": value, "run": value}
    names = study.domains.training
    weights = _weights(study, kind, value)
    experts = [load_run(study, f"expert-{name}", config) for name in names]
    about: dict[str, Any] = {
        "name": f"{kind}-{value}" if isinstance(value, str) else kind,
        kind: dict(zip(names, weights.tolist(), strict=True)),
    }
    if kind == "mixture":
        return ExpertMixture(config, experts, weights, tau), about | {"tau": tau}
    average = jax.tree.map(lambda *leaves: np.tensordot(weights, np.stack(leaves), 1).astype(np.float32), *experts)
    return ExpertMixture(config, [average]), about


def _weights(study: Study, kind: str, value: Mapping[str, float] | str) -> np.ndarray:
    """The weights [K] that a mapping or a name stands for; a run's name is its mixture's."""
    names = list(study.domains.training)
    runs = {str(run): dict(zip(names, row[names], strict=True)) for run, row in study.mixtures().iterrows()}
    return mixtures.mixture(study, value, f"--{kind}", runs)


def _table(found: Mapping[str, Any]) -> pd.DataFrame:
    """A row a task and metric."""
    rows = []
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            few, count = found["n-shot"].get(task), found["n-samples"].get(task, {}).get("effective")
            rows.append({"task": task, "metric": metric, "filter": kind, "few-shot": few, "examples": count})
            rows[-1] |= {"value": value, "stderr": error if isinstance(error, float) else None}
    return pd.DataFrame(rows)
