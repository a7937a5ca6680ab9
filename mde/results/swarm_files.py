"""Proxy runs that somebody else made, as two CSV files: read as `mde fit` is told, and made those of a study."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from mde.errors import UserError
from mde.regression import swarm
from mde.study import FORMAT, NATS, Study


@dataclass(frozen=True)
class Files:
    """Somebody else's proxy runs, and how their files are read.

    Attributes:
      mixtures: a CSV file of the mixtures that somebody trained: a column `run`, and one per training domain.
      losses: a CSV file of the losses they had: a column `run`, and one an evaluation domain.
      unit: of the losses in the file, such as "bits per byte"; nats per token by default.
      higher: columns in the file of losses of which more is better, such as accuracies, between 0 and 1, by names or
        patterns ("*_acc"); 1 − value, an error, is what is fitted.
      incomplete: refuse or drop a run that only one of the files has, or that has no number in some column.
      ignore: columns of either file that are no domains, such as State, by names or patterns.
      lower: columns in the file of losses of which less is better, although they look like accuracies or like counts,
        by names or patterns.
    """

    mixtures: str | None = None
    losses: str | None = None
    unit: str | None = None
    higher: Sequence[str] = ()
    incomplete: str = "refuse"
    ignore: Sequence[str] = ()
    lower: Sequence[str] = ()

    def read(self, study: Study) -> swarm.Swarm | None:
        """The proxy runs, for a study that is a new one or holds such proxy runs; None if there are no files.

        Raises:
          UserError: one file of the two, what is said of files that are not there, or a study with runs of its own.
        """
        if not (self.mixtures or self.losses):
            for field in fields(self):
                if getattr(self, field.name) not in (field.default, []):
                    raise UserError(f"--{field.name} says how files are read: give --mixtures and --losses with it")
            return None
        if not (self.mixtures and self.losses):
            raise UserError("proxy runs from elsewhere are two files: give both --mixtures and --losses")
        if self.unit is not None and not self.unit.strip():
            raise UserError("--unit is empty, expected words such as 'bits per byte'")
        if (study.root / "study.json").exists() and not study.is_swarm:
            raise UserError(f"study {study} has proxy runs of its own; give another --study")
        swarm.check_ignored(self.ignore, self.mixtures, self.losses)
        found = swarm.read_swarm(self.mixtures, self.losses, self.higher, self.incomplete, self.ignore, self.lower)
        for why in found.losses.dropped.values():
            print(f"dropped: {why}")
        return found

    def adopt(self, study: Study, found: swarm.Swarm) -> None:
        """Makes the proxy runs those of the study."""
        study.describe(
            {
                "format": FORMAT,
                "training_domains": list(found.mixtures.values),
                "evaluation_domains": list(found.losses.values),
                "unit": self.unit or NATS,
                "errors": found.losses.errors,
                "ignored": self.ignore,
                "swarm": {
                    name: {"file": getattr(self, name), "id_column": table.id_column, "columns": table.columns}
                    for name, table in found._asdict().items()
                },
            }
        )
        runs = found.mixtures.values
        study.write_table("mixtures.csv", runs.assign(role="proxy", seed=0)[["role", "seed", *runs]])
        study.write_table("losses.csv", found.losses.values)
        domains = study.domains.evaluation
        size = f"{len(runs)} runs, {len(runs.columns)} domains trained on, {len(domains)} evaluated"
        print(f"{size}: {study.unit_of(domains)}")
