import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from mde.errors import UserError
from mde.optimization import search, simplex
from mde.optimization.region import Region
from mde.regression import auto, estimators
from mde.regression.auto import Auto, stacking_weights
from mde.regression.cross_validation import splits
from mde.regression.estimators import Ridge
from mde.regression.features import assemble
from mde.regression.gaussian_process import GaussianProcess
from mde.regression.groups import group_folds

FEW = [(Ridge(), "log"), (GaussianProcess(), "cbrt")]  # candidates, where it does not matter which


def swarm(rows=24, noise=0.005, domains=4, seed=0):
    """Mixtures, an evaluator that is nearly right, and observed losses of 3 targets, waves that no law has in them."""
    rng = np.random.default_rng(seed)
    experts = rng.dirichlet(np.ones(domains), 3)
    mixtures = rng.dirichlet(np.ones(domains), rows)
    losses = 3 - 0.5 * np.log(0.05 + mixtures @ experts.T) + 0.1 * np.sin(12 * mixtures[:, :1])
    evaluated = 0.8 * losses + 0.1 * mixtures[:, :3] ** 2
    return mixtures, evaluated, losses + noise * rng.normal(size=losses.shape)


def test_evaluated_features_are_used_where_they_help_and_left_where_they_do_not():
    mixtures, evaluated, observed = swarm()
    rng = np.random.default_rng(1)
    errors = {}
    for name, losses in {"good": evaluated, "noise": rng.normal(size=evaluated.shape)}.items():
        design = assemble("mde[0]+lambda", mixtures, {"mde[0]": losses})
        errors[name] = np.mean(
            (Auto(["mde[0]"]).fit(design[:12], observed[:12]).predict(design[12:]) - observed[12:]) ** 2
        )
    same = Auto(candidates=[(GaussianProcess(), "cbrt"), (GaussianProcess(), "log")])  # as beside the features
    for name, alone in {"none": Auto(), "none of the same": same}.items():
        errors[name] = np.mean((alone.fit(mixtures[:12], observed[:12]).predict(mixtures[12:]) - observed[12:]) ** 2)
    assert errors["good"] < 0.5 * errors["none"]
    assert errors["noise"] < 2 * errors["none of the same"]


def test_it_predicts_the_mean_and_what_is_trusted_of_the_weighted_candidates_beyond_it():
    """With losses and features clipped by hand, one and three ranges outside, and trust (2 spacings / distance)²."""
    mixtures, evaluated, observed = swarm(rows=16)
    near = 0.9 * np.array([0.4, 0.3, 0.2, 0.1]) + 0.1 * mixtures  # so that corners are far from all runs
    points = np.vstack([near, np.eye(4)])
    known = assemble("mde[0]+lambda", points, {"mde[0]": np.vstack([evaluated, 9 * np.ones((4, 3))])})
    train, candidates = known[:16], [(Ridge(), "mde[0]+log"), (GaussianProcess(), "cbrt")]
    fitted = Auto(["mde[0]"], candidates).fit(train, observed)
    assert fitted.outliers_ == []
    margin = 3 * np.ptp(train, axis=0)
    inside = np.clip(known, train.min(axis=0) - margin, train.max(axis=0) + margin)
    margin, mean = np.ptp(observed, axis=0), observed.mean(axis=0)
    beyond = 0
    for (regressor, features), weight in zip(candidates, fitted.weights_, strict=True):
        part = assemble(features, inside[:, 0, 1:], {"mde[0]": inside[:, :, 0]})
        predicted = clone(regressor).fit(part[:16], observed).predict(part)
        beyond += weight * (np.clip(predicted, observed.min(axis=0) - margin, observed.max(axis=0) + margin) - mean)
    moved = np.abs(points[:, None] - near[None]).sum(axis=2) / 2
    spacing = np.sort(moved[:16], axis=1)[:, 1].max()
    trust = np.minimum(1, 2 * spacing / np.maximum(moved.min(axis=1), 1e-12)) ** 2
    assert (trust[:16] == 1).all()
    assert (trust[16:] < 0.5).all()
    np.testing.assert_allclose(fitted.predict(known), mean + trust[:, None] * beyond, atol=1e-10)
    assert (fitted.weights_ >= 0).all()
    assert (fitted.weights_.sum(axis=0) <= 1 + 1e-9).all()


