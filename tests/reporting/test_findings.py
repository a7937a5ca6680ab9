import numpy as np
import pandas as pd
import pytest
from finished_study import METHODS, PROOF, fit, optimize, prove
from scipy.stats import ttest_rel

from mde.reporting import findings, tables
from mde.stages import mixtures
from mde.stages.prove import summary


def shifted(by):
    """The proof's losses with the recommended mixture's raised."""
    return PROOF | {"recommended": [tuple(loss + by for loss in seed) for seed in PROOF["recommended"]]}


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
    assert "MSE ratio 0.25; MDE features improve predictions" in sentence  # 0.00025 / 0.001
    assert "ridge on mde[0]+mde[1]" in sentence
    assert "Best of 2 methods with MDE and of 2 without" in sentence


@pytest.mark.parametrize(
    ("mse", "error", "verdict"),
    [
        (0.0004, 0.0001, "ratio 2.50; MDE features do not improve predictions"),
        (0.00101, 0.001, "ratio 0.99; not clear whether"),
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
    assert "MSE ratio 0.75; MDE features improve predictions" in findings.worth_of_experts(study)
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


def test_the_error_of_a_difference_is_what_mixtures_and_seeds_leave(study):
    """Seeds are 0.02 apart, up in two mixtures and down in two: eight residuals of 0.01, three degrees of freedom."""
    table = findings.proof(study)
    np.testing.assert_allclose(table["difference"], [0, 0.3, 0.6, 0.9], atol=1e-12)
    np.testing.assert_allclose(table["error"], np.sqrt(8 * 0.01**2 / 3))
    assert table["clear"].tolist() == [False, True, True, True]


def test_noise_that_all_mixtures_share_is_none(study):
    """A seed that is worse by the same for every mixture says nothing of their differences."""
    before = findings.proof(study)["error"]
    losses = {name: [tuple(x + 0.5 * i for x in seed) for i, seed in enumerate(seeds)] for name, seeds in PROOF.items()}
    prove(study, losses)
    np.testing.assert_allclose(findings.proof(study)["error"], before)


@pytest.mark.parametrize("by", [0, 0.02, 0.04, 0.05, 0.06, 0.1, 0.5, 0.6])
def test_with_two_mixtures_clear_is_the_paired_t_test_at_five_percent(study, by):
    losses = {name: shifted(by)[name] for name in ("recommended", "uniform")}
    optimum = study.read_json("optimum.json", "optimize")
    predictions = {name: optimum["predictions"][name] for name in losses}
    study.write_json("optimum.json", optimum | {"predictions": predictions})
    prove(study, losses)
    runs = [np.mean(losses[name], axis=1) for name in losses]
    assert findings.proof(study).loc["uniform", "clear"] == (ttest_rel(*runs).pvalue < 0.05)


@pytest.mark.parametrize(
    ("by", "verdict"),
    [
        (0.0, "won: 0.3000 nats per token below uniform, the next best (18.4 standard errors"),
        (0.29, "has the lowest measured loss, but the lead is within seed noise: 0.0100 nats per token below uniform"),
        (0.31, "did not win, but the difference is within seed noise: uniform is 0.0100 nats per token below it"),
        (0.5, "did NOT win: uniform is 0.2000 nats per token below it (12.2 standard errors, more than seeds explain)"),
    ],
)
def test_verdict(study, by, verdict):
    prove(study, shifted(by))
    assert verdict in findings.verdict(findings.proof(study))


def test_verdict_names_the_rivals_that_are_beaten_clearly(study):
    prove(study, shifted(0.31))
    sentence = findings.verdict(findings.proof(study))
    assert sentence.endswith("It beats proportional and best observed by more than seeds explain.")


@pytest.mark.parametrize(("by", "outcome"), [(0.0, "has the lowest measured loss"), (0.5, "did not win")])
def test_a_single_seed_tells_nothing_of_noise(study, by, outcome):
    prove(study, {name: seeds[:1] for name, seeds in shifted(by).items()})
    table = findings.proof(study)
    assert not table["clear"].any()
    sentence = findings.verdict(table)
    assert outcome in sentence
    assert "One seed each" in sentence


def test_losses_are_held_to_intervals_that_allow_for_the_seeds_and_differences_to_those_of_the_regressor(study):
    """The four mixtures together have a loss of 2.46 with either seed, so the intervals are those of the regressor."""
    table = findings.proof(study)
    # measured 2.01, 2.31, 2.61, 2.91; predicted 2.1, 2.2, 2.3, 2.4 ± .1: differences .3, .6, .9 and .1, .2, .3 ± .1414
    np.testing.assert_allclose(table["low_difference"][1:], np.array([0.1, 0.2, 0.3]) - np.hypot(0.1, 0.1))
    np.testing.assert_allclose(table["high_difference"][1:], np.array([0.1, 0.2, 0.3]) + np.hypot(0.1, 0.1))
    sentence = findings.calibration(table, 0.9)
    assert "Of the differences to the recommended mixture, 0 of 3 lie in their predicted 90% intervals" in sentence
    assert "Losses are +0.2100 off" in sentence
    assert "1 of 4 losses lie in the 90% intervals shown" in sentence
    assert "1 in those of the regressor alone" in sentence


def test_a_seed_that_is_worse_for_all_mixtures_widens_intervals_of_losses_and_not_of_differences(study):
    before = findings.proof(study)
    losses = {name: [tuple(x + 0.1 * i for x in seed) for i, seed in enumerate(seeds)] for name, seeds in PROOF.items()}
    prove(study, losses)
    table = findings.proof(study)
    pd.testing.assert_series_equal(table["low_difference"], before["low_difference"])
    # Two seeds a tenth apart: their means deviate by .1 / √2; t(95%, 1) = 6.3138; another seed against a mean of two.
    reach = 6.3137515 * 0.1 / np.sqrt(2) * np.sqrt(1.5)
    np.testing.assert_allclose(table["high_any_seed"] - table["predicted"], np.hypot(0.1, reach), rtol=1e-6)
    np.testing.assert_allclose(table["predicted"] - table["low_any_seed"], np.hypot(0.1, reach), rtol=1e-6)
    # measured 2.06, 2.36, 2.66, 2.96; predicted up to 2.656, 2.756, 2.856, 2.956
    assert "3 of 4 losses lie" in findings.calibration(table, 0.9)


def test_one_seed_says_that_it_cannot_tell_what_seeds_do(study):
    prove(study, {name: seeds[:1] for name, seeds in PROOF.items()})
    table = findings.proof(study)
    assert table["low_any_seed"].tolist() == table["low"].tolist()
    assert "one seed does not tell" in findings.calibration(table, 0.9)


def test_proof_objective_and_losses_are_joined_by_run_and_domain(study):
    runs = findings.proof_runs(study)  # losses.csv has its rows and columns in reverse
    assert runs.loc["proof-uniform-2", "objective"] == pytest.approx((1.3 + 2.3 + 3.3) / 3)
    losses = findings.proof_losses(study)
    assert losses.columns.tolist() == ["code", "web", "news"]
    np.testing.assert_allclose(losses.loc["recommended"], [1.0, 2.0, 3.03])


def test_a_proof_of_an_earlier_recommendation_is_noticed(study):
    assert findings.proof_is_current(study)
    optimum = study.read_json("optimum.json", "optimize")
    study.write_json("optimum.json", optimum | {"shares": {"web": 0.5, "code": 0.5}})
    assert not findings.proof_is_current(study)
    optimize(study)
    assert findings.proof_is_current(study)


def measured_anew(study, **changes):
    """Only the objective is another than when the proof was made: its shares stay."""
    optimum = study.read_json("optimum.json", "optimize")
    study.write_json("optimum.json", optimum | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"code": 1}},
        {"objective": "worst-all"},
        {"beta": 1.0},
        {"objective": "worst-all", "reference": "uniform"},
    ],
)
def test_a_proof_by_another_objective_keeps_its_own_and_is_an_earlier_one(study, changes):
    before = findings.proof(study)
    measured_anew(study, **changes)
    assert not findings.proof_is_current(study)
    pd.testing.assert_frame_equal(findings.proof(study), before)
    assert findings.proof_objective(study)["objective"] == "avg-all"


