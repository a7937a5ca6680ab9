"""Laws: functions of the mixture with few parameters, fitted to all targets at once from many starts.

Each law says which design it takes. Losses may be in any unit: what is fitted to losses times a factor is the fit times
that factor, but for a power law, which has no coefficient of its own, and for a Huber loss.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import special
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted

from mde.errors import UserError
from mde.regression import batched
from mde.regression.designs import adopt, check_fit, check_predict
from mde.regression.robust import robust_spread

FLOORS = (0.01, 0.05, 0.2, 0.6, 2.0)  # starts: how far below the lowest loss the floor is, in ranges of the losses
HIGHEST = 3.0  # what a law says of one domain alone, above its floor, in ranges of the observed losses, at most
PULL = 0.01  # what one standard deviation of effect counts in a fit, in standard deviations of the losses
FIRST_STEPS, KEPT = 15, 2  # steps of a fit after which only the best starts go on
ENOUGH = 1e-10  # of the sum of squares: a step that brings less ends a fit
RIDGE = 1e-3  # of the linear fits that the search starts from


class MixingLaw(RegressorMixin, BaseEstimator):
    """The data mixing law, `loss = c + k * exp(t . λ)` with c and k positive (arXiv 2403.16952, equation 7).

    Weights sum to one, so k is told apart from t by letting t sum to zero. The design is the mixtures, [R, K]. The
    law is convex, so its largest value is at a corner of the simplex: there it is at most `HIGHEST` times the range of
    the observed losses above its floor, so that no prediction explodes. A weak pull of the exponents towards each
    other decides where the runs do not.

    Args:
      huber: residual, in the unit of the losses, beyond which the loss of the fit is linear. Infinity is least
        squares; 0.02 is how log-linear models `exp(c) + exp(t . λ)`, the same family, are fitted elsewhere.
    """

    def __init__(self, huber: float = np.inf):
        self.huber = huber

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits `floor_` [J] (c), `factor_` [J] (k) and `exponents_` [K, J] (t)."""
        adopt(self, self.fit_many([(X, y)])[0])
        return self

    def fit_many(self, tables: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> list[Self]:
        """A fitted clone for each (X, y); tables of one shape, as the splits of a study have, are fitted in a batch."""
        checked = [self._check(*check_fit(X, y)) for X, y in tables]
        fitted: dict[int, Self] = {}
        for shape in {(design.shape, losses.shape) for design, losses in checked}:
            which = [i for i, (design, losses) in enumerate(checked) if (design.shape, losses.shape) == shape]
            found = self._fit_batch(*(np.stack(part) for part in zip(*(checked[i] for i in which), strict=True)))
            fitted |= dict(zip(which, found, strict=True))
        return [fitted[i] for i in range(len(checked))]

    @staticmethod
    def _check(design: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The table, with mixtures of sum one: the factor has the unit of the losses and must not depend on the sum."""
        if design.ndim != 2:
            raise UserError(
                f"a mixing law takes mixtures (features 'lambda'), [R, K], not a design of shape {design.shape}"
            )
        return design + (1 - design.sum(axis=1, keepdims=True)) / design.shape[1], losses

    def _fit_batch(self, designs_TRK: np.ndarray, losses_TRJ: np.ndarray) -> list[Self]:
        """A fitted clone for each of T tables; their targets, T J in all, are B problems that are solved at once."""
        n_tables, n_targets, k = len(designs_TRK), losses_TRJ.shape[2], designs_TRK.shape[2]
        top_B = np.log(HIGHEST * np.maximum(np.ptp(losses_TRJ, axis=1), 1e-9)).ravel()
        pull_B = PULL * losses_TRJ.std(axis=1).ravel()
        centre_TKK = (np.eye(k) - 1 / k) * designs_TRK.std(axis=1)[:, None]

        def law(parameters: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Predictions of the runs, and after them the pulls on the exponents, which should be zero."""
            problem = which % len(top_B)
            design, centre = designs_TRK[problem // n_targets], centre_TKK[problem // n_targets]
            pull_B1 = pull_B[problem, None]
            corners = top_B[problem, None] - np.logaddexp(0, parameters[:, 1:])
            bend_BK = -special.expit(parameters[:, 1:])
            term_BR = np.exp((design @ corners[:, :, None])[:, :, 0])
            pulls = pull_B1 * (corners[:, None] @ centre)[:, 0]
            slopes = np.zeros((len(which), design.shape[1] + k, 1 + k))
            slopes[:, : design.shape[1], 0] = 1
            slopes[:, : design.shape[1], 1:] = term_BR[:, :, None] * design * bend_BK[:, None]
            slopes[:, design.shape[1] :, 1:] = pull_B1[:, :, None] * centre.transpose(0, 2, 1) * bend_BK[:, None]
            return np.hstack([parameters[:, :1] + term_BR, pulls]), slopes

        each = list(zip(designs_TRK, losses_TRJ, strict=True))
        observed = np.hstack([np.concatenate(losses_TRJ.transpose(0, 2, 1)), np.zeros((len(top_B), k))])
        starts = np.concatenate([self._start(X, y, part) for part in FLOORS for X, y in each])
        found = self._fitted(law, observed, _below(starts, top_B), np.inf)
        if np.isfinite(self.huber):
            # A run that diverged holds least squares fast; flat laws at the median do not see it.
            flat = np.concatenate([self._flat(X, y, part) for part in (1.0, 5.0) for X, y in each])
            found = self._fitted(law, observed, np.vstack([found, _below(flat, top_B)]), self.huber)
        exponents_BK = top_B[:, None] - np.logaddexp(0, found[:, 1:])
        return [
            self._fitted_clone(found[part, 0], exponents_BK[part], (k,))
            for part in np.array_split(np.arange(len(found)), n_tables)
        ]

    def _fitted_clone(self, floor_J: np.ndarray, exponents_JK: np.ndarray, shape: tuple[int, ...]) -> Self:
        one = clone(self)
        mean_J = exponents_JK.mean(axis=1)
        one.floor_, one.factor_ = floor_J, np.exp(mean_J)
        one.exponents_ = (exponents_JK - mean_J[:, None]).T
        one.design_shape_ = shape
        return one

    def predict(self, X: npt.ArrayLike) -> np.ndarray:
        """Losses [C, J], nats per token."""
        check_is_fitted(self)
        design = check_predict(X, self.design_shape_)
        return self.floor_ + self.factor_ * np.exp(design @ self.exponents_)

    def jax_predict(self) -> Any:
        """A pure JAX function from a mixture [K] to its losses [J]: traceable, differentiable, convex."""
        import jax.numpy as jnp

        check_is_fitted(self)
        return lambda mixture: self.floor_ + self.factor_ * jnp.exp(mixture @ self.exponents_)

    @staticmethod
    def _start(design: np.ndarray, losses: np.ndarray, part: float) -> np.ndarray:
        """[J, 1 + K]: with c known, the logarithm is linear; a small ridge where there are few runs."""
        floor_J = losses.min(axis=0) - part * np.maximum(np.ptp(losses, axis=0), 1e-9)
        logs = np.log(losses - floor_J)
        level_J = logs.mean(axis=0)
        k = design.shape[1]
        normal = design.T @ design + RIDGE * len(design) / k * np.eye(k)
        exponents_JK = np.linalg.solve(normal, design.T @ (logs - level_J)).T
        return np.hstack([floor_J[:, None], exponents_JK + level_J[:, None]])

    @staticmethod
    def _fitted(law: batched.Model, observed: np.ndarray, starts: np.ndarray, huber: float) -> np.ndarray:
        """The best of the starts, [B, 1 + K]: a few steps from each, then to the end from the `KEPT` best."""
        n = len(observed)
        tried, value = batched.least_squares(
            law, np.tile(observed, (len(starts) // n, 1)), starts, huber, FIRST_STEPS, ENOUGH
        )
        order = value.reshape(-1, n).argsort(axis=0, kind="stable")[:KEPT]
        kept = tried.reshape(-1, n, tried.shape[1])[order, np.arange(n)].reshape(-1, tried.shape[1])
        again = np.tile(observed, (len(order), 1))
        return _best(*batched.least_squares(law, again, kept, huber, tolerance=ENOUGH), n)

    @staticmethod
    def _flat(design: np.ndarray, losses: np.ndarray, part: float) -> np.ndarray:
        """[J, 1 + K]: the median everywhere, the floor so many robust deviations below it."""
        median_J1 = np.median(losses, axis=0)[:, None]
        depth_J1 = part * np.maximum(robust_spread(losses), 1e-9)[:, None]
        return np.hstack([median_J1 - depth_J1, np.repeat(np.log(depth_J1), design.shape[1], axis=1)])


class PowerLaw(RegressorMixin, BaseEstimator):
    """AutoScale's law of a domain's own data, `loss = (n0 + n)^-gamma + floor` (arXiv 2407.20177, equation 4).

    The design is one column per target, [R, J, 1]: how much of its own domain a run read, in any unit (weight, tokens).
    """

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits `offset_` (n0, in units of n), `exponent_` (gamma) and `floor_`, each [J]."""
        design, losses = check_fit(X, y)
        amount_JR = _own_amount(design, losses, (1,))[:, :, 0]
        # Starts on a grid of n0 and gamma; the floor follows.
        largest_J = np.maximum(amount_JR.max(axis=1), 1e-12)
        grid = [(offset, gamma) for offset in (0.01, 0.1, 1.0, 10.0) for gamma in (0.1, 0.5, 1.5)]
        n_targets = len(largest_J)
        starts = np.concatenate([self._start(offset * largest_J, gamma, amount_JR, losses) for offset, gamma in grid])

        def law(parameters: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with np.errstate(over="ignore", invalid="ignore"):
                offset, gamma, floor = np.exp(parameters[:, :1]), np.exp(parameters[:, 1:2]), parameters[:, 2:]
                total = offset + amount_JR[which % n_targets]
                power = total**-gamma
                slopes = [-gamma * power / total * offset, -np.log(total) * power * gamma, np.ones_like(power)]
            return power + floor, np.stack(slopes, axis=2)

        found, value = batched.least_squares(law, np.tile(losses.T, (len(grid), 1)), starts, iterations=1000)
        # Three runs can have two laws through them. Fits that are equally good to eight digits of the losses' variance
        # are told apart by their floor: the higher one promises less of data that nobody has yet.
        equal = 1e-16 * losses.shape[0] * losses.var(axis=0) + 1e-300
        tied = value.reshape(-1, n_targets) <= value.reshape(-1, n_targets).min(axis=0) + equal
        best = np.where(tied, found[:, 2].reshape(-1, n_targets), -np.inf).argmax(axis=0)
        offset, gamma, self.floor_ = found.reshape(len(grid), n_targets, 3)[best, np.arange(n_targets)].T
        self.offset_, self.exponent_ = np.exp(offset), np.exp(gamma)
        self.design_shape_ = design.shape[1:]
        return self

    def predict(self, X: npt.ArrayLike) -> np.ndarray:
        """Losses [C, J], nats per token."""
        check_is_fitted(self)
        design = check_predict(X, self.design_shape_)
        return (self.offset_ + design[:, :, 0]) ** -self.exponent_ + self.floor_

    @staticmethod
    def _start(offset_J: np.ndarray, gamma: float, amount_JR: np.ndarray, losses: np.ndarray) -> np.ndarray:
        floor_J = np.mean(losses.T - (offset_J[:, None] + amount_JR) ** -gamma, axis=1)
        return np.stack([np.log(offset_J), np.full(len(offset_J), np.log(gamma)), floor_J], axis=1)


class BiMix(RegressorMixin, BaseEstimator):
    """BiMix, `loss = A * r^-alpha * (B * s^-beta + C)` of a domain's own weight r and the amount of data s.

    Source: arXiv 2405.14908, equation 3. With one amount the bracket is a constant, and the law a power of the weight:
    the design is [R, J, 1], each target's own weight. With several it is [R, J, 2], weight and amount. A weight of zero
    has no loss under this law.
    """

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits `alpha_` [J], `level_` [J] (A * C), and with amounts `data_level_` (A * B) and `beta_` [J]."""
        design, losses = check_fit(X, y)
        own_JRF = _own_amount(design, losses, (1, 2))
        self._check_positive(design)
        if (losses <= 0).any():
            raise UserError(f"BiMix takes positive losses, not {losses.min():.4g}")
        log_JRF = np.log(own_JRF)
        unit_J1 = log_JRF[:, :, -1].mean(axis=1, keepdims=True)  # amounts are in units of their geometric mean
        amount_JR = log_JRF[:, :, 1] - unit_J1 if own_JRF.shape[2] == 2 else None
        n_targets = len(log_JRF)
        betas = (0.05, 0.2, 0.5, 1.0) if amount_JR is not None else (0.0,)
        starts = np.concatenate([self._start(log_JRF[:, :, 0], losses, beta) for beta in betas])

        def law(parameters: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            log_weight = log_JRF[which % n_targets, :, 0]
            with np.errstate(over="ignore", invalid="ignore"):
                weight = np.exp(parameters[:, :1] - parameters[:, 1:2] * log_weight)
                slopes = [weight, -log_weight * weight]
                if amount_JR is None:
                    return weight, np.stack(slopes, axis=2)
                log_amount, beta = amount_JR[which % n_targets], np.exp(parameters[:, 3:])
                data = np.exp(parameters[:, 2:3] - parameters[:, 1:2] * log_weight - beta * log_amount)
                slopes = [weight, -log_weight * (weight + data), data, -log_amount * beta * data]
            return weight + data, np.stack(slopes, axis=2)

        repeated = np.tile(losses.T, (len(betas), 1))
        best = _best(*batched.least_squares(law, repeated, starts, iterations=1000), n_targets)
        self.level_, self.alpha_ = np.exp(best[:, 0]), best[:, 1]
        if amount_JR is not None:
            self.beta_ = np.exp(best[:, 3])
            self.data_level_ = np.exp(best[:, 2] + self.beta_ * unit_J1[:, 0])
        self.design_shape_ = design.shape[1:]
        return self

    def predict(self, X: npt.ArrayLike) -> np.ndarray:
        """Losses [C, J], nats per token."""
        check_is_fitted(self)
        design = check_predict(X, self.design_shape_)
        self._check_positive(design)
        level = self.level_
        if design.shape[2] == 2:
            level = level + self.data_level_ * design[:, :, 1] ** -self.beta_
        return level * design[:, :, 0] ** -self.alpha_

    @staticmethod
    def _start(log_weight_JR: np.ndarray, losses: np.ndarray, beta: float) -> np.ndarray:
        """A straight line through the logarithms; with amounts, half of its level is theirs."""
        log_loss_JR = np.log(losses.T)
        centred = log_weight_JR - log_weight_JR.mean(axis=1, keepdims=True)
        squares = (centred**2).sum(axis=1)
        alpha_J = -(centred * log_loss_JR).sum(axis=1) / np.where(squares > 0, squares, 1)
        level_J = (log_loss_JR + alpha_J[:, None] * log_weight_JR).mean(axis=1)
        if not beta:
            return np.stack([level_J, alpha_J], axis=1)
        half = level_J - np.log(2)
        return np.stack([half, alpha_J, half, np.full(len(half), np.log(beta))], axis=1)

    @staticmethod
    def _check_positive(design: np.ndarray) -> None:
        if (design <= 0).any():
            row = int(np.argwhere(design <= 0)[0][0])
            raise UserError(f"BiMix has no loss where a weight is zero: row {row} has {design.min():.4g}")


def _own_amount(design: np.ndarray, losses: np.ndarray, columns: tuple[int, ...]) -> np.ndarray:
    """[J, R, F] of a design that must have so many columns a target."""
    if design.ndim != 3 or design.shape[2] not in columns:
        wanted = " or ".join(map(str, columns))
        raise UserError(
            f"this law takes each target's own weight or amount (features 'own'), [R, J, {wanted}], not {design.shape}"
        )
    return design.transpose(1, 0, 2)


def _below(starts: np.ndarray, top_J: np.ndarray) -> np.ndarray:
    """Parameters whose corners, [B, 1 + K], lie below the highest allowed: softplus distances from there."""
    top_B1 = np.tile(top_J, len(starts) // len(top_J))[:, None]
    return np.hstack([starts[:, :1], np.log(np.expm1(np.clip(top_B1 - starts[:, 1:], 0.05, 300)))])


def _best(found: np.ndarray, value: np.ndarray, n_targets: int) -> np.ndarray:
    """The parameters of lowest loss over the starts, [J, P]."""
    best = value.reshape(-1, n_targets).argmin(axis=0)
    return found.reshape(len(value) // n_targets, n_targets, -1)[best, np.arange(n_targets)]