def test_out_of_fold_errors_are_those_of_refits_without_each_fold():
    mixtures, _, observed = swarm(rows=20)
    fitted = Auto(candidates=[(Ridge(), "log")], seed=3).fit(mixtures, observed)
    features, expected = np.log(mixtures + 0.01), np.empty_like(observed)
    for rows in group_folds(np.arange(20), 4, seed=3):
        kept = np.setdiff1d(np.arange(20), rows)
        # A row far outside of the others' range is seen clipped.
        margin = 3 * np.ptp(mixtures[kept], axis=0)
        low, high = mixtures[kept].min(axis=0) - margin, mixtures[kept].max(axis=0) + margin
        inside = np.log(np.clip(mixtures[rows], low, high) + 0.01)
        margin = np.ptp(observed[kept], axis=0)
        found = Ridge().fit(features[kept], observed[kept]).predict(inside)
        found = np.clip(found, observed[kept].min(axis=0) - margin, observed[kept].max(axis=0) + margin)
        mean = observed[kept].mean(axis=0)
        expected[rows] = observed[rows] - mean - fitted.weights_[0] * (found - mean)
    np.testing.assert_allclose(fitted.out_of_fold_, expected, atol=1e-10)


def test_it_says_what_it_chose():
    mixtures, _, observed = swarm()
    fitted = Auto().fit(mixtures, observed)
    assert fitted.chosen_ == ("sqrt", "log", "lambda", "cbrt", "log", "lambda")
    assert fitted.describe().startswith("blend of ")
    assert "MixingLaw(lambda) " in fitted.describe()
    assert "GaussianProcess(log) " in fitted.describe()
    assert "inner R²" in fitted.describe()
    assert "\n" not in fitted.describe()


def test_without_features_its_optimum_is_near_the_truth_s_and_better_than_any_run():
    """A swarm as its users have it: a mixing law of five domains and noise that hides small differences."""
    corner_pull, cross = np.diag([1.2, 0.9, 2.0, 1.6, 1.1]), np.random.default_rng(0).uniform(0, 0.3, (5, 5))
    truth = lambda mixtures: 2 + np.exp(-mixtures @ (corner_pull + cross))  # noqa: E731
    everywhere = truth(simplex.space_filling(30_000, 5, seed=9)).mean(axis=1).min()
    for seed in range(3):
        mixtures = simplex.space_filling(40, 5, seed)
        losses = truth(mixtures)
        fitted = Auto().fit(mixtures, losses + 0.01 * np.random.default_rng(seed).normal(size=losses.shape))
        best = search.minimize(lambda x, f=fitted: f.predict(x).mean(axis=1), Region.simplex(5), 0, start=mixtures)
        regret = truth(best.mixture[None]).mean() - everywhere
        assert regret < 0.25 * (losses.mean(axis=1).min() - everywhere)


@pytest.mark.parametrize(("factor", "shift"), [(1.0, -10.0), (1e-3, 0.0), (100.0, 7.0)])
def test_predictions_do_not_depend_on_the_unit_of_the_losses(factor, shift):
    mixtures, _, observed = swarm()
    mean, deviation = Auto().fit(mixtures, observed).predict(mixtures, return_std=True)
    other, others = Auto().fit(mixtures, factor * observed + shift).predict(mixtures, return_std=True)
    np.testing.assert_allclose((other - shift) / factor, mean, atol=1e-4)
    np.testing.assert_allclose(others / factor, deviation, rtol=1e-2)


def test_fitting_many_is_fitting_each():
    mixtures, _, observed = swarm()
    tables = [(mixtures[train], observed[train]) for ((train, _),) in splits(24, 14, 3, seed=0)]
    tables.append((mixtures[:8], observed[:8]))
    for one, (X, y) in zip(Auto().fit_many(tables), tables, strict=True):
        alone = Auto().fit(X, y)
        np.testing.assert_allclose(one.predict(mixtures), alone.predict(mixtures), atol=1e-9)
        assert one.describe() == alone.describe()


def test_held_out_losses_have_no_say():
    mixtures, _, observed = swarm()
    folds = [(np.arange(12), np.arange(12, 24)), (np.arange(12, 24), np.arange(12))]
    before = cross_val_predict(Auto(), mixtures, observed, cv=folds)
    changed = observed.copy()
    changed[5] += 1
    after = cross_val_predict(Auto(), mixtures, changed, cv=folds)
    np.testing.assert_array_equal(before[:12], after[:12])
    assert (before[12:] != after[12:]).any()


