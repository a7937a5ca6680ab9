"""Simulated swarms whose truth is known everywhere, of the kinds on which regressors have failed.

`SWARMS` makes each by name, from a seed: `SWARMS["law-5x24"](seed=3)`. The seed decides the truth, the prior of the
design, the proxy runs and their noise. The makers below take the sizes. Losses are in nats per token, between 2 and 6.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

TRAINING = 1_000_000  # the seed of the proxy runs and their noise: not one that anyone asks for
Truth = Callable[[np.ndarray], np.ndarray]  # mixtures [C, K] -> losses without noise [C, J]
Draws = Callable[[int, np.random.Generator], np.ndarray]  # n, generator -> mixtures [n, K]
Deviation = Callable[[np.ndarray], np.ndarray]  # mixtures [C, K] -> standard deviation of a run's losses [C, J]


@dataclass(frozen=True)
class Swarm:
    """Proxy runs with their losses, and what no real swarm tells.

    Attributes:
      name: of its kind and sizes.
      mixtures: of the proxy runs, [R, K].
      losses: of the proxy runs, [R, J]: truth plus noise.
      truth: losses without noise, [C, J], of any mixtures [C, K].
      draw: n further mixtures of the same design, [n, K], from a seed.
      noise: of a new run of each mixture, [C, J], from a seed.
    """

    name: str
    mixtures: np.ndarray
    losses: np.ndarray
    truth: Truth
    draw: Callable[[int, int], np.ndarray]
    noise: Callable[[np.ndarray, int], np.ndarray]

    def runs(self, mixtures: np.ndarray, seed: int) -> np.ndarray:
        """Losses of new runs of these mixtures, [C, J]."""
        return self.truth(mixtures) + self.noise(mixtures, seed)


def law(k: int, n: int, j: int = 6, seed: int = 0, noise: float = 0.01, tails: float = np.inf) -> Swarm:
    """Each loss is a mixing law, floor + factor * exp(-λ @ pulls): a target's own domain pulls most.

    Noise is normal, or has Student's t distribution with `tails` degrees of freedom.
    """
    rng = np.random.default_rng([seed, 0])
    return _swarm(f"law-{k}x{n}", _mixing_law(k, j, rng), _dirichlet(k, rng), _constant(noise, j), n, seed, tails)


def power(k: int, n: int, j: int = 6, seed: int = 0, noise: float = 0.01) -> Swarm:
    """Each loss is a power law of its own domain's weight, with an offset, plus small linear effects of the others."""
    rng = np.random.default_rng([seed, 0])
    own = _own(k, j, rng)
    floor, factor, exponent = rng.uniform(2.1, 2.6, j), rng.uniform(0.3, 0.65, j), rng.uniform(0.1, 0.4, j)
    offset, cross = rng.uniform(0.02, 0.05, j), rng.uniform(-0.1, 0.1, (k, j))

    def truth(points: np.ndarray) -> np.ndarray:
        return floor + factor * (points[:, own] + offset) ** -exponent + points @ cross

    return _swarm(f"power-{k}x{n}", truth, _dirichlet(k, rng), _constant(noise, j), n, seed)


def transfer(k: int, n: int, j: int = 6, seed: int = 0, noise: float = 0.002) -> Swarm:
    """Each loss is a power law of the useful data: its own domain's weight plus parts of the others'.

    No regressor holds it exactly, as in real swarms that were trained with care.
    """
    rng = np.random.default_rng([seed, 0])
    useful = rng.uniform(0, 0.3, (k, j)) * (rng.random((k, j)) < 0.5)
    useful[_own(k, j, rng), np.arange(j)] = 1
    floor, factor, exponent = rng.uniform(1.8, 2.2, j), rng.uniform(0.6, 1.2, j), rng.uniform(0.2, 0.5, j)
    offset = rng.uniform(0.03, 0.1, j)

    def truth(points: np.ndarray) -> np.ndarray:
        return floor + factor * (points @ useful + offset) ** -exponent

    return _swarm(f"transfer-{k}x{n}", truth, _dirichlet(k, rng), _constant(noise, j), n, seed)


def heteroscedastic(k: int, n: int, j: int = 6, seed: int = 0, noise: float = 0.01) -> Swarm:
    """Mixing laws; noise is 25 times larger on one domain alone than at uniform; an eighth of the runs lie near one."""
    rng = np.random.default_rng([seed, 0])
    truth, middle = _mixing_law(k, j, rng), _dirichlet(k, rng)

    def draw(count: int, rng: np.random.Generator) -> np.ndarray:
        points = middle(count, rng)
        near = rng.random((count, 1)) < 1 / 8
        return np.where(near, 0.1 * points + 0.9 * np.eye(k)[rng.integers(k, size=count)], points)

    def deviation(points: np.ndarray) -> np.ndarray:
        closeness = (points.max(axis=1, keepdims=True) - 1 / k) / (1 - 1 / k)
        return noise * (1 + 24 * closeness**4) * np.ones(j)

    return _swarm(f"heteroscedastic-{k}x{n}", truth, draw, deviation, n, seed)


