import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tinygp

from mde.errors import UserError
from mde.regression import gaussian_process as gp
from mde.regression.gaussian_process import GaussianProcess


@pytest.fixture
def swarm():
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet(np.ones(4), 20)
    losses = 3 - np.log(0.1 + mixtures @ rng.dirichlet(np.ones(4), 3).T)
    return np.cbrt(mixtures), losses


def reference(log_scales, inputs):
    """tinygp's process, and its covariance, from the definition of our scales."""
    length, (matern, linear, noise) = jnp.exp(log_scales[:-3]), jnp.exp(log_scales[-3:])
    matern52 = tinygp.kernels.Matern52(distance=tinygp.kernels.distance.L2Distance())
    kernel = matern * tinygp.transforms.Linear(1 / length, matern52)
    kernel += linear * tinygp.kernels.DotProduct() + tinygp.kernels.Constant(gp.CONSTANT)
    return tinygp.GaussianProcess(kernel, inputs, diag=noise + gp.LEAST_NOISE)


def test_likelihood_and_gradient_are_tinygps():
    rng = np.random.default_rng(0)
    inputs, losses, log_scales = rng.normal(size=(3, 15, 4)), rng.normal(size=(3, 15)), rng.normal(size=(3, 7))
    values, gradients = gp.negative_log_likelihood(log_scales, inputs, losses)

    def theirs(scales, x, y):
        return -reference(scales, x).log_probability(y) - 15 / 2 * jnp.log(2 * jnp.pi)

    with jax.enable_x64():
        found = jax.jit(jax.vmap(jax.value_and_grad(theirs)))(log_scales, inputs, losses)
        value, gradient = map(np.asarray, found)
    np.testing.assert_allclose(values, value, rtol=1e-10)
    np.testing.assert_allclose(gradients, gradient, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("rows", [gp.FEW - 5, gp.FEW + 5])
def test_few_rows_and_many_take_two_paths_to_the_inverse_and_the_determinant(rows):
    rng = np.random.default_rng(0)
    good, broken = np.cov(rng.normal(size=(rows, 200))), np.diag(np.append(np.ones(rows - 1), -1.0))
    inverse, log_root, was_broken = gp._inverse(np.stack([good, broken]))
    np.testing.assert_allclose(inverse[0] @ good, np.eye(rows), atol=1e-12)
    np.testing.assert_array_equal(inverse[0], inverse[0].T)
    assert log_root[0] == pytest.approx(np.linalg.slogdet(good)[1] / 2, rel=1e-12)
    assert was_broken.tolist() == [False, True]
    assert np.isfinite(inverse[1]).all()


def test_predictions_and_deviations_are_tinygps(swarm):
    design, losses = swarm
    fitted = GaussianProcess().fit(design[:16], losses[:16])
    mean, deviation = fitted.predict(design[16:], return_std=True)
    inputs, scales = (design - fitted.feature_mean_) / fitted.feature_scale_, fitted.processes_.log_scales
    targets = ((losses[:16] - fitted.loss_mean_) / fitted.loss_scale_).T

    def theirs(scales, target):
        held = reference(scales, inputs[:16]).condition(target, inputs[16:]).gp
        return held.loc, jnp.sqrt(held.variance + jnp.exp(scales[-1]) + gp.LEAST_NOISE)

    with jax.enable_x64():
        loc, spread = map(np.asarray, jax.jit(jax.vmap(theirs))(scales, targets))
    # Near-noiseless covariances have condition numbers of about 1e7: 1e-16 * 1e7, and its root for the deviations.
    np.testing.assert_allclose(mean, loc.T * fitted.loss_scale_ + fitted.loss_mean_, rtol=1e-8)
    np.testing.assert_allclose(deviation / fitted.loss_scale_, spread.T, rtol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-5])
def test_losses_almost_without_noise_are_fitted_as_well(noise):
    rng = np.random.default_rng(0)
    design = np.sqrt(rng.dirichlet(np.ones(5), 30))
    losses = 3 + design @ rng.normal(size=(5, 2)) + noise * rng.normal(size=(30, 2))
    fitted = GaussianProcess().fit(design, losses)
    assert abs(fitted.predict(design) - losses).max() < 1e-6 + 3 * noise


