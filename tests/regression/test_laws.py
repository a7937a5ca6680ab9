import jax
import numpy as np
import pytest

from mde.errors import UserError
from mde.regression.laws import BiMix, MixingLaw, PowerLaw

RNG = np.random.default_rng(0)
MIXTURES = RNG.dirichlet(np.ones(5), 40)
# DDO (AutoScale, arXiv 2407.20177), GPT-2 Large: perplexities with a domain's data at 1/5, 1 and 3 times the base's,
# and the published fits of (x + a)^-b + c to their ratios to the base's.
BASE = 28.11373645
REDUCED = [30.11152249, 28.37687875, 29.85955983, 29.90195668, 30.37704005, 29.23766591, 28.92552215]
TRIPLED = [25.78619752, 27.68033216, 26.25833879, 26.47376351, 25.49797272, 27.01485416, 27.24200395]
A = [2.6659, 6.6162, 2.6736, 2.4631, 2.5184, 2.8900, 3.3192]
B = [1.2492, 1.4360, 1.5363, 1.8287, 1.1859, 1.9536, 1.9267]
C = [0.8027, 0.9458, 0.8645, 0.8969, 0.7750, 0.9296, 0.9403]


@pytest.mark.parametrize("huber", [np.inf, 0.02])
def test_mixing_law_recovers_its_parameters(huber):
    floor, exponents = np.array([1.0, 2.0, 3.0]), RNG.normal(size=(5, 3))
    exponents -= exponents.mean(axis=0)
    factor = np.array([0.5, 1.0, 2.0])
    losses = floor + factor * np.exp(MIXTURES @ exponents)
    law = MixingLaw(huber).fit(MIXTURES, losses)
    np.testing.assert_allclose(law.floor_, floor, rtol=1e-8)
    np.testing.assert_allclose(law.factor_, factor, rtol=1e-8)
    np.testing.assert_allclose(law.exponents_, exponents, atol=1e-8)
    np.testing.assert_allclose(law.predict(MIXTURES), losses, rtol=1e-10)
    with jax.enable_x64():
        found = np.asarray(jax.jit(jax.vmap(law.jax_predict()))(MIXTURES))
    np.testing.assert_allclose(found, losses, rtol=1e-10)


def test_huber_loss_keeps_the_law_when_a_run_diverged():
    losses = 2 + np.exp(MIXTURES @ RNG.normal(size=(5, 1)))
    broken = losses.copy()
    broken[MIXTURES.max(axis=1).argmin()] += 5  # in the middle, where no law can bend to it
    errors = [np.abs(MixingLaw(h).fit(MIXTURES, broken).predict(MIXTURES) - losses).max() for h in (0.02, np.inf)]
    assert errors[0] < 0.05 < errors[1]


def test_mixing_law_stands_fewer_runs_than_parameters():
    losses = 2 + np.exp(MIXTURES @ RNG.normal(size=(5, 2)))
    law = MixingLaw().fit(MIXTURES[:4], losses[:4])
    np.testing.assert_allclose(law.predict(MIXTURES[:4]), losses[:4], rtol=1e-6)
    assert np.isfinite(law.predict(MIXTURES)).all()


@pytest.mark.parametrize("rows", [30, 60])
def test_left_out_groups_are_refits_without_them(rows):
    rng = np.random.default_rng(rows)
    mixtures = rng.dirichlet(np.ones(4), rows)
    losses = 2 + np.exp(-mixtures @ rng.uniform(0, 2, (4, 3))) + 0.003 * rng.normal(size=(rows, 3))
    groups = [np.arange(start, rows, 5) for start in range(5)]
    refitted = np.empty_like(losses)
    for group in groups:
        others = np.setdiff1d(np.arange(rows), group)
        law = MixingLaw().fit(mixtures[others], losses[others])
        refitted[group] = losses[group] - law.predict(mixtures[group])
    fitted = MixingLaw().fit(mixtures, losses)
    # The law bends a little where its tangent does not: two fifths of the noise at most, without a fifth of the rows.
    np.testing.assert_allclose(fitted.left_out(groups), refitted, atol=0.4 * 0.003)
    alone, deviation = fitted.leave_one_out()
    np.testing.assert_array_equal(alone, fitted.left_out([np.array([i]) for i in range(rows)]))
    assert np.isnan(deviation).all()


