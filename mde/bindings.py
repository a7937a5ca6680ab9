"""What users bind to the arguments of commands: gin files, `--gin_bindings`, and a flag for each argument.

A flag overrides a binding, a binding a file, a later file an earlier one. gin is parsed here and nowhere else.
"""

import argparse
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from mde import flag_values
from mde.arguments import MISSING
from mde.commands import pipeline
from mde.errors import UserError, unknown
from mde.study import STAGES

REPOSITORY = Path(__file__).parent.parent
COMMANDS = (*STAGES, *pipeline.TOOLS)


def add_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """A flag for each argument of a command; those of an object stand together."""
    groups: dict[str, Any] = {"": parser}
    for name, argument in pipeline.parameters(command).items():
        prefix = name.rpartition(".")[0]
        group = groups.setdefault(prefix, None) or parser.add_argument_group(prefix)
        groups[prefix] = group
        missing = " [required]" if argument.default is MISSING else f" [default {argument.default!r}]"
        missing = "" if argument.default is None else missing
        settings: dict[str, Any] = {"nargs": "?", "const": "True"} if argument.annotation is bool else {}
        if _several(argument.annotation):
            settings = {"nargs": "*"}
        text = f"{argument.text}{missing}".replace("%", "%%")
        group.add_argument(f"--{name}", help=text, metavar=name.rpartition(".")[2].upper(), **settings)


def flags(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """The arguments that were given as flags.

    Raises:
      UserError: text that is no value of the argument's type.
    """
    known = pipeline.parameters(command)
    given = {name: getattr(args, name) for name in known}
    return {
        name: flag_values.parse(f"--{name}", [text] if isinstance(text, str) else text, known[name].annotation)
        for name, text in given.items()
        if text is not None
    }


def add_domain_flags(parser: argparse.ArgumentParser) -> None:
    """`--domain`, `--eval_domain`, `--task`: short forms of `prepare`'s training and evaluation domains and tasks."""
    group = parser.add_argument_group("domains", "NAME=PLACE; a place is a file, folder, pattern or tfds:NAME:SPLIT")
    group.add_argument("--domain", action="append", default=[], help="to train on, instead of all others; repeated")
    group.add_argument("--eval_domain", action="append", default=[], help="only to evaluate on; may be repeated")
    group.add_argument("--task", action="append", default=[], help="an end task to evaluate on; may be repeated")


def domains(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `prepare` that the domain flags stand for; a name alone is a registered domain.

    Raises:
      UserError: a name that is given twice.
    """
    found: dict[str, dict[str, str]] = {"training_domains": {}, "evaluation_domains": {}, "tasks": {}}
    for argument, texts in zip(found, (args.domain, args.eval_domain, args.task), strict=True):
        for text in texts:
            name, _, place = text.partition("=")
            if argument == "tasks" and not place:
                raise UserError(f"--task={text}: expected NAME=PLACE, a file of questions, choices and answers")
            if any(name in others for others in found.values()):
                raise UserError(f"domain {name!r} is given twice")
            found[argument][name] = place or f"mde:{name}"
    kept = ("training_domains", "evaluation_domains") if args.domain else ()
    return {name: value for name, value in found.items() if value or name in kept}


def from_gin(
    files: Sequence[str], bindings: Sequence[str], more: Mapping[str, Callable[..., Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """What gin binds, by command and argument.

    Args:
      files: gin files; later ones override.
      bindings: bindings, which override the files.
      more: what else can be bound, by name.

    Raises:
      UserError: a file that is not there, a syntax error, an unknown command or argument.
    """
    if not files and not bindings:
        return {}
    import gin

    gin.clear_config()
    # Registering imports a command, so bindings alone import only what they name.
    named = {binding.split(".")[0].strip() for binding in bindings}
    used = [name for name in COMMANDS if files or name in named]
    takes = {part: names for name in used for part, names in _bindable(name).items()}
    takes |= {name: {key: key for key in inspect.signature(of).parameters} for name, of in (more or {}).items()}
    for part, names in takes.items():
        _register(part, tuple(names))
    for file in files:
        if not any((folder / file).exists() for folder in (Path(), REPOSITORY)):
            raise UserError(f"no gin file {file!r}, neither here nor in {REPOSITORY}")
    _search_the_repository()
    try:
        gin.parse_config_files_and_bindings(files, bindings, finalize_config=False)
        bound = {part: gin.get_bindings(part) for part in takes}
    except (ValueError, SyntaxError, OSError) as error:
        raise _gin_error(" ".join(str(error).split()), takes) from error
    found: dict[str, dict[str, Any]] = {name: {} for name in (*used, *(more or {}))}
    for part, values in bound.items():
        found[part.partition(".")[0]] |= {takes[part][name]: value for name, value in values.items()}
    return found


def _bindable(command: str) -> dict[str, dict[str, str]]:
    """What gin can bind: for a command and each of its objects, the arguments by the last part of their names."""
    found: dict[str, dict[str, str]] = {command: {}}
    for name in pipeline.parameters(command):
        prefix, _, last = name.rpartition(".")
        found.setdefault(f"{command}.{prefix}" if prefix else command, {})[last] = name
    return found


@functools.cache
def _register(name: str, parameters: tuple[str, ...]) -> None:
    """Makes gin know a name and its parameters, by a function that is never called."""
    import gin

    def function(**bound: Any) -> None:
        raise NotImplementedError

    kind = inspect.Parameter.KEYWORD_ONLY
    function.__signature__ = inspect.Signature([inspect.Parameter(key, kind, default=None) for key in parameters])  # type: ignore[attr-defined]
    gin.external_configurable(function, name)


def _several(annotation: Any) -> bool:
    """Whether an argument takes several words: `--taus 0 .1`, `--constraints.max web=.5 code=.2`."""
    return any(typing.get_origin(option) in (Sequence, Mapping) for option in flag_values.options(annotation))


@functools.cache
def _search_the_repository() -> None:
    """Lets gin find the shipped files, and what they include, from any directory.

    Its other reader looks for a file among Python's modules: it fails at a folder that could be one, and logs an error
    before the next place is tried.
    """
    import gin

    gin.add_config_file_search_path(str(REPOSITORY))
    # gin looks into packages as well, says that it found none, and fails where PYTHONPATH names the repository.
    gin.config._FILE_READERS[:] = [(read, exists) for read, exists in gin.config._FILE_READERS if exists is isfile]


def _gin_error(message: str, takes: Mapping[str, Iterable[str]]) -> UserError:
    """gin's message in one line, with the nearest right name where one is misspelt."""
    if stage := re.search(r"No configurable matching '([\w.]+)'", message):
        return unknown("stage in a gin binding", stage[1], {*COMMANDS, *takes})
    if argument := re.search(r"'([\w.]+)' doesn't have a parameter named '(\w+)'", message):
        return unknown(f"argument of stage {argument[1]!r}", argument[2], [*takes[argument[1]]])
    return UserError(f"gin: {message}")
