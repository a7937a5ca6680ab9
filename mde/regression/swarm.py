"""Swarms from elsewhere: a CSV file of mixtures and one of losses, joined by run.

Both have one row per run and a column that names it: `run`, `run_id` (Olmix) or, without these, `index` (RegMix).
All other columns are domains, but for `name`, `index`, the unnamed ones that spreadsheets and pandas leave behind, and
those that are to be ignored. RegMix's `train_DOMAIN` and `metric/DOMAIN_val_loss` are known by their DOMAIN, so that a
domain that is trained on and evaluated has one name. A metric of which more is better becomes an error, 1 − value, so
that less is better of all.
"""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from etils import epath

from mde.buckets import write_aside
from mde.errors import UserError, unknown
from mde.optimization import simplex
from mde.patterns import matches, matching

IDS = ("run", "run_id", "index")
IGNORED = ("name", "index")
INCOMPLETE = ("refuse", "drop")
AFFIXES = (("train_", ""), ("metric/", "_val_loss"))
# What is in tables of runs and is no loss, by name; and by size: no loss in nats or bits is so large.
COUNTS = {
    *("model_size", "size", "n_params", "num_params", "params", "parameters", "n_parameters", "non_embedding_params"),
    *("n_tokens", "num_tokens", "tokens", "train_tokens", "step", "steps", "n_steps", "num_steps", "global_step"),
    *("seed", "data_seed", "flops", "train_flops", "epoch", "epochs", "batch_size", "seq_len", "n_layers", "d_model"),
}
FAR = 1000.0
ACCURACIES = {"acc", "accuracy", "exact_match", "em", "f1", "win_rate", "winrate", "bleu", "rouge"}
ROUNDED = 0.01  # how far the sum of published weights may be from 1: they are rounded


@dataclass(frozen=True)
class Table:
    """A CSV file with one row per run.

    Attributes:
      values: [runs, domains] float64, indexed by run.
      id_column: the column that names the runs.
      columns: what the file calls each domain.
      errors: the domains of whose values the file has 1 − value: accuracies and the like.
      dropped: by run that was left out, why.
    """

    values: pd.DataFrame
    id_column: str
    columns: dict[str, str]
    errors: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)


class Swarm(NamedTuple):
    """What somebody trained, and how it came out; the same runs in the same order."""

    mixtures: Table
    losses: Table


def read_swarm(
    mixtures: epath.PathLike,
    losses: epath.PathLike,
    higher: Sequence[str] = (),
    incomplete: str = "refuse",
    ignore: Sequence[str] = (),
    lower: Sequence[str] = (),
) -> Swarm:
    """Mixtures [R, K] and losses [R, J] of the same runs, in the order of the mixtures.

    Args:
      mixtures: the file of mixtures.
      losses: the file of losses.
      higher: columns of the losses of which more is better, between 0 and 1, by names or patterns; they become errors.
      incomplete: `refuse` or `drop` a run that only one of the files has, or that has no number in some column.
      ignore: columns that are no domains, if they are there, by names or patterns.
      lower: columns that are losses, whatever they look like, by names or patterns.

    Raises:
      UserError: a file that `read_mixtures` does not accept; an incomplete run, or none that is complete; a metric in
        `higher` that is not there, or not between 0 and 1; columns that look like counts, or like accuracies, and are
        named neither in `higher` nor in `lower`.
    """
    if incomplete not in INCOMPLETE:
        raise unknown("value of incomplete", incomplete, INCOMPLETE)
    trained, observed = (_read(path, "", ignore, advice=True) for path in (mixtures, losses))
    _check_columns(trained, observed, higher, lower, mixtures, losses)
    gaps = _gaps(trained.values, observed.values, mixtures, losses)
    kept = [run for run in trained.values.index if run not in gaps]
    if gaps and incomplete == "refuse":
        raise UserError(f"{next(iter(gaps.values()))}; --incomplete=drop leaves such runs out, {len(gaps)} in all")
    if not kept:
        raise UserError(f"{losses}: no run is complete; the first, {next(iter(gaps.values()))}")
    trained, observed = (replace(one, values=one.values.loc[kept], dropped=gaps) for one in (trained, observed))
    return Swarm(_rescaled(trained, ROUNDED, mixtures), _with_errors(observed, higher, losses))


