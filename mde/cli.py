"""The command line: every stage of a study is a command, `demo` runs them all, and a few tools stand beside them."""

import argparse
import contextlib
import inspect
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from mde import hosts
from mde.errors import UserError, reason, unknown

HELP = {
    "demo": "all steps, on your domains or on text from installed packages",
    "prepare": "turn text into tokens",
    "train": "train the seed model, the experts and the proxy runs",
    "score": "log-probs of the evaluation tokens under every run",
    "evaluate": "losses of mixtures of experts and of merged models",
    "fit": "compare regressors by cross-validation and choose one; also on two CSV files",
    "optimize": "find the mixture with the lowest predicted loss",
    "validate": "train the recommended mixture and its baselines",
    "final": "train full models on the mixtures found; the same as `mde train --mixture=...`",
    "report": "print the tables and write report.html",
    "design": "draw the mixtures of a swarm, for any trainer",
    "predict": "predicted losses of the mixtures in a CSV file",
    "iterate": "rounds of Bayesian optimisation: propose mixtures, train them, learn from them",
    "scale": "the best mixture at small budgets, carried to a large one",
    "ablate": "models of parts of a corpus: how well merges stand in for unions, which parts to take",
    "reweight": "mixtures found while a proxy is trained: DoReMi and DoGE",
    "swarm": "write the proxy runs as two CSV files that RegMix or Olmix reads",
    "eval": "lm-evaluation-harness's tasks on a run, a merged model or a mixture of experts",
    "models": "the presets and their sizes",
    "plan": "memory and time of a training run, without the machines",
    "export": "a run as a model that Hugging Face's transformers loads",
    "import": "add such a model to a study as a run",
}
TOGETHER = ("train", "score", "validate", "final")  # what several processes can do together
DEMO_CONFIG = "configs/demo.gin"
DEMO_STUDY = "studies/demo"
SWARM_STUDY = "studies/swarm"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: exit status 0, or 2 after one line that says what was wrong."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = _commands().parse_args(argv[:1]).command
    name = meant(name, argv[1:])
    set_environment()
    try:
        _run(name, argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"mde {name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"mde {name}: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read it has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it exits
        sys.exit(141)
    except Exception as error:
        from mde import buckets

        if not buckets.is_in_the_way(error):
            raise
        print(f"mde {name}: error: {reason(error)}; the same command goes on when that is mended", file=sys.stderr)
        sys.exit(2)


class _Parser(argparse.ArgumentParser):
    """Argparse with the nearest right name where a command or a flag is misspelt."""

    def __init__(self, **settings: Any):
        super().__init__(**settings, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> Any:
        if "invalid choice" in message:
            message = str(unknown("command", message.split("invalid choice: ")[1].split("'")[1], HELP))
        elif message.startswith("unrecognized arguments: --"):
            flag = message.split()[2].split("=")[0]
            message = str(unknown("flag", flag, [s for s in self._option_string_actions if s.startswith("--")]))
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)


def _commands() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:9} {text}" for name, text in HELP.items())
    parser = _Parser(
        prog="mde",
        usage="mde COMMAND [--help] ...",
        description=f"Find the mixture of text domains a language model should be pre-trained on.\n\n{listing}",
    )
    parser.add_argument("--version", action="version", version=f"mde {metadata.version('mde')}")
    parser.add_argument("command", choices=HELP, metavar="command", help="`mde COMMAND --help` lists its arguments")
    return parser


def _flags(name: str) -> argparse.ArgumentParser:
    """The parser of one command; it imports that command and no other."""
    from mde import bindings
    from mde.commands import pipeline

    demo = name == "demo"
    described = HELP[name] if demo else re.split(r"\n(?:Args|Raises):", inspect.getdoc(pipeline.command(name)) or "")[0]
    parser = _Parser(prog=f"mde {name}", usage=f"mde {name} [--flag VALUE ...]", description=described)
    default = {"demo": f" [default {DEMO_STUDY}]", "fit": f" [with --mixtures: default {SWARM_STUDY}]"}.get(name, "")
    aliases = ["--regressor"] if name == "predict" else []
    if demo or name not in pipeline.WITHOUT_STUDY:
        parser.add_argument("--study", *aliases, help=f"the study's directory{default}")
    if not demo:
        bindings.add_flags(parser, name)
    if demo or name == "prepare":
        bindings.add_domain_flags(parser)
    if name in TOGETHER:
        together = parser.add_argument_group("several processes", "each runs this command on the same study")
        together.add_argument("--coordinator", help="HOST:PORT of the first process, or auto on TPU VMs and clusters")
        together.add_argument("--processes", type=int, help="how many there are")
        together.add_argument("--process", type=int, help="which of them this is, from 0")
    gin = parser.add_argument_group("gin", f"bindings look like {'train' if demo else name}.argument = value")
    gin.add_argument("--gin_file", action="append", default=[], help="a file of bindings; later ones override")
    gin.add_argument("--gin_bindings", action="append", default=[], help="one binding; may be repeated")
    if demo or name not in pipeline.UNRECORDED:
        parser.add_argument("--force", action="store_true", help="run the stage even if it is done")
    return parser


def meant(name: str, argv: Sequence[str]) -> str:
    """The command that is meant: `train --mixture=…` trains full models and no pool of small ones, which is `final`."""
    return "final" if name == "train" and any(word.split("=")[0] == "--mixture" for word in argv) else name


def set_environment() -> None:
    """One virtual device a core where JAX runs on the CPU, and quiet libraries; must come before JAX is imported."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={hosts.cores()}".strip()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs it raises as well


def parse(name: str, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, dict[str, Any]]]:
    """The flags of a command, and the arguments that files, bindings and flags give to each stage."""
    from mde import bindings

    args = _flags(name).parse_args(argv)
    demo = name == "demo"
    given = bindings.from_gin(args.gin_file or ([DEMO_CONFIG] if demo else []), args.gin_bindings)
    if not demo:
        given[name] = {**given.get(name, {}), **bindings.flags(args, name)}
    if demo or name == "prepare":
        given["prepare"] = {**given.get("prepare", {}), **bindings.domains(args)}
    return args, given


def _run(name: str, argv: Sequence[str]) -> None:
    from mde import buckets
    from mde.commands import pipeline
    from mde.study import STAGES, Study

    args, given = parse(name, argv)
    if name in TOGETHER:
        hosts.connect(args.coordinator, args.processes, args.process)
    demo = name == "demo"
    study = Study("." if name in pipeline.WITHOUT_STUDY else args.study or _default_study(name, given))
    buckets.check(study.root)
    started = time.time()
    writes = name not in (*pipeline.WITHOUT_STUDY, *pipeline.READERS) and hosts.is_first()
    with buckets.alone(study.root) if writes else contextlib.nullcontext():
        for stage in STAGES if demo else [name]:
            begun = time.time()
            ran = pipeline.run(study, stage, given.get(stage, {}), getattr(args, "force", False))
            status = f"{time.time() - begun:.0f} s" if ran else "done before with the same arguments"
            if stage in STAGES:
                print(f"mde {stage}: {status}", flush=True)
    if demo:
        print(f"mde demo: {time.time() - started:.0f} s")


def _default_study(name: str, given: dict[str, dict[str, Any]]) -> str:
    if name == "demo":
        return DEMO_STUDY
    if name == "fit" and given["fit"].get("mixtures"):
        return SWARM_STUDY
    raise UserError("give --study, the study's directory")


if __name__ == "__main__":
    main()
