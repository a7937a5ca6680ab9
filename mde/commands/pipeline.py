"""Running a stage: what it needs, whether it is done already, what it leaves on record.

Stages and tools are functions of their own module, which is imported when the command is called and not before: who
fits a table of numbers does not wait for the libraries that train models.
"""

import contextlib
import functools
import importlib
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mde import buckets, gin_text, hosts
from mde.arguments import MISSING, Argument, flattened, keywords
from mde.arguments import arguments as arguments_of
from mde.errors import UserError, unknown
from mde.study import STAGES, Study, digest
from mde.values import described, fits
from mde.versions import versions

# Commands that belong to no place in the order and leave no record.
TOOLS = (
    *("predict", "swarm", "iterate", "final", "scale", "ablate", "reweight"),
    *("eval", "export", "import", "models", "plan", "design"),
)
WITHOUT_STUDY = ("models", "plan", "design")
UNRECORDED = (*TOOLS, "report")  # run whenever they are asked for
READERS = ("predict", "swarm", "eval", "export", "report")  # need not write to the study, and wait for none


def command(name: str) -> Callable[..., None]:
    """The function of a stage or tool."""
    if name not in (*STAGES, *TOOLS):
        raise unknown("stage", name, (*STAGES, *TOOLS))
    name = {"import": "import_model"}.get(name, name)  # Python keeps that word for itself
    return getattr(_module(name), name)


def _module(name: str) -> types.ModuleType:
    return importlib.import_module(f"mde.commands.{name}")


def parameters(name: str) -> dict[str, Argument]:
    """By name, what a command takes beside the study; those in objects are `object.field`, as `mde.arguments` says."""
    return arguments_of(command(name))


def arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a command: its defaults, overridden by those given.

    Raises:
      UserError: an unknown argument, one of the wrong type, or one that is missing.
    """
    known, given = parameters(name), flattened(command(name), given)
    for key, value in given.items():
        if key not in known:
            raise unknown(f"argument of stage {name!r}", key, known)
        if not fits(value, known[key].annotation):
            raise UserError(f"{name}.{key} = {value!r}: expected {described(known[key].annotation)}")
    resolved = {key: argument.default for key, argument in known.items()} | given
    missing = [key for key, value in resolved.items() if value is MISSING]
    if missing:
        raise UserError(f"stage {name!r} needs {missing[0]}: give --{missing[0]}, or bind {name}.{missing[0]} in gin")
    return resolved


def call(name: str, *study: Study, **given: Any) -> None:
    """Calls a command with arguments by their flat names; nothing is recorded, and earlier stages are not checked."""
    command(name)(*study, **keywords(command(name), arguments(name, given)))


def run(study: Study, name: str, given: Mapping[str, Any], force: bool = False) -> bool:
    """Runs a stage unless it was done with the same arguments on the same inputs; a tool and the report run always.

    Args:
      study: the study.
      name: of the stage or tool.
      given: arguments that differ from the defaults.
      force: run it even so.

    Returns:
      Whether it ran.

    Raises:
      UserError: an unknown stage or argument, an earlier stage that has not been run since what it is made from, or a
        place that cannot be written to.
    """
    resolved = arguments(name, given)
    call = functools.partial(command(name), **keywords(command(name), resolved))
    if name in WITHOUT_STUDY:
        call()
        return True
    if name in READERS:
        call(study)
        return True
    if name in TOOLS:
        buckets.check_writable(study.root)
        call(study)
        return True
    before = _before(study, name, resolved)
    made_of = digest([resolved, before, *_contents(resolved), *_inputs(study, name, resolved)])
    record = f"stages/{name}.json"
    if not force and (study.root / record).exists() and study.read_json(record, name)["digest"] == made_of:
        return False
    buckets.check_writable(study.root)
    started = time.time()
    with _taken_back(study, record):
        call(study)
    seconds = round(time.time() - started, 1)
    study.write_text(f"stages/{name}.gin", gin_text.record(name, resolved, flattened(command(name), given)))
    done = {"digest": made_of, "before": before, "arguments": resolved, "seconds": seconds, "finished": time.time()}
    study.write_json(record, done | {"versions": versions()})
    return True


def _contents(resolved: Mapping[str, Any]) -> list[str]:
    """Digests of the files among the arguments: an edited file is another input."""
    places = [value for value in resolved.values() if isinstance(value, str) and value]
    for place in places:
        buckets.check(place)
    files = [buckets.path(place) for place in places]
    return [digest(path.read_bytes().hex()) for path in files if path.is_file()]


def _inputs(study: Study, name: str, resolved: Mapping[str, Any]) -> list[Any]:
    """What else a stage reads that its arguments name: its module's function `inputs` says, if it has one."""
    inputs = getattr(_module(name), "inputs", None)
    return inputs(study, resolved) if inputs else []


@contextlib.contextmanager
def _taken_back(study: Study, record: str) -> Iterator[None]:
    """Has a study without a stage's record while the stage runs: if it is killed, files of two runs may lie there.

    The record of the run before stays with a command that is refused before it has changed anything.
    """
    path = study.root / record
    hosts.wait("all have seen what is done")
    earlier = path.read_bytes() if hosts.is_first() and path.exists() else None
    if earlier is not None:
        path.unlink()
    study.changed = False
    try:
        yield
    except UserError:
        if earlier is not None and not study.changed:
            study.write_bytes(record, earlier)
        raise


def _before(study: Study, stage: str, resolved: Mapping[str, Any]) -> list[Any]:
    """What the stage before did and when, and through its digest all before that.

    Raises:
      UserError: a stage before was not run, or has not been run since one that comes before it was.
    """
    if stage == "fit" and resolved["mixtures"]:
        return []
    if stage not in study.stages:
        raise UserError(f"study {study} holds proxy runs from elsewhere: there is nothing to {stage}")
    earlier = study.stages[: study.stages.index(stage)]
    found = {name: study.read_json(f"stages/{name}.json", name) for name in earlier if _is_recorded(study, name)}
    stamps = [[record["digest"], record["finished"]] for record in found.values()]
    for i, name in enumerate(earlier):
        if name not in found:
            raise UserError(f"study {study}: {stage!r} needs {name!r}; run `mde {name} --study={study}` first")
        last = stamps[:i][-1:]
        if found[name].get("before", last) != last:  # records of older versions do not say
            again = f"{earlier[i - 1]!r} was run again after {name!r}"
            raise UserError(f"study {study}: {again}; run `mde {name} --study={study}` first")
    return stamps[-1:]


def _is_recorded(study: Study, stage: str) -> bool:
    return (study.root / f"stages/{stage}.json").exists()
