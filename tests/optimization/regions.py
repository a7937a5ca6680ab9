"""Regions of all kinds, for the tests of whatever works on them."""

import numpy as np

from mde.optimization.constraints import Bounds, Group
from mde.optimization.region import Region

NAMES = ("web", "code", "books", "wiki", "news")


def constrained(**bounds) -> Bounds:
    return Bounds(NAMES, **bounds)


UNIFORM = dict.fromkeys(NAMES, 0.2)
BOX = constrained(min={"web": 0.1}, max={"code": 0.2, "books": 0.5})
GROUPS = constrained(
    min={"wiki": 0.05},
    groups={"text": Group(("web", "books"), 0.3, 0.5), "other": Group(("books", "news", "wiki"), 0.2, 0.45)},
)
TIED = constrained(fixed={"news": 0.1}, groups={"half": Group(("web", "code"), 0.5, 0.5)})
BALL = constrained(min={"web": 0.3}, prior=UNIFORM, max_kl=0.2, groups={"text": Group(("books", "wiki"), 0.1, 0.3)})
POINT = constrained(fixed={"web": 0.2, "code": 0.3, "books": 0.1, "wiki": 0.2}, max={"news": 0.2})
OLD = {"web": 0.6, "code": 0.4, "wiki": 0.0}
FROZEN = constrained(
    max={"code": 0.3}, groups={"text": Group(("web", "books"), 0.2, 0.8)}, ratios={"old": OLD, "pair": {"news": 3}}
)
FROZEN_BALL = constrained(min={"books": 0.1}, ratios={"old": {"web": 2, "code": 1}}, prior=UNIFORM, max_kl=0.3)
EVERY = {
    "free": Bounds(NAMES), "box": BOX, "groups": GROUPS, "tied": TIED, "ball": BALL, "point": POINT,
    "frozen": FROZEN, "frozen ball": FROZEN_BALL,
}  # fmt: skip


def random_region(seed: int) -> Region:
    """Bounds, overlapping groups and frozen ones around a mixture that obeys them; a third of the sums are given."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 9))
    names = tuple(map(str, range(k)))
    inside = rng.dirichlet(np.full(k, 0.7))
    groups = {}
    for i in range(rng.integers(0, 4)):
        member = rng.random(k) < 0.5
        total, width = inside[member].sum(), rng.choice([0.0, 0.05, 0.3])
        if member.any():
            domains = tuple(np.array(names)[member])
            groups[str(i)] = Group(domains, min(max(total - width, 0), 1), min(total + width, 1))
    frozen: dict[str, dict[str, float]] = {"a": {}, "b": {}}
    for name, share, where in zip(names, inside, rng.integers(0, 4, k), strict=True):
        if where < 2:
            frozen["ab"[where]][name] = share
    return Bounds(
        names,
        {names[0]: inside[0] * rng.random()},
        {names[-1]: min(inside[-1] * 1.5, 1)},
        groups=groups,
        ratios={name: ratios for name, ratios in frozen.items() if ratios},
    ).region