def coverage(tables, rows, targets=slice(None)):
    """Part of the losses after so many rows that lie in the 90% interval of a fit to the rows before."""
    fitted = Auto().fit_many([(mixtures[:rows], losses[:rows]) for mixtures, losses in tables])
    inside = []
    for one, (mixtures, losses) in zip(fitted, tables, strict=True):
        mean, deviation = one.predict(mixtures[rows:], return_std=True)
        inside.append((np.abs(mean - losses[rows:]) <= 1.645 * deviation)[:, targets])
    return np.mean(inside), fitted


@pytest.mark.parametrize("constant", [0, 12])
def test_intervals_hold_new_runs_about_as_often_as_they_say_beside_constant_targets(constant):
    tables = []
    for seed in range(8):
        mixtures, _, observed = swarm(rows=64, noise=0.02, seed=seed)
        tables.append((mixtures, np.hstack([observed, np.full((64, constant), 2.0)])))
    inside, fitted = coverage(tables, 24, slice(0, 3))
    # 90% expected; 8 swarms of 3 targets vary by about three points.
    assert 0.85 <= inside <= 0.965
    assert all(np.ptp(one.predict(np.eye(4))[:, 3:], axis=0).max(initial=0) < 1e-9 for one in fitted)


def test_targets_of_pure_noise_get_the_mean_and_do_not_change_the_others():
    tables, alone = [], []
    for seed in range(5):
        mixtures, _, observed = swarm(rows=64, noise=0.02, seed=seed)
        noise = 2 + 0.1 * np.random.default_rng(100 + seed).normal(size=(64, 3))
        tables.append((mixtures, np.hstack([observed, noise])))
        alone.append((mixtures[:24], observed[:24]))
    inside, fitted = coverage(tables, 24, slice(0, 3))
    assert 0.85 <= inside <= 0.98
    weights = np.mean([one.weights_.sum(axis=0) for one in fitted], axis=0)
    assert (weights[:3] > 0.9).all()
    assert weights[3:].mean() < 0.25
    assert np.mean([one.weights_.sum(axis=0)[3:] < 0.05 for one in fitted]) >= 0.5
    before = [one.predict(m) - y for one, (m, y) in zip(Auto().fit_many(alone), alone, strict=True)]
    after = [one.predict(m)[:, :3] - y for one, (m, y) in zip(fitted, alone, strict=True)]
    assert np.std(after) < 1.2 * np.std(before)


def test_replicates_do_not_make_intervals_of_new_mixtures_too_narrow():
    """Ten mixtures with four seeds each; were seeds of a mixture on both sides of a split, only noise would be seen."""
    tables = []
    for seed in range(8):
        mixtures, _, truth = swarm(rows=40, noise=0, seed=seed)
        mixtures, truth = (np.vstack([np.repeat(part[:10], 4, axis=0), part[10:]]) for part in (mixtures, truth))
        tables.append((mixtures, truth + 0.02 * np.random.default_rng(seed).normal(size=truth.shape)))
    inside, fitted = coverage(tables, 40)
    assert inside >= 0.85
    assert len(fitted[0].support_.mixtures) == 10


def test_a_run_that_diverged_is_found_and_the_fit_is_as_good_as_without_it():
    """One loss or all of a run, off by 1, 5 and 1000 nats; beside fits to all other runs."""
    mixtures, _, truth = swarm(rows=90, noise=0)
    observed = truth + 0.01 * np.random.default_rng(0).normal(size=truth.shape)
    rows = (3, 11, 29)
    cases = [(row, *how) for row in rows for how in ((1, [1]), (1, [1, 2]), (5, [0, 1, 2]), (1000, [1]))]
    tables = [(np.delete(mixtures[:30], row, axis=0), np.delete(observed[:30], row, axis=0)) for row in rows]
    for row, size, targets in cases:
        broken = observed[:30].copy()
        broken[row, targets] += size
        tables.append((mixtures[:30], broken))
    fitted = Auto().fit_many(tables)
    error = [np.sqrt(np.mean((one.predict(mixtures[30:]) - truth[30:]) ** 2, axis=0)) for one in fitted]
    ratios = []
    for (row, _, targets), one, found in zip(cases, fitted[3:], error[3:], strict=True):
        assert sorted((off.row, off.target) for off in one.outliers_) == [(row, j) for j in targets]
        assert all(off.deviations > 8 for off in one.outliers_)
        assert (row in one.rows_) == (len(targets) == 1)  # with more than half of its losses off, the run is left out
        assert len(one.out_of_fold_) == len(one.rows_) == (30 if len(targets) == 1 else 29)
        ratios.append(found / error[rows.index(row)])
    assert np.max(ratios) < 2
    assert np.mean(ratios) < 1.2


