"""`mde ablate`: models of base units, what their merges say of unions, and which units to take."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd

from mde.ablation import HOME, correlations, merging
from mde.ablation import search as searching
from mde.ablation import unions as sets
from mde.ablation import units as base
from mde.ablation.family import Family, Text
from mde.ablation.unions import Copies
from mde.arguments import FLAT
from mde.errors import UserError, check_positive, unknown
from mde.evaluation.scoring import evaluation_set
from mde.models import config as model_configs
from mde.optimization import objectives
from mde.reporting import ablation as reporting
from mde.results.training_options import ModelChanges, Running
from mde.study import Study, digest
from mde.training.placement import MeshShape
from mde.training.runs import Recipe
from mde.training.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class SeedModels:
    """The models that all others continue from.

    Attributes:
      seed_steps: steps of the seed model that all continue from, 0 for fresh parameters; several for a study of each,
        of which the last is the one that subsets are scored with.
      seed_learning_rate: its peak; `learning_rate` if None.
      seed_share: of the tokens of each source, set aside for the seed model.
    """

    seed_steps: Sequence[int]
    seed_learning_rate: float | None = None
    seed_share: float = 0.3

    def __post_init__(self) -> None:
        if not self.seed_steps or min(self.seed_steps) < 0:
            raise UserError(f"seed_steps={self.seed_steps!r}: expected numbers of steps, zero or more")


@dataclasses.dataclass(frozen=True)
class Units:
    """How sources are cut into units, and which unions of them are trained.

    Attributes:
      sources: training domains to cut; all if None. All other domains are only evaluated on.
      units: how many in all, shared out among the sources by size; or how many of each, in place of `sources`.
      unions: how many sets of sources to draw and train; 0 for none.
      unions_file: a CSV file of unions instead: a column `union`, and one per unit or source: how often it is in.
      smallest: sources in a drawn union, at least.
      largest: at most; all but one if None.
      upsampled: how many of the drawn unions are trained a second time with their sources with equal weights.
      seed: of fresh parameters, data orders and draws.
    """

    sources: Sequence[str] | None = None
    units: int | Mapping[str, int] = 12
    unions: int = 16
    unions_file: str | None = None
    smallest: int = 2
    largest: int | None = None
    upsampled: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.upsampled, self.unions) < 0:
            raise UserError(f"unions={self.unions}, upsampled={self.upsampled}: expected zero or more")


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What subsets of units are scored for.

    Attributes:
      taus: exponents of the prefix posterior of mixtures (MDE).
      tokens_per_domain: whole documents of each evaluation domain are taken until they have this many tokens.
      objective: avg-sp, avg-et, avg-all, worst-sp, worst-et, worst-all, or weights by evaluation domain.
      candidates: subsets of units that may be scored: all if there are no more, random orders otherwise; 0 for none.
      merged_windows: windows of each domain that the merged models of subsets are run on.
      given: units or sources that are there already when it is asked what to add next.
    """

    taus: Sequence[float] = (0.0, 0.01, 0.1, 1.0)
    tokens_per_domain: int = 8192
    objective: str | Mapping[str, float] = "avg-all"
    candidates: int = 4096
    merged_windows: int = 2
    given: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_positive(merged_windows=self.merged_windows, tokens_per_domain=self.tokens_per_domain)
        if self.candidates < 0:
            raise UserError(f"candidates={self.candidates}: expected zero or more")
        if not self.taus or not all(0 <= tau <= 1 for tau in self.taus):
            raise UserError(f"taus={self.taus!r}, expected exponents between 0 and 1")


