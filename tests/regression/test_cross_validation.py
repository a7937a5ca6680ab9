import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from mde.errors import UserError
from mde.regression import cross_validation, estimators
from mde.regression.features import assemble

DOMAINS = ["web", "code", "news"]
OBJECTIVE = np.array([0.5, 0.25, 0.25])


@pytest.fixture
def swarm():
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet(np.ones(5), 24)
    losses = 3 - np.log(0.1 + mixtures @ rng.dirichlet(np.ones(5), 3).T)
    return mixtures, losses, losses + 0.02 * rng.normal(size=losses.shape)


def cross_validate(observed, designs, methods, n_train=16, repeats=10, seed=0, **settings):
    rounds = cross_validation.splits(len(observed), n_train, repeats, seed)
    return cross_validation.cross_validate(observed, DOMAINS, designs, methods, OBJECTIVE, rounds, **settings)


def test_scores_are_those_of_a_plain_loop(swarm):
    mixtures, _, observed = swarm
    found = cross_validate(observed, {"log": np.log(mixtures + 0.01)}, [("ridge", "log")])
    errors, ranks, by_domain = [], [], []
    for ((train, test),) in cross_validation.splits(24, 16, 10, seed=0):
        design = np.log(mixtures + 0.01)
        predicted = estimators.Ridge().fit(design[train], observed[train]).predict(design[test])
        errors.append(np.mean(((predicted - observed[test]) @ OBJECTIVE) ** 2))
        ranks.append(spearmanr(predicted @ OBJECTIVE, observed[test] @ OBJECTIVE).statistic)
        by_domain.append(np.mean((predicted - observed[test]) ** 2, axis=0))
    row = found.objective.iloc[0]
    assert (row.regressor, row.features, row.n) == ("ridge", "log", 10)
    expected = [np.mean(errors), np.std(errors, ddof=1) * np.sqrt(1 / 10 + 8 / 16), np.mean(ranks)]
    np.testing.assert_allclose([row.mse, row.mse_se, row.spearman], expected, rtol=1e-12)
    assert found.domains.domain.tolist() == DOMAINS
    np.testing.assert_allclose(found.domains.mse, np.mean(by_domain, axis=0), rtol=1e-12)


class Recorder(estimators.Ridge):
    """Ridge that writes down which rows (their number is the first feature) it is fitted and asked on."""

    log: list = []  # noqa: RUF012 -- shared by the clones on purpose

    def fit(self, X, y):
        self.log.append(("fit", X[:, 0].tolist()))
        return super().fit(X, y)

    def predict(self, X):
        self.log.append(("predict", X[:, 0].tolist()))
        return super().predict(X)


def test_methods_are_paired_and_train_on_exactly_n_rows(swarm):
    mixtures, _, observed = swarm
    Recorder.log.clear()
    numbered = np.hstack([np.arange(24.0)[:, None], mixtures])
    methods = [("a", "lambda"), ("b", "lambda")]
    cross_validate(observed, {"lambda": numbered}, methods, make=lambda name, features: Recorder())
    half = len(Recorder.log) // 2
    assert Recorder.log[:half] == Recorder.log[half:]
    for (_, train), (_, test) in zip(Recorder.log[:half:2], Recorder.log[1:half:2], strict=True):
        assert len(train) == 16
        assert sorted(train + test) == list(range(24))


@pytest.mark.parametrize("regressor", ["ridge", "ridge-residual", "gbm", "mean"])
def test_a_held_out_loss_never_reaches_its_own_prediction(swarm, regressor):
    mixtures, losses, observed = swarm
    designs = {"mde+log": assemble("mde+log", mixtures, {"mde": losses})}
    # One split: the held-out rows are known, and a row's prediction comes from that split alone.
    held_out = cross_validation.splits(24, 16, 1, seed=0)[0][0][1]
    changed = observed.copy()
    changed[held_out] += 100
    before, after = (
        cross_validate(table, designs, [(regressor, "mde+log")], repeats=1).predictions[regressor, "mde+log"].mean
        for table in (observed, changed)
    )
    np.testing.assert_array_equal(before[held_out], after[held_out])
    assert np.isnan(np.delete(before, held_out, axis=0)).all()


