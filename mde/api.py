"""What a Python user holds: a study whose stages are calls and whose results show themselves in a notebook."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mde import cli, study
from mde.ablation import HOME
from mde.commands import pipeline
from mde.errors import UserError
from mde.optimization import objectives, search
from mde.optimization.constraints import Bounds, Constraints
from mde.optimization.search import Optimum
from mde.reporting import ablation, figures, final, findings, scaling, tables
from mde.reporting.table import Table
from mde.results import recommendation as recommend
from mde.results import search_setup as problem
from mde.results.mixtures import tokens_of
from mde.results.predictor import Predictor
from mde.results.support import Data

Predict = Callable[[np.ndarray], np.ndarray]  # mixtures [C, K] -> losses [C, J]


class ScoredText(NamedTuple):
    """The evaluation text under every expert, as `mixture_nll` and `optimum` take it.

    Attributes:
      log_probs: [T, K] nats.
      segment_ids: [T] evaluation domain of each token.
      sequence_ids: [T] its document, which τ > 0 needs.
    """

    log_probs: np.ndarray
    segment_ids: np.ndarray
    sequence_ids: np.ndarray


class Study(study.Study):
    """A study, made and looked at from Python.

    Everything `mde.study.Study` reads is here too: `mixtures()`, `losses()`, `features()`, `domains`.

    Args:
      root: its directory, here or in a bucket; it need not exist yet.
    """

    def run(self, stage: str, /, *, force: bool = False, **arguments: Any) -> Self:
        """Runs a stage or tool as the command line does; a stage that was done with these arguments is skipped.

        Args:
          stage: "prepare", "train", "score", "evaluate", "fit", "optimize", "validate", "report", or a tool.
          force: run it even if it is done.
          arguments: those of the function of its name in `mde.commands`.

        Raises:
          UserError: an unknown stage or argument, or an earlier stage that has not been run.
        """
        cli.set_environment()
        pipeline.run(self, stage, arguments, force)
        return self

    def scored_text(self) -> ScoredText:
        """The evaluation text under every expert."""
        from mde.results import scored_text  # which imports JAX

        scored = self.read_json("scoring.json", "score")
        data = scored_text.evaluation_data(self, scored)
        log_probs = scored_text.log_probs_of(self, scored, [f"expert-{name}" for name in self.domains.training])
        return ScoredText(np.asarray(log_probs[:]), data.segment_ids, data.sequence_ids)

    def predictor(self) -> Predictor:
        """The chosen regressor as a function from mixtures [C, K] to losses [C, J] in the study's unit."""
        return Predictor(self)

    def search(
        self,
        objective: str | Mapping[str, float] | None = None,
        constraints: Constraints = Constraints(),
        *,
        beta: float = 0.0,
        kl_penalty: float = 0.0,
        how: recommend.Search = recommend.Search(),
    ) -> "Recommendation":
        """What the chosen regressor recommends for another objective or under other constraints; writes nothing.

        Args:
          objective: that of `mde fit` by default; avg-sp, avg-et, avg-all, avg-families, worst-sp, worst-et, worst-all,
            or weights by evaluation domain, family or pattern.
          constraints: what the mixture must obey.
          beta: standard deviations of the prediction that are added to the objective.
          kl_penalty: cost of one nat of KL divergence from the prior, in the unit of the losses.
          how: it is searched for; `refits` has no effect.

        Raises:
          UserError: no regressor was chosen; an objective or constraint that makes no sense.
        """
        predictor, domains, runs = self.predictor(), self.domains, self.mixtures()
        data = Data(runs.loc[runs["role"] == "proxy", list(domains.training)])
        untrained = () if how.allow_untrained else data.untrained()
        bounds = constraints.on(domains.training, tokens_of(self), untrained, kl_penalty)
        name = problem.objective_or_chosen(self, objective)
        goal = objectives.make(name, domains.evaluation, domains.training, beta=beta)
        loss = problem.loss(self, predictor, goal, bounds, how.method)
        start, unit = problem.known_mixtures(self, bounds), self.unit_of(goal.counted(domains.evaluation))
        found = recommend.search_for(loss, bounds, data, how, start)
        about = {**data.about(found.best.mixture), "max_distance": found.radius, "left_out": bounds.left_out}
        made = _recommendation(found.best, predictor, goal, bounds, domains.evaluation, unit)
        return replace(made, errors=self.errors, support=about, unrestricted=found.unrestricted)

    def regressors(self) -> Table:
        """How well each regressor predicts mixtures it has not seen."""
        return tables.regressors(self)

    def recommendation(self) -> Table:
        """The recommended mixture, its baselines and intervals."""
        return tables.recommendation(self)

    def validation(self) -> Table:
        """What trained models say of the recommendation."""
        return final.models(self._validation())

    def _validation(self) -> study.Study:
        if (part := final.validation(self)) is None:
            raise UserError(f"{self}: no validation runs yet; run `mde validate --study={self}` first")
        return part

    def plot_mixture(self) -> go.Figure:
        """The recommended weights with their intervals, and the mixtures they are compared with."""
        weights = findings.recommendation(self)
        baselines = [str(name) for name in weights if name not in (findings.RECOMMENDED, "tokens", "low", "high")]
        return _on_white(figures.mixture(weights, baselines))

    def plot_errors(self) -> go.Figure:
        """The out-of-fold error of every regressor on every feature set."""
        return _on_white(figures.errors(findings.regressors(self)))

    def plot_predictions(self) -> go.Figure:
        """Out-of-fold predictions against what was observed, by regressor."""
        methods = findings.main_methods(findings.regressors(self))
        unit = findings.objective_unit(self, self.read_json("fit/choice.json", "fit")["objective"])
        return _on_white(figures.predicted_vs_true(self.read_table("fit/predictions.csv", "fit"), methods, unit))

    def plot_experts(self) -> go.Figure:
        """How much worse each expert is than the best one of a domain."""
        return _on_white(figures.expert_heatmap(findings.expert_losses(self)))

    def plot_validation(self) -> go.Figure:
        """What the validation runs of each mixture measured."""
        return _on_white(final.measured_figure(self._validation()))

    def plot_budget(self) -> go.Figure:
        """The best weight of each domain along the budget, of `scale`."""
        return _on_white(scaling.path_figure(self))

    def plot_worth(self) -> go.Figure:
        """What each part of the corpus takes off the objective, of `ablate`."""
        return _on_white(ablation.worth(self.read_table(f"{HOME}/values.csv", "ablate")))

    def plot_training(self) -> go.Figure:
        """Training losses of the seed model and the experts."""
        return _on_white(figures.training_curves(findings.training_curves(self)))

    def _repr_html_(self) -> str:
        seconds = findings.stages(self)["seconds"]
        done = [f"{seconds[name]:,.0f} s" if name in seconds else "not yet" for name in self.stages]
        frame = pd.DataFrame({"done": done}, pd.Index(self.stages, name="stage"))
        return Table(f"Study {self.root}", frame)._repr_html_()


