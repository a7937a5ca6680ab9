"""How far to trust a recommendation: what the data support, how sure the search is, and baselines beside it."""

from typing import Any

import pandas as pd

from mde.reporting import findings
from mde.reporting.table import Table
from mde.study import Study

FEW = 6  # domains named in a line
EXTRAPOLATES, NOTHING = "extrapolation", "–"


def compared(study: Study) -> Table:
    """The recommendation and its baselines: predictions, and how far each is from the proxy runs."""
    optimum = study.read_json("optimum.json", "optimize")
    level, predictions = optimum["interval_level"], optimum["predictions"]
    frame = pd.DataFrame.from_dict(
        {
            name: {
                "predicted": f"{found['objective']:.4f}",
                f"{level:.0%} interval": "{:.4f} to {:.4f}".format(*found["objective_interval"]),
                "above": f"{found['above_recommended']:+.4f}" if name != findings.RECOMMENDED else NOTHING,
                "distance": f"{found['support']['distance']:.2f}",
                "nearest run": found["support"]["nearest_run"],
                "": EXTRAPOLATES if found["support"]["extrapolates"] else "",
            }
            for name, found in predictions.items()
        },
        orient="index",
    ).rename_axis("mixture")
    unit = findings.objective_unit(study, optimum["objective"])
    note = (
        "Distance: total variation to the nearest proxy run, 0 to 1. Extrapolation: further from the runs than they "
        f"are from each other ({optimum['support']['spacing']:.2f}), or a weight above all that were trained."
    )
    return Table(f"Predictions, {unit}", frame, (note,), marked=(findings.RECOMMENDED,))


def cautions(study: Study) -> list[str]:
    """What to know of a recommendation before it is used, one line each."""
    optimum = study.read_json("optimum.json", "optimize")
    if "support" not in optimum:  # of an earlier version
        return []
    unit = findings.objective_unit(study, optimum["objective"])
    return [*_answer(optimum, unit), *_search(optimum, unit), *_support(optimum, unit)]


def _answer(optimum: dict[str, Any], unit: str) -> list[str]:
    """Whether there is anything to optimise, and whether the gain is more than its error."""
    lines = []
    dead, gain = optimum["unresponsive"], optimum["gain"]
    if dead["share"] == 1:
        lines.append(
            "nothing to optimise: no regressor predicts the objective better than the mean does; "
            f"{optimum['support']['note']}"
        )
    elif dead["domains"]:
        lines.append(
            f"{dead['share']:.0%} of the objective's weight is on domains whose loss does not respond to the mixture: "
            f"{_some(dead['domains'])}"
        )
    if gain and not gain["distinguishable"]:
        lines.append(
            f"not distinguishable from {gain['baseline']}: the predicted gain is {gain['gain']:.4f} ± "
            f"{gain['standard_error']:.4f} {unit}"
        )
    return lines


def _search(optimum: dict[str, Any], unit: str) -> list[str]:
    """How near the optimum of the predictions the search came."""
    found = optimum["search"]
    if found["gap"] is not None:
        return [f"search: at most {found['gap']:.1g} {unit} above the minimum of the predictions"]
    if found["loss_spread"] is not None:
        return [
            f"search: {found['restarts']} independent searches differ by up to {found['loss_spread']:.2g} {unit}, and "
            f"their mixtures by up to {found['mixture_spread']:.1%} of the tokens; the best is taken"
        ]
    return []


def _support(optimum: dict[str, Any], unit: str) -> list[str]:
    """How far the recommendation is from the proxy runs, and what was left out for that."""
    support, weights = optimum["support"], optimum["weights"]
    lines = [
        f"nearest proxy run: {support['nearest_run']}, {support['distance']:.2f} away (total variation; the runs are "
        f"up to {support['spacing']:.2f} from their nearest neighbours)"
    ]
    if support["left_out"]:
        lines.append(
            f"no proxy run trained on {_some(support['left_out'])}: no weight; --allow_untrained lets them have some"
        )
    if support["extrapolates"]:
        above = [
            f"{name} gets {weights[name]:.1%}, at most {support['largest_weights'][name]:.1%} in any run"
            for name in support["above_trained"]
        ]
        lines.append("the recommendation is an extrapolation" + (f": {_some(above)}" if above else ""))
    if other := support["unrestricted"]:
        top = sorted(other["weights"], key=other["weights"].get, reverse=True)
        largest = [f"{name} {other['weights'][name]:.1%}" for name in top if other["weights"][name] > 0.01]
        far = [f"{other['distance']:.2f} from the nearest run"] if other["distance"] > support["max_distance"] else []
        far += [f"{name} was {support['largest_weights'][name]:.1%} at most" for name in other["above_trained"]]
        lines.append(
            f"limited to mixtures within {support['max_distance']:.2f} of a proxy run, with weights as they were "
            f"trained. The optimum without that limit, {_some(largest, 3)}, is predicted "
            f"{other['below_recommended']:.4f} {unit} lower, but extrapolates ({_some(far, 3)}): not trusted; "
            "--max_distance=none recommends it"
        )
    elif support["note"] and optimum["unresponsive"]["share"] < 1:
        lines.append(support["note"])
    return lines


def _some(names: list[str], most: int = FEW) -> str:
    """The first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