def test_changing_one_loss_leaves_all_its_own_predictions_unchanged(swarm):
    mixtures, _, observed = swarm
    changed = observed.copy()
    changed[7] += 100
    before, after = (
        cross_validate(table, {"lambda": mixtures}, [("ridge", "lambda")], repeats=30)
        .predictions["ridge", "lambda"]
        .mean
        for table in (observed, changed)
    )
    np.testing.assert_array_equal(before[7], after[7])
    assert (np.delete(before, 7, axis=0) != np.delete(after, 7, axis=0)).any()


def test_splits_depend_on_their_seed_alone_and_extend():
    fewer, more, other = (cross_validation.splits(20, 12, n, seed) for n, seed in ((5, 0), (9, 0), (5, 1)))
    for ((train, test),), ((train_too, test_too),) in zip(fewer, more, strict=False):
        np.testing.assert_array_equal(train, train_too)
        np.testing.assert_array_equal(test, test_too)
    assert any((a[0][0] != b[0][0]).any() for a, b in zip(fewer, other, strict=True))


def test_a_perfect_evaluator_is_cross_validated_perfect(swarm):
    mixtures, _, observed = swarm
    found = cross_validate(observed, {"mde": assemble("mde", mixtures, {"mde": observed})}, [("alone", "mde")])
    assert found.objective.mse[0] == 0
    assert found.objective.spearman[0] == pytest.approx(1)
    np.testing.assert_allclose(found.predictions["alone", "mde"].mean, observed, atol=1e-12)


def test_a_constant_does_not_rank(swarm):
    mixtures, _, observed = swarm
    found = cross_validate(observed, {"lambda": mixtures}, [("mean", "lambda")])
    assert np.isnan(found.objective.spearman[0])
    assert found.objective.mse[0] > 0


@pytest.mark.parametrize("n_train", [22, 23, 24, 100, 1])
def test_too_few_proxy_runs_are_refused_with_their_number(swarm, n_train):
    mixtures, _, observed = swarm
    with pytest.raises(UserError, match=f"train_mixtures={n_train} of 24 proxy runs"):
        cross_validate(observed, {"lambda": mixtures}, [("ridge", "lambda")], n_train=n_train)


def test_unknown_names_and_wrong_shapes_are_refused(swarm):
    mixtures, _, observed = swarm
    with pytest.raises(UserError, match="unknown regressor 'rige'"):
        cross_validate(observed, {"lambda": mixtures}, [("rige", "lambda")])
    with pytest.raises(UserError, match="unknown feature set 'lamda': did you mean 'lambda'"):
        cross_validate(observed, {"lambda": mixtures}, [("ridge", "lamda")])
    with pytest.raises(UserError, match="23 rows, expected 24"):
        cross_validate(observed, {"lambda": mixtures[:23]}, [("ridge", "lambda")])
    with pytest.raises(UserError, match="3 evaluation domains"):
        cross_validate(observed[:, :2], {"lambda": mixtures}, [("ridge", "lambda")])
    with pytest.raises(UserError, match="0 repeats"):
        cross_validate(observed, {"lambda": mixtures}, [("ridge", "lambda")], repeats=0)


def test_folds_hold_every_row_out_once_a_round(swarm):
    mixtures, _, observed = swarm
    rounds = cross_validation.folds(24, 5, 3, seed=0)
    for parts in rounds:
        assert sorted(np.concatenate([test for _, test in parts])) == list(range(24))
        assert all(set(train) == set(range(24)) - set(test) for train, test in parts)
    found = cross_validation.cross_validate(
        observed, DOMAINS, {"lambda": mixtures}, [("ridge", "lambda")], OBJECTIVE, rounds
    )
    assert found.objective.n[0] == 3
    held = found.predictions["ridge", "lambda"]
    assert np.isfinite(held.mean).all()
    np.testing.assert_array_equal(held.rounds, 3)