@dataclass(frozen=True)
class Recommendation:
    """The mixture of lowest predicted loss.

    Attributes:
      mixture: weight of each training domain.
      losses: predicted loss of each evaluation domain.
      objective: predicted objective.
      unit: of both.
      binding: the constraints that stop the mixture from going further, in words.
      epochs: how often each domain is read at the budget; None without budget or tokens.
      search: how it was found, and how sure that is: its gap, or how far restarts differ.
      errors: evaluation domains of which the loss is an error, 1 − value, since more is better; shown as values.
      support: nearest_run, distance (total variation to it), extrapolates, above_trained (domains with more weight than
        any proxy run gave them), max_distance, left_out (domains that no run trained on); None without a study.
      unrestricted: the optimum without the limit on distance, where that leaves it out.
    """

    mixture: pd.Series
    losses: pd.Series
    objective: float
    unit: str
    binding: tuple[str, ...]
    epochs: Mapping[str, float] | None
    search: Optimum
    errors: tuple[str, ...] = ()
    support: Mapping[str, Any] | None = None
    unrestricted: Optimum | None = None

    def table(self) -> Table:
        """Weights, and epochs where they are known."""
        frame = pd.DataFrame({"weight": self.mixture.map("{:.1%}".format)}).rename_axis("domain")
        if self.epochs:
            frame["epochs"] = [f"{self.epochs[name]:.3g}" for name in frame.index]
        shown = self.losses.where(~self.losses.index.isin(self.errors), 1 - self.losses)
        by_domain = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
        notes = [f"Predicted: {self.objective:.4f} {self.unit}; {by_domain}."]
        notes += [f"Binds: {constraint}." for constraint in self.binding]
        if self.support:
            far = "; an extrapolation" if self.support["extrapolates"] else ""
            nearest = f"{self.support['nearest_run']}, {self.support['distance']:.2f} away"
            notes.append(f"Nearest proxy run: {nearest} (total variation){far}.")
        return Table("Recommended mixture", frame, tuple(notes))

    def plot(self) -> go.Figure:
        """The weights as bars."""
        weights = pd.DataFrame({findings.RECOMMENDED: self.mixture})
        return _on_white(figures.mixture(weights, []))

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __str__(self) -> str:
        return str(self.table())


