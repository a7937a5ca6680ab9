"""The evaluation text of a study, and what its runs make of it: log-probs, losses, choices, accuracies."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mde import hosts
from mde.evaluation.answers import Choices
from mde.evaluation.scores import Columns, Score, Scores
from mde.evaluation.scoring import EvaluationSet, Scorer, documents_of, evaluation_set
from mde.results.trained_runs import load_run, model_config
from mde.study import RIGHT, WRONG, Study, digest


def score_runs(study: Study, about: Mapping[str, Any], runs: Sequence[str]) -> pd.DataFrame:
    """Losses [runs, J] in nats per token, scored as `about` says; scores that are there already are kept."""
    data = evaluation_data(study, about)
    found = _scored(study, about, runs, data, RIGHT)
    losses = {run: [score.loss for score in scores] for run, scores in found.items()}
    table = pd.DataFrame.from_dict(losses, orient="index", columns=list(data.domains))
    table.index.name = "run"
    return table


def score_choices(study: Study, about: Mapping[str, Any], runs: Sequence[str]) -> pd.DataFrame | None:
    """Accuracies of runs whose losses are scored, columns `acc/TASK` and `acc_norm/TASK`; None without choices.

    `acc` takes the likeliest choice, `acc_norm` that of the highest log-prob per UTF-8 byte.
    """
    if not choice_tasks(study):
        return None
    data = wrong_data(study, about)
    _scored(study, about, runs, data, WRONG)
    columns: dict[str, list[float]] = {}
    for task in choice_tasks(study):
        choices = choices_of(study, about, runs, task)
        alone = choices.mixed(np.eye(len(runs)), 1)
        columns[f"acc/{task}"] = choices.summaries(alone).accuracy.tolist()
        columns[f"acc_norm/{task}"] = choices.summaries(alone / choices.bytes).accuracy.tolist()
    return pd.DataFrame(columns, pd.Index(runs, name="run"))


def _scored(
    study: Study, about: Mapping[str, Any], runs: Sequence[str], data: EvaluationSet, split: str
) -> dict[str, list[Score]]:
    """The scores of runs on domains, of which those that are missing are made.

    Where several processes do this together, each takes its share of the runs.
    """
    scores, of = _scores(study, split), _identities(study, about, runs, data.domains, split)
    missing = {}
    for run in runs:
        if names := [domain for domain, name in of[run].items() if scores.find(run, domain, name) is None]:
            missing[run] = names
    hosts.wait("all have seen what is scored")
    mine = {run: missing[run] for run in list(missing)[hosts.index() :: hosts.count()]}
    for run, domain, log_probs in _score(study, about, data, mine):
        study.changed = True
        scores.write(run, domain, of[run][domain], log_probs)
    hosts.wait("all have scored their share")
    return {run: [scores.read(run, domain, name) for domain, name in of[run].items()] for run in runs}


def _score(
    study: Study, about: Mapping[str, Any], data: EvaluationSet, missing: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Runs, domains and log-probs [T_j] of what is missing; a run's parameters are read while another is scored."""
    if not missing:
        return
    config = model_config(study)
    scorer = Scorer(config, data, about["batch_size"])
    counts = dict(zip(data.domains, map(int, data.token_counts), strict=True))
    total = sum(counts[domain] for names in missing.values() for domain in names)
    with (
        tqdm(total=total, desc="score", unit="tok", unit_scale=True, disable=not hosts.is_first()) as bar,
        ThreadPoolExecutor(1) as ahead,
    ):
        loading = (ahead.submit(load_run, study, run, config) for run in missing)
        loaded = next(loading)
        for run, names in missing.items():
            params, loaded = loaded.result(), next(loading, loaded)
            bar.set_postfix(run=run, refresh=False)
            for j, log_probs in scorer(params, [data.domains.index(name) for name in names], bar.update):
                yield run, data.domains[j], log_probs


def on_test_text(study: Study, about: Mapping[str, Any]) -> dict[str, Any]:
    """How validation runs and full models are scored: on test text, or on validation text in a study without any."""
    domains = [name for name in study.domains.evaluation if name not in study.tasks]
    has_all = all(f"{name}/test" in study.about["stores"] for name in domains)
    return {**about, "split": "test" if has_all else RIGHT}