def test_leave_one_out_is_a_loop_at_fixed_hyper_parameters(swarm):
    design, losses = swarm
    fitted = GaussianProcess().fit(design, losses)
    residual, deviation = fitted.leave_one_out()
    processes, target = fitted.processes_, ((losses - fitted.loss_mean_) / fitted.loss_scale_).T
    for row in (0, 7):
        rest = np.delete(np.arange(20), row)
        covariance = np.linalg.inv(processes.inverse)
        weights = np.linalg.solve(covariance[:, rest][:, :, rest], target[:, rest, None])[:, :, 0]
        predicted = np.einsum("br,br->b", covariance[:, row, rest], weights)
        np.testing.assert_allclose(residual[row], (target[:, row] - predicted) * fitted.loss_scale_, atol=1e-7)
        solved = np.linalg.solve(covariance[:, rest][:, :, rest], covariance[:, rest, row][:, :, None])[:, :, 0]
        variance = covariance[:, row, row] - np.einsum("br,br->b", covariance[:, row, rest], solved)
        np.testing.assert_allclose(deviation[row], np.sqrt(variance) * fitted.loss_scale_, rtol=1e-5)


def test_many_tables_are_fitted_as_each_would_be(swarm):
    design, losses = swarm
    tables = [(design[:12], losses[:12]), (design[4:], losses[4:]), (design[8:], losses[8:])]
    for one, (X, y) in zip(GaussianProcess().fit_many(tables), tables, strict=True):
        np.testing.assert_allclose(one.predict(design), GaussianProcess().fit(X, y).predict(design), atol=1e-10)


def test_own_features_are_one_process_a_target(swarm):
    design, losses = swarm
    own = np.concatenate([losses[:, :, None] ** 2, np.repeat(design[:, None], 3, axis=1)], axis=2)
    together = GaussianProcess().fit(own, losses).predict(own)
    for j in range(3):
        apart = GaussianProcess().fit(own[:, j], losses[:, [j]]).predict(own[:, j])
        np.testing.assert_allclose(together[:, [j]], apart, atol=1e-10)


def test_a_smooth_loss_is_learnt_and_an_irrelevant_feature_found():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (60, 2))
    y = np.sin(3 * x[:, :1])
    fitted = GaussianProcess().fit(x, y)
    new = rng.uniform(-1, 1, (200, 2))
    mean, deviation = fitted.predict(new, return_std=True)
    error = np.abs(mean - np.sin(3 * new[:, :1]))
    assert error.max() < 0.05
    assert np.mean(error < 2 * deviation) > 0.9
    length = fitted.processes_.log_scales[0, :2]
    assert length[1] > length[0] + 1


def test_restarts_never_do_worse(swarm):
    design, losses = swarm
    alone, more = (GaussianProcess(restarts=n).fit(design, losses).processes_.objective for n in (0, 3))
    assert (more <= alone + 1e-6).all()


def test_noise_widens_the_intervals(swarm):
    design, losses = swarm
    loud = losses + 0.2 * np.random.default_rng(1).normal(size=losses.shape)
    widths = [GaussianProcess().fit(design, y).predict(design, return_std=True)[1].mean() for y in (losses, loud)]
    assert widths[1] > 2 * widths[0]


def test_constant_features_and_targets_are_no_obstacle(swarm):
    design, losses = swarm
    fitted = GaussianProcess().fit(np.hstack([design, np.ones((20, 1))]), np.hstack([losses, np.full((20, 1), 2.0)]))
    np.testing.assert_allclose(fitted.predict(np.hstack([design, np.ones((20, 1))]))[:, 3], 2)


def test_the_jax_form_is_the_same_function_with_gradients(swarm):
    design, losses = swarm
    fitted = GaussianProcess().fit(design, losses)
    with jax.enable_x64():
        losses_of = fitted.jax_predict()
        np.testing.assert_allclose(jax.jit(jax.vmap(losses_of))(design), fitted.predict(design), atol=1e-10)
        gradient = jax.jit(jax.jacobian(losses_of))(design[3])  # on a row of the swarm
        step = 1e-5 * np.eye(4)
        slopes = [(fitted.predict(design[[3]] + h) - fitted.predict(design[[3]] - h))[0] / 2e-5 for h in step]
        np.testing.assert_allclose(gradient, np.array(slopes).T, atol=1e-4)


def test_wrong_designs_are_refused(swarm):
    design, losses = swarm
    with pytest.raises(UserError, match="expected rows of shape"):
        GaussianProcess().fit(design, losses).predict(design[:, :3])
