"""A sweep file and its points.

A sweep is a gin file that includes its base, an ordinary configuration of stages, and binds what varies:

    include 'configs/demo_tiny.gin'
    sweep.grid = {'train.learning_rate': [1e-3, 3e-3], 'train.seed': [0, 1]}

Every point is a study of its own, named by its bindings: points that are added or taken away rename no other.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mde import bindings
from mde.commands import pipeline
from mde.errors import UserError, unknown
from mde.study import STAGES, digest

LONGEST_NAME = 80


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file binds as `sweep.…`.

    Attributes:
      grid: by binding, such as 'train.seed', the values that it takes; all combinations are points.
      points: bindings of single points; with a grid as well, each of them is combined with the whole grid.
      first: the first stage that points run.
      last: the last one.
      study: a finished study that points start from, where `first` is not the first of all: they take over what its
        stages before that have left.
    """

    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = ()
    first: str = "prepare"
    last: str = "validate"
    study: str | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that points run; raises UserError at an unknown one, or where they are in the wrong order."""
        for name in (self.first, self.last):
            if name not in STAGES:
                raise unknown("stage in a sweep", name, STAGES)
        stages = STAGES[STAGES.index(self.first) : STAGES.index(self.last) + 1]
        if not stages:
            raise UserError(f"sweep.first = {self.first!r} comes after sweep.last = {self.last!r}")
        return stages


@dataclasses.dataclass(frozen=True)
class Point:
    """One study of a sweep.

    Attributes:
      name: of its directory.
      bindings: what it binds beside the base, by STAGE.ARGUMENT.
      given: all that is bound, by stage and argument.
      stages: those that it runs.
      study: the study that it starts from, if any.
    """

    name: str
    bindings: Mapping[str, Any]
    given: Mapping[str, Mapping[str, Any]]
    stages: tuple[str, ...]
    study: str | None

    @property
    def digest(self) -> str:
        """Changes with anything that the point is made of."""
        return digest([self.given, self.stages, self.study])


def read(file: str, overrides: Sequence[str] = ()) -> list[Point]:
    """The points of a sweep file, all of them checked.

    Args:
      file: the gin file.
      overrides: bindings that override it.

    Raises:
      UserError: an unknown binding, a value of the wrong type, no points, or two of one name.
    """
    given = bindings.from_gin([file], overrides, more={"sweep": Sweep})
    sweep = Sweep(**given.pop("sweep"))
    if not isinstance(sweep.grid, Mapping) or not isinstance(sweep.points, list | tuple):
        raise UserError(f"{file}: sweep.grid is a mapping of bindings to lists, sweep.points a list of mappings")
    points = [_point(sweep, given, own) for own in _combinations(file, sweep)]
    names = [point.name for point in points]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{file}: two points are called {name!r}: they bind the same values")
    return points


def name_of(own: Mapping[str, Any]) -> str:
    """A name for bindings that is safe in paths and shells: readable as far as it goes, unique by its digest."""
    plain = _canonical(own)
    readable = "-".join(f"{key.split('.')[-1]}-{value}" for key, value in sorted(plain.items()))
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", readable)[: LONGEST_NAME - 9].strip("-.")
    return f"{slug}-{digest(plain)[:8]}"


def _combinations(file: str, sweep: Sweep) -> list[dict[str, Any]]:
    for key, values in sweep.grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise UserError(f"{file}: sweep.grid: {key!r} needs a list of at least one value, got {values!r}")
    if not sweep.grid and not sweep.points:
        raise UserError(f"{file}: the sweep is empty: bind sweep.grid or sweep.points")
    if wrong := [listed for listed in sweep.points if not isinstance(listed, Mapping)]:
        raise UserError(f"{file}: sweep.points: expected mappings of bindings to values, got {wrong[0]!r}")
    for listed in sweep.points:
        if both := listed.keys() & sweep.grid.keys():
            raise UserError(f"{file}: {min(both)!r} is in sweep.grid and in sweep.points")
    grid = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    return [{**listed, **combination} for listed in sweep.points or [{}] for combination in grid]


def _point(sweep: Sweep, base: Mapping[str, Mapping[str, Any]], own: dict[str, Any]) -> Point:
    """A point with its bindings over the base; raises UserError where a stage would refuse them."""
    given = {stage: dict(base.get(stage, {})) for stage in sweep.stages}
    for key, value in own.items():
        stage, dot, argument = key.partition(".")
        if not dot or stage not in STAGES:
            raise unknown("stage in a sweep's binding", key, [f"{name}.{argument}" for name in STAGES])
        if stage not in given:
            raise UserError(f"the sweep binds {key!r}, but its points run only {', '.join(given)}")
        given[stage][argument] = value
    resolved = {stage: pipeline.arguments(stage, given[stage]) for stage in given}
    elsewhere = bool("fit" in resolved and resolved["fit"]["mixtures"])
    if (sweep.first == STAGES[0] or elsewhere) and sweep.study:
        raise UserError(f"sweep.study = {sweep.study!r} has nothing that a sweep from {sweep.first!r} could start from")
    if sweep.first != STAGES[0] and not sweep.study and not elsewhere:
        raise UserError(f"a sweep from {sweep.first!r} starts from a study: bind sweep.study")
    return Point(name_of(own), own, given, sweep.stages, sweep.study)


def _canonical(value: Any) -> Any:
    """The same for 1 and 1.0, which mean the same in every argument."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _canonical(inner) for key, inner in value.items()}
    return [_canonical(inner) for inner in value] if isinstance(value, list | tuple) else value
