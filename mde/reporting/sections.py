"""What the sections of the page show: words, charts and tables of a study, as HTML."""

import html
import json
from collections.abc import Mapping
from dataclasses import replace

from mde.ablation import HOME
from mde.reporting import ablation, accuracy, figures, final, findings, markup, reweighting, scaling, tables
from mde.reporting.style import MANY_ROWS
from mde.study import Study
from mde.versions import versions


def summary(study: Study) -> list[str]:
    """The recommended mixture, what it is predicted to reach and whether that came true."""
    predicted = findings.predictions(study).loc[findings.RECOMMENDED]
    optimum = study.read_json("optimum.json", "optimize")
    level = f"{optimum['interval_level']:.0%} interval"
    unit = findings.objective_unit(study, optimum["objective"])
    interval = f"{level} {predicted['low']:.4f} to {predicted['high']:.4f}"
    numbers = [(f"Predicted, {unit}", f"{predicted['predicted']:.4f}", interval)]
    if part := final.validation(study):
        numbers.append((f"Regret, {unit}", *final.regret(part)))
        verdict = final.models(part).notes[0]
    else:
        verdict = "Not checked yet: no run was trained on the recommended mixture."
        verdict += "" if study.is_swarm else f" To train it, run mde validate --study={study.root.name}."
    numbers.append(("Regressor", optimum["regressor"], f"on {optimum['features']}"))
    goal = findings.objective_name(study, optimum["objective"], optimum.get("reference"))
    weights = findings.recommendation(study)
    baselines = [name for name in optimum["predictions"] if name != findings.RECOMMENDED]
    return [
        markup.verdict(verdict),
        f"<p>{html.escape(findings.sought(optimum, goal))}</p>",
        markup.numbers(numbers),
        markup.figure(
            figures.mixture(weights, baselines),
            "Recommended weight of each training domain",
            f"Bars: the recommended mixture; whiskers: its {level} over refits on halves of the proxy runs. "
            "Symbols: the mixtures that it is compared with. Best observed is the best of the trained proxy runs.",
        ),
        markup.table(tables.recommendation(study)),
    ]


def trust(study: Study) -> list[str]:
    """How well the regressors predict mixtures that they were not fitted on."""
    methods = findings.regressors(study)
    table = tables.regressors(study)
    verdict, *notes = table.notes
    predictions = study.read_table("fit/predictions.csv", "fit")
    choice = study.read_json("fit/choice.json", "fit")
    blend, unit = choice.get("blend"), findings.objective_unit(study, choice["objective"])
    return [
        "<p>Every method predicts the losses of proxy runs it was not fitted on. Its mean squared error (MSE) says "
        "how far off it is, Spearman how well it ranks mixtures. What does not beat the mixture weights alone "
        "(<code>lambda</code> λ, <code>sqrt</code> √λ, <code>log</code> log λ) is not worth its cost. "
        "<code>mde[τ]</code> is the loss of the mixture of data experts, with exponent τ of the prefix posterior; "
        "<code>merged</code> that of the experts' averaged parameters.</p>",
        markup.verdict(verdict),
        markup.figure(
            figures.errors(methods),
            "Mean squared error of each method by cross-validation, on a logarithmic axis",
            "Left is better. Whiskers: standard error over new sets of proxy runs. Dotted: always predicting the mean. "
            "The table below has the same numbers.",
        ),
        *([f"<p>The chosen regressor is a {html.escape(blend)}.</p>"] if blend else []),
        markup.figure(
            figures.predicted_vs_true(predictions, findings.main_methods(methods), unit),
            "Predicted against observed objective of each proxy run, cross-validated",
            "Each point is a proxy run; its prediction is the mean over the splits that held it out. "
            "Choose methods in the legend.",
        ),
        *_learning(study),
        markup.table(replace(table, notes=tuple(notes))),
        *_by_domain(study),
    ]


def _by_domain(study: Study) -> list[str]:
    """How well the chosen regressor predicts each evaluation domain."""
    table = tables.fit_by_domain(study)
    return [markup.table(table) if len(table.frame) <= MANY_ROWS else markup.details(table)]


def _learning(study: Study) -> list[str]:
    """How much more proxy runs would help."""
    if not findings.has(study, "fit/learning.csv"):
        return []
    curves = study.read_table("fit/learning.csv", "fit")
    if curves.empty:
        return []
    chart = markup.figure(
        figures.learning_curves(curves, findings.noise(study)),
        "Cross-validated mean squared error by the number of training mixtures",
        "The best feature set of each regressor, and the best of λ alone. Whiskers: standard error over new sets of "
        "proxy runs. A curve that still falls would gain from more proxy runs; nothing gets below the noise of a run, "
        "which is known from replicates.",
    )
    return [chart]


def experts(study: Study) -> list[str]:
    """What the experts know, and how well the evaluators rank mixtures on their own."""
    losses = findings.expert_losses(study)
    parts = []
    if not losses.empty:
        chart = markup.figure(
            figures.expert_heatmap(losses),
            "Loss of each expert on each evaluation domain above the best expert's",
            "Nats per token above the best expert of the column. Rows: experts, each trained on one domain. "
            "A column without contrast is a domain that the choice of the mixture hardly moves.",
        )
        parts += [chart, markup.details(tables.expert_losses(study))]
    if findings.has(study, "features.csv"):
        shifts = findings.evaluator_shifts(study)
        charts = {
            str(name): figures.evaluator_against_observed(rows)
            for name, rows in shifts.groupby("evaluator", sort=False)
        }
        chart = markup.choice(
            charts,
            "Evaluator",
            "What an evaluator says of each proxy run against what training gave, no regressor between them",
            "Each point is a proxy run in an evaluation domain, both losses less the domain's mean. mde[τ] are "
            "mixtures of experts, merged the experts' averaged parameters. On the dotted line the evaluator is exact.",
        )
        parts.append(chart)
    if findings.has(study, "fit/domains.csv"):
        parts.append(markup.table(tables.evaluators(study)))
    return parts


