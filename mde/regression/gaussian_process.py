"""A Gaussian process a target, all of them (and all restarts, and all splits of a validation) fitted as one batch.

NumPy and LAPACK in float64 with gradients written out: an evaluation of likelihood and gradient at 512 rows takes a
fifth of what XLA's CPU backend takes, and nothing need be compiled. The tests hold both against tinygp.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted

from mde.regression import batched
from mde.regression.designs import adopt, by_target, check_fit, check_predict, standardisation
from mde.regression.uncertainty import shrunk_correlation

CONSTANT = 4.0  # variance of the mean, in units of the losses' own variance
# Prior of the logarithms of length scales, Matern variance, linear variance and noise variance, all in standardised
# units: mean and standard deviation. Weak, yet it decides where a dozen rows say nothing.
PRIOR_MEAN = {"length": 2.0, "matern": 1.0, "linear": 1.0, "noise": -5.0}
PRIOR_SCALE = {"length": 1.25, "matern": 3.0, "linear": 3.0, "noise": 2.0}
LEAST_NOISE = 1e-8  # variance; with less, losses without any noise leave a covariance that float64 cannot invert
FEW = 48  # rows below which a batch is one array operation; above, one thread per core takes its part of the batch
THREADS = 2
CACHED = 80_000  # entries of the covariance matrices that are fitted together: what a core's cache holds
CHUNK = 4_000_000  # entries of those that predictions are made with together: they bound the memory


@dataclass(frozen=True)
class Processes:
    """B processes with their hyper-parameters, conditioned on data of their own. Standardised units throughout.

    Attributes:
      inputs: [B, R, F].
      log_scales: [B, F + 3], logarithms of F length scales and of the variances of Matern, linear part and noise (above
        `LEAST_NOISE`).
      inverse: [B, R, R], of the covariance.
      weights: [B, R], the inverse times the losses.
      objective: [B], negative log posterior of the hyper-parameters, up to a constant.
    """

    inputs: np.ndarray
    log_scales: np.ndarray
    inverse: np.ndarray
    weights: np.ndarray
    objective: np.ndarray

    def __getitem__(self, which: slice) -> "Processes":
        return Processes(*(getattr(self, field.name)[which] for field in fields(self)))

    def predict(self, inputs_BCF: np.ndarray) -> np.ndarray:
        """Means [B, C]."""
        return np.einsum("bcr,br->bc", _covariance(self.log_scales, inputs_BCF, self.inputs), self.weights)

    def deviation(self, inputs_BCF: np.ndarray) -> np.ndarray:
        """Standard deviations of a new proxy run, its noise included, [B, C]."""
        _, matern_B, linear_B, noise_B = _unpack(self.log_scales)
        cross_BCR = _covariance(self.log_scales, inputs_BCF, self.inputs)
        squares_BC = np.einsum("bcf,bcf->bc", inputs_BCF, inputs_BCF)
        total_BC = (matern_B + noise_B + CONSTANT)[:, None] + linear_B[:, None] * squares_BC
        known_BC = np.einsum("bcr,bcr->bc", cross_BCR @ self.inverse, cross_BCR)
        return np.sqrt(np.maximum(total_BC - known_BC, noise_B[:, None]))

    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray]:
        """What each row's loss misses its prediction from all others by, and that prediction's deviation; [B, R] both.

        Closed form at fixed hyper-parameters (Rasmussen and Williams, Gaussian Processes for Machine Learning, 5.4.2).
        """
        precision_BR = np.diagonal(self.inverse, axis1=1, axis2=2)
        return self.weights / precision_BR, 1 / np.sqrt(precision_BR)


def fit_processes(inputs: np.ndarray, losses: np.ndarray, restarts: int = 0, seed: int = 0) -> Processes:
    """B processes at the hyper-parameters of highest posterior density.

    Args:
      inputs: [B, R, F], standardised.
      losses: [B, R], standardised.
      restarts: searches from draws of the prior, besides the one from its mean.
      seed: of the draws.
    """
    n, n_rows, n_features = inputs.shape
    mean, scale = (
        np.array([prior["length"]] * n_features + [prior[part] for part in ("matern", "linear", "noise")])
        for prior in (PRIOR_MEAN, PRIOR_SCALE)
    )
    draws = mean + scale * np.random.default_rng(seed).normal(size=(restarts, len(mean))) / 2
    start = np.repeat(np.vstack([mean, draws]), n, axis=0)
    parts = 1 if n_rows < FEW else THREADS
    # LAPACK's own threads would fight over the cores with ours, and with anybody else's.
    with batched.one_blas_thread(), ThreadPoolExecutor(parts) as pool:

        def objective(points: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            n_chunks = max(parts, -(-len(which) * n_rows**2 // CACHED))
            chunks = np.array_split(np.arange(len(which)), min(n_chunks, len(which)))
            found = list(pool.map(lambda c: _negative_posterior(points[c], which[c] % n), chunks))
            return np.concatenate([value for value, _ in found]), np.concatenate([slope for _, slope in found])

        def _negative_posterior(points: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            value, slope = negative_log_likelihood(points, inputs[which], losses[which])
            off = (points - mean) / scale
            return value + (off**2).sum(axis=1) / 2, slope + off / scale

        points, values = batched.minimize(objective, start, iterations=60, tolerance=1e-2)
        best = values.reshape(-1, n).argmin(axis=0)
        log_scales = points.reshape(-1, n, len(mean))[best, np.arange(n)]
        noise_B = _unpack(log_scales)[-1]
        covariance = _covariance(log_scales, inputs, inputs)
        np.einsum("brr->br", covariance)[...] += noise_B[:, None]
        inverse, _, _ = _inverse(covariance)
    return Processes(
        inputs, log_scales, inverse, np.einsum("brs,bs->br", inverse, losses), values.reshape(-1, n).min(axis=0)
    )


def negative_log_likelihood(log_scales: np.ndarray, inputs: np.ndarray, losses: np.ndarray) -> tuple:
    """Values [B], without the constant in 2 pi, and gradients [B, F + 3] by the logarithms of the scales.

    The covariance of rows x and x' is `matern * m(|x - x'| / length) + linear * x.x' + CONSTANT + noise` with the
    Matern-5/2 function m (Rasmussen and Williams, equation 5.9 for the gradient). A covariance that is not positive
    definite in float64 has an infinite value.
    """
    n, n_rows, n_features = inputs.shape
    length_BF, matern_B, linear_B, noise_B = _unpack(log_scales)
    scaled_BRF = inputs / length_BF[:, None]
    matern_BRR, slope_BRR = _matern(_square_distances(scaled_BRF, scaled_BRF))
    matern_BRR *= matern_B[:, None, None]
    covariance_BRR = _linear(linear_B, inputs, inputs)
    covariance_BRR += matern_BRR
    np.einsum("brr->br", covariance_BRR)[...] += noise_B[:, None]
    inverse_BRR, log_root_B, broken_B = _inverse(covariance_BRR)
    weights_BR = (inverse_BRR @ losses[:, :, None])[:, :, 0]
    value_B = (losses * weights_BR).sum(axis=1) / 2 + log_root_B

    outer_BRR = inverse_BRR  # becomes twice what the value changes with an entry of the covariance
    outer_BRR -= weights_BR[:, :, None] * weights_BR[:, None, :]
    gradient = np.empty_like(log_scales)
    gradient[:, -3] = np.einsum("brs,brs->b", outer_BRR, matern_BRR)
    gradient[:, -2] = linear_B * np.einsum("brf,brf->b", inputs, outer_BRR @ inputs)
    gradient[:, -1] = (noise_B - LEAST_NOISE) * np.einsum("brr->b", outer_BRR)
    outer_BRR *= slope_BRR
    with_sum_BRF = np.concatenate([scaled_BRF, np.ones((n, n_rows, 1))], axis=2)
    moved_BRF = outer_BRR @ with_sum_BRF
    gradient[:, :n_features] = (
        -4
        * matern_B[:, None]
        * (
            np.einsum("brf,br->bf", scaled_BRF**2, moved_BRF[:, :, -1])
            - np.einsum("brf,brf->bf", scaled_BRF, moved_BRF[:, :, :-1])
        )
    )
    return np.where(broken_B, np.inf, value_B), gradient / 2


class GaussianProcess(RegressorMixin, BaseEstimator):
    """Gaussian process regression with a length scale a feature and target, and a linear trend.

    Features and losses are standardised; hyper-parameters maximise their posterior density under a weak prior, which
    is the marginal likelihood where there are rows enough.

    Args:
      restarts: further searches for the hyper-parameters from random starts.
      seed: of these starts.
    """

    def __init__(self, restarts: int = 0, seed: int = 0):
        self.restarts = restarts
        self.seed = seed

    def work(self, rows: int, targets: int) -> float:
        """What a fit costs: entries of the covariance matrices that it goes over again and again."""
        return float((1 + self.restarts) * targets * rows**2)

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits `processes_`, one a target."""
        adopt(self, self.fit_many([(X, y)])[0])
        return self

    def fit_many(self, tables: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> list[Self]:
        """A fitted clone for each (X, y); tables of one shape, as the splits of a study have, are fitted in a batch."""
        prepared = [self._prepare(*check_fit(X, y)) for X, y in tables]
        for shape in {inputs.shape for _, inputs, _ in prepared}:
            batch = [one for one in prepared if one[1].shape == shape]
            processes = fit_processes(
                np.concatenate([inputs for _, inputs, _ in batch]),
                np.concatenate([targets for _, _, targets in batch]),
                self.restarts,
                self.seed,
            )
            for i, (one, _, _) in enumerate(batch):
                one.processes_ = processes[i * shape[0] : (i + 1) * shape[0]]
                one.correlation_ = shrunk_correlation(one.leave_one_out()[0])
        return [one for one, _, _ in prepared]

    def _prepare(self, design: np.ndarray, losses: np.ndarray) -> tuple[Self, np.ndarray, np.ndarray]:
        """A clone that knows its units, its inputs [J, R, F] and its targets [J, R]."""
        one = clone(self)
        one.design_shape_, one.n_targets_ = design.shape[1:], losses.shape[1]
        one.feature_mean_, one.feature_scale_ = standardisation(design)
        one.loss_mean_, one.loss_scale_ = standardisation(losses)
        return one, one._inputs(design), ((losses - one.loss_mean_) / one.loss_scale_).T

    def predict(self, X: npt.ArrayLike, return_std: bool = False) -> Any:
        """Losses [C, J], nats per token; with `return_std` also the standard deviation of a new run's."""
        check_is_fitted(self)
        inputs_JCF = self._inputs(check_predict(X, self.design_shape_))
        entries = inputs_JCF.shape[1] * self.processes_.weights.size
        blocks = np.array_split(inputs_JCF, max(1, -(-entries // CHUNK)), axis=1)
        with batched.one_blas_thread():
            mean = (
                np.hstack([self.processes_.predict(block) for block in blocks]).T * self.loss_scale_ + self.loss_mean_
            )
            if not return_std:
                return mean
            return mean, np.hstack([self.processes_.deviation(block) for block in blocks]).T * self.loss_scale_

    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray]:
        """What the observed losses exceed their predictions from the other rows by, and the deviations; [R, J] both.

        The hyper-parameters have seen all rows.
        """
        residual, deviation = self.processes_.leave_one_out()
        return residual.T * self.loss_scale_, deviation.T * self.loss_scale_

    def jax_predict(self) -> Any:
        """A pure JAX function from one design, [F] or [J, F], to its losses [J]: traceable and differentiable.

        It computes in JAX's precision of the moment; `jax.enable_x64` gives the same numbers as `predict`.
        """
        import jax.numpy as jnp

        check_is_fitted(self)
        length_JF, matern_J, linear_J, _ = _unpack(self.processes_.log_scales)
        inputs_JRF, weights_JR = self.processes_.inputs, self.processes_.weights

        def losses(design: Any) -> Any:
            x_JF = jnp.broadcast_to((design - self.feature_mean_) / self.feature_scale_, length_JF.shape)
            square_JR = jnp.sum(((x_JF[:, None] - inputs_JRF) / length_JF[:, None]) ** 2, axis=2)
            # On a row of the swarm the root has no gradient while the function has: it is zero.
            root_JR = jnp.sqrt(5 * jnp.where(square_JR > 0, square_JR, 1.0))
            matern_JR = jnp.where(square_JR > 0, (1 + root_JR + root_JR**2 / 3) * jnp.exp(-root_JR), 1.0)
            linear_JR = jnp.einsum("jf,jrf->jr", x_JF, inputs_JRF)
            covariance_JR = matern_J[:, None] * matern_JR + linear_J[:, None] * linear_JR + CONSTANT
            return jnp.sum(covariance_JR * weights_JR, axis=1) * self.loss_scale_ + self.loss_mean_

        return losses

    def _inputs(self, design: np.ndarray) -> np.ndarray:
        return by_target((design - self.feature_mean_) / self.feature_scale_, self.n_targets_)


def _unpack(log_scales: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    scales = np.exp(log_scales)
    return scales[:, :-3], scales[:, -3], scales[:, -2], scales[:, -1] + LEAST_NOISE


def _covariance(log_scales: np.ndarray, a_BCF: np.ndarray, b_BRF: np.ndarray) -> np.ndarray:
    """Covariances of noiseless losses, [B, C, R]."""
    length_BF, matern_B, linear_B, _ = _unpack(log_scales)
    matern_BCR, _ = _matern(_square_distances(a_BCF / length_BF[:, None], b_BRF / length_BF[:, None]))
    matern_BCR *= matern_B[:, None, None]
    matern_BCR += _linear(linear_B, a_BCF, b_BRF)
    return matern_BCR


def _linear(variance_B: np.ndarray, a_BCF: np.ndarray, b_BRF: np.ndarray) -> np.ndarray:
    """The linear part of covariances and that of the mean, [B, C, R], in one product."""
    ones_BC1, ones_BR1 = (np.full((*part.shape[:2], 1), np.sqrt(CONSTANT)) for part in (a_BCF, b_BRF))
    left_BCF = np.concatenate([variance_B[:, None, None] * a_BCF, ones_BC1], axis=2)
    return left_BCF @ np.concatenate([b_BRF, ones_BR1], axis=2).transpose(0, 2, 1)


def _square_distances(a_BCF: np.ndarray, b_BRF: np.ndarray) -> np.ndarray:
    """[B, C, R], in one product: |a|² · 1 - 2 a · b + 1 · |b|²."""
    squares_BC1, squares_BR1 = (np.einsum("brf,brf->br", part, part)[:, :, None] for part in (a_BCF, b_BRF))
    left_BCF = np.concatenate([-2 * a_BCF, squares_BC1, np.ones_like(squares_BC1)], axis=2)
    right_BRF = np.concatenate([b_BRF, np.ones_like(squares_BR1), squares_BR1], axis=2)
    squares_BCR = left_BCF @ right_BRF.transpose(0, 2, 1)
    return np.maximum(squares_BCR, 0, out=squares_BCR)


def _matern(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Matern-5/2 function of squared scaled distances, which it overwrites, and its derivative by them.

    Written in place: arrays that leave the cache cost more than the arithmetic.
    """
    root = np.sqrt(5 * squares)
    decay = np.exp(-root)
    root += 1
    root *= decay
    squares *= decay
    squares *= 5 / 3
    squares += root
    root *= -5 / 6
    return squares, root


def _inverse(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverses [B, R, R], half of the logarithms of the determinants [B], and which were not positive definite [B].

    The matrices are overwritten; those that are not positive definite get the identity.
    """
    broken_B = np.zeros(len(matrices), dtype=bool)
    log_root_B = np.empty(len(matrices))
    if matrices.shape[1] < FEW:
        factors, broken_B = _cholesky(matrices)
        log_root_B = np.log(np.einsum("brr->br", factors)).sum(axis=1)
        inverse = np.linalg.inv(factors)
        return inverse.transpose(0, 2, 1) @ inverse, log_root_B, broken_B
    from scipy.linalg.lapack import dpotrf, dpotri

    for b, matrix in enumerate(matrices):
        # The transpose is column-major, as LAPACK has it, so that it works where the matrix lies.
        broken_B[b] = dpotrf(matrix.T, lower=0, clean=1, overwrite_a=1)[1] != 0
        if broken_B[b]:
            matrix[...] = np.eye(len(matrix))
        log_root_B[b] = np.log(np.diagonal(matrix)).sum()
        dpotri(matrix.T, lower=0, overwrite_c=1)
        matrix += np.tril(matrix, -1).T
    return matrices, log_root_B, broken_B


def _cholesky(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower factors, and which matrices had none; those get the identity."""
    try:
        return np.linalg.cholesky(matrices), np.zeros(len(matrices), dtype=bool)
    except np.linalg.LinAlgError:
        if len(matrices) == 1:
            return np.eye(matrices.shape[1])[None], np.ones(1, dtype=bool)
        found = [_cholesky(one[None]) for one in matrices]
        return np.concatenate([factor for factor, _ in found]), np.concatenate([broken for _, broken in found])
