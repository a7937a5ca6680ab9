"""Where scores are kept: the log-probs of the evaluation tokens under every run, by run and domain.

    DIRECTORY/RUN/DOMAIN/log_probs/   [T_j] float32 in nats, a zarr3 array
    DIRECTORY/RUN/DOMAIN/score.json   what it is a score of, its tokens and its mean loss

`score.json` is written last, so a score that exists is whole, in a bucket too (where no directory can be renamed).

Shapes: T tokens of all J domains, T_j of one of them, K runs.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence

import numpy as np
import tensorstore as ts
from etils import epath

from mde.buckets import reading, write_aside, writing
from mde.data.arrays import open_array
from mde.errors import UserError, reason

_CHUNK = 1 << 18  # a megabyte at most: chunks are stored whole, so fewer tokens have a smaller one


@dataclasses.dataclass(frozen=True)
class Score:
    """What one run makes of one domain.

    Attributes:
      of: names the run and the text that were scored.
      tokens: how many were scored.
      loss: mean loss in nats per token, summed in float64.
    """

    of: str
    tokens: int
    loss: float


class Scores:
    """The scores below one directory."""

    def __init__(self, directory: epath.PathLike):
        self._directory = epath.Path(directory)

    def find(self, run: str, domain: str, of: str) -> Score | None:
        """The score of this run and text, or None if there is none, or only one of another run or text."""
        path = self._directory / run / domain / "score.json"
        try:
            with reading(path):
                score = Score(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except UserError:
            raise
        except (ValueError, TypeError) as e:
            raise UserError(f"{path}: not a score ({e}); delete it and run `mde score` again") from e
        return score if score.of == of else None

    def write(self, run: str, domain: str, of: str, log_probs: np.ndarray) -> Score:
        """Keeps the log-probs [T_j] of a domain under a run, in place of those that were there.

        Raises:
          UserError: a log-prob that is not a number; one of −inf is legal. The place cannot be written to.
        """
        bad = np.isnan(log_probs)
        if bad.any():
            raise UserError(
                f"run {run!r}, domain {domain!r}: the log-prob of scored token {np.argmax(bad)} is nan; "
                "its parameters are damaged or its training went astray"
            )
        directory = self._directory / run / domain
        n = len(log_probs)
        score = Score(of, n, -float(np.mean(log_probs, dtype=np.float64)))
        with writing(directory):
            if directory.exists():
                (directory / "score.json").unlink(missing_ok=True)  # first: what is left must not look whole
                directory.rmtree(missing_ok=True)
            directory.mkdir(parents=True)
            array = open_array(directory / "log_probs", np.float32, min(n, _CHUNK))
            array = array.resize(exclusive_max=[n]).result()
            array.write(log_probs.astype(np.float32)).result()
            write_aside(directory / "score.json", json.dumps(dataclasses.asdict(score)))
        return score

    def read(self, run: str, domain: str, of: str) -> Score:
        """The score of a run on a domain; raises UserError where there is none of this run on this text."""
        if (score := self.find(run, domain, of)) is None:
            where = self._directory / run / domain
            raise UserError(f"{where}: no score of this run on this text; run `mde score` first")
        return score

    def columns(self, runs: Sequence[str], domains: Sequence[str], of: Sequence[Sequence[str]]) -> "Columns":
        """The log-probs of all domains, one after the other, with a column for each run.

        Args:
          runs: the K runs.
          domains: the J domains.
          of: [K][J] what each score must be a score of.

        Raises:
          UserError: a score that is not there or is one of another run or text.
        """
        for run, names in zip(runs, of, strict=True):
            for domain, name in zip(domains, names, strict=True):
                self.read(run, domain, name)
        return Columns([[self._directory / run / domain / "log_probs" for run in runs] for domain in domains])


class Columns:
    """[T, K] float32 log-probs that are read as they are asked for: `columns[start:stop]` is an array [n, K].

    Args:
      paths: [J][K] an array for each domain and run.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, paths: Sequence[Sequence[epath.Path]]):
        self._paths = paths
        self._arrays = [[_opened(path) for path in row] for row in paths]
        self._bounds = np.cumsum([0, *(row[0].shape[0] for row in self._arrays)])
        for row, names, tokens in zip(self._arrays, paths, np.diff(self._bounds), strict=True):
            for array, path in zip(row, names, strict=True):
                if array.shape[0] != tokens:
                    raise UserError(f"{path}: {array.shape[0]} tokens, {names[0]} has {tokens}; run `mde score` again")
        self.shape = (int(self._bounds[-1]), len(paths[0]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """The tokens of a slice without steps; only chunks that it touches are read, all at once."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise IndexError(f"{rows!r}: expected a slice [start:stop]")
        start, stop, _ = rows.indices(len(self))
        out = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        reads = []
        for j, row in enumerate(self._arrays):
            first, last = max(start, int(self._bounds[j])), min(stop, int(self._bounds[j + 1]))
            for k, array in enumerate(row if first < last else ()):
                part = slice(first - int(self._bounds[j]), last - int(self._bounds[j]))
                reads.append((slice(first - start, last - start), j, k, array[part].read()))
        for place, j, k, read in reads:
            with _whole(self._paths[j][k]):
                out[place, k] = read.result()
        return out

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


def _opened(path: epath.Path) -> ts.TensorStore:
    with _whole(path):
        return open_array(path)


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[None]:
    """Says in one line that log-probs cannot be read just now, or else that they are damaged."""
    try:
        with reading(path):
            yield
    except UserError:
        raise
    except ValueError as e:
        what = f"damaged or missing log-probs ({reason(e)})"
        raise UserError(f"{path}: {what}; delete {path.parent} and run `mde score` again") from e