def test_another_reference_is_another_objective(study):
    measured_anew(study, objective="worst-all", reference="uniform")
    study.write_json("proof/objective.json", mixtures.objective_record(study))
    assert findings.proof_is_current(study)
    np.testing.assert_allclose(findings.proof_runs(study)["objective"].iloc[2:4], [0.36, 0.3])  # news, less 3.0
    measured_anew(study, reference="proportional")
    assert findings.proof_is_current(study)  # of the same losses
    optimum = study.read_json("optimum.json", "optimize")
    optimum["predictions"]["proportional"]["losses"]["news"] = 2.5
    study.write_json("optimum.json", optimum)
    assert not findings.proof_is_current(study)


def test_a_proof_of_before_its_objective_was_kept_has_that_of_the_recommendation(study):
    before = findings.proof(study)
    (study.root / "proof/objective.json").unlink()
    assert findings.proof_is_current(study)
    pd.testing.assert_frame_equal(findings.proof(study), before)


@pytest.mark.parametrize(("by", "outcome"), [(0.0, "won: 0.3200"), (0.5, "did NOT win: uniform is 0.1800")])
def test_seeds_that_agree_give_no_number_of_standard_errors(study, by, outcome):
    prove(study, {name: seeds[:1] * 2 for name, seeds in shifted(by).items()})
    table = findings.proof(study)
    for error in (table["error"], 0.0):  # of rounding, and none
        sentence = findings.verdict(table.assign(error=error))
        assert outcome in sentence
        assert "(all seeds agree)" in sentence


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


