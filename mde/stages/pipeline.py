"""The stages in their order, and running one: what it needs, whether it is done already, what it leaves on record."""

import inspect
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mde.errors import UserError, unknown
from mde.stages.evaluate import evaluate
from mde.stages.fit import fit
from mde.stages.optimize import optimize
from mde.stages.prepare import prepare
from mde.stages.prove import prove
from mde.stages.report import report
from mde.stages.score import score
from mde.stages.train import train
from mde.study import Study, digest

STAGES: dict[str, Callable[..., None]] = {
    stage.__name__: stage for stage in (prepare, train, score, evaluate, fit, optimize, prove, report)
}


def arguments(stage: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a stage: its defaults, overridden by those given."""
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    parameters = list(inspect.signature(STAGES[stage]).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters}
    hints = typing.get_type_hints(STAGES[stage])
    for name, value in given.items():
        if name not in defaults:
            raise unknown(f"argument of stage {stage!r}", name, defaults)
        if not _fits(value, hints[name]):
            expected = next(str(p).split(": ")[1].split(" = ")[0] for p in parameters if p.name == name)
            raise UserError(f"{stage}.{name} = {value!r}: expected {expected}")
    return {**defaults, **given}


def run(study: Study, stage: str, given: Mapping[str, Any], force: bool = False) -> bool:
    """Runs a stage unless it was done with the same arguments on the same inputs.

    Args:
      study: the study.
      stage: its name.
      given: arguments that differ from the defaults.
      force: run it even so.

    Returns:
      Whether it ran.

    Raises:
      UserError: an unknown stage or argument, or an earlier stage that has not been run.
    """
    resolved = arguments(stage, given)
    missing = [name for name, value in resolved.items() if value is inspect.Parameter.empty]
    if missing:
        raise UserError(f"stage {stage!r} needs {missing[0]}: bind {stage}.{missing[0]} in a gin file")
    before = _before(study, stage)
    name = digest([resolved, before])
    record = f"stages/{stage}.json"
    if not force and (study.root / record).exists() and study.read_json(record, stage)["digest"] == name:
        return False
    started = time.time()
    STAGES[stage](study, **resolved)
    seconds = round(time.time() - started, 1)
    study.write_json(record, {"digest": name, "arguments": resolved, "seconds": seconds, "finished": time.time()})
    return True


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as stage arguments go: numbers, text, None, sequences of them."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Sequence:
        return isinstance(value, list | tuple) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _before(study: Study, stage: str) -> list[Any]:
    """What the stage before did and when, and through its digest all before that; `report` reads whatever there is."""
    earlier = list(STAGES)[: list(STAGES).index(stage)]
    done = [name for name in earlier if (study.root / f"stages/{name}.json").exists()]
    if stage != "report":
        for name in earlier:
            if name not in done:
                raise UserError(f"study {study}: {stage!r} needs {name!r}; run `mde {name} --study={study}` first")
        done = done[-1:]
    records = [study.read_json(f"stages/{name}.json", name) for name in done]
    return [[record["digest"], record["finished"]] for record in records]