def test_a_rows_predictions_are_those_of_the_rounds_that_held_it_out(swarm):
    mixtures, _, observed = swarm
    rounds = cross_validation.splits(24, 16, 6, seed=0)
    held = cross_validation.cross_validate(
        observed, DOMAINS, {"l": mixtures}, [("ridge", "l")], OBJECTIVE, rounds
    ).predictions["ridge", "l"]
    by_hand = [
        [
            estimators.Ridge().fit(mixtures[train], observed[train]).predict(mixtures[row : row + 1])[0]
            for [(train, test)] in rounds
            if row in test
        ]
        for row in range(24)
    ]
    np.testing.assert_array_equal(held.rounds, [len(found) for found in by_hand])
    for row, found in enumerate(by_hand):
        if found:
            np.testing.assert_allclose(held.mean[row], np.mean(found, axis=0), rtol=1e-12)
            np.testing.assert_allclose(held.spread[row], np.std(np.array(found) @ OBJECTIVE), atol=1e-13)
        else:
            assert np.isnan(held.mean[row]).all()


def test_leave_one_out_is_scikit_learns(swarm):
    mixtures, _, observed = swarm
    rounds = cross_validation.folds(24, 24, 7, seed=0)
    assert len(rounds) == 1
    found = cross_validation.cross_validate(
        observed, DOMAINS, {"lambda": mixtures}, [("ridge", "lambda")], OBJECTIVE, rounds
    )
    expected = cross_val_predict(estimators.Ridge(), mixtures, observed, cv=LeaveOneOut())
    np.testing.assert_allclose(found.predictions["ridge", "lambda"].mean, expected, atol=1e-12)
    assert found.objective.mse[0] == pytest.approx(np.mean(((expected - observed) @ OBJECTIVE) ** 2), rel=1e-10)


@pytest.mark.parametrize("n_folds", [1, 25])
def test_impossible_folds_are_refused(n_folds):
    with pytest.raises(UserError, match=f"{n_folds} folds of 24 proxy runs"):
        cross_validation.folds(24, n_folds, 1, seed=0)


def test_expensive_methods_are_given_the_first_rounds(swarm, monkeypatch):
    many, few = cross_validation.splits(700, 600, 30, seed=0), cross_validation.splits(24, 16, 30, seed=0)
    assert cross_validation.affordable(estimators.Ridge(), many, 52) == many
    assert cross_validation.affordable(estimators.make("auto"), many, 52) == many[:2]
    assert cross_validation.affordable(estimators.make("gp"), few, 52) == few
    mixtures, _, observed = swarm
    monkeypatch.setattr(cross_validation, "BUDGET", 5 * len(DOMAINS) * 16**2)
    found = cross_validate(observed, {"lambda": mixtures}, [("gp", "lambda"), ("ridge", "lambda")], repeats=7)
    assert found.objective.n.tolist() == [4, 7]
    assert found.rounds.notna().sum().tolist() == [4, 7]
    np.testing.assert_allclose(found.rounds.mean(), found.objective.mse, rtol=1e-12)
    pd.testing.assert_frame_equal(
        cross_validation.from_rows(cross_validation.in_rows(found.rounds)), found.rounds, check_names=False
    )
    assert np.isfinite(found.objective.coverage[0])
    assert np.isnan(found.objective.coverage[1])


def test_what_is_expensive_hangs_on_rows_targets_and_candidates():
    process, blend = estimators.make("gp"), estimators.make("auto")
    assert process.work(100, 7) == 7 * 100**2
    assert blend.work(100, 7) == 3 * 7 * (100**2 + 4 * 75**2)  # three processes, each in four inner folds too
    assert blend.work(40, 7) == 3 * 7 * (40**2 + 4 * 30**2)  # four inner folds
    assert estimators.make("gp-residual").work(100, 7) == process.work(100, 7)
    rounds = cross_validation.splits(128, 102, 50, seed=0)
    of_13, of_52 = (len(cross_validation.affordable(blend, rounds, targets)) for targets in (13, 52))
    assert (of_13, of_52) == (7, 2)  # 10⁷ / (3 · 13 · (102² + 4 · 77²)) = 7.5; 1.9 of the other, and two at least