def test_a_study_of_observations_only_has_no_experts_and_no_curves(study):
    mixtures, losses = study.mixtures(), study.losses()
    observed = mixtures["role"] == "observation"
    study.write_table("mixtures.csv", mixtures[observed])
    study.write_table("losses.csv", losses[observed])
    (study.root / "runs" / "seed" / "metrics.jsonl").unlink()
    assert findings.expert_losses(study).empty
    assert findings.training_curves(study).empty


def test_stages_come_in_their_order(study):
    assert findings.stages(study).index.tolist() == ["prepare", "train", "fit", "optimize", "prove"]
    assert findings.stages(study).loc["train", "seconds"] == 20.5


def test_a_proof_ranks_its_own_mixtures_and_no_run_of_another_seed(study):
    """All observations have an objective of 2, below what any mixture of the proof has with its seeds."""
    runs = study.mixtures("proof/mixtures.csv", "prove")
    losses = study.losses("proof/losses.csv", "prove").loc[runs.index]
    table = summary(study, runs, losses, findings.predictions(study))
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert set(table["of"]) == {4}


def test_the_noise_of_a_run_is_what_the_seeds_of_the_proof_leave(study):
    """Each mixture's two seeds have objectives 0.02 apart: a variance of 0.0002."""
    assert findings.noise(study) == pytest.approx(0.0002)
    prove(study, {name: seeds[:1] for name, seeds in PROOF.items()})
    assert findings.noise(study) is None


def test_the_noise_beside_errors_of_the_fit_is_of_the_fits_objective(study):
    """News alone differs between the seeds: by .06 a run, of which the average of three domains has a third."""
    losses = {name: [(1.0, 2.0, 3.0), (1.0, 2.0, 3.06)] for name in PROOF}
    prove(study, losses)
    study.write_json("proof/objective.json", {"objective": {"news": 1.0}, "predictions": {}})
    assert findings.noise(study) == pytest.approx(0.02**2 / 2)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({}, "has the least predicted average loss over 3 evaluation domains."),
        ({"beta": 2.0}, "has the least predicted average loss over 3 evaluation domains plus 2 standard deviations of"),
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
    measured_anew(study, objective="worst-all", reference="uniform")
    study.write_json("proof/objective.json", mixtures.objective_record(study))
    assert words in tables.proof(study).title