def sparse(n: int = 127, k: int = 24, j: int = 110, seed: int = 0) -> Swarm:
    """Weights are multiples of .1, 86% are zero; targets with strong and weak responses and noise of any size."""
    rng = np.random.default_rng([seed, 0])
    prior = rng.dirichlet(np.full(k, 4.0))
    truth = _shared_factors(k, rng.uniform(0.2, 1.5, j), rng)

    def draw(count: int, rng: np.random.Generator) -> np.ndarray:
        points = np.zeros((count, k))
        for row, domains in zip(points, rng.choice([2, 3, 4, 5], size=count, p=[0.24, 0.34, 0.24, 0.18]), strict=True):
            chosen = rng.choice(k, size=domains, replace=False, p=prior)
            row[chosen] = 1 + rng.multinomial(10 - domains, rng.dirichlet(np.ones(domains)))
        return points / 10

    return _swarm(f"sparse-{k}x{n}", truth, draw, _constant(_any_size(0.005, 0.3, j, rng), j), n, seed)


def virtual(n: int = 64, k: int = 22, j: int = 110, seed: int = 0) -> Swarm:
    """Domain 0 has no weight in any run; the last, a frozen mixture of earlier domains, has .05 to .995."""
    rng = np.random.default_rng([seed, 0])
    truth = _shared_factors(k, _any_size(0.03, 0.6, j, rng), rng)
    rest = _dirichlet(k - 2, rng, spread=2.0)

    def draw(count: int, rng: np.random.Generator) -> np.ndarray:
        frozen = 0.05 + 0.945 * rng.beta(3.0, 1.2, (count, 1))
        points = np.hstack([np.zeros((count, 1)), (1 - frozen) * rest(count, rng), frozen])
        return points / points.sum(axis=1, keepdims=True)

    return _swarm(f"virtual-{k}x{n}", truth, draw, _constant(_any_size(0.01, 0.1, j, rng), j), n, seed)


def wide(n: int = 512, k: int = 64, j: int = 110, seed: int = 0) -> Swarm:
    """Many domains, all small in all runs, and many targets."""
    rng = np.random.default_rng([seed, 0])
    truth = _shared_factors(k, rng.uniform(0.2, 1.5, j), rng)
    return _swarm(f"wide-{k}x{n}", truth, _dirichlet(k, rng), _constant(_any_size(0.005, 0.1, j, rng), j), n, seed)