def test_progress_is_told_all_the_while_and_batches_change_nothing(swarm, monkeypatch):
    mixtures, _, observed = swarm
    methods = [("auto", "lambda"), ("ridge", "lambda")]
    whole = cross_validate(observed, {"lambda": mixtures}, methods, repeats=6)
    monkeypatch.setattr(cross_validation, "TOGETHER", 1.0)
    told = []
    split = cross_validate(observed, {"lambda": mixtures}, methods, repeats=6, advance=told.append)
    assert len(told) == 12
    assert sum(told) == pytest.approx(2)
    # batches are cut elsewhere, and so are the sums of their products
    pd.testing.assert_frame_equal(whole.objective, split.objective, rtol=1e-6)


def test_methods_are_compared_on_common_splits_by_their_differences():
    rounds = pd.DataFrame({"cheap": [3.0, 5.0, 9.0, 0.0, 0.0], "dear": [2.0, 4.0, 7.0, np.nan, np.nan]})
    found = cross_validation.compare(rounds, ratio=0.5)
    assert found.index.tolist() == ["dear", "cheap"]
    np.testing.assert_allclose(found["mse"], [13 / 3, 17 / 3])
    ratios = np.log([3 / 2, 5 / 4, 9 / 7])
    expected = [ratios.mean(), ratios.std(ddof=1) * np.sqrt(1 / 3 + 1 / 2)]
    np.testing.assert_allclose(found.loc["cheap", ["log_ratio", "error"]], expected)
    assert np.isnan(cross_validation.compare(rounds[:1], 0.5)["error"]).all()


def test_a_learning_curve_cross_validates_each_size(swarm):
    mixtures, _, observed = swarm
    designs, methods = {"lambda": mixtures}, [("ridge", "lambda"), ("mean", "lambda")]
    curve = cross_validation.learning_curve(observed, DOMAINS, designs, methods, OBJECTIVE, (6, 12, 18), repeats=10)
    assert curve.train.tolist() == [6, 6, 12, 12, 18, 18]
    pd.testing.assert_frame_equal(
        curve[curve.train == 12].drop(columns="train").reset_index(drop=True),
        cross_validate(observed, designs, methods, n_train=12).objective,
    )
    ridge = curve[curve.regressor == "ridge"].mse.to_numpy()
    assert ridge[2] < ridge[0]


