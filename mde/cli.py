"""The command line: every stage of a study is a command, `demo` runs them all.

gin is parsed here and nowhere else: `stage.argument = value` in a gin file or a `--gin_bindings` flag.
"""

import argparse
import functools
import inspect
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mde.errors import UserError, unknown

STAGE_HELP = {
    "prepare": "text into tokens",
    "train": "train the seed model, the experts and the observations",
    "score": "log-probs of the evaluation tokens under every run",
    "evaluate": "losses of mixtures of experts and of merged models",
    "fit": "judge regressors out of fold and choose one",
    "optimize": "find the mixture of least predicted loss",
    "prove": "train the recommended mixture and its rivals",
    "report": "print the tables and write report.html",
}
REPOSITORY = Path(__file__).parent.parent
DEMO_CONFIG = "configs/demo.gin"
DEMO_STUDY = "studies/demo"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: exit status 0, or 2 after one line that says what was wrong."""
    args = _parser().parse_args(argv)
    _set_environment()
    try:
        _run(args)
    except UserError as error:
        print(f"mde {args.command}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"mde {args.command}: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mde", description="Find the mixture of text domains a language model should be pre-trained on."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in {**STAGE_HELP, "demo": "all stages, on text out of installed packages"}.items():
        command = commands.add_parser(name, help=text, description=text)
        demo = name == "demo"
        command.add_argument(
            "--study",
            required=not demo,
            default=None,
            help=f"the study's directory{f' ({DEMO_STUDY})' if demo else ''}",
        )
        command.add_argument(
            "--gin_file",
            action="append",
            default=[],
            help="gin file; may be repeated, later ones override earlier ones",
        )
        command.add_argument(
            "--gin_bindings",
            action="append",
            default=[],
            help="one binding, such as 'train.steps = 300'; may be repeated",
        )
        command.add_argument("--force", action="store_true", help="run the stage even if it is done")
    return parser


class _Parser(argparse.ArgumentParser):
    """Argparse, with the nearest right name where a command is misspelt and a stage's arguments in its help."""

    def format_help(self) -> str:
        """The help of a stage ends with what gin can bind."""
        text, stage = super().format_help(), self.prog.split()[-1]
        if stage not in STAGE_HELP:
            return text
        from mde.stages import pipeline

        bindings = "\n".join(
            f"  {stage}.{name}" + ("" if value is inspect.Parameter.empty else f" = {value!r}")
            for name, value in pipeline.arguments(stage, {}).items()
        )
        described = inspect.getdoc(pipeline.STAGES[stage])
        return f"{text}\nbindings, with their defaults:\n{bindings or '  none'}\n\n{described}\n"

    def error(self, message: str) -> Any:
        if "invalid choice" in message and "argument command" in message:
            given = message.split("invalid choice: ")[1].split("'")[1]
            message = str(unknown("command", given, [*STAGE_HELP, "demo"]))
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)


def _set_environment() -> None:
    """One virtual device a core where JAX runs on the CPU, and quiet libraries; must come before JAX is imported."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "host_platform_device_count" not in flags:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={cores}".strip()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.ERROR)


def _run(args: argparse.Namespace) -> None:
    from mde.stages import pipeline
    from mde.study import Study

    demo = args.command == "demo"
    given = bindings(args.gin_file or ([DEMO_CONFIG] if demo else []), args.gin_bindings)
    study = Study(args.study or DEMO_STUDY)
    started = time.time()
    for stage in pipeline.STAGES if demo else [args.command]:
        begun = time.time()
        ran = pipeline.run(study, stage, given.get(stage, {}), args.force)
        status = f"{time.time() - begun:.0f} s" if ran else "done before with the same arguments"
        print(f"mde {stage}: {status}", flush=True)
    if demo:
        print(f"mde demo: {time.time() - started:.0f} s; see {study.root / 'report.html'}")


def bindings(files: Sequence[str], bindings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What gin binds, by stage and argument.

    Raises:
      UserError: a file that is not there, a syntax error, an unknown stage or argument.
    """
    import gin

    from mde.stages import pipeline

    gin.clear_config()
    for name, stage in pipeline.STAGES.items():
        gin.external_configurable(stage, name)
    for name in files:
        if not any((folder / name).exists() for folder in (Path(), REPOSITORY)):
            raise UserError(f"no gin file {name!r}, neither here nor in {REPOSITORY}")
    _search_the_repository()
    try:
        gin.parse_config_files_and_bindings(files, bindings, finalize_config=False)
        return {name: gin.get_bindings(name) for name in pipeline.STAGES}
    except (ValueError, SyntaxError, OSError) as error:
        raise _gin_error(" ".join(str(error).split())) from error


@functools.cache
def _search_the_repository() -> None:
    """Lets gin find the shipped files, and what they include, from any directory."""
    import gin

    gin.add_config_file_search_path(str(REPOSITORY))


def _gin_error(message: str) -> UserError:
    """gin's message in one line, with the nearest right name where one is misspelt."""
    from mde.stages import pipeline

    if stage := re.search(r"No configurable matching '(\w+)'", message):
        return unknown("stage in a gin binding", stage[1], pipeline.STAGES)
    if argument := re.search(r"'(\w+)' doesn't have a parameter named '(\w+)'", message):
        return unknown(f"argument of stage {argument[1]!r}", argument[2], pipeline.arguments(argument[1], {}))
    return UserError(f"gin: {message}")


if __name__ == "__main__":
    main()
