"""The results of a sweep in one table: what it bound, what its stages left, how long they took.

    results.parquet, results.csv   one row per point
    mixtures.csv, losses.csv       the proxy runs of all points, for `mde fit` and anybody who reads swarms

Proxy runs are pooled, as POINT/RUN, where all points trained and scored them alike but for seeds.
"""

import io
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
from etils import epath

from mde.study import STAGES, Study

ALIKE = ("study.json", "training.json", "scoring.json")


def gather(root: epath.Path, points: Sequence[str]) -> pd.DataFrame:
    """Writes the tables of a sweep, and returns the one with one row per point.

    Columns: point; status (done, unfinished); STAGE.ARGUMENT for all that points bind; regressor, features, mse and
    spearman (of the chosen one, out of fold); predicted, low and high (the recommended mixture's objective);
    weight/DOMAIN; MIXTURE/measured, /noise, /difference and /error of the validation; seconds/STAGE. Losses are in nats
    per token. What a point has not come to is missing.

    Args:
      root: of the sweep.
      points: their names, in the order of the table.
    """
    table = pd.DataFrame([_row(root / name) for name in points], pd.Index(points, name="point"))
    whole = Study(root)
    whole.write_table("results.csv", table)
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    whole.write_bytes("results.parquet", buffer.getvalue())
    proxy_runs = _proxy_runs(root, points)
    for name in ("mixtures.csv", "losses.csv"):
        if proxy_runs is None:
            (root / name).unlink(missing_ok=True)
        else:
            whole.write_table(name, proxy_runs[name])
    return table


def _row(directory: epath.Path) -> dict[str, Any]:
    study = Study(directory)
    point = study.read_json("point.json", "launch.sweep")
    row: dict[str, Any] = {"status": "done" if _is_done(study, point) else "unfinished"}
    row |= {key: _plain(value) for key, value in point["bindings"].items()}
    if _has(study, "fit/choice.json"):
        choice = study.read_json("fit/choice.json", "fit")
        row |= {key: choice[key] for key in ("regressor", "features", "mse", "spearman")}
    if _has(study, "optimum.json"):
        optimum = study.read_json("optimum.json", "optimize")
        recommended = optimum["predictions"]["recommended"]
        row["predicted"] = recommended["objective"]
        row["low"], row["high"] = recommended["objective_interval"]
        row |= {f"weight/{name}": weight for name, weight in optimum["weights"].items()}
    if _has(study, "validation/summary.csv"):
        for mixture, validation in study.read_table("validation/summary.csv", "validate").iterrows():
            row |= {f"{mixture}/{key}": validation[key] for key in ("measured", "noise", "difference", "error")}
    for stage in STAGES:
        if stage in point["stages"] and _has(study, f"stages/{stage}.json"):
            row[f"seconds/{stage}"] = study.read_json(f"stages/{stage}.json", stage)["seconds"]
    return row


def _proxy_runs(root: epath.Path, points: Sequence[str]) -> dict[str, pd.DataFrame] | None:
    """Mixtures and losses of all proxy runs of the points that are scored; None if they are not alike, or none is."""
    tables: dict[str, list[pd.DataFrame]] = {"mixtures.csv": [], "losses.csv": []}
    origins = set()
    for name in points:
        study = Study(root / name)
        if not _has(study, "losses.csv"):
            continue
        origins.add(_origin(study))
        runs = study.mixtures()
        runs = runs[runs["role"] == "proxy"]
        for file, rows in (("mixtures.csv", runs[list(study.domains.training)]), ("losses.csv", study.losses())):
            named = rows.loc[runs.index]
            tables[file].append(named.set_axis([f"{name}/{run}" for run in runs.index]).rename_axis("run"))
    if len(origins) != 1:
        return None
    pooled = {file: pd.concat(parts) for file, parts in tables.items()}
    # Points that start from one study share its runs, and a run counts once.
    first = ~pd.concat([pooled["mixtures.csv"], pooled["losses.csv"].add_prefix("loss of ")], axis=1).duplicated()
    return {file: table[first] for file, table in pooled.items()}


def _origin(study: Study) -> str:
    """Equal for studies whose observed losses compare: the same text, training and scoring, whatever the seeds."""
    found = {name: study.read_json(name, "") for name in ALIKE if _has(study, name)}
    found.get("training.json", {}).pop("seed", None)
    return json.dumps(found, sort_keys=True)


def _is_done(study: Study, point: dict[str, Any]) -> bool:
    return _has(study, "done.json") and study.read_json("done.json", "")["digest"] == point["digest"]


def _has(study: Study, name: str) -> bool:
    return (study.root / name).exists()


def _plain(value: Any) -> Any:
    """A cell: numbers and text as they are, everything else as JSON."""
    return value if isinstance(value, str | int | float) or value is None else json.dumps(value)