def test_clean_swarms_have_no_outliers():
    tables = [swarm(rows=20, noise=0.02, seed=seed)[::2] for seed in range(6)]
    assert [one.outliers_ for one in Auto().fit_many(tables)] == [[]] * 6


@pytest.mark.parametrize("diverged", [0, 1000])
def test_predictions_stay_within_a_range_of_the_observed_ones_at_every_corner(diverged):
    mixtures, _, observed = swarm(rows=12, domains=6)
    broken = observed.copy()
    broken[3, 1] += diverged
    found = Auto().fit(mixtures, broken).predict(np.vstack([np.eye(6), simplex.space_filling(200, 6, 0)]))
    margin = np.ptp(observed, axis=0) + 1e-9
    assert (found >= observed.min(axis=0) - margin).all()
    assert (found <= observed.max(axis=0) + margin).all()


def test_far_from_all_runs_predictions_go_back_to_the_mean_and_deviations_grow():
    mixtures, _, _ = swarm()
    near = 0.95 * np.array([0.25, 0.25, 0.25, 0.25]) + 0.05 * mixtures
    losses = 2 + 3 * near[:, :2]
    fitted = Auto(candidates=FEW).fit(near, losses)
    steps = near[0] + np.linspace(0, 1, 9)[:, None] * (np.eye(4)[0] - near[0])
    found, deviation = fitted.predict(steps, return_std=True)
    distance, spacing = fitted.support_.distance(steps), fitted.support_.spacing
    off = np.abs(found - losses.mean(axis=0))
    widest = 1.5 * np.ptp(losses, axis=0) + np.abs(losses.mean(axis=0) - (losses.max(axis=0) + losses.min(axis=0)) / 2)
    trust = np.minimum(1, 2 * spacing / np.maximum(distance, 1e-12)) ** 2
    assert trust[-1] < 0.01
    assert (off <= trust[:, None] * widest + 1e-9).all()
    assert (np.diff(deviation[1:], axis=0) > 0).all()
    assert (deviation[-1] > 5 * deviation[0]).all()


@pytest.mark.parametrize("how", ["one run", "hardly"])
def test_a_domain_that_hardly_varies_has_no_effect(how):
    """The losses follow it closely, and yet it must not explain them."""
    mixtures, _, observed = swarm(rows=20)
    rng = np.random.default_rng(0)
    odd = np.zeros(20) if how == "one run" else 0.01 + 1e-4 * rng.normal(size=20)
    if how == "one run":
        odd[4] = 0.3
    design = np.hstack([mixtures * (1 - odd[:, None]), odd[:, None]])
    observed = observed + (odd - odd.mean())[:, None] / np.std(odd) * 0.05
    fitted = Auto(candidates=FEW).fit(design, observed)
    moved = design.copy()
    moved[:, 4] = 0.9 * fitted.support_.spacing + odd  # not beyond the runs' reach
    np.testing.assert_allclose(fitted.predict(moved), fitted.predict(design), atol=1e-12)
    far = fitted.predict(np.eye(5))
    assert (abs(far - observed.mean(axis=0)) < 1.3 * np.ptp(observed, axis=0)).all()
    # Without the domain's column, what the others say is the same.
    assert fitted.inputs_.unused.tolist() == [False] * 4 + [True]


class Broken(Ridge):
    """A regressor that has nothing to say."""

    def predict(self, X):
        return np.full_like(super().predict(X), np.nan)


