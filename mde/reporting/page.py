"""The report: a study as one HTML page that needs no network."""

import html as markup
import json
import platform
import string
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata, resources
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mde.reporting import explorer, figures, findings, tables
from mde.reporting.table import Table
from mde.study import Study

PACKAGES = (
    *("mde", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "grain", "numpy", "pandas", "scipy"),
    *("scikit-learn", "lightgbm", "plotly", "seqio", "tensorflow", "tensorflow-datasets"),
)


class Section(NamedTuple):
    """A section of the page: what it shows once the study holds a file, and what is missing until then."""

    title: str
    needs: str
    stage: str
    missing: str
    body: Callable[[Study], list[str]]


def html(study: Study) -> str:
    """The page; it depends on nothing but the study and the installed versions."""
    title = f"Mixture study: {study.root.name}"
    sections = [section for section in SECTIONS if section.stage in (*study.stages, "prepare")]
    contents = "".join(f'<li><a href="#{_anchor(s.title)}">{s.title}</a></li>' for s in sections)
    return string.Template(_file("page.html")).substitute(
        title=markup.escape(title),
        style=_file("page.css"),
        contents=f"<ul>{contents}</ul>",
        sections="\n".join(_section(study, section) for section in sections),
        plotly=get_plotlyjs(),
        script=_file("page.js"),
    )


def _summary(study: Study) -> list[str]:
    """The recommended mixture, what it is predicted to reach and whether that came true."""
    predicted = findings.predictions(study).loc[findings.RECOMMENDED]
    optimum = study.read_json("optimum.json", "optimize")
    level = f"{optimum['interval_level']:.0%} interval"
    interval = f"{level} {predicted['low']:.4f} to {predicted['high']:.4f}"
    numbers = [("Predicted, nats per token", f"{predicted['predicted']:.4f}", interval)]
    if findings.has(study, "proof/summary.csv"):
        found = findings.proof(study)
        row = found.loc[findings.RECOMMENDED]
        numbers.append(("Measured, nats per token", f"{row['measured']:.4f}", f"mean of {row['seeds']} seeds"))
        numbers.append(("Rank", f"{row['rank']} of {row['of']}", "among all trained mixtures, by measured loss"))
        verdict = tables.proof(study).notes[0]
    else:
        verdict = "Not checked yet: no run was trained on the recommended mixture."
        verdict += "" if study.is_swarm else f" To train it, run mde prove --study={study.root.name}."
    numbers.append(("Regressor", optimum["regressor"], f"on {optimum['features']}"))
    shares = findings.recommendation(study)
    rivals = [name for name in optimum["predictions"] if name != findings.RECOMMENDED]
    goal = findings.objective_name(study, optimum["objective"])
    return [
        f'<p class="verdict">{markup.escape(verdict)}</p>',
        f"<p>The recommended mixture has the least predicted {markup.escape(goal)}.</p>",
        _numbers(numbers),
        _figure(
            figures.mixture(shares, rivals),
            "Recommended share of each training domain",
            f"Bars: the recommended mixture; whiskers: its {level} over refits on halves of the observations. "
            "Symbols: the mixtures that it is compared with. Best observed is the best of the trained observations.",
        ),
        _table(tables.recommendation(study)),
    ]


def _trust(study: Study) -> list[str]:
    """How well the regressors predict mixtures that they were not fitted on."""
    methods = findings.regressors(study)
    table = tables.regressors(study)
    verdict, *notes = table.notes
    return [
        "<p>Every method predicts the losses of observations it was not fitted on. Its mean squared error (MSE) says "
        "how far off it is, Spearman how well it ranks mixtures. What does not beat the mixture weights alone "
        "(<code>lambda</code> λ, <code>sqrt</code> √λ, <code>log</code> log λ) is not worth its cost. "
        "<code>mde[τ]</code> is the loss of the mixture of data experts, with exponent τ of the prefix posterior; "
        "<code>merged</code> that of the experts' averaged parameters.</p>",
        f'<p class="verdict">{markup.escape(verdict)}</p>',
        _figure(
            figures.errors(methods),
            "Mean squared error of each method out of fold, on a logarithmic axis",
            "Left is better. Whiskers: standard error over the splits. Dotted: always predicting the mean. "
            "The table below has the same numbers.",
        ),
        _figure(
            figures.predicted_vs_true(study.read_table("fit/predictions.csv", "fit"), findings.main_methods(methods)),
            "Predicted against observed objective of each observation, out of fold",
            "Each point is an observation; its prediction is the mean over the splits that held it out. "
            "Choose methods in the legend.",
        ),
        _table(replace(table, notes=tuple(notes))),
    ]


def _experts(study: Study) -> list[str]:
    """What the experts know, and how well the evaluators rank mixtures on their own."""
    losses = findings.expert_losses(study)
    parts = []
    if not losses.empty:
        chart = _figure(
            figures.expert_heatmap(losses),
            "Loss of each expert on each evaluation domain above the best expert's",
            "Nats per token above the best expert of the column. Rows: experts, each trained on one domain. "
            "A column without contrast is a domain that the choice of the mixture hardly moves.",
        )
        parts += [chart, _details(tables.expert_losses(study))]
    if findings.has(study, "fit/domains.csv"):
        parts.append(_table(tables.evaluators(study)))
    return parts


