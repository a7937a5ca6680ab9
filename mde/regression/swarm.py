"""Swarms from elsewhere: a CSV file of mixtures and one of losses, joined by run.

Both have a row a run and a column that names it: `run`, `run_id` (Olmix) or, where neither is there, `index` (RegMix).
All other columns are domains, but for `name`, `index` and the unnamed ones that spreadsheets and pandas leave behind.
RegMix's `train_DOMAIN` and `metric/DOMAIN_val_loss` are known by their DOMAIN, so that a domain that is trained on and
evaluated has one name.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from etils import epath

from mde.errors import UserError, unknown
from mde.optimization import simplex

IDS = ("run", "run_id", "index")
IGNORED = ("name", "index")
AFFIXES = (("train_", ""), ("metric/", "_val_loss"))
ROUNDED = 0.01  # how far the sum of published shares may be from 1: they are rounded


@dataclass(frozen=True)
class Table:
    """A CSV file with a row a run.

    Attributes:
      values: [runs, domains] float64, indexed by run.
      id_column: the column that names the runs.
      columns: what the file calls each domain.
    """

    values: pd.DataFrame
    id_column: str
    columns: dict[str, str]


class Swarm(NamedTuple):
    """What somebody trained, and how it came out; the same runs in the same order."""

    mixtures: Table
    losses: Table


def read_swarm(mixtures: epath.PathLike, losses: epath.PathLike) -> Swarm:
    """Mixtures [R, K] and losses [R, J] of the same runs, in the order of the mixtures.

    Raises:
      UserError: a file that `read_mixtures` or `read_losses` refuses; a run that only one of the files has.
    """
    return join(read_mixtures(mixtures), read_losses(losses), mixtures, losses)


def join(trained: Table, observed: Table, mixtures: epath.PathLike, losses: epath.PathLike) -> Swarm:
    """Tables of mixtures and losses, read from these files, with the same runs in the order of the mixtures.

    Raises:
      UserError: a run that only one of the files has.
    """
    for here, there, file, other in (
        (trained, observed, losses, mixtures),
        (observed, trained, mixtures, losses),
    ):
        missing = here.values.index.difference(there.values.index, sort=False)
        if len(missing):
            raise UserError(f"{file}: no row for run {missing[0]!r} of {other}; {len(missing)} such runs in all")
    return Swarm(trained, Table(observed.values.loc[trained.values.index], observed.id_column, observed.columns))


def read_mixtures(
    path: epath.PathLike, domains: Sequence[str] | None = None, tolerance: float = ROUNDED, where: str = ""
) -> Table:
    """Mixtures, each rescaled to sum to one.

    Args:
      path: the file.
      domains: the domains to find, in the order in which they are wanted; those of the file if None.
      tolerance: how far a sum may be from 1.
      where: what asked for the file, for messages.

    Raises:
      UserError: what is wrong with the file, its columns, or a mixture, and where.
    """
    table = _read(path, where)
    names = list(table.columns) if domains is None else list(domains)
    for name in table.columns:
        if name not in names:
            raise unknown(f"domain in {path}", name, names)
    for name in names:
        if name not in table.columns:
            raise UserError(f"{path}: no column for domain {name!r}")
    values = table.values[names]
    shares = simplex.check_mixtures(values.to_numpy(), names, list(values.index), tolerance, str(path))
    return Table(pd.DataFrame(shares, values.index, names), table.id_column, table.columns)


def read_losses(path: epath.PathLike) -> Table:
    """Losses, all of them finite.

    Raises:
      UserError: what is wrong with the file, or which loss is not finite.
    """
    return read_numbers(path, "loss")


def read_numbers(path: epath.PathLike, what: str = "value") -> Table:
    """A table of finite numbers.

    Args:
      path: the file.
      what: what a number is, for messages.

    Raises:
      UserError: what is wrong with the file, or which number is not finite.
    """
    table = _read(path, "")
    bad = ~np.isfinite(table.values.to_numpy())
    if bad.any():
        row, column = np.argwhere(bad)[0]
        run, domain = table.values.index[row], table.values.columns[column]
        raise UserError(
            f"{path}: run {run!r}, domain {domain!r}: {what} {table.values.iloc[row, column]}, not a number"
        )
    return table


def write(path: epath.PathLike, table: Table) -> None:
    """Writes a table as the file that it was read from would have it, aside first."""
    path = epath.Path(path)
    named = table.values.rename(columns=table.columns).rename_axis(table.id_column)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f"{path.name}.partial"
    aside.write_text(named.to_csv())
    aside.replace(path)


def _read(path: epath.PathLike, where: str) -> Table:
    """The table of a file; cells are numbers, NaN included."""
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file{where and f' ({where})'}")
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file ({error})") from error
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff")), skipinitialspace=True)
    header = [name.strip() for name in next(reader, [])]
    lines = [(reader.line_num, line) for line in reader if line]
    for number, line in lines:
        if len(line) != len(header):
            raise UserError(f"{path}, line {number}: {len(line)} fields, the header has {len(header)}")
    id_column = next((name for name in IDS if name in header), None)
    if id_column is None:
        raise UserError(f"{path}: no column {' or '.join(map(repr, IDS))}; found {', '.join(header) or 'no header'}")
    used = [i for i, name in enumerate(header) if not _ignored(name) and name != id_column]
    columns = _domains(path, [header[i] for i in used])
    runs = [line[header.index(id_column)].strip() for _, line in lines]
    if not runs or not columns:
        raise UserError(f"{path}: {len(runs)} runs and {len(columns)} domains, expected at least one of each")
    for run, times in Counter(runs).items():
        if not run or times > 1:
            raise UserError(f"{path}: run {run!r} stands {'twice' if run else 'there without a name'}")
    rows = [[_number(path, run, header[i], line[i]) for i in used] for run, (_, line) in zip(runs, lines, strict=True)]
    return Table(pd.DataFrame(rows, pd.Index(runs, name="run"), list(columns)), id_column, columns)


def _ignored(column: str) -> bool:
    return not column or column in IGNORED or column.startswith("Unnamed")


def _domains(path: epath.Path, columns: list[str]) -> dict[str, str]:
    """By domain, the column; an affix that all columns have is not part of the domain's name."""
    names = columns
    for prefix, suffix in AFFIXES:
        if all(name.startswith(prefix) and name.endswith(suffix) for name in columns):
            names = [name.removeprefix(prefix).removesuffix(suffix) for name in columns]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two columns for domain {name!r}")
    return dict(zip(names, columns, strict=True))


def _number(path: epath.Path, run: str, column: str, text: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        raise UserError(f"{path}: run {run!r}, column {column!r}: {text!r} is not a number") from None