def test_a_candidate_that_predicts_no_number_is_left_out():
    mixtures, _, observed = swarm(rows=16)
    fitted = Auto(candidates=[(Broken(), "log"), *FEW]).fit(mixtures, observed)
    assert fitted.failed_ == {"Broken(log)": "predicted a loss that is not finite"}
    assert fitted.chosen_ == tuple(features for _, features in FEW)
    expected = Auto(candidates=FEW).fit(mixtures, observed)
    np.testing.assert_array_equal(fitted.predict(np.eye(4)), expected.predict(np.eye(4)))
    with pytest.raises(UserError, match="no candidate of `auto` could be fitted: predicted a loss that is not finite"):
        Auto(candidates=[(Broken(), "log")]).fit(mixtures, observed)


@pytest.mark.parametrize("targets", [1, 2])
def test_one_target_and_two_are_enough(targets):
    mixtures, _, observed = swarm(rows=16)
    fitted = Auto().fit(mixtures, observed[:, :targets])
    assert fitted.predict(np.eye(4)).shape == (4, targets)
    assert fitted.weights_.shape == (6, targets)
    assert fitted.correlation_.shape == (targets, targets)


def test_constant_targets_are_predicted_as_they_are():
    mixtures, _, _ = swarm(rows=12)
    fitted = Auto().fit(mixtures, np.tile([2.0, -3.0], (12, 1)))
    mean, deviation = fitted.predict(np.eye(4), return_std=True)
    np.testing.assert_allclose(mean, np.tile([2.0, -3.0], (4, 1)), atol=1e-8)
    assert np.isfinite(deviation).all()
    assert (deviation < 1e-6).all()
    assert fitted.outliers_ == []


@pytest.mark.parametrize("rows", [3, 4, 5, 8])
def test_a_handful_of_rows_is_enough(rows):
    mixtures, evaluated, observed = swarm()
    design = assemble("mde[0]+lambda", mixtures, {"mde[0]": evaluated})
    mean, deviation = Auto(["mde[0]"]).fit(design[:rows], observed[:rows]).predict(design, return_std=True)
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()
    assert np.mean((mean - observed) ** 2) < 2 * np.mean((observed[:rows].mean(axis=0) - observed) ** 2)


def test_the_jax_form_is_the_same_function_with_gradients_on_faces():
    mixtures, evaluated, observed = swarm()
    design = assemble("mde[0]+lambda", mixtures, {"mde[0]": evaluated})
    fitted = Auto(["mde[0]"]).fit(design[:12], observed[:12])
    with jax.enable_x64():
        form = fitted.jax_predict()
        np.testing.assert_allclose(jax.jit(jax.vmap(form))(design), fitted.predict(design), atol=1e-9)
        corner = design[0].copy()
        corner[:, 1:] = [1, 0, 0, 0]
        assert np.isfinite(jax.jit(jax.jacobian(form))(corner)).all()


def test_the_jax_form_clips_and_trusts_as_predict_does():
    mixtures, _, observed = swarm(rows=16)
    near = 0.9 * np.array([0.4, 0.3, 0.2, 0.1]) + 0.1 * mixtures
    fitted = Auto().fit(near, observed)
    points = np.vstack([near, np.eye(4), simplex.space_filling(60, 4, 0)])
    assert (fitted._away(points) > 2).sum() > 20  # spacings: where trust is less than one
    with jax.enable_x64():
        form = jax.jit(jax.vmap(fitted.jax_predict()))
        # `features.traceable` takes weights below 1e-9 for 1e-9, where roots have gradients.
        np.testing.assert_allclose(form(points), fitted.predict(np.maximum(points, 1e-9)), atol=1e-9)


def test_scikit_learn_searches_it():
    mixtures, _, observed = swarm(rows=12)
    pipeline = make_pipeline(FunctionTransformer(), Auto())
    search = GridSearchCV(pipeline, {"auto__folds": [2, 3]}, cv=2, scoring="neg_mean_squared_error")
    assert search.fit(mixtures, observed).best_params_["auto__folds"] in (2, 3)
    assert clone(Auto(["a"], folds=3)).get_params(deep=False) == {
        "evaluated": ["a"],
        "candidates": None,
        "folds": 3,
        "seed": 0,
    }


