"""How often the interval of `mde scale` covers the true best mixture, in worlds whose optimum is known.

    python tests/scaling/coverage.py [draws]        the table of docs/methods/autoscale.md

In a world each domain lowers the objective by a power of its tokens, `B (N + O)^-γ`, with exponents from .1 to .7,
offsets from .03 to 3 base quantities of the smallest budget (none in `no offset`), and effects of .02 to .3 nats
between a third and three times the base quantity. `two exponents` has two such terms per domain, which no law of the
family is; in `transfer` 0 to 30% of every other domain's tokens count as a domain's own, so effects do not add up.
"""

import sys

import numpy as np
from scipy import optimize

from mde.scaling import draw_laws, measured_effects, not_known

FIRST = 1e6  # tokens of the smallest budget
BUDGETS = {"two": (1e6, 4e6), "three": (1e6, 2e6, 4e6)}


class World:
    """A truth; its loss and its best mixture at any budget."""

    def __init__(self, kind: str, k: int, seed: int):
        rng = np.random.default_rng(seed)
        self.k, unit = k, FIRST / k
        self._reach = np.eye(k)
        if kind == "transfer":
            self._reach = self._reach + rng.uniform(0, 0.3, (k, k)) * (1 - np.eye(k))
        self._terms = []
        for _ in range(2 if kind == "two exponents" else 1):
            exponent = rng.uniform(0.1, 0.7, k)
            offset = unit * np.exp(rng.uniform(np.log(0.03), np.log(3), k)) * (kind in ("offset", "two exponents"))
            effect = np.exp(rng.uniform(np.log(0.02), np.log(0.3), k))
            low, high = ((unit * f + offset) ** -exponent for f in (1 / 3, 3))
            self._terms.append((effect / (low - high), exponent, offset))

    def loss(self, tokens: np.ndarray) -> np.ndarray:
        """Of quantities [..., K]."""
        seen = np.asarray(tokens) @ self._reach.T
        return 3 + sum(np.sum(b * (seen + offset) ** -g, axis=-1) for b, g, offset in self._terms)

    def best(self, budget: float) -> np.ndarray:
        """The best mixture [K]; the loss is convex."""

        def slope(mixture: np.ndarray) -> np.ndarray:
            seen = self._reach @ mixture * budget
            return budget * sum(-g * b * (seen + offset) ** (-g - 1) @ self._reach for b, g, offset in self._terms)

        found = optimize.minimize(
            lambda mixture: self.loss(mixture * budget),
            np.full(self.k, 1 / self.k),
            jac=slope,
            bounds=[(1e-7, 1)] * self.k,
            constraints={"type": "eq", "fun": lambda m: m.sum() - 1, "jac": lambda m: np.ones(self.k)},
            method="SLSQP",
            options={"ftol": 1e-13, "maxiter": 500},
        )
        return found.x

    def measure(self, budget: float, noise: float, rng: np.random.Generator):
        """Effects at one budget: uniform base, factor 3, two seeds."""
        changed = [1 + np.eye(self.k) * (times - 1) for times in (1 / 3, 3)]
        tokens = np.repeat(budget / self.k * np.concatenate([np.ones((1, self.k)), *changed]), 2, axis=0)
        losses = self.loss(tokens) + rng.normal(0, noise, len(tokens))
        names = [f"domain-{i}" for i in range(self.k)]
        return measured_effects(names, list(map(str, range(len(tokens)))), tokens, losses[:, None])


def cover(kind: str, k: int, noise: float, budgets, target: float, worlds: int, draws: int = 200) -> dict:
    """Share of domains whose true weight at the target is in the 90% interval, and how many were left not known.

    `error` is the mean distance of the mean over all laws from the truth.
    """
    inside, width, error, unknown = [], [], [], 0
    for seed in range(worlds):
        world, rng = World(kind, k, seed), np.random.default_rng([seed, 1])
        measured = [world.measure(budget, noise, rng) for budget in budgets]
        deviation = np.sqrt(np.mean([each.deviation([1.0]) ** 2 for each in measured]))
        drawn = draw_laws(measured, [1.0], (deviation, 2 * k * len(budgets)), target, draws, seed)
        if not_known(measured, drawn, target):
            unknown += 1
            continue
        weights, truth = drawn.optima(target) / target, world.best(target)
        low, high = np.quantile(weights, [0.05, 0.95], axis=0)
        inside.append(np.mean((low - 1e-5 <= truth) & (truth <= high + 1e-5)))
        width.append(np.mean(high - low))
        error.append(np.abs(weights.mean(axis=0) - truth).mean())
    mean = lambda values: float(np.mean(values)) if values else np.nan  # noqa: E731
    return {"covered": mean(inside), "width": mean(width), "error": mean(error), "not known": unknown / worlds}


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    print("| world | domains | budgets | target ÷ largest | noise | covered | width | not known |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in ("no offset", "offset", "two exponents", "transfer"):
        for k, which, times in ((3, "two", 4), (8, "two", 4), (5, "three", 4)):
            for noise in (0.0001, 0.001, 0.01):
                budgets = BUDGETS[which]
                found = cover(kind, k, noise, budgets, times * budgets[-1], count, 100)
                print(
                    f"| {kind} | {k} | {which} | {times} | {noise:g} | {found['covered']:.0%} | "
                    f"{found['width']:.3f} | {found['not known']:.0%} |",
                    flush=True,
                )
