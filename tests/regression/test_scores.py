import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import r2_score

from mde.regression import scores

UNKNOWN = np.full((1, 4), np.nan)


def test_scores_are_those_of_the_libraries():
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 6, (2, 5, 12)).astype(float)  # with ties
    found = scores.by_round(predicted, truth, np.full_like(truth, np.nan))
    for i in range(5):
        assert found["spearman"][i] == pytest.approx(spearmanr(predicted[i], truth[i]).statistic)
        assert found["kendall"][i] == pytest.approx(kendalltau(predicted[i], truth[i]).statistic)
        assert found["r2"][i] == pytest.approx(r2_score(truth[i], predicted[i]))
        assert found["mae"][i] == pytest.approx(np.mean(np.abs(predicted[i] - truth[i])))


def test_regret_and_optimism_by_hand():
    truth = np.array([[3.0, 1.0, 2.0, 5.0]])
    predicted = np.array([[2.0, 2.5, 1.5, 9.0]])
    found = scores.by_round(predicted, truth, UNKNOWN)
    assert found["regret"] == 1.0  # the third is predicted best: 2 where 1 was to be had
    assert found["optimism"] == 0.5  # and it was promised 1.5
    assert scores.by_round(truth, truth, UNKNOWN)["regret"] == 0


def test_coverage_counts_truths_inside_the_interval():
    truth, predicted = np.array([[0.0, 1.0, 2.0, 3.0]]), np.zeros((1, 4))
    assert scores.by_round(predicted, truth, np.ones((1, 4)))["coverage"] == 0.5  # reach 1.645
    assert np.isnan(scores.by_round(predicted, truth, UNKNOWN)["coverage"])


def test_a_constant_does_not_rank():
    found = scores.by_round(np.ones((1, 4)), np.array([[0.0, 1.0, 2.0, 3.0]]), UNKNOWN)
    assert np.isnan(found["spearman"])
    assert np.isnan(found["kendall"])


def test_a_summary_has_means_and_corrected_standard_errors():
    truth = np.array([[[0.0, 1.0]], [[0.0, 1.0]]])  # two rounds of a split of two rows
    predicted = truth + np.array([[[1.0]], [[3.0]]])
    unknown = np.full(truth.shape, np.nan)
    found = scores.summary(predicted, truth, unknown, ratio=0.25)
    assert (found["mse"], found["n"]) == (5.0, 2)
    assert found["mse_se"] == pytest.approx(np.sqrt(32 * (1 / 2 + 1 / 4)))  # 1 and 9, a variance of 32
    assert np.isnan(scores.summary(predicted[:1], truth[:1], unknown[:1], 0.25)["mse_se"])


def test_the_splits_of_one_partition_have_a_standard_error_too():
    truth = np.zeros((1, 2, 3))
    predicted = np.array([[[1.0, 1, 1], [3, 3, 3]]])
    found = scores.summary(predicted, truth, np.full(truth.shape, np.nan), ratio=1.0)
    assert (found["mse"], found["n"]) == (5.0, 1)
    assert found["mse_se"] == pytest.approx(np.sqrt(32 * (1 / 2 + 1)))


def test_what_is_not_scored_changes_nothing():
    rng = np.random.default_rng(0)
    predicted, truth, deviation = rng.integers(1, 7, (3, 4, 9)).astype(float)
    padded = [np.insert(values, 4, np.nan, axis=1) for values in (predicted, truth, deviation)]
    padded[0][:, 4] = -100.0  # predicted best by far, and not scored
    expected, found = scores.by_round(predicted, truth, deviation), scores.by_round(*padded)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)


def test_runs_of_another_level_are_cross_validated_by_ranks_and_without_the_shift():
    truth = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    predicted = np.array([[3.0, 5.0, 7.0], [7.0, 7.0, 7.0]])
    found = scores.of_runs(predicted, truth)
    assert found["shift"] == pytest.approx([-8 / 3, -14 / 3])
    assert found["mse"][0] == pytest.approx((4 + 9 + 9) / 3)
    assert found["mse_shifted"][0] == pytest.approx((4 + 9 + 9) / 3 - (8 / 3) ** 2)
    assert found["spearman"][0] == 1
    assert found["pearson"][0] == pytest.approx(np.corrcoef(predicted[0], truth[0])[0, 1])
    assert np.isnan(found["pearson"][1])
    assert found["regret"].tolist() == [0, 0]
