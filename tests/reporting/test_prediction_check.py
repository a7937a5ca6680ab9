"""Predictions held to measured losses, by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from mde.reporting import prediction_check

RUNS = ["a", "b", "c", "d"]
PREDICTED = pd.DataFrame({"web": [1.0, 2.0, 3.0, 4.0], "code": [2.0, 1.0, 3.0, 4.0]}, RUNS)
MEASURED = pd.DataFrame({"web": [11.0, 10.0, 12.0, 14.0], "code": [2.0, 1.0, 3.0, 4.0]}, RUNS)


def test_the_objective_comes_first_and_is_the_weighted_mean_of_both_sides():
    found = prediction_check.PredictionCheck(PREDICTED, MEASURED, np.array([0.5, 0.5]))
    assert list(found.scores.index) == [prediction_check.OBJECTIVE, "web", "code"]
    assert found.predicted[prediction_check.OBJECTIVE].tolist() == [1.5, 1.5, 3.0, 4.0]
    assert found.measured[prediction_check.OBJECTIVE].tolist() == [6.5, 5.5, 7.5, 9.0]
    # a and b are predicted alike; a, the first, is taken, and it is the second best: 6.5 where 5.5 was to be had
    assert found.scores.loc[prediction_check.OBJECTIVE, "regret"] == 1
    assert found.scores["rank"].tolist() == [2, 2, 1]
    assert found.scores.loc["web", "shift"] == 9.25
    assert found.scores.loc["code", "mse"] == 0


def test_the_table_says_what_choosing_would_have_cost_and_where_levels_differ():
    text = str(prediction_check.table(prediction_check.PredictionCheck(PREDICTED, MEASURED, np.array([1.0, 0.0]))))
    assert "run 'a' is predicted best and measured at 11.0000; the best is run 'b' at 10.0000" in text
    assert "a regret of 1.0000" in text
    assert "2 of 3 targets" in text
    assert "Mean Spearman over 2 evaluation domains: 0.900" in text
    assert max(map(len, text.splitlines())) <= 100


def test_levels_that_agree_are_said_to():
    text = str(prediction_check.table(prediction_check.PredictionCheck(PREDICTED, PREDICTED, np.array([1.0, 0.0]))))
    assert "levels agree" in text
    assert "is the best measured: 1.0000" in text


def test_without_a_domain_that_the_objective_counts_only_domains_are_cross_validated():
    found = prediction_check.PredictionCheck(PREDICTED, MEASURED[["code"]], np.array([0.5, 0.5]))
    assert list(found.scores.index) == ["code"]
    text = str(prediction_check.table(found))
    assert "Not measured: web." in text
    assert "it is not scored" in text
    weightless = prediction_check.PredictionCheck(PREDICTED, MEASURED[["code"]], np.array([0.0, 1.0]))
    assert list(weightless.scores.index) == [prediction_check.OBJECTIVE, "code"]


def test_the_chart_has_the_line_of_the_shift():
    figure = prediction_check.scatter(
        prediction_check.PredictionCheck(PREDICTED, MEASURED, np.array([1.0, 0.0])), "web"
    )
    line, points = figure.data
    assert (np.array(line.x) - np.array(line.y)).tolist() == [9.25, 9.25]
    assert list(points.y) == [1.0, 2.0, 3.0, 4.0]


def test_the_rule_of_the_own_domain_and_ranks_among_the_best_stand_beside_the_predictions():
    rng = np.random.default_rng(0)
    runs = [f"r{i}" for i in range(16)]
    mixtures = pd.DataFrame(rng.dirichlet(np.ones(3), 16), runs, ["web", "code", "books"])
    measured = pd.DataFrame({"web": -mixtures["web"], "task": rng.normal(size=16)}, runs)
    predicted = measured + rng.normal(0, 0.2, measured.shape)
    found = prediction_check.PredictionCheck(
        predicted, measured, np.array([0.5, 0.5]), mixtures.sample(frac=1, random_state=0)
    )
    assert found.scores.loc["web", "own"] == pytest.approx(1)
    assert np.isnan(found.scores.loc["task", "own"])  # not a training domain
    whole = (measured["web"] + measured["task"]) / 2
    assert found.scores.loc[prediction_check.OBJECTIVE, "own"] == pytest.approx(
        spearmanr(-mixtures["web"], whole).statistic
    )
    best = np.argsort(measured["task"].to_numpy())[:4]
    among = spearmanr(predicted["task"].iloc[best], measured["task"].iloc[best]).statistic
    assert found.scores.loc["task", "top"] == pytest.approx(among)
    text = " ".join(str(prediction_check.table(found)).split())
    assert "matches or beats the predictions on 1 of 1 targets: web (1.000 against" in text
    without = prediction_check.PredictionCheck(predicted, measured, np.array([0.5, 0.5]))
    assert without.scores["own"].isna().all()
    assert "no regressor" not in str(prediction_check.table(without))


def test_a_mean_of_all_domains_has_no_rule():
    mixtures = pd.DataFrame(np.random.default_rng(1).dirichlet(np.ones(2), 4), RUNS, ["web", "code"])
    found = prediction_check.PredictionCheck(PREDICTED, MEASURED, np.array([0.5, 0.5]), mixtures)
    assert np.isnan(found.scores.loc[prediction_check.OBJECTIVE, "own"])
