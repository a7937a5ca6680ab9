"""Validation runs and full models, as people read them."""

import numpy as np
import pandas as pd
import pytest
from finished_study import VALIDATION, optimize, validate
from scipy.stats import ttest_rel

from mde.errors import UserError
from mde.regression.power import seeds_needed
from mde.reporting import figures, final, findings


def part(study):
    found = final.validation(study)
    assert found is not None
    return found


def shifted(by):
    """The measured losses with those of the recommended mixture raised."""
    return VALIDATION | {"recommended": [tuple(loss + by for loss in seed) for seed in VALIDATION["recommended"]]}


def summary(study):
    return part(study).read_table("summary.csv", "validate")


def row(table, label):
    return table.frame.loc[label].tolist()


def test_the_error_of_a_difference_is_what_mixtures_and_seeds_leave(study):
    """Seeds are 0.02 apart, up in two mixtures and down in two: eight residuals of 0.01, three degrees of freedom."""
    table = summary(study)
    np.testing.assert_allclose(table["difference"], [0, 0.3, 0.6, 0.9], atol=1e-12)
    np.testing.assert_allclose(table["error"][1:], np.sqrt(8 * 0.01**2 / 3))
    np.testing.assert_allclose(table["error_text"], 0, atol=1e-12)  # documents differ alike for all mixtures
    assert table["clear"].tolist() == [False, True, True, True]


def test_noise_that_all_mixtures_share_is_none(study):
    """A seed that is worse by the same for every mixture says nothing of their differences."""
    before = summary(study)["error"]
    losses = {
        name: [tuple(x + 0.5 * i for x in seed) for i, seed in enumerate(seeds)] for name, seeds in VALIDATION.items()
    }
    validate(study, losses)
    np.testing.assert_allclose(summary(study)["error"], before, atol=1e-12)


@pytest.mark.parametrize("by", [0, 0.02, 0.04, 0.05, 0.06, 0.1, 0.5, 0.6])
def test_with_two_mixtures_and_no_noise_of_the_text_p_is_that_of_the_paired_t_test(study, by):
    losses = {name: shifted(by)[name] for name in ("recommended", "uniform")}
    validate(study, losses)
    runs = [np.mean(losses[name], axis=1) for name in losses]
    assert summary(study).loc["uniform", "p"] == pytest.approx(ttest_rel(*runs).pvalue)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (
            0.0,
            ["0.0000 nats", "(95% interval 0.0000 to 0.0000)", "lowest measured loss of 4", "Clearly better than un"],
        ),
        (0.29, ["mixture: 0.0000 nats", "lowest measured loss of 4", "Not clearly different from uniform"]),
        (
            0.31,
            ["mixture: 0.0100 nats", "uniform is measured lower", "Clearly better than proportional, best observed"],
        ),
        (0.5, ["mixture: 0.2000 nats", "uniform is measured lower", "Clearly WORSE than uniform"]),
    ],
)
def test_the_verdict_leads_with_the_regret(study, by, expected):
    validate(study, shifted(by))
    sentence = final.models(part(study)).notes[0]
    assert sentence.startswith("Regret of the recommended mixture: ")
    for words in expected:
        assert words in sentence


@pytest.mark.parametrize(("seeds", "documents"), [(1, 3), (2, 1)])
def test_without_a_second_seed_or_document_nothing_is_clear(study, seeds, documents):
    validate(study, {name: losses[:seeds] for name, losses in VALIDATION.items()}, documents=documents)
    assert not summary(study)["clear"].any()
    table = final.models(part(study))
    assert "no interval" in table.notes[0]
    assert "The noise is not known" in table.notes[0]
    assert table.frame["difference"].tolist()[1] == {1: "+0.3200", 2: "+0.3000"}[seeds]
    assert table.frame["p (Holm)"].tolist() == ["–"] * 4


def test_the_table_of_mixtures(study):
    table = final.models(part(study))
    assert table.title == "Validation runs: average loss over 3 evaluation domains, nats per token"
    assert row(table, "recommended") == ["2.0100", "–", "–", "–", "–", "–"]
    assert row(table, "uniform")[:4] == ["2.3100", "+0.3000 ± 0.0163", "0.0163", "0.0000"]
    noise, difference = summary(study).loc["uniform", ["error_seeds", "difference"]]  # of two seeds
    assert row(table, "uniform")[5] == str(seeds_needed(noise, difference, comparisons=3))
    notes = " ".join(table.notes)
    assert "2 seeds and 9 test documents" in notes
    assert "100% of the tokens of these runs and 20% of a proxy run's" in notes
    assert "VALIDATION" not in notes
    assert "Rank 1" not in notes


