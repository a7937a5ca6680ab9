"""A study: one directory that holds everything about one mixture problem.

    study.json             domains, which joined later, their sizes and sources, the tokenizer
    corpus.csv             by domain: documents and bytes read, dropped (by reason) and kept, tokens
    problems.csv           what could not be read: file, line, reason
    corpus/                data sets that were built; shards, until they are all done
    tokenizer/             its file, and what it is checked by
    tokens/DOMAIN/SPLIT/   token stores
    mixtures.csv           the runs: run, role, seed, one weight per training domain
    training.json          what all runs have in common
    runs/RUN/              params (Orbax), run.json, metrics.jsonl
    scores/RUN/DOMAIN/     log-probs of the evaluation tokens, their mean, what they are of
    evaluation.csv         domain, tokens that are scored, UTF-8 bytes of their text
    choices/RUN/TASK/      the same of the wrong choices of an end task
    losses.csv             run, observed nats per token of each evaluation domain
    accuracies.csv         run, how often it chooses right: acc/TASK and acc_norm/TASK
    candidates.csv         mixtures that were evaluated beside the runs'
    features.csv           run or candidate, predicted nats per token: FEATURE/DOMAIN
    answers.csv            the same mixtures, what the experts' answers on end tasks say of them: FEATURE/TASK
    fit/                   how well each regressor predicts, out of fold; which was chosen, and that one, fitted
    optimum.json           the recommended mixture
    surface.npz            predicted losses around it: ternary slices, draws all over the simplex, and what one more
                           point of each domain changes
    validation/                 validation runs: as final/NAME/, trained to check the recommended mixture
    final/NAME/            full models of one kind: a study with the text of this one, and runs and losses of its own
    iterate/               what `mde iterate` planned, a table a round; its runs are added to the tables above
    rounds.csv             what was known before each round
    ablation/              tables of `mde ablate`: units, unions, losses, correlations, registry, cost, candidates,
                           values, additions; seed-STEPS/ has the runs that continue from a seed model
    scale.json             the best mixture at small budgets and at the target
    reweighting/           mixtures that `mde reweight` found: METHOD.json, weights.csv; METHOD.csv has the weights and
                           scores of each step; runs/ has its proxies and references
    scale/                 the runs of `mde scale`, their losses and cross-effects, and its validation
    stages/STAGE.json      arguments, time and versions of each stage that is done
    stages/STAGE.gin       the same arguments as a file that runs it again
    report.html
    before-DOMAIN/         what was found for fewer domains, before this one joined

A study of somebody else's proxy runs holds their tables and what is made from them, from `fit` on.

Tables are joined by the names of runs and domains, never by their order. Files are written aside and renamed, and where
several processes run a command together, by the first of them.
"""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from etils import epath

from mde import buckets, hosts
from mde.errors import UserError, reason, unknown

if TYPE_CHECKING:  # those who bring tables need no TensorStore
    from mde.data.tokens import TokenStore

FORMAT = 3
NATS = "nats per token"  # the unit of the losses that mde measures itself
ERROR = "error"  # that of 1 − value, where more is better of a value
RIGHT, WRONG = "validation", "wrong"  # splits of an end task: losses are of the first, the other makes an accuracy
STAGES = ("prepare", "train", "score", "evaluate", "fit", "optimize", "validate", "report")


@dataclasses.dataclass(frozen=True)
class Domains:
    """The domains of a study: K trained on, J evaluated on (those first, then the ones that are never trained on)."""

    training: tuple[str, ...]
    evaluation: tuple[str, ...]


