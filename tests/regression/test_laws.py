import jax
import numpy as np
import pytest

from mde.errors import UserError
from mde.regression import laws
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


def known_laws(seed=0):
    """Three laws that stay below three ranges of the losses above their floors: mixtures, losses and parameters."""
    rng = np.random.default_rng(seed)
    floor, factor, exponents = np.array([1.0, -2.0, 3.0]), np.array([0.5, 1.0, 2.0]), rng.uniform(-2, 2, (5, 3))
    exponents -= exponents.mean(axis=0)
    mixtures = np.vstack([np.eye(5), rng.dirichlet(np.ones(5), 30)])
    return mixtures, floor + factor * np.exp(mixtures @ exponents), (floor, factor, exponents)


@pytest.mark.parametrize("huber", [np.inf, 0.02])
def test_mixing_law_recovers_its_parameters(huber, monkeypatch):
    monkeypatch.setattr(laws, "PULL", 0.0)  # nothing but the runs decides
    mixtures, losses, (floor, factor, exponents) = known_laws()
    law = MixingLaw(huber).fit(mixtures, losses)
    np.testing.assert_allclose(law.floor_, floor, atol=1e-6)
    np.testing.assert_allclose(law.factor_, factor, rtol=1e-6)
    np.testing.assert_allclose(law.exponents_, exponents, atol=1e-6)
    np.testing.assert_allclose(law.predict(mixtures), losses, rtol=1e-8)
    with jax.enable_x64():
        found = np.asarray(jax.jit(jax.vmap(law.jax_predict()))(mixtures))
    np.testing.assert_allclose(found, law.predict(mixtures), rtol=1e-12)


def test_the_pull_of_the_exponents_hardly_moves_what_the_runs_decide():
    mixtures, losses, (floor, _, _) = known_laws()
    law = MixingLaw().fit(mixtures, losses)
    np.testing.assert_allclose(law.floor_, floor, atol=0.01)
    assert (abs(law.predict(mixtures) - losses) < 2e-3 * np.ptp(losses, axis=0)).all()


@pytest.mark.parametrize("runs", [4, 12, 40])
@pytest.mark.parametrize("diverged", [0.0, 5.0, 1000.0])
def test_no_corner_explodes_even_when_a_run_diverged(runs, diverged):
    """The steepest law that the runs allow, on mixtures that stay far from the corners."""
    rng = np.random.default_rng(runs)
    mixtures = rng.dirichlet(np.full(5, 20), runs)
    losses = 2 + np.exp(mixtures @ rng.normal(size=(5, 3)) * 5)
    losses[0] += diverged
    law = MixingLaw().fit(mixtures, losses)
    inside = rng.dirichlet(np.full(5, 0.3), 500)
    highest = law.floor_ + laws.HIGHEST * np.ptp(losses, axis=0)
    for points in (np.eye(5), inside, mixtures):
        assert (law.predict(points) <= highest + 1e-9 * abs(highest)).all()
        assert (law.predict(points) >= law.floor_).all()


def test_losses_below_zero_and_accuracies_are_fitted_as_well():
    mixtures, losses, _ = known_laws()
    accuracy = 1 / (1 + np.exp(losses - losses.mean(axis=0)))
    for targets, part in ((accuracy, 0.2), (-losses, 0.2)):  # both bend down, and a law bends up
        found = MixingLaw().fit(mixtures[:25], targets[:25]).predict(mixtures[25:])
        assert (np.mean((found - targets[25:]) ** 2, axis=0) < part * targets.var(axis=0)).all()


@pytest.mark.parametrize(("factor", "shift"), [(1.0, -50.0), (1e-4, 0.0), (1e4, 3.0)])
def test_a_mixing_law_does_not_depend_on_the_unit_of_the_losses(factor, shift):
    mixtures, losses, _ = known_laws()
    losses = losses + 0.01 * np.random.default_rng(1).normal(size=losses.shape)
    found = MixingLaw().fit(mixtures, factor * losses + shift).predict(mixtures)
    expected = MixingLaw().fit(mixtures, losses).predict(mixtures)
    np.testing.assert_allclose((found - shift) / factor, expected, atol=1e-5)
    clipped = np.minimum(mixtures, 0.6)  # rows that do not sum to one, as a blend may have
    found = MixingLaw().fit(clipped, factor * losses + shift).predict(clipped)
    expected = MixingLaw().fit(clipped, losses).predict(clipped)
    np.testing.assert_allclose((found - shift) / factor, expected, atol=1e-5)


def test_huber_loss_keeps_the_law_when_a_run_diverged():
    losses = 2 + np.exp(MIXTURES @ RNG.normal(size=(5, 1)))
    broken = losses.copy()
    broken[MIXTURES.max(axis=1).argmin()] += 5  # in the middle, where no law can bend to it
    errors = [np.abs(MixingLaw(h).fit(MIXTURES, broken).predict(MIXTURES) - losses).max() for h in (0.02, np.inf)]
    assert errors[0] < 0.05 < errors[1]


def test_mixing_law_stands_fewer_runs_than_parameters():
    mixtures, losses, _ = known_laws()
    law = MixingLaw().fit(mixtures[-4:], losses[-4:])
    assert np.isfinite(law.predict(mixtures)).all()
    assert (np.mean((law.predict(mixtures[-4:]) - losses[-4:]) ** 2, axis=0) < 0.1 * losses[-4:].var(axis=0)).all()


def test_equal_losses_have_a_flat_law():
    law = MixingLaw().fit(MIXTURES, np.full((40, 2), -7.0))
    np.testing.assert_allclose(law.predict(np.eye(5)), -7, atol=1e-6)


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
    with pytest.raises(UserError, match="BiMix takes positive losses, not -1"):
        BiMix().fit(MIXTURES[:, :, None], losses - 3)
    with pytest.raises(UserError, match="own weight or amount"):
        PowerLaw().fit(MIXTURES, losses)
    zero = MIXTURES.copy()
    zero[7, 2] = 0
    with pytest.raises(UserError, match="a weight is zero: row 7"):
        BiMix().fit(zero[:, :, None], losses)
