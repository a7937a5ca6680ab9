"""Running a stage: what it needs, whether it is done already, what it leaves on record.

Stages and tools are functions of their own module, which is imported when the command is called and not before: who
fits a table of numbers does not wait for the libraries that train models.
"""

import importlib
import inspect
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mde import buckets, gin_text
from mde.errors import UserError, unknown
from mde.study import STAGES, Study, digest
from mde.versions import versions

# Commands that belong to no place in the order and leave no record.
TOOLS = (
    *("predict", "swarm", "iterate", "final", "scale", "ablate", "reweight"),
    *("eval", "export", "import", "models", "plan"),
)
WITHOUT_STUDY = ("models", "plan")
# What tools leave that the report shows.
SHOWN = ("scale.json", "ablation/cost.csv", "reweighting/*.csv", "final/*/summary.csv")


def command(name: str) -> Callable[..., None]:
    """The function of a stage or tool."""
    if name not in (*STAGES, *TOOLS):
        raise unknown("stage", name, (*STAGES, *TOOLS))
    name = {"import": "import_model"}.get(name, name)  # Python keeps that word for itself
    return getattr(importlib.import_module(f"mde.stages.{name}"), name)


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """By name, what a command takes beside the study; annotations are types, not text."""
    signature = inspect.signature(command(name), eval_str=True)
    return {key: parameter for key, parameter in signature.parameters.items() if key != "study"}


def arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a command: its defaults, overridden by those given.

    Raises:
      UserError: an unknown argument, one of the wrong type, or one that is missing.
    """
    known = parameters(name)
    for key, value in given.items():
        if key not in known:
            raise unknown(f"argument of stage {name!r}", key, known)
        if not fits(value, known[key].annotation):
            raise UserError(f"{name}.{key} = {value!r}: expected {described(known[key].annotation)}")
    resolved = {key: parameter.default for key, parameter in known.items()} | dict(given)
    missing = [key for key, value in resolved.items() if value is inspect.Parameter.empty]
    if missing:
        raise UserError(f"stage {name!r} needs {missing[0]}: give --{missing[0]}, or bind {name}.{missing[0]} in gin")
    return resolved


def described(hint: Any) -> str:
    """A type as a reader knows it."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("collections.abc.", "")


def run(study: Study, name: str, given: Mapping[str, Any], force: bool = False) -> bool:
    """Runs a stage unless it was done with the same arguments on the same inputs; a tool runs always.

    Args:
      study: the study.
      name: of the stage or tool.
      given: arguments that differ from the defaults.
      force: run it even so.

    Returns:
      Whether it ran.

    Raises:
      UserError: an unknown stage or argument, or an earlier stage that has not been run.
    """
    resolved = arguments(name, given)
    if name in WITHOUT_STUDY:
        command(name)(**resolved)
        return True
    if name in TOOLS:
        command(name)(study, **resolved)
        return True
    made_of = digest([resolved, _before(study, name, resolved), *_contents(resolved)])
    record = f"stages/{name}.json"
    if not force and (study.root / record).exists() and study.read_json(record, name)["digest"] == made_of:
        return False
    started = time.time()
    command(name)(study, **resolved)
    seconds = round(time.time() - started, 1)
    study.write_text(f"stages/{name}.gin", gin_text.record(name, resolved, given))
    done = {"digest": made_of, "arguments": resolved, "seconds": seconds, "finished": time.time()}
    study.write_json(record, done | {"versions": versions()})
    return True


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as arguments go: numbers, text, None, sequences and mappings."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, option) for option in inner)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(fits(v, inner[0]) for v in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _contents(resolved: Mapping[str, Any]) -> list[str]:
    """Digests of the files among the arguments: an edited file is another input."""
    places = [value for value in resolved.values() if isinstance(value, str) and value]
    for place in places:
        buckets.check(place)
    files = [buckets.path(place) for place in places]
    return [digest(path.read_bytes().hex()) for path in files if path.is_file()]


def _before(study: Study, stage: str, resolved: Mapping[str, Any]) -> list[Any]:
    """What the stage before did and when, and through its digest all before that; `report` reads whatever there is."""
    if stage == "fit" and resolved["mixtures"]:
        return []
    if stage not in study.stages:
        raise UserError(f"study {study} holds observations from elsewhere: there is nothing to {stage}")
    earlier = study.stages[: study.stages.index(stage)]
    done = [name for name in earlier if (study.root / f"stages/{name}.json").exists()]
    if stage != "report":
        for name in earlier:
            if name not in done:
                raise UserError(f"study {study}: {stage!r} needs {name!r}; run `mde {name} --study={study}` first")
        done = done[-1:]
    left = [path for pattern in SHOWN for path in sorted(study.root.glob(pattern))] if stage == "report" else []
    records = [study.read_json(f"stages/{name}.json", name) for name in done]
    return [[record["digest"], record["finished"]] for record in records] + [digest(p.read_text()) for p in left]
