"""The explorer of the page: sliders for the mixture, and the losses of the mixture of data experts as they move."""

import base64
import html as markup
import json
from importlib import resources
from typing import Any

import numpy as np

from mde.optimization import objectives
from mde.reporting import findings
from mde.study import Study

TOKENS = "portable.npz"  # what `mde evaluate` leaves for it


def body(study: Study) -> list[str]:
    """The explorer as HTML: its data, its controls, its results, and the script that joins them."""
    data = contents(study)
    text = json.dumps(data).replace("<", "\\u003c")
    error = f" Losses are within {data['error']:.1g} nats of exact ones." if data["error"] else ""
    return [
        "<p>Losses of the mixture of data experts (<code>mde[0]</code>) for any mixture, computed in this page from "
        "the experts' probabilities of the evaluation text; what a regressor makes of them is above. "
        f"Changes are against the {markup.escape(data['reference'])} mixture.{error}</p>",
        f'<script type="application/json" id="explorer-data">{text}</script>',
        '<div id="explorer">',
        _presets(data),
        _sliders(data),
        _results(data),
        "</div>",
        f"<script>{resources.files('mde.reporting').joinpath('explorer.js').read_text(encoding='utf-8')}</script>",
    ]


def contents(study: Study) -> dict[str, Any]:
    """What the script is given: scored text, known mixtures, and the weights of the objective.

    The text is that of `mde.evaluation.portable`, its arrays little-endian in base64.
    """
    arrays = study.read_arrays(TOKENS, "evaluate")
    domains = []
    for j, name in enumerate(study.domains.evaluation):
        mine = arrays["domains"] == j
        domains.append(
            {
                "name": name,
                "offset": float(arrays["offsets"][j]),
                "logs": _encode(arrays["logs"][mine], "<u2"),
                "counts": _encode(arrays["counts"][mine], "<f4"),
            }
        )
    experts = list(study.domains.training)
    mixtures = {"uniform": [1 / len(experts)] * len(experts)}
    objective = np.full(len(domains), 1 / len(domains))
    if findings.has(study, "optimum.json"):
        optimum = study.read_json("optimum.json", "optimize")
        for name, predicted in optimum["predictions"].items():
            mixtures[name] = [predicted["mixture"][expert] for expert in experts]
        objective = objectives.make(optimum["objective"], study.domains.evaluation, study.domains.training).weights
    reference = findings.RECOMMENDED if findings.RECOMMENDED in mixtures else "uniform"
    return {
        "experts": experts,
        "domains": domains,
        "step": float(arrays["step"]),
        "error": float(arrays["error"].max()),
        "mixtures": mixtures,
        "reference": reference,
        "objective": list(map(float, objective)),
    }


def _encode(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


def _presets(data: dict[str, Any]) -> str:
    buttons = (
        f'<button type="button" value="{name}" aria-pressed="false">{name}</button>'
        for name in map(markup.escape, data["mixtures"])
    )
    return f'<p class="presets" role="group" aria-label="Known mixtures">{"".join(buttons)}</p>'


def _sliders(data: dict[str, Any]) -> str:
    rows = (
        f'<label><span>{name}</span><input type="range" min="0" max="1" step="0.001"><output></output></label>'
        for name in map(markup.escape, data["experts"])
    )
    return f'<div class="sliders">{"".join(rows)}</div>'


def _results(data: dict[str, Any]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("domain", "nats per token", "change", "less | more"))
    names = [*map(markup.escape, (domain["name"] for domain in data["domains"])), "average"]
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td></td><td></td><td class="bar" aria-hidden="true"><i></i></td></tr>'
        for name in names
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Losses of the chosen mixture">'
        f'<table aria-live="polite"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
