"""Named mixtures, trained with several seeds, scored on test text and compared, for `mde validate` and `mde final`."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mde import hosts
from mde.errors import UserError
from mde.models import config as model_configs
from mde.models.config import DecoderConfig, on_record
from mde.optimization import objectives
from mde.regression import blocks, paired
from mde.results import search_setup as problem
from mde.results.mixtures import RECOMMENDED, objective_of
from mde.results.predictor import Predictor
from mde.results.proxy_runs import proxy_runs
from mde.results.scored_text import document_sums, evaluation_table, on_test_text, score_choices, score_runs
from mde.results.trained_runs import train_runs
from mde.results.training_options import Running
from mde.study import Study, digest
from mde.training.settings import TrainSettings

SEED = 0  # of the folds of intervals, where a regressor has no deviations of its own


def training(
    study: Study, preset: str | None, model: Mapping[str, Any] | None, from_seed_model: bool
) -> dict[str, Any]:
    """What the study's runs have in common, with another model and the learning rate that goes with it."""
    proxies = study.read_json("training.json", "train")
    theirs, first = DecoderConfig.from_dict(proxies["model"]), proxies["seed_settings"]
    if preset is None:
        config = DecoderConfig.from_dict({**proxies["model"], **(model or {})})
    else:
        kind = {"objective": theirs.objective} if theirs.masked else {}
        config = model_configs.preset(preset, theirs.vocab_size, **{**kind, **(model or {})})
    if from_seed_model:
        if first is None:
            raise UserError(f"study {study} has no seed model to continue from")
        for name, value in on_record(theirs).items():
            if getattr(config, name) != value:
                raise UserError(
                    f"from_seed_model: the seed model has {name}={value!r} and the final models "
                    f"{getattr(config, name)!r}; give no other preset or model, or start afresh"
                )
    rate = proxies["settings" if from_seed_model or first is None else "seed_settings"]["learning_rate"]
    return {
        **proxies,
        "preset": preset or proxies["preset"],
        "model": dataclasses.asdict(config),
        "settings": {**proxies["settings"], "learning_rate": rate * theirs.d_model / config.d_model},
        "seed_settings": first if from_seed_model else None,
    }


def runs(mixtures: pd.DataFrame, seeds: Sequence[int], prefix: str, steps: int) -> pd.DataFrame:
    """The table of runs: each mixture [M, K] with each seed, columns role (its name), seed, steps and one per domain.

    A run is named by its mixture, what it is called and what it is, so another mixture of the same name is another run.
    """
    rows, index = [], []
    for label, weights in mixtures.iterrows():
        called, what = re.sub(r"[^\w.-]+", "-", str(label)).strip("-"), digest(weights.to_dict())[:6]
        for seed in seeds:
            index.append(f"{prefix}-{called}-{what}-{seed}")
            rows.append({"role": label, "seed": seed, "steps": steps, **weights})
    return pd.DataFrame(rows, pd.Index(index, name="run"))[["role", "seed", "steps", *mixtures]]


def train_and_compare(
    part: Study,
    about: Mapping[str, Any],
    scoring: Mapping[str, Any],
    table: pd.DataFrame,
    compared: pd.DataFrame,
    running: Running,
) -> None:
    """Trains runs on named mixtures, scores them on test text and compares the mixtures; what is done is kept.

    Args:
      part: the part of a study that the runs and tables go to; they are of the study's text.
      about: what all runs have in common: the content of `training.json`.
      scoring: how they are scored, as the study's `scoring.json` says it.
      table: of the runs, as `runs` makes it, with their steps.
      compared: the mixtures [M, K].
      running: how the runs are carried out.
    """
    study = part.whole
    goal = Goal(study, list(compared.index))
    train_runs(part, about, table, running)
    scoring = on_test_text(study, scoring)
    part.write_part()
    part.write_json("training.json", about)
    part.write_json("scoring.json", scoring)
    hosts.wait("the study of the trained mixtures can be read")
    part.write_table("evaluation.csv", evaluation_table(part, scoring))
    runs = list(table.index)
    losses = score_runs(part, scoring, runs)
    if (accuracies := score_choices(part, scoring, runs)) is not None:
        part.write_table("accuracies.csv", accuracies)
    part.write_table("mixtures.csv", table)
    part.write_table("losses.csv", losses)
    hosts.wait("the tables of the runs are written")
    against = RECOMMENDED if RECOMMENDED in compared.index else str(compared.index[0])
    sums = document_sums(part, scoring, runs)
    found = summary(table, sums, goal, against)
    if (study.root / "fit/regressor.joblib").exists() and (study.root / "optimum.json").exists():
        found = found.join(predictions(study, compared))
    part.write_table("objective.csv", pd.DataFrame({"objective": goal.of(losses, table)}, table.index))
    part.write_table("summary.csv", found)
    theirs = study.read_json("training.json", "train")
    record = {
        "objective": goal.name,
        "reference": goal.reference,
        "against": against,
        "proxy_setting": all(
            digest(about[key]) == digest(theirs[key]) for key in ("model", "settings", "seed_settings")
        ),
        "documents": len(sums[1]),
        "cost": _cost(study, about, table),
    }
    part.write_json("final.json", record)