def _proof(study: Study) -> list[str]:
    """Whether trained models bear out the prediction."""
    losses = findings.proof_losses(study)
    reference = "proportional" if "proportional" in losses.index else losses.index[-1]
    table = tables.proof(study)
    verdict, *notes = table.notes
    return [
        f'<p class="verdict">{markup.escape(verdict)}</p>',
        _figure(
            figures.proof(findings.proof(study), findings.proof_runs(study)),
            "Predicted interval and measured objective of the recommended mixture and its rivals",
            "Left is better. Dots: one run each; bar: their mean. The table below has the same numbers.",
        ),
        _table(replace(table, notes=tuple(notes))),
        _figure(
            figures.trade_off(losses, reference),
            f"Measured loss of each domain less that of the {reference} mixture",
            f"Where each mixture gains (left of zero) and pays (right), against {reference}; means over seeds.",
        ),
        _table(tables.proof_losses(study)),
    ]


def _curves(study: Study) -> list[str]:
    """Training losses of the seed model and the experts."""
    curves = findings.training_curves(study)
    if curves.empty:
        return ['<p class="missing">The study holds no metrics of its seed model and experts.</p>']
    chart = _figure(
        figures.training_curves(curves),
        "Training loss of the seed model and the experts by step",
        "Each on its own training data, so the levels are not comparable between experts. The experts go on from the "
        "seed model, where there is one.",
    )
    return [chart]


def _provenance(study: Study) -> list[str]:
    """What the study was made from, and how."""
    stages = findings.stages(study)
    arguments = {
        f"{stage}.{name}": json.dumps(value, ensure_ascii=False)
        for stage, given in stages["arguments"].items()
        for name, value in given.items()
    }
    about = study.about.get("sources", {})
    sources = {name: f"{source['description']} ({source['source']})" for name, source in about.items()}
    if study.is_swarm:
        sources |= {name: file["file"] for name, file in study.about["swarm"].items()}
    else:
        sources["tokenizer"] = f"{study.about['vocab_size']:,} pieces ({study.about['tokenizer']})"
    origins = {name: source.get("metadata", {}).get("versions", {}) for name, source in about.items()}
    packages = {name: _join(versions) for name, versions in origins.items() if versions}
    return [
        _table(_listing("Sources", "what", "source", sources)),
        _details(_listing("Versions that the text was taken from", "domain", "packages", packages)),
        _table(tables.times(study)),
        _details(_listing("Arguments of the stages", "argument", "value", arguments)),
        _details(_listing("Versions this page was written with", "package", "version", _versions())),
    ]


SECTIONS = (
    Section("Summary", "optimum.json", "optimize", "No mixture is recommended yet", _summary),
    Section("How far to trust it", "fit/choice.json", "fit", "No regressor is fitted yet", _trust),
    Section("Experts and evaluators", "losses.csv", "score", "Nothing is scored yet", _experts),
    Section("Explorer", explorer.TOKENS, "evaluate", "Nothing is evaluated yet", explorer.body),
    Section("Proof", "proof/summary.csv", "prove", "The recommended mixture is not trained yet", _proof),
    Section("Training curves", "mixtures.csv", "train", "Nothing is trained yet", _curves),
    Section("Provenance", "study.json", "prepare", "The study holds no text yet", _provenance),
)


def _section(study: Study, section: Section) -> str:
    if findings.has(study, section.needs):
        body = "\n".join(section.body(study))
    else:
        command = markup.escape(f"mde {section.stage} --study={study.root.name}")
        body = f'<p class="missing">{section.missing}: run <code>{command}</code>.</p>'
    anchor = _anchor(section.title)
    return f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{section.title}</h2>\n{body}\n</section>'


def _join(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _versions() -> dict[str, str]:
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {"python": platform.python_version()} | {n: installed[n] for n in PACKAGES if n in installed}


def _listing(title: str, label: str, value: str, rows: dict[str, str]) -> Table:
    """A table of one column of prose."""
    frame = pd.DataFrame({value: list(rows.values())}, pd.Index(list(rows), name=label))
    return Table(title, frame, prose=True)


def _numbers(numbers: list[tuple[str, str, str]]) -> str:
    """Key numbers: what, value, remark."""
    cells = (
        f"<div><dt>{what}</dt><dd>{value} <small>{remark}</small></dd></div>"
        for what, value, remark in (map(markup.escape, number) for number in numbers)
    )
    return f'<dl class="numbers">{"".join(cells)}</dl>'


def _figure(figure: go.Figure, label: str, caption: str) -> str:
    """A chart, the data it is drawn from, and what it shows in words."""
    data = str(figure.to_json()).replace("<", "\\u003c")
    return (
        f'<figure><div class="chart" role="img" aria-label="{markup.escape(label)}"></div>'
        f'<script type="application/json">{data}</script>'
        f"<figcaption><strong>{markup.escape(label)}.</strong> {markup.escape(caption)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    """A table under its title."""
    return f"<h3>{markup.escape(table.title)}</h3>{table.html()}"


def _details(table: Table) -> str:
    """A table behind its title."""
    return f"<details><summary>{markup.escape(table.title)}</summary>{table.html()}</details>"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _file(name: str) -> str:
    return resources.files("mde.reporting").joinpath(name).read_text(encoding="utf-8")
