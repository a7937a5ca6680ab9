"""What a mixture must obey, by the names of domains: checked here, turned into numbers by `region`."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from mde.errors import UserError, unknown
from mde.optimization import simplex
from mde.optimization.region import Region

FIXED_TOLERANCE = 1e-6  # fixed weights may miss 1 by this much, as mixtures in files may
SUM_TOLERANCE = 1e-9  # shares typed by hand may miss their sum by rounding
BINDS = 1e-6  # a share nearer than this to its bound is at it
Shares = Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """Domains whose shares are bounded together.

    Attributes:
      domains: their names.
      lower: least sum of their shares.
      upper: greatest sum.
    """

    domains: Sequence[str]
    lower: float = 0.0
    upper: float = 1.0


@dataclass(frozen=True)
class Constraints:
    """Bounds on a mixture of the training domains. Everything is optional; what is left out is free.

    Attributes:
      domains: names of the K training domains, in the order of the mixtures' columns.
      lower: least shares, by domain.
      upper: greatest shares.
      fixed: shares that are given.
      groups: bounds on sums of shares, by a name of your own.
      frozen: ratios that domains keep to each other, by a name of your own, such as {"old": {"web": 0.6, "code": 0.4}}:
        only their sum varies, as if they were one domain. A domain is in one of these at most.
      untrained: domains that no proxy run trained on. They get no weight, unless `lower`, `fixed` or `frozen` asks for
        some.
      tokens: tokens that there are, by domain; all domains or none.
      budget: tokens that the target model is trained on.
      max_epochs: how often a domain may be repeated: its share is at most tokens × max_epochs / budget. One number, or
        numbers by domain; domains without one are not capped.
      prior: a mixture to stay near.
      max_kl: greatest KL(mixture ‖ prior), nats.
      kl_penalty: what a nat of KL(mixture ‖ prior) costs, in the unit of the objective.

    Raises:
      UserError: an unknown domain; a number that makes no sense; bounds that no mixture obeys.
    """

    domains: tuple[str, ...]
    lower: Shares = field(default_factory=dict)
    upper: Shares = field(default_factory=dict)
    fixed: Shares = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    tokens: Shares | None = None
    budget: float | None = None
    max_epochs: float | Shares | None = None
    prior: Shares | None = None
    max_kl: float | None = None
    kl_penalty: float = 0.0
    frozen: Mapping[str, Shares] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_numbers()
        self._rescale_fixed()
        self._check_sums()
        _ = self.region.centre  # refuses bounds that are at odds only together

    @functools.cached_property
    def region(self) -> Region:
        """The mixtures that obey the constraints."""
        low, high = self._vector(self.lower, 0.0), np.minimum(self._vector(self.upper, 1.0), self._caps())
        high = np.where([name in self.left_out for name in self.domains], 0.0, high)
        fixed = self._vector(self.fixed, np.nan)
        low, high = np.where(np.isnan(fixed), low, fixed), np.where(np.isnan(fixed), high, fixed)
        prior = self.prior_mixture
        if prior is not None and (self.max_kl is not None or self.kl_penalty):
            high = np.where(prior > 0, high, 0.0)  # elsewhere the divergence is infinite
        member = [[float(name in group.domains) for name in self.domains] for group in self.groups.values()]
        ties = []
        for name in self.frozen:
            ratios = self._ratios(name)
            low, high = self._kept(name, ratios, low, high)
            # Each share is its part of the sum; what the others leave is the last one's.
            among = np.flatnonzero(ratios > 0)
            ties += [np.eye(len(ratios))[i] - ratios[i] * (ratios > 0) for i in among[:-1]]
        still = [0.0] * len(ties)
        return Region(
            low,
            high,
            np.array([*member, *ties]).reshape(-1, len(self.domains)),
            np.array([*(float(group.lower) for group in self.groups.values()), *still]),
            np.array([*(float(group.upper) for group in self.groups.values()), *still]),
            prior,
            np.inf if self.max_kl is None else self.max_kl,
        )

    @functools.cached_property
    def left_out(self) -> list[str]:
        """The untrained domains that nothing asks for."""
        asked = {*(name for name, share in self.lower.items() if share > 0), *self.fixed}
        asked |= {name for ratios in self.frozen.values() for name, ratio in ratios.items() if ratio > 0}
        return [name for name in self.untrained if name not in asked]

    @property
    def prior_mixture(self) -> np.ndarray | None:
        """The prior's shares, [K]."""
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
        """The constraints that stop a mixture [K] from going further, in words. Shares of zero alone are none."""
        found = []
        caps = self._caps()
        for name, share, cap in zip(self.domains, mixture, caps, strict=True):
            if name in self.fixed:
                found.append(f"{name} is fixed at {self.fixed[name]:.4g}")
            elif self.lower.get(name, 0) > 0 and share <= self.lower[name] + tolerance:
                found.append(f"{name} is at its least share {self.lower[name]:.4g}")
            elif name in self.left_out:
                continue
            elif name in self.upper and self.upper[name] <= cap and share >= self.upper[name] - tolerance:
                found.append(f"{name} is at its greatest share {self.upper[name]:.4g}")
            elif cap < 1 and share >= cap - tolerance:
                found.append(f"{name} is at {self._epochs(name):g} epochs of its tokens, share {cap:.4g}")
        for name, group in self.groups.items():
            total = sum(share for domain, share in zip(self.domains, mixture, strict=True) if domain in group.domains)
            if group.lower > 0 and total <= group.lower + tolerance:
                found.append(f"group {name} is at its least share {group.lower:.4g}")
            if group.upper < 1 and total >= group.upper - tolerance:
                found.append(f"group {name} is at its greatest share {group.upper:.4g}")
        if self.max_kl is not None and self.region.divergence(mixture[None])[0] >= self.max_kl - tolerance:
            found.append(f"KL to the prior is at {self.max_kl:.4g} nats")
        return found

    def _vector(self, shares: Shares, otherwise: float) -> np.ndarray:
        return np.array([float(shares.get(name, otherwise)) for name in self.domains])

    def _caps(self) -> np.ndarray:
        """Greatest shares [K] that the tokens allow; at least 1 where they allow all."""
        if self.max_epochs is None or self.tokens is None or self.budget is None:
            return np.full(len(self.domains), np.inf)
        return self._vector(self.tokens, 0.0) * [self._epochs(name) for name in self.domains] / self.budget

    def _epochs(self, name: str) -> float:
        """How often a domain may be repeated."""
        return self.max_epochs.get(name, np.inf) if isinstance(self.max_epochs, Mapping) else self.max_epochs or np.inf

    def _ratios(self, name: str) -> np.ndarray:
        """[K], what a frozen group is made of; they sum to one."""
        ratios = self._vector(self.frozen[name], 0.0)
        return ratios / ratios.sum()

    def _kept(self, name: str, ratios: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on shares [K] that a frozen group of these ratios can reach: each stands for all of the group.

        Raises:
          UserError: no sum of the group is within all of them.
        """
        without = [domain for domain in self.frozen[name] if low[self.domains.index(domain)] > 0]
        if blocked := [domain for domain in without if self.frozen[name][domain] == 0]:
            raise UserError(
                f"constraints: domain {blocked[0]!r} has ratio 0 in frozen group {name!r}, "
                f"but a least share of {low[self.domains.index(blocked[0])]:.6g}"
            )
        inside = ratios > 0
        least, most = low[inside] / ratios[inside], high[inside] / ratios[inside]
        names = [domain for domain, chosen in zip(self.domains, inside, strict=True) if chosen]
        total_low, total_high = float(least.max()), min(float(most.min()), 1.0)
        if total_low > total_high + SUM_TOLERANCE:
            holds, stops = names[int(least.argmax())], names[int(most.argmin())]
            raise UserError(
                f"constraints: in frozen group {name!r} the least share {low[self.domains.index(holds)]:.6g} of "
                f"{holds!r} asks for a sum of {total_low:.6g}, but "
                + (
                    f"the greatest share {high[self.domains.index(stops)]:.6g} of {stops!r} allows {total_high:.6g}"
                    if most.min() < 1
                    else "a sum is at most 1"
                )
            )
        total_low = min(total_low, total_high)  # shares typed by hand
        in_group = [domain in self.frozen[name] for domain in self.domains]
        return np.where(in_group, ratios * total_low, low), np.where(in_group, ratios * total_high, high)

    def _check_numbers(self) -> None:
        for what, shares in (("lower", self.lower), ("upper", self.upper), ("fixed", self.fixed)):
            for name, share in shares.items():
                self._known(name, f"{what} bounds" if what != "fixed" else "fixed shares")
                if not 0 <= share <= 1:  # also refuses NaN
                    raise UserError(f"constraints: {what} share {share} of domain {name!r}, expected 0 to 1")
        for name, group in self.groups.items():
            for domain in group.domains:
                self._known(domain, f"group {name!r}")
            if not group.domains or not 0 <= group.lower <= group.upper <= 1:
                raise UserError(
                    f"constraints: group {name!r} of {len(group.domains)} domains with bounds {group.lower} and "
                    f"{group.upper}, expected domains and 0 <= lower <= upper <= 1"
                )
        self._check_frozen()
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
        for what, needed in (("tokens, those that there are by domain", self.tokens), ("a budget", self.budget)):
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

    def _check_frozen(self) -> None:
        where: dict[str, str] = {}
        for name, ratios in self.frozen.items():
            if not isinstance(ratios, Mapping):
                raise UserError(
                    f"constraints: frozen group {name!r} is {ratios!r}, expected ratios by domain, such as "
                    f"{{{name!r}: {{{self.domains[0]!r}: 0.6, ...}}}}"
                )
            for domain, ratio in ratios.items():
                self._known(domain, f"frozen group {name!r}")
                if not (isinstance(ratio, Real) and 0 <= ratio < np.inf):
                    raise UserError(
                        f"constraints: frozen group {name!r} has ratio {ratio!r} of domain {domain!r}, "
                        "expected 0 or more"
                    )
                if domain in where:
                    raise UserError(
                        f"constraints: domain {domain!r} is in the frozen groups {where[domain]!r} and {name!r}, "
                        "expected one of them"
                    )
                where[domain] = name
            if not sum(ratios.values()) > 0:
                raise UserError(
                    f"constraints: ratios of frozen group {name!r} sum to {sum(ratios.values()):g}, "
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
                    f"constraints: domain {name!r} has the least share {low:.6g}, "
                    f"but {self._who_caps(name)} allow at most {high:.6g}"
                )
            below, above = self.lower.get(name, 0) - FIXED_TOLERANCE, self.upper.get(name, 1) + FIXED_TOLERANCE
            if name in self.fixed and not below <= self.fixed[name] <= above:
                raise UserError(
                    f"constraints: domain {name!r} is fixed at {self.fixed[name]:.6g}, outside its bounds "
                    f"{self.lower.get(name, 0):.6g} to {self.upper.get(name, 1):.6g}"
                )
        self._check_sum("", list(self.domains), 1.0, 1.0)
        for name, group in self.groups.items():
            self._check_sum(f" of group {name!r}", list(group.domains), group.lower, group.upper)

    def _check_sum(self, of: str, names: Sequence[str], lower: float, upper: float) -> None:
        chosen = [name in names for name in self.domains]
        low, high = self.region.low[chosen], self.region.high[chosen]
        kept = [name for name in self.domains if name in names]
        if low.sum() > upper + SUM_TOLERANCE:
            most = kept[int(np.argmax(low))]
            raise UserError(
                f"constraints: least shares{of} sum to {low.sum():.9g}, more than {upper:g}; the greatest is "
                f"{low.max():.6g}, of domain {most!r}"
            )
        if high.sum() < lower - SUM_TOLERANCE:
            least = kept[int(np.argmin(high))]
            raise UserError(
                f"constraints: greatest shares{of} sum to {high.sum():.6g}, less than {lower:g}; the least is "
                f"{high.min():.6g}, of domain {least!r} ({self._who_caps(least)})"
            )

    def _who_caps(self, name: str) -> str:
        if name in self.fixed:
            return "fixed shares"
        if name in self.left_out:
            return "proxy runs, none of which trained on it (--allow_untrained gives it weight),"
        cap = self._caps()[self.domains.index(name)]
        if self.region.high[self.domains.index(name)] < min(cap, self.upper.get(name, 1)) - SUM_TOLERANCE:
            groups = [group for group, ratios in self.frozen.items() if name in ratios]
            return f"the ratios of frozen group {groups[0]!r}" if groups else "shares of zero in the prior"
        if cap < self.upper.get(name, 1):
            return self._supply(name)
        return "upper bounds"

    def _supply(self, name: str) -> str:
        assert self.tokens is not None
        epochs = self._epochs(name)
        return f"{self.tokens[name]:,.0f} tokens × {epochs:g} epochs at a budget of {self.budget:,.0f}"

    def _known(self, name: str, where: str) -> None:
        if name not in self.domains:
            raise unknown(f"domain in the constraints' {where}", name, self.domains)
