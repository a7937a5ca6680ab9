import numpy as np
import pandas as pd
import pytest

from mde.reporting import figures, findings, style


def named(figure):
    return {trace.name: trace for trace in figure.data}


def test_predicted_vs_true_shows_two_methods_and_offers_the_others(study):
    predictions = study.read_table("fit/predictions.csv", "fit")
    methods = [("ridge", "mde[0]+mde[1]"), ("ridge", "sqrt"), ("alone", "mde[0]")]
    traces = named(figures.predicted_vs_true(predictions, methods))
    assert list(traces) == ["exact", "ridge: mde[0, 1]", "ridge: sqrt", "alone: mde[0]"]
    assert [trace.visible for trace in list(traces.values())[1:]] == [True, True, "legendonly"]
    np.testing.assert_array_equal(traces["ridge: sqrt"].x, range(20))


def test_errors_has_a_row_a_feature_set_and_a_series_a_regressor(study):
    traces = named(figures.errors(findings.regressors(study)))
    assert list(traces) == ["evaluator alone", "ridge", "mean"]
    found = dict(zip(traces["ridge"].y, traces["ridge"].x, strict=True))
    assert found["mde[0, 1]"] == pytest.approx(0.25)
    np.testing.assert_allclose(traces["mean"].x, [4.0, 4.0])


def test_heatmap_is_relative_to_the_best_expert_of_a_domain():
    losses = pd.DataFrame({"code": [1.0, 1.5], "web": [3.0, 2.0]}, ["code", "web"])
    [heat] = figures.expert_heatmap(losses).data
    np.testing.assert_allclose(heat.z, [[0, 1], [0.5, 0]])
    np.testing.assert_allclose(heat.customdata, losses)


def test_mixture_draws_intervals_from_low_to_high(study):
    traces = named(figures.mixture(findings.recommendation(study), ["uniform", "proportional"]))
    whiskers = traces["interval"]
    np.testing.assert_allclose(whiskers.x - whiskers.error_x.array, [0.55, 0.3])
    np.testing.assert_allclose(whiskers.x + whiskers.error_x.array, [0.7, 0.45])
    np.testing.assert_allclose(traces["recommended"].x, [0.6, 0.4])
    np.testing.assert_allclose(traces["proportional"].x, [0.75, 0.25])


def test_training_curves_of_many_runs_can_be_told_apart():
    curves = pd.DataFrame({"run": ["seed", *map(str, range(20))], "step": 1.0, "loss": 2.0})
    looks = [(trace.line.color, trace.line.dash) for trace in figures.training_curves(curves).data]
    assert len(set(looks)) == 21


@pytest.mark.parametrize(
    ("features", "shown"),
    [
        ("mde[0]", "mde[0]"),
        ("mde[0]+mde[0.03]+log", "mde[0, 0.03]+log"),
        ("merged+log", "merged+log"),
        ("all:mde[0]+mde[1]", "all:mde[0]+mde[1]"),
    ],
)
def test_short_names_of_feature_sets(features, shown):
    assert figures.short(features) == shown


def test_markup_in_names_is_not_obeyed():
    losses = pd.DataFrame({"<b>x</b>": [1.0]}, ["<i>y</i>"])
    [heat] = figures.expert_heatmap(losses).data
    assert (*heat.x, *heat.y) == ("&lt;b&gt;x&lt;/b&gt;", "&lt;i&gt;y&lt;/i&gt;")


def test_learning_curves_have_a_line_a_method_and_the_noise_below(study):
    curves = study.read_table("fit/learning.csv", "fit")
    traces = named(figures.learning_curves(curves, 2e-5))
    assert list(traces) == ["ridge: lambda", "ridge: sqrt", "noise of a run"]
    np.testing.assert_allclose(traces["ridge: lambda"].x, [8, 16])
    np.testing.assert_allclose(traces["ridge: lambda"].y, [2 / 8, 2 / 16])
    np.testing.assert_allclose(traces["noise of a run"].y, [0.02, 0.02])


def test_an_evaluator_is_shown_less_the_domains_means(study):
    shifts = findings.evaluator_shifts(study)
    merged = shifts[(shifts["evaluator"] == "merged") & (shifts["domain"] == "code")]
    np.testing.assert_allclose(merged["evaluated"], 2 * merged["observed"])
    assert merged["observed"].mean() == pytest.approx(0)
    traces = named(figures.evaluator_against_observed(shifts[shifts["evaluator"] == "merged"]))
    assert list(traces) == ["exact", "code", "web", "news"]


def test_the_first_thirty_six_marks_differ():
    marks = [style.mark(i) for i in range(36)]
    assert len({(one["color"], one["symbol"]) for one in marks}) == 36


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.3, 4], [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]),
        ([2000, 0.01], [0.01, 0.1, 1, 10, 100, 1000, 10000]),
        ([0.0, 1.0], [1, 2, 5]),
        ([0.0], []),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round(values, expected):
    np.testing.assert_allclose(style.log_ticks(values), expected)