@pytest.fixture
def replicated():
    """Eight mixtures, 1 to 4 seeds each, in no order."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(8), [1, 2, 3, 4, 1, 2, 3, 4]))


def test_replicates_are_never_on_both_sides(replicated):
    every = [*cross_validation.splits(replicated, 5, 20, seed=0), *cross_validation.folds(replicated, 3, 4, seed=0)]
    for round_ in every:
        for train, test in round_:
            assert not set(replicated[train]) & set(replicated[test])
            assert sorted([*train, *test]) == list(range(20))
    assert all(len(set(replicated[train])) == 5 for [(train, _)] in every[:20])
    for round_ in every[20:]:
        assert sorted(np.concatenate([test for _, test in round_])) == list(range(20))


def test_impossible_splits_of_replicates_say_how_many_mixtures_there_are(replicated):
    with pytest.raises(UserError, match="train_mixtures=6 of 20 proxy runs of 8 mixtures"):
        cross_validation.splits(replicated, 6, 3, seed=0)
    with pytest.raises(UserError, match="9 folds of 20 proxy runs of 8 mixtures"):
        cross_validation.folds(replicated, 9, 3, seed=0)


def test_splits_of_unequal_size_are_scored_as_a_plain_loop_scores_them(replicated):
    rng = np.random.default_rng(1)
    mixtures = rng.dirichlet(np.ones(4), 8)[replicated]
    observed = mixtures @ rng.normal(size=(4, 3)) + 0.1 * rng.normal(size=(20, 3))
    rounds = cross_validation.splits(replicated, 5, 6, seed=0)
    found = cross_validation.cross_validate(observed, DOMAINS, {"l": mixtures}, [("ridge", "l")], OBJECTIVE, rounds)
    errors, regrets = [], []
    for [(train, test)] in rounds:
        predicted = estimators.Ridge().fit(mixtures[train], observed[train]).predict(mixtures[test]) @ OBJECTIVE
        truth = observed[test] @ OBJECTIVE
        errors.append(np.mean((predicted - truth) ** 2))
        regrets.append(truth[predicted.argmin()] - truth.min())
    assert len({len(test) for [(_, test)] in rounds}) > 1
    np.testing.assert_allclose(found.rounds[("ridge", "l")], errors, rtol=1e-12)
    np.testing.assert_allclose(found.objective.loc[0, ["mse", "regret"]].astype(float), np.mean([errors, regrets], 1))


class Broken(estimators.Ridge):
    """Ridge that fails in the way that its `alphas` say."""

    def predict(self, X):
        if self.alphas == ("raises",):
            raise np.linalg.LinAlgError("singular matrix")
        if self.alphas == ("bug",):
            raise TypeError
        return np.full((len(X), 3), np.nan)

    def fit(self, X, y):
        return self


@pytest.mark.parametrize(("how", "reason"), [("raises", "singular matrix"), ("nan", "not finite")])
def test_a_method_that_fails_is_marked_and_the_others_go_on(swarm, how, reason):
    mixtures, _, observed = swarm
    methods = [("mean", "lambda"), ("broken", "lambda"), ("ridge", "lambda")]

    def make(name, features):
        return Broken((how,)) if name == "broken" else estimators.make(name, features)

    found = cross_validate(observed, {"lambda": mixtures}, methods, make=make)
    row = found.objective.set_index("regressor").loc["broken"]
    assert reason in row.failed
    assert np.isnan(row.mse)
    assert row.n == 0
    assert ("broken", "lambda") not in found.predictions
    assert list(found.rounds) == [("mean", "lambda"), ("ridge", "lambda")]
    others = cross_validate(observed, {"lambda": mixtures}, [methods[0], methods[2]])
    pd.testing.assert_frame_equal(found.objective.drop(index=1).reset_index(drop=True), others.objective)


def test_a_bug_is_no_failure(swarm):
    mixtures, _, observed = swarm
    with pytest.raises(TypeError):
        cross_validate(observed, {"lambda": mixtures}, [("ridge", "lambda")], make=lambda *_: Broken(("bug",)))


def test_outlying_losses_are_found_and_not_scored(swarm):
    mixtures, _, observed = swarm
    broken = observed.copy()
    broken[7, 1] += 5
    methods = [("mean", "log"), ("ridge", "log"), ("ridge", "lambda"), ("gbm", "log")]
    designs = {"log": np.log(mixtures + 0.01), "lambda": mixtures}
    found = cross_validate(broken, designs, methods, repeats=20)
    assert [(one.row, one.target) for one in found.outliers] == [(7, 1)]
    assert found.outliers[0].deviations > 8
    scored_all = cross_validate(broken, designs, methods, repeats=20, outliers=[])
    assert found.objective.mse[1] < scored_all.objective.mse[1] / 3
    # The other targets of that run are scored as ever; ridge fits each target alone.
    web = [cross_validated.domains.query("domain == 'web'").mse.iloc[1] for cross_validated in (found, scored_all)]
    assert web[0] == web[1]
    assert cross_validate(observed, designs, methods, repeats=20).outliers == []


def test_the_gain_over_the_mean_by_hand(swarm):
    mixtures, _, observed = swarm
    found = cross_validate(observed, {"lambda": mixtures}, [("mean", "lambda"), ("ridge", "lambda")])
    gains = []
    for [(train, test)] in cross_validation.splits(24, 16, 10, seed=0):
        ridge = estimators.Ridge().fit(mixtures[train], observed[train]).predict(mixtures[test])
        mean = np.mean((observed[train].mean(axis=0) - observed[test]) ** 2, axis=0)
        gains.append(np.log(mean / np.mean((ridge - observed[test]) ** 2, axis=0)))
    rows = found.domains.query("regressor == 'ridge'")
    np.testing.assert_allclose(rows.gain, np.mean(gains, axis=0), rtol=1e-9)
    np.testing.assert_allclose(rows.gain_se, np.std(gains, axis=0, ddof=1) * np.sqrt(0.1 + 0.5), rtol=1e-9)
