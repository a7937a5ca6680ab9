"""What is to be trained, and what is done already: a run's record says how its parameters came about."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from mde.data.tokens import TokenStore
from mde.errors import UserError
from mde.models import decoder
from mde.models.config import DecoderConfig, on_record
from mde.study import digest
from mde.training.method import PLAIN, Method
from mde.training.settings import TrainSettings

NOT_ARCHITECTURE = ("dtype", "remat", "attention")  # fields of a model's config that say how to compute it
SEEDS = 2**31  # parameters are drawn from 32 bits, one of which is the sign


def check_seed(seed: int) -> None:
    """Raises UserError if parameters and data orders cannot be drawn from a seed."""
    if not 0 <= seed < SEEDS:
        raise UserError(f"seed={seed} must lie between 0 and {SEEDS - 1}")


@dataclasses.dataclass(frozen=True)
class Run:
    """One model to train.

    Attributes:
      name: of its directory.
      weights: its mixture over the domains.
      seed: of its data order, and of fresh parameters.
      steps: optimizer steps; as many as the recipe's settings say if None.
    """

    name: str
    weights: tuple[float, ...]
    seed: int
    steps: int | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the runs of a pool have in common.

    Attributes:
      model: the architecture.
      settings: the training; `steps` of it are those of a run that has none of its own.
      stores: token store of each training domain, in the order of every run's weights.
      start: loads the parameters that every run continues from; None for fresh ones.
      origin: names what `start` is, for the record beside each checkpoint; and by `data` the text as a whole, where all
        runs read all of it.
      validation: text to measure losses on along the way, by domain.
      method: what a run does with its batches.
      references: by name of a run, the finished run beside it that it is compared with, where the method needs one.
    """

    model: DecoderConfig
    settings: TrainSettings
    stores: Mapping[str, TokenStore]
    start: Callable[[], decoder.Params] | None
    origin: Mapping[str, Any]
    validation: Mapping[str, TokenStore] = dataclasses.field(default_factory=dict)
    method: Method = PLAIN
    references: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def settings_of(self, run: Run) -> TrainSettings:
        """The training of a run."""
        return self.settings if run.steps is None else dataclasses.replace(self.settings, steps=run.steps)

    def record(self, run: Run) -> dict[str, Any]:
        """What `run.json` says of a run; two runs with the same record have the same parameters.

        Of the stores it names those that the run reads: one that joins them later changes no run.
        """
        mixture = {name: weight for name, weight in zip(self.stores, run.weights, strict=True) if weight}
        return {
            "model": on_record(self.model),
            "training": on_record(self.settings_of(run)),
            "mixture": mixture,
            "data": {name: self.stores[name].digest for name in mixture},
            "seed": run.seed,
            **self.origin,
            **self.method.record(),
            **({"reference": self.references[run.name]} if run.name in self.references else {}),
        }


def pending(runs: Sequence[Run], recipe: Recipe, directory: epath.Path) -> list[Run]:
    """The runs that are not done; raises UserError if one of them was trained another way."""
    digests = {name: store.digest for name, store in recipe.stores.items()}
    return [run for run in runs if not is_done(directory / run.name, recipe.record(run), digests)]


def recorded(directory: epath.Path) -> dict[str, Any] | None:
    """The record of a run as it is kept, None if it is not done."""
    path = directory / "run.json"
    return json.loads(path.read_text()) if path.exists() else None


def is_done(directory: epath.Path, record: Mapping[str, Any], digests: Mapping[str, str]) -> bool:
    """Whether the run was trained as the record says.

    Args:
      directory: of the run.
      record: how it is to be trained.
      digests: of the stores that there are, by name.

    Raises:
      UserError: it was trained another way.
    """
    found, wanted = recorded(directory), json.loads(json.dumps(record))
    if found is None:
        return False
    if "imported" in found:  # how it was trained is not ours to say, only that it is such a model
        found, wanted = ({"model": _architecture(each["model"])} for each in (found, wanted))
    elif isinstance(wanted["data"], dict):
        found = as_written_now(found, digests)
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{directory}: trained with {key} {_difference(found.get(key), value)}; "
                f"use another --study, or delete the run to train it anew"
            )
    return True


def as_written_now(record: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """A record of an earlier version, which had one digest of all stores and weights of 0, as one of this version.

    It stays as it is if it is one of this version, or if a store has changed since.
    """
    names = set(record.get("mixture", ()))
    if not names <= set(digests) or record.get("data") != digest({name: digests[name] for name in names}):
        return dict(record)
    mixture = {name: weight for name, weight in record["mixture"].items() if weight}
    return {**record, "mixture": mixture, "data": {name: digests[name] for name in mixture}}


def _architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name not in NOT_ARCHITECTURE}


def _difference(found: Any, wanted: Any) -> str:
    """The first thing in which two records differ, in words."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in [*wanted, *found]:
            if found.get(name) != wanted.get(name):
                return f"{name}={found.get(name)!r}, not {wanted.get(name)!r}"
    return f"{found!r}, not {wanted!r}"