def test_a_law_through_its_few_rows_has_left_out_errors_all_the_same():
    mixtures = np.random.default_rng(0).dirichlet(np.ones(6), 5)
    fitted = MixingLaw().fit(mixtures, 2 + np.exp(-mixtures @ np.ones((6, 2))))
    assert np.isfinite(fitted.leave_one_out()[0]).all()


def test_power_law_recovers_its_parameters():
    amount = RNG.uniform(0, 5, (30, 3))
    offset, gamma, floor = np.array([0.5, 1.0, 3.0]), np.array([0.3, 0.8, 1.5]), np.array([1.0, 2.0, 0.5])
    losses = (offset + amount) ** -gamma + floor
    law = PowerLaw().fit(amount[:, :, None], losses)
    np.testing.assert_allclose(law.offset_, offset, rtol=1e-5)
    np.testing.assert_allclose(law.exponent_, gamma, rtol=1e-5)
    np.testing.assert_allclose(law.floor_, floor, rtol=1e-5)


def test_power_law_is_ddos_published_fit():
    amounts = np.repeat(np.array([0.2, 1, 3])[:, None, None], 7, axis=1)
    ratios = np.array([REDUCED, [BASE] * 7, TRIPLED]) / BASE
    law = PowerLaw().fit(amounts, ratios)
    # Published to four decimals.
    np.testing.assert_allclose(law.offset_, A, atol=5.1e-5)
    np.testing.assert_allclose(law.exponent_, B, atol=5.1e-5)
    np.testing.assert_allclose(law.floor_, C, atol=5.1e-5)
    np.testing.assert_allclose(law.predict(amounts), ratios, rtol=1e-12)


def test_bimix_recovers_its_parameters():
    alpha = np.array([0.05, 0.1, 0.2, 0.15, 0.3])
    share = MIXTURES + 1e-3
    law = BiMix().fit(share[:, :, None], 1.5 * share**-alpha)
    np.testing.assert_allclose(law.alpha_, alpha, rtol=1e-8)
    np.testing.assert_allclose(law.level_, 1.5, rtol=1e-8)


def test_bimix_with_amounts_recovers_its_parameters():
    alpha, tokens = np.array([0.05, 0.1, 0.2, 0.15, 0.3]), RNG.uniform(1e9, 1e10, (40, 1))
    share = MIXTURES + 1e-3
    losses = (200 * tokens**-0.3 + 1.5) * share**-alpha
    design = np.stack([share, np.repeat(tokens, 5, axis=1)], axis=2)
    law = BiMix().fit(design, losses)
    np.testing.assert_allclose(law.alpha_, alpha, rtol=1e-5)
    np.testing.assert_allclose(law.beta_, 0.3, rtol=1e-5)
    np.testing.assert_allclose(law.level_, 1.5, rtol=1e-5)
    np.testing.assert_allclose(law.data_level_, 200, rtol=1e-4)
    np.testing.assert_allclose(law.predict(design), losses, rtol=1e-8)


def test_laws_refuse_what_they_cannot_describe():
    losses = np.full((40, 5), 2.0)
    with pytest.raises(UserError, match="takes mixtures"):
        MixingLaw().fit(MIXTURES[:, :, None], losses)
    with pytest.raises(UserError, match="positive losses, not -1"):
        MixingLaw().fit(MIXTURES, losses - 3)
    with pytest.raises(UserError, match="own share or amount"):
        PowerLaw().fit(MIXTURES, losses)
    zero = MIXTURES.copy()
    zero[7, 2] = 0
    with pytest.raises(UserError, match="a share is zero: row 7"):
        BiMix().fit(zero[:, :, None], losses)