def test_text_that_the_mixture_was_chosen_on_is_said_to_be(study):
    validate(study, VALIDATION, split="validation")
    assert any("Scored on VALIDATION text" in note for note in final.models(part(study)).notes)


def test_sizes_of_gains_are_predicted_in_the_setting_of_the_proxy_runs_only(study):
    """Predicted 2.1, 2.2, 2.3, 2.4 ± .1: a difference of .1 ± .1414."""
    table = final.predictions(part(study))
    assert row(table, "uniform")[:2] == ["2", "2"]
    assert "difference as predicted" not in table.frame
    assert "3 of 3 differences have the predicted sign" in table.notes[0]
    validate(study, shifted(0.5), proxy_setting=True)
    table = final.predictions(part(study))
    assert row(table, "uniform")[:3] == ["1", "2", "-0.0414 to +0.2414"]
    assert "2 of 3 differences have the predicted sign" in table.notes[0]


def test_losses_are_joined_by_run_and_domain(study):
    found = part(study)  # losses.csv has its rows and columns in reverse
    objective = found.read_table("objective.csv", "validate")["objective"]
    assert objective["validation-uniform-2"] == pytest.approx((1.3 + 2.3 + 3.3) / 3)
    assert row(final.losses(found), "news") == ["3.030", "3.330", "3.630", "3.930", "2.186", "0.042"]


def test_runs_of_an_earlier_recommendation_or_objective_are_said_to_be(study):
    def is_earlier() -> bool:
        return any("earlier recommendation" in note for note in final.models(part(study)).notes)

    assert not is_earlier()
    optimum = study.read_json("optimum.json", "optimize")
    study.write_json("optimum.json", optimum | {"weights": {"web": 0.5, "code": 0.5}})
    assert is_earlier()
    optimize(study)
    assert not is_earlier()
    study.write_json("optimum.json", optimum | {"objective": {"code": 1}})
    assert is_earlier()
    assert final.models(part(study)).title.startswith("Validation runs: average loss over 3 evaluation domains")


def test_a_worst_case_is_measured_from_the_losses_of_its_reference(study):
    optimum = study.read_json("optimum.json", "optimize")
    study.write_json("optimum.json", optimum | {"objective": "worst-all", "reference": "uniform"})
    validate(study, VALIDATION)
    objective = part(study).read_table("objective.csv", "validate")["objective"]
    np.testing.assert_allclose(objective.iloc[:4], [-0.3, -0.27, 0.03, 0.0], atol=1e-12)  # of code and web, or of news
    table = final.models(part(study))
    assert "worst loss above that of uniform over 3 evaluation domains" in table.title
    np.testing.assert_allclose(summary(study)["measured"], objective.groupby(np.arange(8) // 2).mean())


def test_runs_of_an_older_version_are_to_be_compared_again(study):
    found = part(study)
    found.write_table("summary.csv", summary(study).drop(columns="p_holm"))
    with pytest.raises(UserError, match=r"summary.csv has no column 'p_holm'; run `mde validate"):
        final.models(found)


def test_the_chart_has_a_dot_for_each_seed(study):
    traces = {trace.name: trace for trace in final.measured_figure(part(study)).data}
    assert len(traces["measured, each seed"].x) == 8
    np.testing.assert_allclose(traces["measured, mean"].x, [2.01, 2.31, 2.61, 2.91])


def test_trade_off_is_relative_to_the_reference_and_keeps_each_mixture_its_colour(study):
    losses = pd.DataFrame(
        {name: np.mean(seeds, axis=0) for name, seeds in VALIDATION.items()}, ["code", "web", "news"]
    ).T
    traces = {trace.name: trace for trace in figures.trade_off(losses, "uniform").data}
    assert "uniform" not in traces
    np.testing.assert_allclose(traces["recommended"].x, [-0.3, -0.3, -0.3])
    shown = figures.mixture(findings.recommendation(study), ["uniform", "proportional", "best observed"])
    beside = {trace.name: trace for trace in shown.data}
    assert traces["proportional"].marker.color == beside["proportional"].marker.color