def summary(
    table: pd.DataFrame, sums: tuple[np.ndarray, np.ndarray, np.ndarray], goal: "Goal", against: str
) -> pd.DataFrame:
    """One row per mixture: the columns of `paired.compare`, and of `blocks.slopes` where there are shorter runs.

    Args:
      table: of the runs: role, seed, steps.
      sums: nats [runs, D], tokens [D] and domains [D] of the documents that they were scored on.
      goal: what is minimised.
      against: the mixture that others are compared with.
    """
    nats, tokens, domains = sums
    whole = table["steps"] == table["steps"].max()
    labels = list(dict.fromkeys(table["role"]))
    rows = pd.Series(np.arange(len(table)), table.index)[whole]
    places = pd.DataFrame({"row": rows, "role": table["role"][whole], "seed": table["seed"][whole]})
    order_SxM = places.pivot(index="seed", columns="role", values="row")[labels].to_numpy()
    found = paired.compare(nats[order_SxM], tokens, domains, goal.of_blocks, labels, against)
    if whole.all():
        return found
    losses = pd.DataFrame(paired.domain_losses(nats, tokens, domains), table.index, goal.names)
    return blocks.slopes(table.assign(objective=goal.of(losses, table)), found)


class Goal:
    """What the mixtures are compared by: the objective of the recommendation, or the average of all domains.

    Attributes:
      name: of the objective.
      reference: the mixture whose measured losses a worst case is measured from, if any.
      names: the evaluation domains.

    Raises:
      UserError: the objective is measured from a mixture that is not trained.
    """

    def __init__(self, study: Study, labels: Sequence[str]):
        there = (study.root / "optimum.json").exists()
        optimum = study.read_json("optimum.json", "optimize") if there else {}
        self.name = optimum.get("objective", "avg-all")
        self.reference = optimum.get("reference")
        self.names, self._training, self._labels = list(study.domains.evaluation), study.domains.training, labels
        if self.reference and self.reference not in labels:
            raise UserError(
                f"objective {self.name!r} is measured from the losses of {self.reference!r}: name it among the mixtures"
            )

    def of_blocks(self, losses_SxMxJ: np.ndarray) -> np.ndarray:
        """The objective [S, M] of losses; a worst case is measured from the reference's means over the seeds."""
        reference = losses_SxMxJ[:, self._labels.index(self.reference)].mean(axis=0) if self.reference else None
        return self._made(reference)(losses_SxMxJ)

    def of(self, losses: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
        """The objective of runs [runs], the reference being that of the runs of full length."""
        theirs = (table["steps"] == table["steps"].max()) & (table["role"] == self.reference)
        reference = losses.loc[table.index[theirs], self.names].mean().to_numpy() if self.reference else None
        return self._made(reference)(losses.loc[table.index, self.names].to_numpy())

    def _made(self, reference: np.ndarray | None) -> objectives.Objective:
        return objectives.make(self.name, self.names, self._training, reference)


def predictions(study: Study, mixtures: pd.DataFrame) -> pd.DataFrame:
    """What the chosen regressor says of mixtures [M, K]: columns predicted, low and high of the objective.

    Those that `mde optimize` has predicted keep their prediction.
    """
    optimum = study.read_json("optimum.json", "optimize")
    known = {
        label: [found["objective"], *found["objective_interval"]]
        for label, found in optimum["predictions"].items()
        if label in mixtures.index and np.allclose([found["mixture"][name] for name in mixtures], mixtures.loc[label])
    }
    new = mixtures.drop(index=list(known))
    if len(new):
        goal, predictor = objective_of(study), Predictor(study)
        inputs = proxy_runs(study, study.read_json("fit/choice.json", "fit")["objective"])
        level = optimum["interval_level"]
        bounds = problem.intervals(predictor, inputs, goal, new.to_numpy(), level, SEED)
        predicted = goal(predictor(new.to_numpy()))
        known |= {label: [value, *row] for label, value, row in zip(new.index, predicted, bounds, strict=True)}
    found = pd.DataFrame.from_dict(known, orient="index", columns=["predicted", "low", "high"])
    return found.loc[mixtures.index].rename_axis("mixture")


def _cost(study: Study, about: Mapping[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """Tokens and FLOPs of a run, of all of them, and of the proxy runs that the mixture was found with.

    `controlled` is the fraction of the tokens of a run, from fresh parameters on, that were drawn from its own mixture.
    """
    one, tokens = _spent(about)
    proxies = study.read_json("training.json", "train")
    runs = int(study.mixtures()["role"].isin(["expert", "proxy"]).sum())
    theirs, each = _spent(proxies)
    first = TrainSettings.from_dict(proxies["seed_settings"]).tokens if proxies["seed_settings"] else 0
    found = {"runs": runs, "tokens": runs * each + first, "flops": theirs * (runs * each + first)}
    found["controlled"] = each / (each + first)
    before = first if about["seed_settings"] else 0
    all_tokens = int(tokens * table["steps"].sum() / table["steps"].max())
    return {
        "run": {"tokens": tokens, "flops": one * tokens, "controlled": tokens / (tokens + before)},
        "runs": len(table),
        "tokens": all_tokens,
        "proxies": found,
    }


def _spent(about: Mapping[str, Any]) -> tuple[float, int]:
    """FLOPs of a token and tokens of a run."""
    model, settings = DecoderConfig.from_dict(about["model"]), TrainSettings.from_dict(about["settings"])
    return float(model.train_flops(settings.seq_len)), settings.tokens
