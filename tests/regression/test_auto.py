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
from mde.regression.estimators import Ridge
from mde.regression.features import assemble
from mde.regression.gaussian_process import GaussianProcess
from mde.regression.validation import splits


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


def test_it_predicts_the_weighted_mean_of_its_candidates():
    mixtures, evaluated, observed = swarm()
    design = assemble("mde[0]+lambda", mixtures, {"mde[0]": evaluated})
    candidates = [(Ridge(), "mde[0]+log"), (GaussianProcess(), "cbrt")]
    fitted = Auto(["mde[0]"], candidates).fit(design, observed)
    parts = [
        clone(regressor).fit(part, observed).predict(part)
        for (regressor, features) in candidates
        for part in [assemble(features, mixtures, {"mde[0]": evaluated})]
    ]
    np.testing.assert_allclose(fitted.predict(design), np.tensordot(fitted.weights_, parts, 1), atol=1e-10)
    assert fitted.weights_.sum() == pytest.approx(1)
    assert (fitted.weights_ >= 0).all()


def test_it_says_what_it_chose():
    mixtures, _, observed = swarm()
    fitted = Auto().fit(mixtures, observed)
    assert fitted.chosen_ == ("cbrt", "log", "lambda", "lambda")
    assert fitted.describe().startswith("blend of ")
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


def test_losses_that_are_not_positive_and_too_few_rows_have_no_law():
    mixtures, _, observed = swarm()
    assert Auto().fit(mixtures, observed - 10).chosen_ == ("cbrt", "log", "lambda")
    assert Auto().fit(mixtures[:10], observed[:10]).chosen_ == ("cbrt", "log", "lambda", "lambda")
    assert Auto().fit(mixtures[:9], observed[:9]).chosen_ == ("cbrt", "log", "lambda")  # five parameters


def test_many_rows_use_errors_in_closed_form(monkeypatch):
    mixtures, _, observed = swarm(rows=30)
    monkeypatch.setattr(auto, "MANY", 30)
    closed = Auto().fit(mixtures, observed)
    residual, _ = GaussianProcess().fit(np.cbrt(mixtures), observed).leave_one_out()
    np.testing.assert_allclose(closed.inner_deviation_[0], np.sqrt(np.mean(residual**2, axis=0)), rtol=1e-6)


def test_fitting_many_is_fitting_each():
    mixtures, _, observed = swarm()
    tables = [(mixtures[train], observed[train]) for ((train, _),) in splits(24, 14, 3, seed=0)]
    tables.append((mixtures[:8], observed[:8]))  # too few for a law
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


def test_intervals_hold_new_runs_about_as_often_as_they_say():
    inside = []
    for seed in range(12):
        mixtures, _, observed = swarm(rows=60, noise=0.02, seed=seed)
        mean, deviation = Auto().fit(mixtures[:20], observed[:20]).predict(mixtures[20:], return_std=True)
        inside.append(np.abs(mean - observed[20:]) <= 1.645 * deviation)
    # 90% expected; 12 swarms of 3 targets vary by some points.
    assert 0.83 <= np.mean(inside) <= 0.97


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
    fitted = Auto(["mde[0]"]).fit(design, observed)
    with jax.enable_x64():
        form = fitted.jax_predict()
        np.testing.assert_allclose(jax.jit(jax.vmap(form))(design), fitted.predict(design), atol=1e-9)
        corner = design[0].copy()
        corner[:, 1:] = [1, 0, 0, 0]
        assert np.isfinite(jax.jit(jax.jacobian(form))(corner)).all()


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
    with pytest.raises(UserError, match="2 observations"):
        Auto().fit(mixtures[:2], observed[:2])
    with pytest.raises(UserError, match="GradientBoosting has no form"):
        Auto(candidates=[(estimators.GradientBoosting(), "lambda")]).fit(mixtures, observed).jax_predict()