def end_tasks(study: Study) -> list[str]:
    """How often models choose right, and how well that is predicted."""
    tables = [accuracy.measured(study)]
    if findings.has(study, "fit/accuracy.csv"):
        tables.append(accuracy.predicted(study))
    return [markup.table(table) for table in tables]


def curves(study: Study) -> list[str]:
    """Training losses of the seed model and the experts."""
    curves = findings.training_curves(study)
    if curves.empty:
        return ['<p class="missing">The study holds no metrics of its seed model and experts.</p>']
    chart = markup.figure(
        figures.training_curves(curves),
        "Training loss of the seed model and the experts by step",
        "Each on its own training data, so the levels are not comparable between experts. The experts go on from the "
        "seed model, where there is one.",
    )
    return [chart]


def along_the_budget(study: Study) -> list[str]:
    """The best mixture at small budgets, and where it goes."""
    found = study.read_json("scale.json", "scale")
    parts = [
        markup.figure(
            scaling.path_figure(study),
            "Best weight of each domain along the budget",
            "Filled: the optimum of runs at that budget; open: predicted from them. Whiskers: what the noise of the "
            "runs makes of the prediction. The table below has the same numbers.",
        ),
        markup.table(scaling.mixtures(study)),
    ]
    if "points" in found:
        chart = markup.figure(
            scaling.cross_effects_figure(study),
            "What more of each training domain takes off the loss of each evaluation domain",
            "Nats per token between the run with less and the run with more of it. Rows: training domains.",
        )
        parts += [chart, markup.table(scaling.laws(study))]
    return [*parts, *([markup.table(scaling.validation(study))] if found.get("validation") else [])]


def online_reweighting(study: Study) -> list[str]:
    """The mixtures of DoReMi and DoGE, and how they came about."""
    return [
        "<p>DoReMi and DoGE find a mixture while one proxy model is trained: a domain's weight grows where the proxy "
        "is behind a reference (DoReMi), or where the domain's gradient points the way of those of all (DoGE). No "
        "mixture is compared with another on the way.</p>",
        markup.figure(
            reweighting.trajectories(study),
            "Weight of each domain while the proxies are trained",
            "Bold: mean over the seeds; thin: each seed; dotted: uniform. The mixture is the mean over the steps; "
            "of several rounds the last is shown.",
        ),
        markup.table(reweighting.mixtures(study)),
    ]


def ablations(study: Study) -> list[str]:
    """How well merges stand for trained unions, and what each part of the corpus is worth."""
    parts = []
    if findings.has(study, f"{HOME}/correlations.csv"):
        table, correlations = ablation.perplexities(study), ablation.correlations(study)
        domains = [str(name) for name in correlations["domain"].unique()]
        parts += [
            markup.choice(
                {name: ablation.merges(table, name) for name in domains},
                "Evaluation domain",
                "Perplexity of each trained union against that of the merged models and mixtures that stand for it",
                "Each point is a union of base units. On the dotted line the proxy is exact; it is of use where the "
                "points rise in order. Choose proxies in the legend.",
            ),
            markup.table(ablation.domain_table(study)),
        ]
        if correlations["seed_steps"].nunique() > 1:
            curves = {name: ablation.seed_curve(correlations, name) for name in domains}
            caption = "Whiskers: 90% intervals over resampled unions."
            label = "Correlation of the proxies with the trained unions by the training of the seed model"
            parts.append(markup.choice(curves, "Evaluation domain", label, caption))
    if findings.has(study, f"{HOME}/values.csv"):
        chart = markup.figure(
            ablation.worth(study.read_table(f"{HOME}/values.csv", "ablate")),
            "What each base unit takes off the objective, by evaluator",
            "Shapley values, nats per token: the mean over orders in which units are added.",
        )
        parts += [chart, markup.table(ablation.worth_table(study))]
    return [*parts, markup.table(ablation.cost_table(study))]


def provenance(study: Study) -> list[str]:
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
    ran = {stage: _join(found) for stage, found in findings.versions(study).items()}
    return [
        markup.table(markup.listing("Sources", "what", "source", sources)),
        markup.details(markup.listing("Versions that the text was taken from", "domain", "packages", packages)),
        markup.table(tables.times(study)),
        markup.details(markup.listing("Arguments of the stages, seeds among them", "argument", "value", arguments)),
        markup.details(markup.listing("Versions that the stages ran with", "stage", "versions", ran)),
        markup.details(markup.listing("Versions this page was written with", "package", "version", versions())),
        *_configurations(study),
    ]


def _configurations(study: Study) -> list[str]:
    """The gin files that run the stages again."""
    files = sorted((study.root / "stages").glob("*.gin"))
    text = "\n".join(file.read_text() for file in files if file.stem != "report")
    if not text:
        return []
    return [f"<details><summary>Configuration that runs this again</summary><pre>{html.escape(text)}</pre></details>"]


def _join(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
