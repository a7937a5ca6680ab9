"""What users bind to the arguments of commands: gin files, `--gin_bindings`, and a flag for each argument.

A flag overrides a binding, a binding a file, a later file an earlier one. gin is parsed here and nowhere else.
"""

import argparse
import ast
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from mde.commands import pipeline
from mde.errors import UserError, unknown
from mde.study import STAGES
from mde.values import described, fits

REPOSITORY = Path(__file__).parent.parent
COMMANDS = (*STAGES, *pipeline.TOOLS)


def add_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """A flag for each argument of a command, described by its docstring."""
    texts = described_arguments(command)
    for name, parameter in pipeline.parameters(command).items():
        default = parameter.default
        missing = "required" if default is inspect.Parameter.empty else f"default {default!r}"
        parser.add_argument(f"--{name}", help=f"{texts.get(name, '')} [{missing}]".replace("%", "%%"))


def flags(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """The arguments that were given as flags.

    Raises:
      UserError: text that is no value of the argument's type.
    """
    given = {name: getattr(args, name) for name in pipeline.parameters(command)}
    hints = {name: parameter.annotation for name, parameter in pipeline.parameters(command).items()}
    return {name: _value(f"--{name}", text, hints[name]) for name, text in given.items() if text is not None}


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
    used = {name: pipeline.command(name) for name in COMMANDS if files or name in named} | dict(more or {})
    for name, function in used.items():
        gin.external_configurable(function, name)
    for file in files:
        if not any((folder / file).exists() for folder in (Path(), REPOSITORY)):
            raise UserError(f"no gin file {file!r}, neither here nor in {REPOSITORY}")
    _search_the_repository()
    try:
        gin.parse_config_files_and_bindings(files, bindings, finalize_config=False)
        return {name: gin.get_bindings(name) for name in used}
    except (ValueError, SyntaxError, OSError) as error:
        raise _gin_error(" ".join(str(error).split()), used) from error


def described_arguments(command: str) -> dict[str, str]:
    """By argument, its lines under `Args:` in the docstring."""
    text = inspect.getdoc(pipeline.command(command)) or ""
    section = re.search(r"^Args:\n((?:  .*\n?|\n)*)", text, re.MULTILINE)
    entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(lines.split()) for name, lines in entries}


def _value(flag: str, text: str, hint: Any) -> Any:
    """The value of a flag: text where the argument takes text, Python's notation otherwise; lists need no brackets."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    lists = [option for option in options if typing.get_origin(option) is Sequence]
    items = typing.get_args(typing.get_args(lists[0])[0]) or typing.get_args(lists[0]) if lists else ()
    if str in items and not text.startswith(("[", "(", "{")):
        return [part.strip() for part in text.split(",")]
    if str in options and not (text.startswith("{") and any(typing.get_origin(o) is Mapping for o in options)):
        return text
    try:
        value = ast.literal_eval(text.strip().title() if bool in options else text)
    except (ValueError, SyntaxError):
        raise UserError(f"{flag}={text}: expected {described(hint)}") from None
    single = not isinstance(value, list | tuple) and not fits(value, hint)
    return [value] if lists and single else value


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


def _gin_error(message: str, used: Mapping[str, Callable[..., Any]]) -> UserError:
    """gin's message in one line, with the nearest right name where one is misspelt."""
    if stage := re.search(r"No configurable matching '(\w+)'", message):
        return unknown("stage in a gin binding", stage[1], {*COMMANDS, *used})
    if argument := re.search(r"'(\w+)' doesn't have a parameter named '(\w+)'", message):
        known = inspect.signature(used[argument[1]]).parameters.keys() - {"study"}
        return unknown(f"argument of stage {argument[1]!r}", argument[2], known)
    return UserError(f"gin: {message}")