def ablate(
    study: Study,
    preset: str,
    training: Annotated[TrainSettings, FLAT],
    seed_models: Annotated[SeedModels, FLAT],
    units: Annotated[Units, FLAT] = Units(),
    scoring: Annotated[Scoring, FLAT] = Scoring(),
    model: ModelChanges = None,
    running: Annotated[Running, FLAT] = Running(),
) -> None:
    """Trains one model per base unit, and unions of units to test merges against; scores subsets of units.

    Needs a prepared study and nothing else of it; tables are left in STUDY/ablation. What was trained is kept: a source
    that is added costs its own units, and a killed command goes on.

    Args:
      study: a prepared study.
      preset: name of the model; `mde models` lists them.
      training: of the model of one unit, which has text for `steps` steps; a union of n has n times as many.
      seed_models: that all continue from.
      units: how sources are cut, and which unions are trained.
      scoring: what subsets of units are scored for.
      model: fields of the preset to change.
      running: how runs are carried out.

    Raises:
      UserError: sources too small for their units; runs that were trained another way; fewer than three unions.
    """
    mesh = MeshShape.parse(running.mesh) if running.mesh else None
    corpus = _Corpus(study, units, training.tokens + 1, seed_models.seed_share)
    wanted = sets.read(units.unions_file, corpus.domains) if units.unions_file else _drawn(study, corpus, units)
    if 0 < len(wanted) < correlations.LEAST:
        raise UserError(f"{len(wanted)} unions: expected at least {correlations.LEAST} to correlate, or unions=0")
    goal = objectives.make(scoring.objective, study.domains.evaluation, corpus.sources)
    start = corpus.members(scoring.given)
    architecture = model_configs.preset(preset, study.about["vocab_size"], **(model or {}))
    text = corpus.evaluation(scoring.tokens_per_domain, training.seq_len, architecture.masked)
    recipe = Recipe(architecture, training, corpus.stores, None, {})
    rate = seed_models.seed_learning_rate or training.learning_rate
    first = Recipe(architecture, dataclasses.replace(training, learning_rate=rate), corpus.aside, None, {})
    seed_steps = list(dict.fromkeys(seed_models.seed_steps))
    families = {count: _family(study, recipe, first, count, units.seed) for count in seed_steps}

    runs = merging.runs_needed(wanted, corpus.domains)
    new = {count: len(family.missing(runs)) for count, family in families.items()}  # refuses before anything is paid
    corpus.write()
    for count, family in families.items():
        family.train(runs, running.checkpoint_every, mesh)
        print(f"seed model of {count} steps: {new[count]} runs trained, {len(family.registry())} there", flush=True)
    if wanted:
        _compare(study, corpus, families, wanted, text, scoring.taus)
    if scoring.candidates:
        last, names, domains = families[seed_models.seed_steps[-1]], list(corpus.stores), text.data.domains
        found = {
            name: searching.search(losses, names, domains, goal, scoring.candidates, start, units.seed)
            for name, losses in merging.evaluators(last, names, text, scoring.taus, scoring.merged_windows)
        }
        for table in searching.Search._fields:
            study.write_table(f"{HOME}/{table}.csv", searching.together(found, table))
    study.write_table(f"{HOME}/registry.csv", _by_seed({n: family.registry() for n, family in families.items()}))
    cost = {
        n: sets.costs(wanted, corpus.domains, training.tokens, n * training.tokens // training.steps) for n in families
    }
    study.write_table(f"{HOME}/cost.csv", _by_seed(cost))
    print(reporting.text(study))


def _family(study: Study, recipe: Recipe, first: Recipe, seed_steps: int, seed: int) -> Family:
    """The models that continue from a seed model of so many steps."""
    directory = study.root / HOME / f"seed-{seed_steps}"
    if not seed_steps:
        return Family(directory, recipe, None, seed)
    settings = dataclasses.replace(first.settings, steps=seed_steps)
    return Family(directory, recipe, dataclasses.replace(first, settings=settings), seed)


def _compare(
    study: Study,
    corpus: "_Corpus",
    families: Mapping[int, Family],
    unions: Mapping[str, Copies],
    text: Text,
    taus: Sequence[float],
) -> None:
    """Writes the losses of the unions and of what stands for them, and how they correlate."""
    study.write_table(f"{HOME}/unions.csv", _table(unions, corpus.domains))
    losses = {n: merging.losses(each, unions, corpus.domains, text, taus) for n, each in families.items()}
    study.write_table(f"{HOME}/losses.csv", _by_seed(losses))
    groups = {correlations.INSIDE: corpus.sources, correlations.OUTSIDE: corpus.outside}
    sizes = {name: sum(copies.values()) for name, copies in unions.items()}
    shared = sets.overlap(unions, corpus.domains)
    tables = {n: correlations.table(each, groups, sizes, shared) for n, each in losses.items()}
    study.write_table(f"{HOME}/correlations.csv", _by_seed(tables))


class _Corpus:
    """The sources of an ablation, cut into units.

    Attributes:
      sources: the domains that are cut.
      outside: evaluation domains that no unit comes from.
      stores: the text of each unit.
      domains: the domain of each unit.
      aside: by domain, what the seed model is trained on: the sources of the first time, whatever is added later.
    """

    def __init__(
        self,
        study: Study,
        cut: Units,
        tokens: int,
        seed_share: float,
    ):
        self._study, self._share, units = study, seed_share, cut.units
        known = study.domains.training
        named = list(cut.sources or known) if isinstance(units, int) else list(units)
        for name in named:
            if name not in known:
                raise unknown("training domain to cut", name, known)
        self.sources = [name for name in known if name in named]
        self.outside = [name for name in study.domains.evaluation if name not in self.sources]
        whole = {name: study.store(name, "train") for name in self.sources}
        if isinstance(units, int):
            room = {name: base.capacity(store, tokens, seed_share) for name, store in whole.items()}
            counts: Mapping[str, int] = base.apportion({n: s.n_tokens for n, s in whole.items()}, room, units)
        else:
            counts = units
        cuts = [base.cut(name, whole[name], counts[name], tokens, seed_share) for name in self.sources]
        found = {name: unit for each in cuts for name, unit in each.items()}
        self.stores = {name: unit.store for name, unit in found.items()}
        self.domains = {name: unit.domain for name, unit in found.items()}
        self.aside = {name: base.set_aside(study.store(name, "train"), seed_share) for name in self._seed_domains()}

    def _seed_domains(self) -> list[str]:
        path = f"{HOME}/seed.json"
        if not (self._study.root / path).exists():
            return self.sources
        about = self._study.read_json(path, "ablate")
        if about["share"] != self._share:
            raise UserError(
                f"{self._study.root / path}: the units of this study were cut with seed_share={about['share']}, not "
                f"{self._share}; use another --study, or delete {self._study.root / HOME}"
            )
        return about["domains"]

    def members(self, names: Sequence[str]) -> list[str]:
        """The units that are named, or whose source is."""
        for name in names:
            if name not in self.domains and name not in self.sources:
                raise unknown("unit or source in given", name, [*self.domains, *self.sources])
        return [unit for unit, domain in self.domains.items() if unit in names or domain in names]

    def evaluation(self, tokens_per_domain: int, seq_len: int, masked: bool) -> Text:
        """The evaluation text, with hidden tokens if it is for encoders (`masked`)."""
        stores = {name: self._study.store(name, "validation") for name in self._study.domains.evaluation}
        cut = [tokens_per_domain, seq_len, *(["masked"] if masked else [])]
        names = {name: digest([store.digest, *cut]) for name, store in stores.items()}
        return Text(evaluation_set(stores, tokens_per_domain, seq_len, masked=masked), names)

    def write(self) -> None:
        """Leaves `seed.json`, which later calls keep to, and `units.csv`."""
        self._study.write_json(f"{HOME}/seed.json", {"domains": list(self.aside), "share": self._share})
        rows: dict[str, Any] = {
            name: {"domain": self.domains[name], "documents": store.n_documents, "tokens": store.n_tokens}
            for name, store in self.stores.items()
        }
        self._study.write_table(f"{HOME}/units.csv", pd.DataFrame.from_dict(rows, orient="index").rename_axis("unit"))


def _drawn(study: Study, corpus: _Corpus, units: Units) -> dict[str, Copies]:
    """The unions of the time before, which are kept as they are, and as many more as are asked for."""
    count, upsampled = units.unions, units.upsampled
    if not count:
        return {}
    path = study.root / HOME / "unions.csv"
    found = sets.read(path, corpus.domains) if path.exists() else {}
    plain = {name: copies for name, copies in found.items() if name.startswith("union-")}
    there = [sorted({corpus.domains[unit] for unit in copies}) for copies in plain.values()]
    if count > len(plain):
        largest = units.largest or max(units.smallest, len(corpus.sources) - 1)
        names = sets.draw(corpus.sources, count, units.smallest, largest, units.seed, there)
        for i in range(len(plain), count):
            plain[f"union-{i:02d}"] = sets.of_domains(names[i], corpus.domains)
    found |= plain
    uneven = [name for name, copies in plain.items() if _is_uneven(copies, corpus.domains)]
    if upsampled > len(uneven):
        raise UserError(f"upsampled={upsampled}: only {len(uneven)} unions have sources of different sizes")
    for name in uneven[:upsampled]:
        domains = {corpus.domains[unit] for unit in plain[name]}
        members = {unit: domain for unit, domain in corpus.domains.items() if unit in plain[name]}
        found.setdefault(name.replace("union", "upsampled"), sets.of_domains(sorted(domains), members, True))
    return found


def _is_uneven(copies: Copies, domains: Mapping[str, str]) -> bool:
    return len(set(np.round(list(sets.weights(copies, domains).values()), 9))) > 1


def _table(unions: Mapping[str, Copies], units: Mapping[str, str]) -> pd.DataFrame:
    rows = [[copies.get(unit, 0.0) for unit in units] for copies in unions.values()]
    return pd.DataFrame(rows, pd.Index(list(unions), name="union"), list(units))


def _by_seed(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """The tables of several seed models, told apart by a column `seed_steps`."""
    return pd.concat([table.assign(seed_steps=count) for count, table in tables.items()])
