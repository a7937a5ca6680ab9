"""The tables of end tasks, of tables whose means are known."""

import pandas as pd
import pytest

from mde.reporting import accuracy
from mde.study import Study


@pytest.fixture
def study(tmp_path):
    made = Study(tmp_path)
    made.write_json("study.json", {"format": 3, "training_domains": ["a", "b"], "evaluation_domains": ["a", "b"]})
    runs = pd.Index(["expert-a", "expert-b", "o-1", "o-2"], name="run")
    roles = ["expert", "expert", "proxy", "proxy"]
    mixtures = {"role": roles, "seed": 0, "a": [1, 0, 0.5, 0.25], "b": [0, 1, 0.5, 0.75]}
    made.write_table("mixtures.csv", pd.DataFrame(mixtures, runs))
    measured = {"acc/quiz": [0.25, 0.5, 0.5, 0.75], "acc_norm/quiz": [0.1] * 4}
    made.write_table("accuracies.csv", pd.DataFrame(measured, runs))
    return made


def test_what_was_measured(study):
    table = accuracy.measured(study)
    assert table.frame.loc["quiz"].tolist() == ["50.0%", "50.0%", "62.5%", "75.0%"]
    validation = pd.Index(["p-1", "p-2", "p-3"], name="run")
    roles = {"role": ["recommended", "recommended", "uniform"], "seed": [1, 2, 1], "a": 0.5, "b": 0.5}
    study.write_table("validation/mixtures.csv", pd.DataFrame(roles, validation))
    accuracies = pd.DataFrame({"acc/quiz": [0.8, 0.9, 0.4], "acc_norm/quiz": 0.0}, validation)
    study.write_table("validation/accuracies.csv", accuracies)
    assert accuracy.measured(study).frame.loc["quiz", ["recommended", "uniform"]].tolist() == ["85.0%", "40.0%"]


def test_the_best_of_each_regressor_on_either_side(study):
    rows = [
        ("ridge", "lambda", 4e-5, 0.5, "acc"),
        ("ridge", "sqrt", 3e-5, 0.6, "acc"),
        ("ridge", "expected[0]", 1e-5, 0.9, "acc"),
        ("ridge", "expected[1]", 2e-5, 0.8, "acc"),
        ("ridge", "expected_norm[1]", 0.0, 1.0, "acc_norm"),
    ]
    table = pd.DataFrame(rows, columns=["regressor", "features", "mse", "spearman", "metric"])
    study.write_table("fit/accuracy.csv", table.rename_axis("method"))
    shown = accuracy.predicted(study).frame
    assert shown.to_numpy().tolist() == [
        ["λ alone", "sqrt", "3", "0.60"],
        ["the experts' answers", "expected[0]", "1", "0.90"],
    ]
