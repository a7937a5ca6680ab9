"""One point of a sweep, in a process of its own: `python -m launch.worker DIRECTORY`.

The directory is the point's study, and holds beside it

    point.json        what the point is
    point.gin         all its bindings, for whoever wants to run a stage by hand
    attempts.jsonl    when and where it was started and done
    log.txt           what its stages printed
    done.json         written last

Stages are resumed like those of any study, so a point that was killed goes on, wherever it is started again. In a
bucket there is no lock to keep a second process away: whoever starts points there starts each once.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from launch.expansion import Point
from mde import buckets, cli, gin_text
from mde.commands import pipeline
from mde.errors import UserError
from mde.study import STAGES, Study

# What a point that starts at a stage leaves behind of the study it starts from: the work of that stage and later ones,
# and what tools have made of their runs and mixtures.
LEFT_BY = {
    "prepare": ("study.json", "tokenizer", "tokens", "corpus.csv", "problems.csv"),
    "train": (
        *("runs", "training.json", "mixtures.csv", "iterate", "rounds.csv"),
        *("scale.json", "scale", "reweighting", "ablation", "evals"),
    ),
    "score": ("scores", "choices", "scoring.json", "losses.csv", "accuracies.csv", "evaluation.csv"),
    "evaluate": ("features.csv", "answers.csv", "candidates.csv", "evaluators.json", "portable.npz"),
    "fit": ("fit",),
    "optimize": ("optimum.json", "surface.npz", "final"),
    "validate": ("validation",),
    "report": ("report.html",),
}
# What a point never takes over of a study that is a point itself.
OWN = ("point.json", "point.gin", "attempts.jsonl", "log.txt", "done.json", ".lock")
PATIENCE = 30  # seconds that a point waits for an earlier attempt at it to be gone


def write(point: Point, directory: epath.Path) -> None:
    """Puts down what the point is."""
    study = Study(directory)
    lines = [gin_text.binding(stage, key, given[key]) for stage, given in point.given.items() for key in given]
    study.write_text("point.gin", "\n".join(lines) + "\n")
    study.write_json("point.json", {**dataclasses.asdict(point), "digest": point.digest})


def is_done(directory: epath.Path, digest: str) -> bool:
    """Whether the point was finished as it is now."""
    path = directory / "done.json"
    return path.exists() and json.loads(path.read_text())["digest"] == digest


def main(argv: list[str] | None = None) -> None:
    """Runs the point's stages, unless they are done."""
    parser = argparse.ArgumentParser(prog="launch.worker", description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=epath.Path, help="of the point")
    parser.add_argument("--on", default="", help="a name for the place where it runs, for the record")
    parser.add_argument("--tied", action="store_true", help="end at once when standard input does")
    args = parser.parse_args(argv)
    cli.set_environment()
    if args.tied:
        threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        run(args.directory, args.on)
    except UserError as error:
        print(f"launch.worker: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def run(directory: epath.Path, on: str) -> None:
    """Runs a point that was put down by `write`, unless it is done."""
    with _alone(directory):
        point = json.loads((directory / "point.json").read_text())
        if is_done(directory, point["digest"]):
            return
        _note(directory, "started", on)
        first = point["stages"][0]
        if point["study"] and not (directory / _last_before(first)).exists():
            start_from(epath.Path(point["study"]), directory, first)
        for stage in point["stages"]:
            started = time.time()
            ran = pipeline.run(Study(directory), stage, point["given"][stage])
            print(f"{stage}: {time.time() - started:.0f} s" if ran else f"{stage}: done before", flush=True)
        Study(directory).write_json("done.json", {"digest": point["digest"], "finished": time.time()})
        _note(directory, "done", on)


def check_start(study: epath.Path, first: str) -> None:
    """Raises UserError if a study has nothing that a point could start from at a stage."""
    if not (study / _last_before(first)).exists():
        before = STAGES[STAGES.index(first) - 1]
        raise UserError(f"sweep.study = {str(study)!r}: {first!r} needs {before!r}, which is not done there")


def _last_before(first: str) -> str:
    """The record of the stage before another: the last that a point takes over, when all the rest is there."""
    return f"stages/{STAGES[STAGES.index(first) - 1]}.json"


def start_from(study: epath.Path, directory: epath.Path, first: str) -> None:
    """Takes over what a study's stages before `first` have left; files are linked, for stages change none in place.

    Raises:
      UserError: no such study, or it has not come that far.
    """
    check_start(study, first)
    later = STAGES[STAGES.index(first) :]
    left = {*OWN, "corpus", "report.html", *(name for stage in later for name in LEFT_BY[stage])}
    records = [name for name in STAGES if name not in later]
    for source in sorted(study.iterdir()):
        if source.name not in left | {"stages"}:
            _link(source, directory / source.name)
    # The records come last: they say that the rest is complete.
    target = Study(directory)
    for record in [f"stages/{name}{suffix}" for name in records for suffix in (".gin", ".json")]:
        if (study / record).exists():
            target.write_bytes(record, (study / record).read_bytes())


def _link(source: epath.Path, target: epath.Path) -> None:
    """Hard links of a file or of all files in a directory, or copies where no link leads: across disks, in buckets."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for inside in source.iterdir():
            _link(inside, target / inside.name)
        return
    target.unlink(missing_ok=True)
    try:
        if buckets.is_bucket(source) or buckets.is_bucket(target):
            raise OSError
        os.link(source, target)
    except OSError:
        source.copy(target)


@contextlib.contextmanager
def _alone(directory: epath.Path) -> Iterator[None]:
    """Keeps a second process away from the point; the kernel lifts the lock when this one ends, however it ends."""
    if buckets.is_bucket(directory):
        yield
        return
    with open(directory / ".lock", "w") as lock:
        for _ in range(PATIENCE):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(1)
        else:
            raise UserError(f"{directory}: another process is at work on this point")
        yield


def _note(directory: epath.Path, event: str, on: str) -> None:
    line: Mapping[str, Any] = {"event": event, "on": on, "pid": os.getpid(), "time": time.time()}
    path = directory / "attempts.jsonl"
    before = path.read_text() if path.exists() else ""  # to what is in a bucket nothing can be added
    Study(directory).write_text(path.name, before + json.dumps(line) + "\n")


def _end_with_input() -> None:
    """Standard input is a pipe from whoever started this process and ends with them, however they end."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
