"""What a mixture must obey, by the names of domains.

`Constraints` is what users give, on the command line, in gin and in Python. `Constraints.on` checks it against the
domains, as `Bounds`, whose `region` holds the numbers that searches work with.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from mde.errors import UserError, unknown
from mde.optimization import simplex
from mde.optimization.region import Region
from mde.optimization.simple_mixtures import simple_mixtures

FIXED_TOLERANCE = 1e-6  # fixed weights may miss 1 by this much, as mixtures in files may
SUM_TOLERANCE = 1e-9  # weights typed by hand may miss their sum by rounding
BINDS = 1e-6  # a weight nearer than this to its bound is at it
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """Domains whose weights are bounded together.

    Attributes:
      domains: their names.
      min: sum of their weights.
      max: sum of their weights.
    """

    domains: Sequence[str]
    min: float = 0.0
    max: float = 1.0


@dataclass(frozen=True)
class Constraints:
    """What a mixture must obey. Everything is optional; what is left out is free.

    Attributes:
      min: min weights, by training domain.
      max: max weights.
      fixed: weights that are given.
      groups: named groups of domains, to bound together.
      group_bounds: min and max sum of the weights, by group.
      ratios: named groups of domains with fixed ratios; only their sum varies, as if they were one domain.
      tokens: available tokens per domain (defines the proportional mixture); those of the study by default.
      budget: tokens that the target model is trained on.
      max_epochs: how often a domain may be repeated at the budget, one number or by domain.
      prior: a mixture to stay near: uniform, proportional, unimax or weights by domain.
      max_kl: max KL divergence from the prior, nats.
    """

    min: Mapping[str, float] | None = None
    max: Mapping[str, float] | None = None
    fixed: Mapping[str, float] | None = None
    groups: Mapping[str, Sequence[str]] | None = None
    group_bounds: Mapping[str, Sequence[float]] | None = None
    ratios: Mapping[str, Mapping[str, float]] | None = None
    tokens: Mapping[str, float] | None = None
    budget: float | None = None
    max_epochs: float | Mapping[str, float] | None = None
    prior: str | Mapping[str, float] | None = None
    max_kl: float | None = None

    def on(
        self,
        domains: Sequence[str],
        tokens: Weights | None = None,
        untrained: Sequence[str] = (),
        kl_penalty: float = 0.0,
    ) -> "Bounds":
        """The same for these domains, checked.

        Args:
          domains: the training domains, in the order of the mixtures' columns.
          tokens: available tokens per domain, where `self.tokens` does not say.
          untrained: domains that no proxy run trained on, which get no weight unless a constraint asks for it.
          kl_penalty: cost of a nat of divergence from the prior, in the unit of the objective.

        Raises:
          UserError: as `Bounds`; bounds of a group that is not there, or that are not two; an unknown prior.
        """
        names, tokens, groups = tuple(domains), self.tokens or tokens, self.groups or {}
        for name, bounds in (self.group_bounds or {}).items():
            if name not in groups:
                raise unknown("group in group_bounds", name, groups)
            if len(bounds) != 2:
                raise UserError(f"group_bounds of {name!r}: {list(bounds)}, expected the min and the max sum")
        ends = {name: (self.group_bounds or {}).get(name, (0.0, 1.0)) for name in groups}
        prior = self.prior
        if isinstance(prior, str):
            Bounds(names, tokens=tokens)  # checks the tokens that priors are made of
            priors = simple_mixtures(names, tokens, self.budget, self.max_epochs)
            if prior not in priors:
                raise unknown("prior", prior, priors)
            prior = priors[prior]
        return Bounds(
            names,
            self.min or {},
            self.max or {},
            self.fixed or {},
            {name: Group(tuple(members), *ends[name]) for name, members in groups.items()},
            tokens,
            self.budget,
            self.max_epochs,
            prior,
            self.max_kl,
            kl_penalty,
            self.ratios or {},
            tuple(untrained),
        )


@dataclass(frozen=True)
class Bounds:
    """Constraints on mixtures of K training domains, checked.

    Attributes:
      domains: names of the K training domains, in the order of the mixtures' columns.
      min: min weights, by domain.
      max: max weights.
      fixed: weights that are given.
      groups: bounds on sums of weights, by name.
      tokens: available tokens; all domains or none.
      budget: tokens that the target model is trained on.
      max_epochs: how often a domain may be repeated: its weight is at most tokens × max_epochs / budget. One number, or
        numbers by domain; domains without one are not capped.
      prior: a mixture to stay near.
      max_kl: max KL(mixture ‖ prior), nats.
      kl_penalty: what a nat of KL(mixture ‖ prior) costs, in the unit of the objective.
      ratios: fixed ratios of domains, by name, such as {"old": {"web": 0.6, "code": 0.4}}: only their sum varies. A
        domain is in one of these at most.
      untrained: domains that no proxy run trained on. They get no weight, unless `min`, `fixed` or `ratios` asks for
        some.

    Raises:
      UserError: an unknown domain; a number that makes no sense; bounds that no mixture obeys.
    """

    domains: tuple[str, ...]
    min: Weights = field(default_factory=dict)
    max: Weights = field(default_factory=dict)
    fixed: Weights = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    tokens: Weights | None = None
    budget: float | None = None
    max_epochs: float | Weights | None = None
    prior: Weights | None = None
    max_kl: float | None = None
    kl_penalty: float = 0.0
    ratios: Mapping[str, Weights] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_numbers()
        self._rescale_fixed()
        self._check_sums()
        _ = self.region.centre  # refuses bounds that are at odds only together

    @functools.cached_property
    def region(self) -> Region:
        """The mixtures that obey the constraints."""
        low, high = self._vector(self.min, 0.0), np.minimum(self._vector(self.max, 1.0), self._caps())
        high = np.where([name in self.left_out for name in self.domains], 0.0, high)
        fixed = self._vector(self.fixed, np.nan)
        low, high = np.where(np.isnan(fixed), low, fixed), np.where(np.isnan(fixed), high, fixed)
        prior = self.prior_mixture
        if prior is not None and (self.max_kl is not None or self.kl_penalty):
            high = np.where(prior > 0, high, 0.0)  # elsewhere the divergence is infinite
        member = [[float(name in group.domains) for name in self.domains] for group in self.groups.values()]
        ties = []
        for name in self.ratios:
            ratios = self._parts(name)
            low, high = self._kept(name, ratios, low, high)
            # Each weight is its part of the sum; what the others leave is the last one's.
            among = np.flatnonzero(ratios > 0)
            ties += [np.eye(len(ratios))[i] - ratios[i] * (ratios > 0) for i in among[:-1]]
        still = [0.0] * len(ties)
        return Region(
            low,
            high,
            np.array([*member, *ties]).reshape(-1, len(self.domains)),
            np.array([*(float(group.min) for group in self.groups.values()), *still]),
            np.array([*(float(group.max) for group in self.groups.values()), *still]),
            prior,
            np.inf if self.max_kl is None else self.max_kl,
        )

    @functools.cached_property
    def left_out(self) -> list[str]:
        """The untrained domains that nothing asks for."""
        asked = {*(name for name, weight in self.min.items() if weight > 0), *self.fixed}
        asked |= {name for ratios in self.ratios.values() for name, ratio in ratios.items() if ratio > 0}
        return [name for name in self.untrained if name not in asked]

    @property
    def prior_mixture(self) -> np.ndarray | None:
        """The prior's weights, [K]."""
        if self.prior is None:
            return None
        return simplex.check_mixtures(self._vector(self.prior, 0.0), self.domains, where="prior")[0]

    def penalty(self, mixtures: np.ndarray) -> np.ndarray:
        """What the divergence of mixtures [C, K] from the prior costs, [C]."""
        return self.kl_penalty * self.region.divergence(mixtures) if self.kl_penalty else np.zeros(len(mixtures))

    def epochs(self, mixture: np.ndarray) -> dict[str, float] | None:
        """How often each domain is repeated at the target budget; None without tokens or budget."""
        if self.tokens is None or self.budget is None:
            return None
        return dict(zip(self.domains, (mixture * self.budget / self._vector(self.tokens, 0.0)).tolist(), strict=True))

    def binding(self, mixture: np.ndarray, tolerance: float = BINDS) -> list[str]:
        """The constraints that stop a mixture [K] from going further, in words. Weights of zero alone are none."""
        found = []
        caps = self._caps()
        for name, weight, cap in zip(self.domains, mixture, caps, strict=True):
            if name in self.fixed:
                found.append(f"{name} is fixed at {self.fixed[name]:.4g}")
            elif self.min.get(name, 0) > 0 and weight <= self.min[name] + tolerance:
                found.append(f"{name} is at its min weight {self.min[name]:.4g}")
            elif name in self.left_out:
                continue
            elif name in self.max and self.max[name] <= cap and weight >= self.max[name] - tolerance:
                found.append(f"{name} is at its max weight {self.max[name]:.4g}")
            elif cap < 1 and weight >= cap - tolerance:
                found.append(f"{name} is at {self._epochs(name):g} epochs of its tokens, weight {cap:.4g}")
        for name, group in self.groups.items():
            total = sum(weight for domain, weight in zip(self.domains, mixture, strict=True) if domain in group.domains)
            if group.min > 0 and total <= group.min + tolerance:
                found.append(f"group {name} is at its min weight {group.min:.4g}")
            if group.max < 1 and total >= group.max - tolerance:
                found.append(f"group {name} is at its max weight {group.max:.4g}")
        if self.max_kl is not None and self.region.divergence(mixture[None])[0] >= self.max_kl - tolerance:
            found.append(f"KL to the prior is at {self.max_kl:.4g} nats")
        return found

    def _vector(self, weights: Weights, otherwise: float) -> np.ndarray:
        return np.array([float(weights.get(name, otherwise)) for name in self.domains])

    def _caps(self) -> np.ndarray:
        """Max weights [K] that the tokens allow; at least 1 where they allow all."""
        if self.max_epochs is None or self.tokens is None or self.budget is None:
            return np.full(len(self.domains), np.inf)
        return self._vector(self.tokens, 0.0) * [self._epochs(name) for name in self.domains] / self.budget

    def _epochs(self, name: str) -> float:
        """How often a domain may be repeated."""
        return self.max_epochs.get(name, np.inf) if isinstance(self.max_epochs, Mapping) else self.max_epochs or np.inf

    def _parts(self, name: str) -> np.ndarray:
        """[K], what a ratio group is made of; they sum to one."""
        ratios = self._vector(self.ratios[name], 0.0)
        return ratios / ratios.sum()

    def _kept(self, name: str, ratios: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on weights [K] that a ratio group of these ratios can reach: each stands for all of the group.

        Raises:
          UserError: no sum of the group is within all of them.
        """
        without = [domain for domain in self.ratios[name] if low[self.domains.index(domain)] > 0]
        if blocked := [domain for domain in without if self.ratios[name][domain] == 0]:
            raise UserError(
                f"constraints: domain {blocked[0]!r} has ratio 0 in ratio group {name!r}, "
                f"but a min weight of {low[self.domains.index(blocked[0])]:.6g}"
            )
        inside = ratios > 0
        least, most = low[inside] / ratios[inside], high[inside] / ratios[inside]
        names = [domain for domain, chosen in zip(self.domains, inside, strict=True) if chosen]
        total_low, total_high = float(least.max()), min(float(most.min()), 1.0)
        if total_low > total_high + SUM_TOLERANCE:
            holds, stops = names[int(least.argmax())], names[int(most.argmin())]
            raise UserError(
                f"constraints: in ratio group {name!r} the min weight {low[self.domains.index(holds)]:.6g} of "
                f"{holds!r} asks for a sum of {total_low:.6g}, but "
                + (
                    f"the max weight {high[self.domains.index(stops)]:.6g} of {stops!r} allows {total_high:.6g}"
                    if most.min() < 1
                    else "a sum is at most 1"
                )
            )
        total_low = min(total_low, total_high)  # weights typed by hand
        in_group = [domain in self.ratios[name] for domain in self.domains]
        return np.where(in_group, ratios * total_low, low), np.where(in_group, ratios * total_high, high)

    def _check_numbers(self) -> None:
        for what, weights in (("min", self.min), ("max", self.max), ("fixed", self.fixed)):
            for name, weight in weights.items():
                self._known(name, f"{what} weights")
                if not 0 <= weight <= 1:  # also refuses NaN
                    raise UserError(f"constraints: {what} weight {weight} of domain {name!r}, expected 0 to 1")
        for name, group in self.groups.items():
            for domain in group.domains:
                self._known(domain, f"group {name!r}")
            if not group.domains or not 0 <= group.min <= group.max <= 1:
                raise UserError(
                    f"constraints: group {name!r} of {len(group.domains)} domains with bounds {group.min} and "
                    f"{group.max}, expected domains and 0 <= min <= max <= 1"
                )
        self._check_ratios()
        for name in self.tokens or ():
            self._known(name, "tokens")
        for name in self.domains:
            if self.tokens is not None and not 0 < self.tokens.get(name, 0) < np.inf:
                raise UserError(f"constraints: no tokens of domain {name!r}, expected a positive number")
        by_domain = self.max_epochs if isinstance(self.max_epochs, Mapping) else {}
        for name in by_domain:
            self._known(name, "max_epochs")
        counts: dict[str, Any] = {f"max_epochs[{name!r}]": epochs for name, epochs in by_domain.items()}
        counts |= {"budget": self.budget} | ({} if by_domain else {"max_epochs": self.max_epochs})
        for what, value in counts.items():
            if value is not None and not (isinstance(value, Real) and 0 < float(value) < np.inf):
                raise UserError(f"constraints: {what}={value!r}, expected a positive number")
        for what, needed in (("tokens, the available ones per domain", self.tokens), ("a budget", self.budget)):
            if self.max_epochs is not None and needed is None:
                raise UserError(f"constraints: max_epochs={self.max_epochs} needs {what}")
        for name in self.prior or ():
            self._known(name, "prior")
        if (self.max_kl is not None or self.kl_penalty) and self.prior is None:
            raise UserError("constraints: max_kl and kl_penalty need a prior")
        if not ((self.max_kl is None or self.max_kl > 0) and 0 <= self.kl_penalty < np.inf):
            raise UserError(
                f"constraints: max_kl={self.max_kl}, kl_penalty={self.kl_penalty}: expected more than 0 and 0 or more"
            )

    def _check_ratios(self) -> None:
        where: dict[str, str] = {}
        for name, ratios in self.ratios.items():
            if not isinstance(ratios, Mapping):
                raise UserError(
                    f"constraints: ratio group {name!r} is {ratios!r}, expected ratios by domain, such as "
                    f"{{{name!r}: {{{self.domains[0]!r}: 0.6, ...}}}}"
                )
            for domain, ratio in ratios.items():
                self._known(domain, f"ratio group {name!r}")
                if not (isinstance(ratio, Real) and 0 <= ratio < np.inf):
                    raise UserError(
                        f"constraints: ratio group {name!r} has ratio {ratio!r} of domain {domain!r}, "
                        "expected 0 or more"
                    )
                if domain in where:
                    raise UserError(
                        f"constraints: domain {domain!r} is in the ratio groups {where[domain]!r} and {name!r}, "
                        "expected one of them"
                    )
                where[domain] = name
            if not sum(ratios.values()) > 0:
                raise UserError(
                    f"constraints: ratios of ratio group {name!r} sum to {sum(ratios.values()):g}, "
                    "expected a positive number"
                )

    def _rescale_fixed(self) -> None:
        """Fixed weights that leave nothing to the other domains sum to one: rounding is divided out."""
        total = float(sum(self.fixed.values()))
        whole = set(self.fixed) == set(self.domains)
        if not (whole or total > 1):
            return
        if abs(total - 1) > FIXED_TOLERANCE:
            raise UserError(
                f"constraints: fixed weights sum to {total:.9g}, expected {'1' if whole else 'at most 1'} within "
                f"{FIXED_TOLERANCE:g}; the difference is {total - 1:+.3g}"
            )
        object.__setattr__(self, "fixed", {name: weight / total for name, weight in self.fixed.items()})

    def _check_sums(self) -> None:
        region = self.region
        for name, cap in zip(self.domains, self._caps(), strict=True):
            if self.fixed.get(name, 0) > cap + SUM_TOLERANCE:
                raise UserError(
                    f"constraints: domain {name!r} is fixed at {self.fixed[name]:.6g}, but {self._supply(name)} allow "
                    f"at most {cap:.6g}"
                )
        for name, low, high in zip(self.domains, region.low, region.high, strict=True):
            if low > high:
                raise UserError(
                    f"constraints: domain {name!r} has the min weight {low:.6g}, "
                    f"but {self._who_caps(name)} allow at most {high:.6g}"
                )
            below, above = self.min.get(name, 0) - FIXED_TOLERANCE, self.max.get(name, 1) + FIXED_TOLERANCE
            if name in self.fixed and not below <= self.fixed[name] <= above:
                raise UserError(
                    f"constraints: domain {name!r} is fixed at {self.fixed[name]:.6g}, outside its bounds "
                    f"{self.min.get(name, 0):.6g} to {self.max.get(name, 1):.6g}"
                )
        self._check_sum("", list(self.domains), 1.0, 1.0)
        for name, group in self.groups.items():
            self._check_sum(f" of group {name!r}", list(group.domains), group.min, group.max)

    def _check_sum(self, of: str, names: Sequence[str], lower: float, upper: float) -> None:
        chosen = [name in names for name in self.domains]
        low, high = self.region.low[chosen], self.region.high[chosen]
        kept = [name for name in self.domains if name in names]
        if low.sum() > upper + SUM_TOLERANCE:
            most = kept[int(np.argmax(low))]
            raise UserError(
                f"constraints: min weights{of} sum to {low.sum():.9g}, more than {upper:g}; the largest is "
                f"{low.max():.6g}, of domain {most!r}"
            )
        if high.sum() < lower - SUM_TOLERANCE:
            least = kept[int(np.argmin(high))]
            raise UserError(
                f"constraints: max weights{of} sum to {high.sum():.6g}, less than {lower:g}; the smallest is "
                f"{high.min():.6g}, of domain {least!r} ({self._who_caps(least)})"
            )

    def _who_caps(self, name: str) -> str:
        if name in self.fixed:
            return "fixed weights"
        if name in self.left_out:
            return "proxy runs, none of which trained on it (--allow_untrained gives it weight),"
        cap = self._caps()[self.domains.index(name)]
        if self.region.high[self.domains.index(name)] < min(cap, self.max.get(name, 1)) - SUM_TOLERANCE:
            groups = [group for group, ratios in self.ratios.items() if name in ratios]
            return f"the ratios of ratio group {groups[0]!r}" if groups else "weights of zero in the prior"
        if cap < self.max.get(name, 1):
            return self._supply(name)
        return "max weights"

    def _supply(self, name: str) -> str:
        assert self.tokens is not None
        epochs = self._epochs(name)
        return f"{self.tokens[name]:,.0f} tokens × {epochs:g} epochs at a budget of {self.budget:,.0f}"

    def _known(self, name: str, where: str) -> None:
        if name not in self.domains:
            raise unknown(f"domain in the constraints' {where}", name, self.domains)