def check_ignored(ignore: Sequence[str], *files: epath.PathLike) -> None:
    """Raises UserError at a name or pattern of columns to ignore that none of the files has."""
    matching("column in ignore", ignore, dict.fromkeys(name for path in files for name in _lines(path, "")[0]))


def read_mixtures(
    path: epath.PathLike,
    domains: Sequence[str] | None = None,
    tolerance: float = ROUNDED,
    where: str = "",
    ignore: Sequence[str] = (),
) -> Table:
    """Mixtures, each rescaled to sum to one.

    Args:
      path: the file.
      domains: the domains to find, in the order in which they are wanted; those of the file if None.
      tolerance: how far a sum may be from 1.
      where: what asked for the file, for messages.
      ignore: columns that are no domains, if they are there, by names or patterns.

    Raises:
      UserError: what is wrong with the file, its columns, or a mixture, and where.
    """
    table = _read(path, where, ignore)
    names = list(table.columns) if domains is None else list(domains)
    for name in table.columns:
        if name not in names:
            raise unknown(f"domain in {path}", name, names)
    for name in names:
        if name not in table.columns:
            raise UserError(f"{path}: no column for domain {name!r}")
    return _rescaled(replace(table, values=table.values[names]), tolerance, path)


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


def check_names(domains: Sequence[str]) -> None:
    """Raises UserError at a domain whose column a reader of swarms would not take for one of its name."""
    for name in domains:
        if _ignored(name, ()) or name in IDS or name != name.strip():
            raise UserError(
                f"domain {name!r}: in a CSV file of mixtures this is no name of a domain; call it otherwise"
            )


def write(path: epath.PathLike, table: Table) -> None:
    """Writes a table as the file that it was read from would have it, aside first."""
    named = _turned(table.values, table.errors).rename(columns=table.columns).rename_axis(table.id_column)
    write_aside(path, named.to_csv())


def _gaps(
    trained: pd.DataFrame, observed: pd.DataFrame, mixtures: epath.PathLike, losses: epath.PathLike
) -> dict[str, str]:
    """By run that lacks a row or a number, what it lacks first."""
    gaps: dict[str, str] = {}
    for here, there, file, other in ((trained, observed, losses, mixtures), (observed, trained, mixtures, losses)):
        for run in here.index.difference(there.index, sort=False):
            gaps[run] = f"{file}: no row for run {run!r} of {other}"
    for table, path, what in ((trained, mixtures, "weight"), (observed, losses, "loss")):
        numbers = table.to_numpy()
        for row, column in np.argwhere(~np.isfinite(numbers)):
            run, domain, value = table.index[row], table.columns[column], numbers[row, column]
            gaps.setdefault(run, f"{path}: run {run!r}, domain {domain!r}: {what} {value}, not a number")
    return gaps


def _rescaled(mixtures: Table, tolerance: float, path: epath.PathLike) -> Table:
    """Mixtures that sum to one."""
    values = mixtures.values
    names = list(values.columns)
    weights = simplex.check_mixtures(values.to_numpy(), names, list(values.index), tolerance, str(path))
    return replace(mixtures, values=pd.DataFrame(weights, values.index, names))


def _lines(path: epath.PathLike, where: str) -> tuple[list[str], list[list[str]]]:
    """The header of a file and its other lines, all as long."""
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
    return header, [line for _, line in lines]


def _read(path: epath.PathLike, where: str, ignore: Sequence[str] = (), advice: bool = False) -> Table:
    """The table of a file; cells are numbers, NaN included."""
    header, lines = _lines(path, where)
    id_column = next((name for name in IDS if name in header), None)
    if id_column is None:
        raise UserError(f"{path}: no column {' or '.join(map(repr, IDS))}; found {', '.join(header) or 'no header'}")
    used = [i for i, name in enumerate(header) if name != id_column and not _ignored(name, ignore)]
    columns = _domains(path, [header[i] for i in used])
    runs = [line[header.index(id_column)].strip() for line in lines]
    if not runs or not columns:
        raise UserError(f"{path}: {len(runs)} runs and {len(columns)} domains, expected at least one of each")
    for run, times in Counter(runs).items():
        if not run or times > 1:
            raise UserError(f"{path}: run {run!r} stands {'twice' if run else 'there without a name'}")
    rows = [
        [_number(path, run, header[i], line[i], advice) for i in used] for run, line in zip(runs, lines, strict=True)
    ]
    return Table(pd.DataFrame(rows, pd.Index(runs, name="run"), list(columns)), id_column, columns)