def test_weights_are_those_of_least_squared_error_by_hand():
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(4000, 2)) * [1, 2]
    # Independent errors of variance 1 and 4: weights in the ratio 4 to 1.
    np.testing.assert_allclose(stacking_weights(errors, 0), [0.8, 0.2], atol=0.02)
    np.testing.assert_allclose(stacking_weights(errors, 1e6), [0.5, 0.5], atol=1e-3)
    np.testing.assert_allclose(stacking_weights(np.array([[0.0, 1.0], [0.0, 2.0]])), [1, 0])
    # A candidate with the same errors, only larger, is given nothing.
    np.testing.assert_allclose(stacking_weights(errors[:, :1] * [1, 3], 0), [1, 0], atol=1e-6)


def test_weights_are_pulled_to_their_centre():
    errors = np.random.default_rng(0).normal(size=(50, 3))
    centre = np.array([0.7, 0.3, 0.0])
    np.testing.assert_allclose(stacking_weights(errors, 1e6, centre), centre, atol=1e-4)
    equal, pulled, free = (stacking_weights(errors, *args) for args in ((1.0,), (1.0, centre), (0.0, centre)))
    assert abs(pulled - centre).sum() < abs(equal - centre).sum()
    np.testing.assert_allclose(free, stacking_weights(errors, 0.0), atol=1e-6)


def test_weights_with_a_centre_are_least_squares_by_a_fine_grid():
    """Two candidates, so one number: the minimum of the penalised sum over a grid of weights."""
    rng = np.random.default_rng(1)
    errors, centre = rng.normal(size=(30, 2)) * [1, 1.3], np.array([0.2, 0.8])
    grid = np.linspace(0, 1, 100_001)
    both = np.stack([grid, 1 - grid])
    unit = (errors**2).sum(axis=0).min()
    sums = ((errors @ both) ** 2).sum(axis=0) / unit + 2 * ((both - centre[:, None]) ** 2).sum(axis=0)
    np.testing.assert_allclose(stacking_weights(errors, 2.0, centre), both[:, sums.argmin()], atol=2e-5)


def test_what_is_believed_by_hand():
    """Predicted differences 1 and -1: a slope of half, and its standard error from the residuals of (r - p)."""
    predicted = np.array([[1.0, 1.0, 1.0, 0.0], [-1.0, -1.0, -1.0, 0.0]])
    observed = np.array([[1.0, 3.0, -1.0, 1.0], [-1.0, -3.0, 1.0, 2.0]])
    # Exact: slope 1, error 0. Too timid: slope 3 minus 1.5 sqrt(4 + 4) / 2. Wrong: none. Nothing: none.
    alone = np.arange(2)
    np.testing.assert_allclose(auto._believed(predicted, observed, alone), [1, 3 - 1.5 * np.sqrt(2), 0, 0])
    # Observed 1, -.6: slope .8, and of the residuals 0 and .4 an error of .4 / 2.
    np.testing.assert_allclose(auto._believed(predicted[:, :1], np.array([[1.0], [-0.6]]), alone), [0.5])
    # Replicates err together: two residuals of -.4 at a mixture that is predicted 1 are one of -.8.
    observed, same = np.array([[0.6], [0.6], [-1.4], [-1.4]]), np.array([0, 0, 1, 1])
    predicted = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    np.testing.assert_allclose(auto._believed(predicted, observed, same), [1 - 1.5 * np.sqrt(0.8**2 + 0.8**2) / 4])


def test_make_tells_auto_which_features_are_evaluated():
    assert estimators.make("auto", "mde[0]+mde[1]+lambda").evaluated == ["mde[0]", "mde[1]"]
    assert estimators.make("auto", "lambda").evaluated == []
    with pytest.raises(UserError, match="expected evaluated features and then lambda"):
        estimators.make("auto", "mde[0]+log")


def test_wrong_designs_are_refused():
    mixtures, evaluated, observed = swarm()
    with pytest.raises(UserError, match="with 1 evaluated features, expected own columns"):
        Auto(["mde[0]"]).fit(mixtures, observed)
    with pytest.raises(UserError, match="expected mixtures"):
        Auto().fit(assemble("mde[0]+lambda", mixtures, {"mde[0]": evaluated}), observed)
    with pytest.raises(UserError, match="2 proxy runs, 4 inner folds: expected at least 3 and 2"):
        Auto().fit(mixtures[:2], observed[:2])
    with pytest.raises(UserError, match="GradientBoosting has no form"):
        Auto(candidates=[(estimators.GradientBoosting(), "lambda")]).fit(mixtures, observed).jax_predict()