def accuracies(n: int = 128, k: int = 19, j: int = 17, seed: int = 0) -> Swarm:
    """Error rates between 0 and 1, lower is better; most respond to the mixture by less than a run's noise."""
    rng = np.random.default_rng([seed, 0])
    response = np.where(np.arange(j) < j // 4, 0.6, _any_size(0.03, 0.2, j, rng))
    base, shared = rng.uniform(0.3, 0.7, j), _shared_factors(k, np.ones(j), rng)
    centre = shared(np.full((1, k), 1 / k))

    def truth(points: np.ndarray) -> np.ndarray:
        return np.clip(base + response * (shared(points) - centre), 0.02, 0.98)

    return _swarm(f"accuracies-{k}x{n}", truth, _dirichlet(k, rng), _constant(rng.uniform(0.01, 0.02, j), j), n, seed)


def pure_noise(k: int = 5, n: int = 40, j: int = 6, seed: int = 0, noise: float = 0.01) -> Swarm:
    """No mixture is better than another."""
    rng = np.random.default_rng([seed, 0])
    level = rng.uniform(2.5, 5.5, j)
    truth = lambda points: np.tile(level, (len(points), 1))  # noqa: E731
    return _swarm(f"noise-{k}x{n}", truth, _dirichlet(k, rng), _constant(noise, j), n, seed)


def replicates(k: int = 5, n: int = 10, j: int = 6, seed: int = 0, seeds: int = 4, noise: float = 0.01) -> Swarm:
    """n mixtures, each trained with several seeds, one after another."""
    swarm = law(k, n, j, seed, noise)
    mixtures = np.repeat(swarm.mixtures, seeds, axis=0)
    name = f"replicates-{k}x{n}x{seeds}"
    return replace(swarm, name=name, mixtures=mixtures, losses=swarm.runs(mixtures, TRAINING))


def fitted(name: str, truth: Truth, mixtures: np.ndarray, n: int = 40, seed: int = 0, noise: float = 0.01) -> Swarm:
    """Runs of real mixtures [M, K], at random, whose truth is a regressor that was fitted on real losses."""

    def draw(count: int, rng: np.random.Generator) -> np.ndarray:
        return mixtures[rng.choice(len(mixtures), size=count, replace=count > len(mixtures))]

    return _swarm(name, truth, draw, _constant(noise, truth(mixtures[:1]).shape[1]), n, seed)


def thinned(swarm: Swarm, most: int) -> Swarm:
    """The same with at most so many of its targets, evenly spaced."""
    targets = np.unique(np.linspace(0, swarm.losses.shape[1] - 1, most).astype(int))
    return replace(
        swarm,
        losses=swarm.losses[:, targets],
        truth=lambda points: swarm.truth(points)[:, targets],
        noise=lambda points, seed: swarm.noise(points, seed)[:, targets],
    )


def diverged(swarm: Swarm, nats: float, row: int, target: int | None = None) -> Swarm:
    """The same with so much added to one loss of a run, or to all of them."""
    losses = swarm.losses.copy()
    losses[row, slice(None) if target is None else target] += nats
    where = f"run {row}" if target is None else f"run {row}, target {target}"
    return replace(swarm, name=f"{swarm.name}, {nats:+g} nats in {where}", losses=losses)


SIZES = ((2, 8), (5, 24), (8, 32), (17, 64), (24, 128), (64, 512))  # domains, proxy runs
_makers: dict[str, Callable[..., Swarm]] = {"law": law, "power": power, "heteroscedastic": heteroscedastic}
SWARMS: dict[str, Callable[..., Swarm]] = {
    **{f"{name}-{k}x{n}": functools.partial(make, k, n) for name, make in _makers.items() for k, n in SIZES},
    "clean-7x60": functools.partial(transfer, 7, 60, 7),
    "clean-5x26": functools.partial(transfer, 5, 26, 5),
    "replicates": replicates,
    "heavy-tailed": functools.partial(law, 5, 40, tails=2.0),
    "noise": pure_noise,
    "weak": functools.partial(law, 5, 40, noise=0.3),
    "sparse": sparse,
    "virtual": virtual,
    "accuracies": accuracies,
    "wide": wide,
}


def _swarm(
    name: str, truth: Truth, draw: Draws, deviation: Deviation, n: int, seed: int, tails: float = np.inf
) -> Swarm:
    def noise(points: np.ndarray, noise_seed: int) -> np.ndarray:
        sigma, rng = deviation(points), np.random.default_rng([seed, 1, noise_seed])
        return sigma * (rng.normal(size=sigma.shape) if tails == np.inf else rng.standard_t(tails, size=sigma.shape))

    def drawn(count: int, draw_seed: int) -> np.ndarray:
        return draw(count, np.random.default_rng([seed, 2, draw_seed]))

    mixtures = drawn(n, TRAINING)
    return Swarm(name, mixtures, truth(mixtures) + noise(mixtures, TRAINING), truth, drawn, noise)


def _dirichlet(k: int, rng: np.random.Generator, spread: float = 1.0) -> Draws:
    """Dirichlet around an uneven prior; some runs stay near it and some hold a few domains only."""
    prior = rng.dirichlet(np.full(k, 3.0 / spread))

    def draw(count: int, rng: np.random.Generator) -> np.ndarray:
        concentration = k * np.exp(rng.uniform(np.log(0.2), np.log(2.0), (count, 1)))
        amounts = rng.gamma(np.maximum(concentration * prior, 0.02)) + 1e-12
        return amounts / amounts.sum(axis=1, keepdims=True)

    return draw


def _own(k: int, j: int, rng: np.random.Generator) -> np.ndarray:
    """The domain of each target, [J]."""
    return np.concatenate([rng.permutation(k) for _ in range(-(-j // k))])[:j]


def _mixing_law(k: int, j: int, rng: np.random.Generator) -> Truth:
    pulls = rng.uniform(-0.3, 0.6, (k, j))
    pulls[_own(k, j, rng), np.arange(j)] = rng.uniform(1.5, 3.5, j)
    floor, factor = rng.uniform(2.0, 2.6, j), rng.uniform(0.8, 2.2, j)
    return lambda points: floor + factor * np.exp(-points @ pulls)


def _shared_factors(k: int, response: np.ndarray, rng: np.random.Generator, factors: int = 6) -> Truth:
    """Targets of a few shared mixing laws, whose responses to the mixture are about `response` [J].

    Each law has three domains that pull strongly.
    """
    pulls = rng.uniform(-0.3, 0.6, (k, factors))
    for column in pulls.T:
        column[rng.choice(k, size=min(3, k), replace=False)] = rng.uniform(1.5, 3.5, min(3, k))
    loadings, floor = rng.dirichlet(np.full(factors, 0.5), len(response)).T, rng.uniform(2.0, 3.5, len(response))
    return lambda points: floor + response * (np.exp(-points @ pulls) @ loadings)


def _constant(sigma: float | np.ndarray, j: int) -> Deviation:
    return lambda points: np.ones((len(points), 1)) * np.broadcast_to(sigma, (j,))


def _any_size(low: float, high: float, j: int, rng: np.random.Generator) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), j))