def _check_columns(
    trained: Table,
    observed: Table,
    higher: Sequence[str],
    lower: Sequence[str],
    mixtures: epath.PathLike,
    losses: epath.PathLike,
) -> None:
    """Raises UserError at columns that are no mixture weights or no losses by their look."""
    said = matching(f"metric in lower, column of {losses}", lower, observed.columns)
    told = {*said, *matching(f"metric in higher, column of {losses}", higher, observed.columns)}
    if both := [name for name in said if any(matches(name, pattern) for pattern in higher)]:
        raise UserError(f"column {both[0]!r} is named in both --higher and --lower")
    for table, path, what in ((trained, mixtures, "mixture weight"), (observed, losses, "loss")):
        known = told if table is observed else set()
        odd = [name for name in table.columns if name not in known and _is_count(name, table.values[name])]
        if odd:
            first = table.values[odd[0]]
            more = f" (and {len(odd) - 1} more columns)" if odd[1:] else ""
            keep = ", or --lower=... if they are losses" if table is observed else ""
            raise UserError(
                f"{path}: column {odd[0]!r}{more} is no {what}: values from {first.min():g} to {first.max():g}; "
                f"--ignore={','.join(table.columns[name] for name in odd)} leaves it out{keep}"
            )
    accuracies = [name for name in observed.columns if name not in told and _is_accuracy(name, observed.values[name])]
    if accuracies:
        names = ",".join(accuracies)
        percent = bool((observed.values[accuracies].to_numpy() > 1).any())
        raise UserError(
            f"{losses}: {', '.join(map(repr, accuracies))} look like accuracies; say --higher={names} if more is better"
            f"{' (and divide percentages by 100)' if percent else ''}, or --lower={names} if less is"
        )


def _is_count(name: str, values: pd.Series) -> bool:
    """Whether a column holds sizes, steps or seeds: by its values, or by its name where they are whole numbers."""
    known = values[np.isfinite(values)]
    if known.empty:
        return False
    named = "_".join(_words(name)) in COUNTS and bool((known == known.round()).all())
    return named or known.abs().median() >= FAR


def _is_accuracy(name: str, values: pd.Series) -> bool:
    """Whether a column has an accuracy's name and values between 0 and 1, or 0 and 100."""
    words, known = _words(name), values[np.isfinite(values)]
    named = bool(ACCURACIES & {*words, *map("_".join, itertools.pairwise(words))})
    return (named or "pass@" in name.lower()) and bool(known.between(0, 100).all())


def _words(name: str) -> list[str]:
    return re.findall("[a-z0-9]+", name.lower())


def _with_errors(losses: Table, higher: Sequence[str], path: epath.PathLike) -> Table:
    """Losses of which less is better, all of them."""
    errors = matching(f"metric in higher, column of {path}", higher, losses.columns)
    given = losses.values[errors]
    values = given.to_numpy(np.float64)
    outside = (values < 0) | (values > 1)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise UserError(
            f"{path}: run {given.index[row]!r}, domain {errors[column]!r}: {values[row, column]:g}, where more is "
            "better expected 0 to 1, so that 1 − value is an error; divide percentages by 100"
        )
    return replace(losses, values=_turned(losses.values, errors), errors=tuple(errors))


def _turned(values: pd.DataFrame, errors: Sequence[str]) -> pd.DataFrame:
    """1 − value for each of these columns: of values, errors; of errors, values."""
    return values.assign(**{name: 1 - values[name] for name in errors})


def _ignored(column: str, ignore: Sequence[str]) -> bool:
    usual = not column or column in IGNORED or column.startswith("Unnamed")
    return usual or any(matches(column, pattern) for pattern in ignore)


def _domains(path: epath.PathLike, columns: list[str]) -> dict[str, str]:
    """By domain, the column; an affix that all columns have is not part of the domain's name."""
    names = columns
    for prefix, suffix in AFFIXES:
        if all(name.startswith(prefix) and name.endswith(suffix) for name in columns):
            names = [name.removeprefix(prefix).removesuffix(suffix) for name in columns]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two columns for domain {name!r}")
    return dict(zip(names, columns, strict=True))


def _number(path: epath.PathLike, run: str, column: str, text: str, advice: bool) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        said = f"{path}: run {run!r}, column {column!r}: {text!r} is not a number"
        raise UserError(f"{said}; --ignore={column!r} leaves the column out" if advice else said) from None
