"""Predictions held to measured losses, by hand."""

import numpy as np
import pandas as pd

from mde.reporting import judged

RUNS = ["a", "b", "c", "d"]
PREDICTED = pd.DataFrame({"web": [1.0, 2.0, 3.0, 4.0], "code": [2.0, 1.0, 3.0, 4.0]}, RUNS)
MEASURED = pd.DataFrame({"web": [11.0, 10.0, 12.0, 14.0], "code": [2.0, 1.0, 3.0, 4.0]}, RUNS)


def test_the_objective_comes_first_and_is_the_weighted_mean_of_both_sides():
    found = judged.Judged(PREDICTED, MEASURED, np.array([0.5, 0.5]))
    assert list(found.scores.index) == [judged.OBJECTIVE, "web", "code"]
    assert found.predicted[judged.OBJECTIVE].tolist() == [1.5, 1.5, 3.0, 4.0]
    assert found.measured[judged.OBJECTIVE].tolist() == [6.5, 5.5, 7.5, 9.0]
    # a and b are predicted alike; a, the first, is taken, and it is the second best: 6.5 where 5.5 was to be had
    assert found.scores.loc[judged.OBJECTIVE, "regret"] == 1
    assert found.scores["rank"].tolist() == [2, 2, 1]
    assert found.scores.loc["web", "shift"] == 9.25
    assert found.scores.loc["code", "mse"] == 0


def test_the_table_says_what_choosing_would_have_cost_and_where_levels_differ():
    text = str(judged.table(judged.Judged(PREDICTED, MEASURED, np.array([1.0, 0.0]))))
    assert "run 'a' is predicted best and measured at 11.0000; the best is run 'b' at 10.0000" in text
    assert "a regret of 1.0000" in text
    assert "2 of 3 targets" in text
    assert "Mean Spearman over 2 evaluation domains: 0.900" in text
    assert max(map(len, text.splitlines())) <= 100


def test_levels_that_agree_are_said_to():
    text = str(judged.table(judged.Judged(PREDICTED, PREDICTED, np.array([1.0, 0.0]))))
    assert "levels agree" in text
    assert "is the best measured: 1.0000" in text


def test_without_a_domain_that_the_objective_counts_only_domains_are_judged():
    found = judged.Judged(PREDICTED, MEASURED[["code"]], np.array([0.5, 0.5]))
    assert list(found.scores.index) == ["code"]
    text = str(judged.table(found))
    assert "Not measured: web." in text
    assert "it is not judged" in text
    weightless = judged.Judged(PREDICTED, MEASURED[["code"]], np.array([0.0, 1.0]))
    assert list(weightless.scores.index) == [judged.OBJECTIVE, "code"]


def test_the_chart_has_the_line_of_the_shift():
    figure = judged.scatter(judged.Judged(PREDICTED, MEASURED, np.array([1.0, 0.0])), "web")
    line, points = figure.data
    assert (np.array(line.x) - np.array(line.y)).tolist() == [9.25, 9.25]
    assert list(points.y) == [1.0, 2.0, 3.0, 4.0]