def document_sums(
    study: Study, about: Mapping[str, Any], runs: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums over the D documents that scored runs were scored on: their nats [runs, D], tokens [D], and domains [D]."""
    data = evaluation_data(study, about)
    ids_T = data.document_ids
    columns = log_probs_of(study, about, runs)
    nats = np.stack([np.bincount(ids_T, -column.astype(np.float64)) for column in columns[:].T])
    domain_D = np.zeros(nats.shape[1], np.int64)
    domain_D[ids_T] = data.segment_ids
    return nats, np.bincount(ids_T), domain_D


def evaluation_data(study: Study, about: Mapping[str, Any]) -> EvaluationSet:
    """The text that the study's runs are scored on; `about` is the content of `scoring.json`."""
    return _data(study, about, study.domains.evaluation, RIGHT)


def evaluation_table(study: Study, about: Mapping[str, Any]) -> pd.DataFrame:
    """By evaluation domain, the tokens that are scored and the UTF-8 bytes of their text."""
    data = evaluation_data(study, about)
    text = pd.DataFrame({"tokens": data.token_counts, "bytes": data.bytes.astype(int)}, data.domains)
    return text.rename_axis("domain")


def wrong_data(study: Study, about: Mapping[str, Any]) -> EvaluationSet:
    """The wrong choices of the tasks that have some, a domain each."""
    return _data(study, about, choice_tasks(study), WRONG)


def _data(study: Study, about: Mapping[str, Any], domains: Sequence[str], split: str) -> EvaluationSet:
    stores = {name: study.store(name, _split_of(study, about, name, split)) for name in domains}
    examples, masked = about.get("examples_per_task"), model_config(study).masked
    return evaluation_set(stores, about["tokens_per_domain"], seq_len(study), examples, masked)


def choice_tasks(study: Study) -> tuple[str, ...]:
    """The end tasks that have wrong choices, and so an accuracy."""
    return tuple(name for name in study.tasks if f"{name}/{WRONG}" in study.about["stores"])


def log_probs_of(study: Study, about: Mapping[str, Any], runs: Sequence[str]) -> Columns:
    """Log-probs in nats of the T evaluation tokens, a column for each run, [T, K] float32: read as it is sliced.

    Raises:
      UserError: a run that was not scored on this text.
    """
    return _columns(study, about, runs, study.domains.evaluation, RIGHT)


def choices_of(study: Study, about: Mapping[str, Any], runs: Sequence[str], task: str) -> Choices:
    """The choices of a task's examples with their tokens' log-probs under runs that were scored."""
    log_probs, lengths, sizes, examples = [], [], [], []
    for split in (RIGHT, WRONG):
        store = study.store(task, split)
        count = documents_of(store, about.get("examples_per_task"))
        scored = np.minimum(np.diff(store.bounds[: count + 1]) - store.answers[:count], seq_len(study))
        columns = _columns(study, about, runs, [task], split)[:]
        log_probs += np.split(columns, np.cumsum(scored)[:-1])
        lengths.append(scored)
        sizes.append(store.bytes[:count])
        examples.append(store.examples[:count])
    right = np.repeat([True, False], list(map(len, examples)))
    lengths_N, bytes_N, examples_N = map(np.concatenate, (lengths, sizes, examples))
    both = np.intersect1d(examples[0], examples[1])  # without those that have no wrong choice
    order = np.argsort(examples_N, kind="stable")
    order = order[np.isin(examples_N[order], both)]
    rows = np.concatenate([log_probs[i] for i in order])
    return Choices(rows, lengths_N[order], bytes_N[order], examples_N[order], right[order])


def _columns(
    study: Study, about: Mapping[str, Any], runs: Sequence[str], domains: Sequence[str], split: str
) -> Columns:
    of = _identities(study, about, runs, domains, split)
    return _scores(study, split).columns(runs, domains, [list(of[run].values()) for run in runs])


def _scores(study: Study, split: str) -> Scores:
    return Scores(study.root / {RIGHT: "scores", WRONG: "choices"}[split])


def _identities(
    study: Study, about: Mapping[str, Any], runs: Sequence[str], domains: Sequence[str], split: str
) -> dict[str, dict[str, str]]:
    """By run and domain, a name for what there is to score: the run's record, and the text and how it is cut."""
    stores = study.about["stores"]
    texts = {}
    for name in domains:
        cut = about.get("examples_per_task") if name in study.tasks else about["tokens_per_domain"]
        texts[name] = [stores[f"{name}/{_split_of(study, about, name, split)}"]["digest"], cut, seq_len(study)]
    records = {run: study.read_json(f"runs/{run}/run.json", "train") for run in runs}
    return {run: {name: digest([record, text]) for name, text in texts.items()} for run, record in records.items()}


def _split_of(study: Study, about: Mapping[str, Any], name: str, split: str) -> str:
    """The split of a domain's text that `about` says; end tasks have right and wrong answers only."""
    return split if name in study.tasks else about.get("split", split)


def seq_len(study: Study) -> int:
    """Tokens that the study's models read at a time."""
    return study.read_json("training.json", "train")["settings"]["seq_len"]
