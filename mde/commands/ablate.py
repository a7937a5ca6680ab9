"""`mde ablate`: models of base units, what their merges say of unions, and which units to take."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mde.ablation import HOME, correlations, merging
from mde.ablation import search as searching
from mde.ablation import unions as sets
from mde.ablation import units as base
from mde.ablation.family import Family, Text
from mde.ablation.unions import Copies
from mde.errors import UserError, check_positive, unknown
from mde.evaluation.scoring import evaluation_set
from mde.models import config as model_configs
from mde.optimization import objectives
from mde.reporting import ablation as reporting
from mde.results.trained_runs import train_settings
from mde.study import Study, digest
from mde.training.placement import MeshShape
from mde.training.runs import Recipe


def ablate(
    study: Study,
    preset: str,
    steps: int,
    batch_size: int,
    seq_len: int,
    learning_rate: float,
    seed_steps: Sequence[int],
    seed_learning_rate: float | None = None,
    seed_share: float = 0.3,
    sources: Sequence[str] | None = None,
    units: int | Mapping[str, int] = 12,
    unions: int = 16,
    unions_file: str | None = None,
    smallest: int = 2,
    largest: int | None = None,
    upsampled: int = 0,
    taus: Sequence[float] = (0.0, 0.01, 0.1, 1.0),
    tokens_per_domain: int = 8192,
    objective: str | Mapping[str, float] = "avg-all",
    candidates: int = 4096,
    merged_windows: int = 2,
    given: Sequence[str] = (),
    seed: int = 0,
    checkpoint_every: int = 500,
    model: Mapping[str, str | float | bool] | None = None,
    settings: Mapping[str, str | float | bool] | None = None,
    mesh: str | None = None,
) -> None:
    """Trains one model per base unit, and unions of units to test merges against; scores subsets of units.

    Needs a prepared study and nothing else of it; tables are left in STUDY/ablation. What was trained is kept: a source
    that is added costs its own units, and a killed command goes on.

    Args:
      study: a prepared study.
      preset: name of the model; `mde models` lists them.
      steps: optimizer steps of the model of one unit, which has text for as many; a union of n has n times as many.
      batch_size: sequences per step.
      seq_len: predicted tokens per sequence.
      learning_rate: peak of the schedule of every unit and union.
      seed_steps: steps of the seed model that all continue from, 0 for fresh parameters; several for a study of each,
        of which the last is the one that subsets are scored with.
      seed_learning_rate: its peak; `learning_rate` if None.
      seed_share: of the tokens of each source, set aside for the seed model.
      sources: training domains to cut; all if None. All other domains are only evaluated on.
      units: how many in all, shared out among the sources by size; or how many of each, in place of `sources`.
      unions: how many sets of sources to draw and train; 0 for none.
      unions_file: a CSV file of unions instead: a column `union`, and one a unit or source: how often it is in.
      smallest: sources in a drawn union, at least.
      largest: at most; all but one if None.
      upsampled: how many of the drawn unions are trained a second time with their sources with equal weights.
      taus: exponents of the prefix posterior of mixtures (MDE).
      tokens_per_domain: whole documents of each evaluation domain are taken until they have this many tokens.
      objective: avg-sp, avg-et, avg-all, worst-sp, worst-et, worst-all, or weights by evaluation domain.
      candidates: subsets of units that may be scored: all if there are no more, random orders otherwise; 0 for none.
      merged_windows: windows of each domain that the merged models of subsets are run on.
      given: units or sources that are there already when it is asked what to add next.
      seed: of fresh parameters, data orders and draws.
      checkpoint_every: steps between states to resume from.
      model: fields of the preset to change.
      settings: further settings of the training.
      mesh: devices along each axis, such as pool=4,data=2; one per run if None.

    Raises:
      UserError: sources too small for their units; runs that were trained another way; fewer than three unions.
    """
    check_positive(
        checkpoint_every=checkpoint_every, merged_windows=merged_windows, tokens_per_domain=tokens_per_domain
    )
    if min(candidates, upsampled, unions, *seed_steps) < 0 or not (taus and seed_steps):
        raise UserError(
            f"seed_steps={seed_steps!r}, taus={taus!r}, candidates={candidates}, "
            f"unions={unions}, upsampled={upsampled}: expected a τ and a number of seed steps, and nothing negative"
        )
    if not all(0 <= tau <= 1 for tau in taus):
        raise UserError(f"taus={taus!r}, expected exponents between 0 and 1")
    schedule = train_settings(steps, batch_size, seq_len, learning_rate, settings)
    corpus = _Corpus(study, sources, units, schedule.tokens + 1, seed_share)
    if unions_file:
        wanted = sets.read(unions_file, corpus.domains)
    else:
        wanted = _drawn(study, corpus, unions, smallest, largest, upsampled, seed)
    if 0 < len(wanted) < correlations.LEAST:
        raise UserError(f"{len(wanted)} unions: expected at least {correlations.LEAST} to correlate, or unions=0")
    goal = objectives.make(objective, study.domains.evaluation, corpus.sources)
    start = corpus.members(given)
    devices = MeshShape.parse(mesh) if mesh else None
    architecture = model_configs.preset(preset, study.about["vocab_size"], **(model or {}))
    text = corpus.evaluation(tokens_per_domain, seq_len, architecture.masked)
    recipe = Recipe(architecture, schedule, corpus.stores, None, {})
    first = Recipe(
        architecture,
        dataclasses.replace(schedule, learning_rate=seed_learning_rate or learning_rate),
        corpus.aside,
        None,
        {},
    )
    families = {count: _family(study, recipe, first, count, seed) for count in dict.fromkeys(seed_steps)}

    runs = merging.runs_needed(wanted, corpus.domains)
    new = {count: len(family.missing(runs)) for count, family in families.items()}  # refuses before anything is paid
    corpus.write()
    for count, family in families.items():
        family.train(runs, checkpoint_every, devices)
        print(f"seed model of {count} steps: {new[count]} runs trained, {len(family.registry())} there", flush=True)
    if wanted:
        _compare(study, corpus, families, wanted, text, taus)
    if candidates:
        evaluators = merging.evaluators(families[seed_steps[-1]], list(corpus.stores), text, taus, merged_windows)
        found = {
            name: searching.search(losses, list(corpus.stores), text.data.domains, goal, candidates, start, seed)
            for name, losses in evaluators
        }
        for table in searching.Search._fields:
            study.write_table(f"{HOME}/{table}.csv", searching.together(found, table))
    study.write_table(f"{HOME}/registry.csv", _by_seed({n: family.registry() for n, family in families.items()}))
    cost = {n: sets.costs(wanted, corpus.domains, schedule.tokens, n * schedule.tokens // steps) for n in families}
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
        sources: Sequence[str] | None,
        units: int | Mapping[str, int],
        tokens: int,
        seed_share: float,
    ):
        self._study, self._share = study, seed_share
        known = study.domains.training
        named = list(sources or known) if isinstance(units, int) else list(units)
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


def _drawn(
    study: Study, corpus: _Corpus, count: int, smallest: int, largest: int | None, upsampled: int, seed: int
) -> dict[str, Copies]:
    """The unions of the time before, which are kept as they are, and as many more as are asked for."""
    if not count:
        return {}
    path = study.root / HOME / "unions.csv"
    found = sets.read(path, corpus.domains) if path.exists() else {}
    plain = {name: copies for name, copies in found.items() if name.startswith("union-")}
    there = [sorted({corpus.domains[unit] for unit in copies}) for copies in plain.values()]
    if count > len(plain):
        largest = largest or max(smallest, len(corpus.sources) - 1)
        names = sets.draw(corpus.sources, count, smallest, largest, seed, there)
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
    return len(set(np.round(list(sets.shares(copies, domains).values()), 9))) > 1


def _table(unions: Mapping[str, Copies], units: Mapping[str, str]) -> pd.DataFrame:
    rows = [[copies.get(unit, 0.0) for unit in units] for copies in unions.values()]
    return pd.DataFrame(rows, pd.Index(list(unions), name="union"), list(units))


def _by_seed(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """The tables of several seed models, told apart by a column `seed_steps`."""
    return pd.concat([table.assign(seed_steps=count) for count, table in tables.items()])