class Study:
    """Paths of a study, and typed reads and writes of what it holds.

    Attributes:
      root: its directory.
      changed: whether files were written since the stage that runs began.
    """

    def __init__(self, root: epath.PathLike):
        self.root = buckets.study(root)
        self.changed = False

    def __str__(self) -> str:
        return str(self.root)

    def read_json(self, name: str, made_by: str) -> dict[str, Any]:
        """The JSON file `name`; raises UserError that names the stage it comes from if it is not there or broken."""
        return self._read(name, made_by, json.loads)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file, aside and then into its place."""
        if hosts.is_first():
            self.changed = True
            buckets.write_aside(self.root / name, content)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file."""
        self.write_bytes(name, json.dumps(content, indent=1, default=_plain).encode())

    def write_text(self, name: str, content: str) -> None:
        """Writes a text file."""
        self.write_bytes(name, content.encode())

    def read_table(
        self, name: str, made_by: str, columns: Iterable[str] | None = None, rows: Iterable[str] | None = None
    ) -> pd.DataFrame:
        """The CSV table `name`, indexed by its first column; some columns and rows of it, in that order, if given.

        Raises:
          UserError: it is not there, is broken, or does not have one of these, for what they come from was made anew.
        """
        path = self.root / name
        table = self._read(name, made_by, lambda text: pd.read_csv(io.BytesIO(text), index_col=0, dtype={0: str}))
        for kind, wanted, there in (("column", columns, table.columns), ("row", rows, table.index)):
            for label in () if wanted is None else wanted:
                if label not in there:
                    raise UserError(f"{path} has no {kind} {label!r}; run `mde {made_by} --study={self.root}` first")
        table = table if columns is None else table[list(columns)]
        return table if rows is None else table.loc[list(rows)]

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Writes a CSV table with its index; floats are kept to the last bit."""
        self.write_bytes(name, table.to_csv().encode())

    def read_arrays(self, name: str, made_by: str) -> dict[str, np.ndarray]:
        """The arrays of the npz file `name`; errors as those of `read_json`."""
        return self._read(name, made_by, lambda content: dict(np.load(io.BytesIO(content))))

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes an npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        self.write_bytes(name, buffer.getvalue())

    def read_object(self, name: str, made_by: str) -> Any:
        """The Python object of the joblib file `name`: as trustworthy as whoever made the study; errors likewise."""
        import joblib

        return self._read(name, made_by, lambda content: joblib.load(io.BytesIO(content)))

    def write_object(self, name: str, content: Any) -> None:
        """Writes a joblib file."""
        import joblib

        buffer = io.BytesIO()
        joblib.dump(content, buffer)
        self.write_bytes(name, buffer.getvalue())

    def part(self, name: str) -> "Study":
        """A study inside this one that has its text; `write_part` makes it one that can be opened by itself."""
        part = Study(self.root / name)
        part.whole = self
        return part

    def write_part(self) -> None:
        """Leaves, in a part of a study, how far up the study is that it belongs to."""
        levels = len(self.root.parts) - len(self.whole.root.parts)
        self.write_json("study.json", {"format": FORMAT, "part_of": levels})

    @functools.cached_property
    def whole(self) -> "Study":
        """The study whose text, tokenizer and seed model this one uses: itself, unless it is a part of another."""
        levels = self._own_about.get("part_of", 0)
        root = self.root if len(self.root.parents) > levels else self.root.resolve()
        return Study(root.parents[levels - 1]) if levels else self

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What `mde prepare` wrote about the study."""
        return self._own_about if self.whole is self else self.whole.about

    def describe(self, about: Mapping[str, Any]) -> None:
        """Writes `study.json`; what was known of the study before is forgotten."""
        self.write_json("study.json", about)
        for name in ("about", "_own_about", "whole"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def _own_about(self) -> dict[str, Any]:
        about = self.read_json("study.json", "prepare")
        if about["format"] != FORMAT:
            raise UserError(
                f"{self.root}: made by another version of mde (study format {about['format']}, expected {FORMAT}); "
                "make it anew, or write its proxy runs with `mde swarm` of that version and pass them to `mde fit`"
            )
        return about

    @property
    def domains(self) -> Domains:
        """The study's domains."""
        return Domains(tuple(self.about["training_domains"]), tuple(self.about["evaluation_domains"]))

    @property
    def joined(self) -> tuple[tuple[str, ...], ...]:
        """The domains that joined the study after it was first prepared, those of each time in their order."""
        return tuple(map(tuple, self.about.get("joined", ())))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those of the evaluation domains that are end tasks, whose answers are scored."""
        return tuple(self.about.get("tasks", ()))

    def store(self, domain: str, split: str) -> "TokenStore":
        """The token store of a domain, which must come from the study's own tokenizer."""
        from mde.data.tokens import TokenStore

        if domain not in self.domains.evaluation:
            raise unknown("domain", domain, self.domains.evaluation)
        store = TokenStore(self.whole.root / "tokens" / domain / split)
        wanted = self.about["stores"].get(f"{domain}/{split}", {}).get("digest")
        if store.digest != wanted:
            raise UserError(
                f"{store.directory}: tokens of another tokenizer or text ({store.digest}, the study says {wanted}); "
                f"run `mde prepare --study={self.root}` again"
            )
        return store

    @property
    def is_swarm(self) -> bool:
        """Whether its proxy runs came as tables from elsewhere: there is no text, no model, nothing to train."""
        return (self.root / "study.json").exists() and "swarm" in self.about

    @property
    def errors(self) -> tuple[str, ...]:
        """Evaluation domains whose losses are errors, 1 − value, since more is better of what was measured."""
        return tuple(self.about.get("errors", ()))

    def unit_of(self, domains: Iterable[str]) -> str:
        """The unit of the losses of these evaluation domains; of own proxy runs it is nats per token."""
        units = [ERROR if name in self.errors else self.about.get("unit", NATS) for name in domains]
        return " and ".join(dict.fromkeys(units))

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that this study goes through, in their order."""
        return ("fit", "optimize", "report") if self.is_swarm else STAGES

    def mixtures(self, name: str = "mixtures.csv", made_by: str = "train") -> pd.DataFrame:
        """The runs and their mixtures: columns `role`, `seed` and one per training domain, in the study's order.

        A table from before a domain joined the study has no column of it: nothing of it is in those mixtures.
        """
        names, later = self.domains.training, {domain for part in self.joined for domain in part}
        there = self.read_table(name, made_by).columns
        known = [domain for domain in names if domain in there or domain not in later]
        table = self.read_table(name, made_by, ["role", "seed", *known])
        return table.reindex(columns=["role", "seed", *names], fill_value=0.0)

    def losses(
        self, name: str = "losses.csv", made_by: str = "score", runs: Iterable[str] | None = None
    ) -> pd.DataFrame:
        """Observed losses, each in its unit, of all runs or these, one column per evaluation domain, in order."""
        return self.read_table(name, made_by, list(self.domains.evaluation), runs)

    def features(self, mixtures: Iterable[str] | None = None) -> dict[str, pd.DataFrame]:
        """By feature, the evaluators' losses of all runs and candidates or these, one column per evaluation domain."""
        made, domains = ("features.csv", "evaluate"), self.domains.evaluation
        names = dict.fromkeys(column.rsplit("/", 1)[0] for column in self.read_table(*made).columns)
        table = self.read_table(*made, [f"{name}/{domain}" for name in names for domain in domains], mixtures)
        return {n: table[[f"{n}/{d}" for d in domains]].set_axis(list(domains), axis=1) for n in names}

    def _read(self, name: str, made_by: str, parse: Callable[[bytes], Any]) -> Any:
        path = self.root / name
        try:
            with buckets.reading(path):
                if not path.exists():
                    raise UserError(f"{path} does not exist yet; run `mde {made_by} --study={self.root}` first")
                return parse(path.read_bytes())
        except UserError:
            raise
        except Exception as e:  # what a broken file raises depends on what it is, and on where it broke
            raise UserError(f"{path}: damaged ({reason(e)}); run `mde {made_by} --force` again") from e


def digest(content: Any) -> str:
    """A short name for JSON-able content; equal content has equal names."""
    text = json.dumps(content, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    """NumPy values, tuples and paths as JSON knows them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, epath.Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no place in JSON")
