"""What is launched: a command of `mde`, checked as the command line would check it, before anything is paid for."""

import argparse
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import machine as machines
from launch.machine import Machine
from mde import buckets, cli
from mde.bindings import REPOSITORY
from mde.commands import pipeline
from mde.errors import UserError, unknown
from mde.models import config as model_configs
from mde.study import STAGES

# A host without Python 3.11 gets one of its own; versions are those that the tests run with.
INSTALL = (
    "python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 .venv && "
    "python3 -m uv pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[{extras}]'"
)
EXTRAS = {"tpu": ("tpu",), "gpu": ("cuda",), "cpu": ()}
STOPPED = 130  # exit status of a command that was stopped after saving its state: the same command goes on
LARGEST_VOCABULARY = 128_000  # where the study's own is not known


@dataclasses.dataclass(frozen=True)
class Job:
    """A command on a machine.

    Attributes:
      name: of whatever is created for it.
      machine: where.
      command: arguments of `mde`.
      study: the place of the study that it works at.
      secrets: names of environment variables that it is given; their values are never printed.
    """

    name: str
    machine: Machine
    command: tuple[str, ...]
    study: str
    secrets: tuple[str, ...] = ()

    @property
    def together(self) -> bool:
        """Whether the command is one that several processes run together."""
        return self.command[0] in cli.TOGETHER

    def argv(self, processes: int | None = None) -> list[str]:
        """The command in a clone of the repository, as one of so many processes; one a host if None."""
        alone = (self.machine.all_hosts if processes is None else processes) == 1
        return [".venv/bin/python", "-m", "mde.cli", *self.command, *([] if alone else ["--coordinator=auto"])]

    @property
    def install(self) -> str:
        """The shell command that installs it in a clone."""
        return install(self.machine, self.study)


def install(machine: Machine, study: str) -> str:
    """The shell command that installs, in a clone, what a machine needs to work at a study, wherever that is."""
    bucket = buckets.extra(study)
    extras = ["demo", *([bucket] if bucket else []), *EXTRAS[machine.accelerator]]
    return INSTALL.format(extras=",".join(extras))


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The flags that all launchers share; the command to run comes after `--`."""
    made = argparse.ArgumentParser(
        f"launch.{name}",
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"python -m launch.{name} --machine=FILE --name=NAME [...] -- COMMAND [--argument=value ...]",
    )
    made.add_argument("--machine", required=True, help="description of the machine, such as launch/machines/v5e_16.py")
    made.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the machine")
    made.add_argument("--name", required=True, help="of the run: what is created is called so")
    made.add_argument("--secret", action="append", default=[], help="environment variable to hand on, by its name")
    made.add_argument("--dry_run", action="store_true", help="print every command, and run none")
    made.add_argument("command", nargs="+", help="a command of mde with its arguments")
    return made


def run(name: str, made: argparse.ArgumentParser, main: Callable[[argparse.Namespace], int], argv: Any = None) -> None:
    """Runs a launcher's main with its flags; errors of users are one line and exit status 2."""
    args = made.parse_args(argv)
    try:
        sys.exit(main(args))
    except UserError as error:
        print(f"launch.{name}: error: {error}", file=sys.stderr)
        sys.exit(2)


def from_flags(args: argparse.Namespace, bucket: bool) -> Job:
    """The job of a launcher's flags.

    Args:
      args: the flags.
      bucket: whether the study must be in a bucket, because the hosts' disks are lost or not shared.

    Raises:
      UserError: a wrong machine, name, command or binding; a model that does not fit; a secret that is not set.
    """
    machine = machines.load(args.machine, args.set)
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", args.name):
        raise UserError(f"--name={args.name}: expected up to 40 lower-case letters, digits and '-', a letter first")
    check_secrets(args.secret)
    study = _check_command(machine, args.command, bucket)
    return Job(args.name, machine, tuple(args.command), study, tuple(args.secret))


def check_secrets(names: Sequence[str]) -> None:
    """Raises UserError unless all are names of variables that are set."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name not in os.environ:
            shown = name.split("=")[0]  # whoever gave a value as well does not want it in a log
            raise UserError(f"--secret={shown}: expected the name of a variable of your environment, and no value")


def check_model(machine: Machine, given: Mapping[str, Mapping[str, Any]], stage: str = "train") -> None:
    """Raises UserError if the machine cannot hold the model that a stage names, by what binds each stage."""
    sized = given.get(stage, {})
    if preset := sized.get("preset"):
        vocabulary = given.get("prepare", {}).get("vocab_size", LARGEST_VOCABULARY)
        changed = {name.removeprefix("model."): value for name, value in sized.items() if name.startswith("model.")}
        changed = {name: value for name, value in changed.items() if value is not None}
        machine.check_fits(model_configs.preset(preset, vocabulary, **changed).parameters, preset)


def _check_command(machine: Machine, command: Sequence[str], bucket: bool) -> str:
    """The study that a command works at, when all is well with the command."""
    name, *rest = command
    name = cli.meant(name, rest)
    launched = ("demo", *STAGES, "final")
    if name in cli.HELP and name not in launched:
        raise UserError(f"`mde {name}` is not launched; what is: {', '.join(launched)}")
    if name not in launched:
        raise unknown("command", name, launched)
    args, given = cli.parse(name, rest)
    if machine.all_hosts > 1 and name not in cli.TOGETHER:
        raise UserError(
            f"{name!r} is run by one host and the machine has {machine.all_hosts}: several hosts run "
            f"{', '.join(cli.TOGETHER)} together"
        )
    for stage in STAGES if name == "demo" else [name]:
        pipeline.arguments(stage, given.get(stage, {}))
    if not args.study or (bucket and not buckets.is_bucket(buckets.study(args.study))):
        where = "in a bucket, such as gs://bucket/study" if bucket else "that all hosts see"
        raise UserError(f"--study={args.study}: expected a directory {where}; hosts keep nothing of their own")
    for file in args.gin_file:
        _check_committed(file)
    if name in ("demo", "train", "final"):
        check_model(machine, given, "train" if name == "demo" else name)
    return args.study


def _check_committed(file: str) -> None:
    """Hosts get what is committed; a path is the same there if it is relative to the repository."""
    path = Path(file)
    known = subprocess.run(["git", "ls-files", "--error-unmatch", file], cwd=REPOSITORY, capture_output=True)
    if path.is_absolute() or known.returncode:
        raise UserError(f"--gin_file={file}: expected a file that is committed, by its path in {REPOSITORY}")
