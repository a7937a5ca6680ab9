import numpy as np
import pandas as pd
import pytest
from finished_study import METHODS, fit

from mde.reporting import findings, tables


def test_regressors_are_grouped_and_ordered_by_error(study):
    table = findings.regressors(study)
    assert table["group"].tolist() == ["mean", "alone", "λ only", "λ only", "with MDE", "with MDE", "with merged"]
    assert table["features"].tolist()[2:] == ["sqrt", "lambda", "mde[0]+mde[1]", "mde[0]+log", "merged+log"]
    assert table.loc[table["chosen"], "features"].tolist() == ["mde[0]+mde[1]"]


def test_fit_conditions_say_what_the_errors_are_of(study):
    expected = "average loss over 3 evaluation domains, 20 proxy runs, 16 training mixtures, 100 splits"
    assert findings.fit_conditions(study) == expected
    runs = study.mixtures()
    study.write_table("mixtures.csv", pd.concat([runs, runs[-1:].rename(index=lambda run: "iterate-1-0")]))
    assert findings.fit_conditions(study) == expected  # what was fitted, whatever was trained since


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("avg-sp", "average loss over 2 of 3 evaluation domains"),
        ({"web": 2, "news": 1}, "weighted average loss over 2 of 3"),
    ],
)
def test_objective_in_words(study, objective, words):
    assert findings.objective_name(study, objective).startswith(words)


def test_ratio_of_best_with_mde_to_best_without(study):
    sentence = findings.worth_of_experts(study)
    # .00025 / .001
    assert "MSE ratio 0.25 (geometric mean over splits); MDE features improve predictions" in sentence
    assert "ridge on mde[0]+mde[1]" in sentence
    assert "Best of 2 methods with MDE and of 2 without" in sentence


@pytest.mark.parametrize(
    ("mse", "error", "verdict"),
    [
        (0.0004, 0.0001, "ratio 2.50 (geometric mean over splits); MDE features do not improve predictions"),
        (0.00101, 0.001, "ratio 0.99 (geometric mean over splits); not clear whether"),
    ],
)
def test_experts_that_do_not_help_are_said_not_to(study, mse, error, verdict):
    methods = [row for row in METHODS if "mde" not in row[1] or row[0] == "alone"]
    methods[3] = ("ridge", "sqrt", mse, error, 0.6)
    fit(study, [*methods, ("ridge", "mde[0]", 0.001, 0.0001, 0.7)])
    assert verdict in findings.worth_of_experts(study)


def test_methods_are_compared_on_the_splits_that_both_had(study):
    """The expensive one was given the two hard splits only, and was better in both of them."""
    fit(study, [("ridge", "mde[0]", 0.003, 0.001, 0.9), ("ridge", "log", 0.0025, 0.0001, 0.9)])
    rows = [("ridge", "mde[0]", 0.002), ("ridge", "mde[0]", 0.004)]
    rows += [("ridge", "log", mse) for mse in (0.0031, 0.0049, 0.001, 0.001)]
    table = pd.DataFrame(rows, pd.Index([0, 1, 0, 1, 2, 3], name="round"), ["regressor", "features", "mse"])
    study.write_table("fit/rounds.csv", table)
    scores = study.read_table("fit/objective.csv", "fit")
    study.write_table("fit/objective.csv", scores.assign(n=[2, 4]))
    ratio = np.sqrt(0.002 * 0.004 / (0.0031 * 0.0049))
    assert f"MSE ratio {ratio:.2f} (geometric mean over splits); MDE features imp" in findings.worth_of_experts(study)
    assert "2 to 4 splits" in findings.fit_conditions(study)
    assert tables.regressors(study).frame["splits"].tolist() == ["4", "2"]


def test_no_ratio_without_both_kinds_of_features(study):
    fit(study, [row for row in METHODS if "mde" not in row[1]])
    assert "No comparison" in findings.worth_of_experts(study)


def test_recommendation_is_joined_by_domain(study):
    table = findings.recommendation(study)  # the files name web first, the study code
    assert table.loc["code", ["tokens", "recommended", "low", "high", "proportional"]].tolist() == [
        3000,
        0.6,
        0.55,
        0.7,
        0.75,
    ]
    assert table.index.tolist() == ["code", "web"]


def test_experts_are_named_by_their_domain(study):
    losses = findings.expert_losses(study)
    expected = pd.DataFrame({"code": [1.0, 2.0], "web": [2.0, 1.0], "news": 3.0}, ["code", "web"])
    pd.testing.assert_frame_equal(losses, expected, check_names=False)


def test_training_curves_are_binned_and_go_on_from_the_seed_model(study):
    curves = findings.training_curves(study, points=100)
    seed = curves[curves["run"] == "seed"]
    assert len(seed) == 100
    assert seed.iloc[0][["step", "loss"]].tolist() == [2.5, pytest.approx(5 - 0.0015)]  # steps 1 to 4
    assert curves.loc[curves["run"] == "expert-code", "step"].tolist() == [402.5, 406.5, 409.5]  # 10 steps by fours


def test_a_step_that_was_resumed_counts_once(study):
    path = study.root / "runs" / "seed" / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 9.0}\n{"step": 1, "loss": 5.0}\n')
    curves = findings.training_curves(study)
    assert curves.loc[curves["run"] == "seed", "loss"].tolist() == [5.0]


def test_a_study_of_proxy_runs_only_has_no_experts_and_no_curves(study):
    mixtures, losses = study.mixtures(), study.losses()
    observed = mixtures["role"] == "proxy"
    study.write_table("mixtures.csv", mixtures[observed])
    study.write_table("losses.csv", losses[observed])
    (study.root / "runs" / "seed" / "metrics.jsonl").unlink()
    assert findings.expert_losses(study).empty
    assert findings.training_curves(study).empty


def test_stages_come_in_their_order(study):
    assert findings.stages(study).index.tolist() == ["prepare", "train", "fit", "optimize", "validate"]
    assert findings.stages(study).loc["train", "seconds"] == 20.5


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({}, "has the lowest predicted average loss over 3 evaluation domains."),
        (
            {"beta": 2.0},
            "has the lowest predicted average loss over 3 evaluation domains plus 2 standard deviations of",
        ),
        ({"kl_penalty": 0.5}, "domains plus 0.5 times the divergence from the prior."),
    ],
)
def test_what_was_sought_is_said_with_what_was_added(study, more, sentence):
    optimum = study.read_json("optimum.json", "optimize") | more
    assert sentence in findings.sought(optimum, findings.objective_name(study, "avg-all"))
    optimum["predictions"]["uniform"]["feasible"] = False
    assert findings.sought(optimum, "").endswith(", of the mixtures that obey the constraints.")


def test_a_worst_case_names_whose_losses_it_is_measured_from(study):
    words = "worst loss above that of uniform over 3 evaluation domains"
    assert findings.objective_name(study, "worst-all", "uniform") == words