def optimize(
    predict: Predict,
    training_domains: Sequence[str],
    evaluation_domains: Sequence[str],
    objective: str | Mapping[str, float] = "avg-all",
    constraints: Constraints = Constraints(),
    *,
    unit: str = study.NATS,
    how: recommend.Search = recommend.Search(),
) -> Recommendation:
    """The mixture of lowest predicted loss, from any function that predicts losses: a study is not needed.

    Args:
      predict: mixtures [C, K] -> losses [C, J], such as `Auto().fit(mixtures, losses).predict`.
      training_domains: the K domains of the mixtures, in the order of their columns.
      evaluation_domains: the J domains of the losses.
      objective: avg-sp, avg-et, avg-all, worst-sp, worst-et, worst-all, or weights by evaluation domain or
        pattern.
      constraints: what the mixture must obey.
      unit: of the losses.
      how: it is searched for: `method` (auto, refinement or simulation), `candidates` and `seed`.

    Raises:
      UserError: an unknown objective or domain; bounds that no mixture obeys.
    """
    bounds = constraints.on(training_domains)
    goal = objectives.make(objective, evaluation_domains, training_domains)

    def loss(mixtures: np.ndarray) -> np.ndarray:
        return goal(predict(mixtures))

    found = search.minimize(
        loss, bounds.region, how.seed, how.method, n_candidates=how.candidates, restarts=recommend.RESTARTS
    )
    return _recommendation(found, predict, goal, bounds, evaluation_domains, unit)


def _recommendation(
    found: Optimum,
    predict: Predict,
    goal: objectives.Objective,
    bounds: Bounds,
    evaluation_domains: Sequence[str],
    unit: str,
) -> Recommendation:
    losses = predict(found.mixture[None])[0]
    return Recommendation(
        pd.Series(found.mixture, list(bounds.domains), name="weight"),
        pd.Series(losses, list(evaluation_domains), name="loss"),
        float(goal(losses)),
        unit,
        tuple(bounds.binding(found.mixture)),
        bounds.epochs(found.mixture),
        found,
    )


def _on_white(figure: go.Figure) -> go.Figure:
    """On white paper: a notebook may be dark, and a figure has no colours of its page there."""
    return figure.update_layout(
        paper_bgcolor="white", plot_bgcolor="white", margin={"l": 16, "r": 16, "t": 24, "b": 16}
    )
