import numpy as np
from scipy.optimize import rosen, rosen_der

from mde.regression import batched


def test_minimize_finds_each_problems_own_minimum():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(5, 6, 4))
    matrices = factors.transpose(0, 2, 1) @ factors + np.eye(4)
    centres = rng.normal(size=(5, 4))

    def bowls(x, which):
        pull = np.einsum("bpq,bq->bp", matrices[which], x - centres[which])
        return np.einsum("bp,bp->b", pull, x - centres[which]) / 2, pull

    found, values = batched.minimize(bowls, np.zeros((5, 4)), tolerance=1e-9)
    np.testing.assert_allclose(found, centres, atol=1e-8)  # the gradient's tolerance over the least curvature, 1
    np.testing.assert_allclose(values, 0, atol=1e-15)


def test_minimize_does_not_let_neighbours_interfere():
    def valleys(x, which):
        return np.array([rosen(row) for row in x]), np.array([rosen_der(row) for row in x])

    start = np.array([[-1.2, 1.0], [2.0, -1.0], [1.0, 1.0]])
    together, _ = batched.minimize(valleys, start, tolerance=1e-8)
    for row, found in zip(start, together, strict=True):
        np.testing.assert_array_equal(batched.minimize(valleys, row[None], tolerance=1e-8)[0][0], found)
    np.testing.assert_allclose(together, 1, atol=1e-6)


def test_minimize_steps_back_from_what_is_not_finite():
    def wall(x, which):
        with np.errstate(invalid="ignore", divide="ignore"):
            return (x - np.log(x))[:, 0], 1 - 1 / x  # infinite or NaN from zero down; minimum at one

    found, _ = batched.minimize(wall, np.array([[20.0], [0.01]]), tolerance=1e-8)
    np.testing.assert_allclose(found, 1, atol=1e-7)


def test_least_squares_is_linear_regression_on_a_line():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(4, 20))

    def line(parameters, which):
        return parameters @ x.T, np.repeat(x[None], len(parameters), axis=0)

    found, loss = batched.least_squares(line, y, np.zeros((4, 3)))
    expected, residual = np.linalg.lstsq(x, y.T)[:2]
    np.testing.assert_allclose(found, expected.T, atol=1e-10)
    np.testing.assert_allclose(2 * loss, residual, rtol=1e-12)


def test_huber_loss_shrugs_off_an_outlier():
    y = np.append(np.full(20, 3.0), 1e6)

    def constant(parameters, which):
        return np.repeat(parameters, 21, axis=1), np.ones((len(parameters), 21, 1))

    found, _ = batched.least_squares(constant, y[None], np.zeros((1, 1)), huber=0.1)
    # Twenty residuals pull with their size and the outlier with 0.1: 20 (x - 3) = 0.1.
    np.testing.assert_allclose(found, 3.005, atol=1e-9)
