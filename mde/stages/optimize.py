"""`mde optimize`: the mixture of least predicted loss, and how sure that is."""

from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mde.errors import check_positive
from mde.optimization import search, simplex
from mde.regression import uncertainty
from mde.stages.fit import Observations, observations
from mde.stages.predict import Predictor
from mde.study import Study


def optimize(study: Study, candidates: int = 2048, refits: int = 200, seed: int = 0) -> None:
    """Searches the simplex with the chosen regressor, fitted on all observations.

    Args:
      study: a study with a chosen regressor.
      candidates: mixtures that the search starts from.
      refits: bootstrap resamples of the observations; the spread of their optima says how sure the mixture is.
      seed: of the search and the resamples.
    """
    check_positive(candidates=candidates, refits=refits)
    choice = study.read_json("fit/choice.json", "fit")
    inputs = observations(study, choice["objective"])
    predictor = Predictor(study)
    known = reference_mixtures(study, inputs)
    with tqdm(desc="optimize", unit="mixture", unit_scale=True) as bar:

        def objective_of(mixtures: np.ndarray) -> np.ndarray:
            bar.update(len(mixtures))
            return predictor(mixtures) @ inputs.objective

        best = search.minimize(
            objective_of, len(study.domains.training), seed, n_candidates=candidates, start=known.to_numpy()
        )
    table = pd.concat([pd.DataFrame([best.mixture], ["recommended"], known.columns), known])
    losses = predictor(table.to_numpy())
    shares, objective = _intervals(predictor, inputs, table, candidates, refits, seed)
    study.write_json(
        "optimum.json",
        {
            "objective": choice["objective"],
            "regressor": choice["regressor"],
            "features": choice["features"],
            "shares": dict(zip(table.columns, best.mixture, strict=True)),
            "share_intervals": dict(zip(table.columns, shares.T, strict=True)),
            "interval_level": 0.9,
            "predictions": {
                name: {
                    "mixture": dict(zip(table.columns, mixture, strict=True)),
                    "objective": float(loss @ inputs.objective),
                    "objective_interval": interval,
                    "losses": dict(zip(inputs.domains, loss, strict=True)),
                }
                for name, mixture, loss, interval in zip(table.index, table.to_numpy(), losses, objective, strict=True)
            },
        },
    )


def reference_mixtures(study: Study, inputs: Observations) -> pd.DataFrame:
    """What a recommendation is compared with: uniform, proportional to size where it is known, the best observed."""
    names = list(study.domains.training)
    rows: dict[str, Any] = {"uniform": np.full(len(names), 1 / len(names))}
    if "stores" in study.about:
        sizes = np.array([study.about["stores"][f"{name}/train"]["tokens"] for name in names], float)
        rows["proportional"] = sizes / sizes.sum()
    rows["best observed"] = inputs.mixtures.to_numpy()[int(np.argmin(inputs.losses.to_numpy() @ inputs.objective))]
    return pd.DataFrame.from_dict(rows, orient="index", columns=names)


def _intervals(
    predictor: Predictor, inputs: Observations, table: pd.DataFrame, candidates: int, refits: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap intervals of the optimum's shares [2, K] and of the objective of each row of the table [R, 2].

    The refits choose among draws all over the simplex and ever closer to the recommendation.
    """
    drawn = simplex.space_filling(candidates, table.shape[1], seed + 1)
    near = [table.to_numpy()[:1] * (1 - far) + drawn * far for far in (0.05, 0.1, 0.2, 0.4)]
    pool = np.concatenate([table.to_numpy(), drawn, *near])
    bootstrap = uncertainty.bootstrap_optima(
        inputs.design(predictor.features),
        inputs.losses.to_numpy(),
        pool,
        predictor.design(pool),
        predictor.regressor,
        inputs.objective,
        refits,
        seed,
    )
    return bootstrap.share_interval(), np.stack([bootstrap.objective_interval(i) for i in range(len(table))])
