"""Sweeps: `python -m launch.sweep --sweep=configs/sweeps/train_mixtures.gin --root=studies/sweeps/train_mixtures`.

Runs every point of a sweep file that is not done, and gathers their results in one table. It can be stopped at any
time; the same command goes on from there.
"""

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

import launch.worker
from launch import backends, expansion, job, results
from launch import machine as machines
from launch.expansion import Point
from launch.shell import Shell
from launch.sky_jobs import SkyJobs
from mde import bindings, buckets
from mde.commands import pipeline
from mde.errors import UserError, check_positive

BACKENDS = ("local", "ray", "skypilot")


def main(argv: Sequence[str] | None = None) -> None:
    """Exit status 0 when all points are done, 1 if some failed, 2 after one line that says what was wrong."""
    args = _parser().parse_args(argv)
    try:
        failed = run(args)
    except UserError as error:
        print(f"launch.sweep: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        there = "; its jobs go on, `sky jobs cancel` ends them" if args.backend == "skypilot" else ""
        print(f"launch.sweep: interrupted; the same command goes on from here{there}", file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if failed else 0)


def run(args: argparse.Namespace) -> int:
    """Runs a sweep; returns how many points failed."""
    check_positive(cpus=args.cpus, poll=args.poll, **({} if args.workers is None else {"workers": args.workers}))
    root = buckets.study(args.root)
    points = expansion.read(args.sweep, args.gin_bindings)
    jobs = _sky_jobs(args, root, points) if args.backend == "skypilot" and not args.gather else None
    if args.backend != "skypilot" and buckets.is_bucket(root):
        raise UserError(
            f"--root={args.root}: expected a directory that all workers see; buckets are for --backend=skypilot"
        )
    if jobs and args.dry_run:
        _list(root, points, None)
        jobs.show(points)
        return 0
    buckets.check(root)
    pending = [point for point in points if not launch.worker.is_done(root / point.name, point.digest)]
    if args.dry_run:
        _list(root, points, pending)
        return 0
    failed = 0
    if not args.gather:
        for point in pending:
            if point.study:
                launch.worker.check_start(epath.Path(point.study), point.stages[0])
        if jobs and pending:
            jobs.check()
        for point in points:
            launch.worker.write(point, root / point.name)
        print(f"{len(points)} points, {len(points) - len(pending)} of them done before", flush=True)
        ended = jobs.run(pending) if jobs else _start(args, root, pending)
        failed = sum(failure is not None for _, failure in _progress(ended, len(pending)))
    else:
        points = [point for point in points if (root / point.name / "point.json").exists()]
    table = results.gather(root, [point.name for point in points])
    print(f"{Counter(table['status'])['done']} of {len(table)} points are done; see {root / 'results.csv'}")
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("launch.sweep", description=__doc__, allow_abbrev=False)
    parser.add_argument("--sweep", required=True, help="gin file of the sweep")
    parser.add_argument("--root", required=True, help="directory of its studies and results; skypilot: in a bucket")
    parser.add_argument("--gin_bindings", action="append", default=[], help="one binding; may be repeated")
    parser.add_argument("--backend", choices=BACKENDS, default="local", help="where points run [%(default)s]")
    parser.add_argument("--workers", type=int, help="local: points at a time [as many as the CPUs allow]")
    parser.add_argument("--address", default="auto", help="ray: of the cluster [%(default)s]")
    parser.add_argument("--cpus", type=int, default=1, help="local, ray: CPUs of a point [%(default)s]")
    parser.add_argument("--gpus", type=float, default=0, help="ray: GPUs of a point [%(default)s]")
    parser.add_argument("--tpus", type=float, default=0, help="ray: TPU chips of a point [%(default)s]")
    parser.add_argument("--machine", help="skypilot: description of a point's machine, as launch/machines/v4_8.py")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of it")
    parser.add_argument("--secret", action="append", default=[], help="skypilot: environment variable to hand on")
    parser.add_argument("--poll", type=float, default=30, help="skypilot: seconds between looks [%(default)s]")
    parser.add_argument("--dry_run", action="store_true", help="print the points, and commands; do nothing")
    parser.add_argument("--gather", action="store_true", help="only gather the results there are")
    return parser


def _start(args: argparse.Namespace, root: epath.Path, points: Sequence[Point]) -> Iterator[tuple[Point, str | None]]:
    """The local or the Ray backend, at work on the points."""
    if not points:
        return
    by_directory = {Path(root / point.name).absolute(): point for point in points}
    environment = _environment(args.cpus)
    if args.backend == "ray":
        resources = {"CPU": args.cpus, "GPU": args.gpus, "TPU": args.tpus}
        wanted = {name: amount for name, amount in resources.items() if amount}
        ended = backends.on_ray(list(by_directory), environment, args.address, wanted)
    else:
        workers = args.workers or max(1, (os.cpu_count() or 1) // args.cpus)
        ended = backends.local(list(by_directory), environment, workers)
    for directory, failure in ended:
        yield by_directory[directory], failure


def _sky_jobs(args: argparse.Namespace, root: epath.Path, points: Sequence[Point]) -> SkyJobs:
    """The SkyPilot backend, when all is well that can be seen without asking anybody."""
    if not buckets.is_bucket(root):
        raise UserError(f"--root={args.root}: expected a place that all machines reach, such as gs://bucket/sweep")
    if not args.machine:
        raise UserError("--backend=skypilot needs --machine, such as launch/machines/v4_8.py")
    machine = machines.load(args.machine, args.set)
    if machine.all_hosts > 1:
        raise UserError(f"a point is run by one host and the machine has {machine.all_hosts}")
    job.check_secrets(args.secret)
    for point in points:
        if point.study and not buckets.extra(point.study):
            raise UserError(f"sweep.study = {point.study!r}: expected a study in a bucket, which all machines reach")
        for place in _places(point.given):
            _check_reached(place)
        if "train" in point.given:
            job.check_model(machine, {stage: pipeline.arguments(stage, given) for stage, given in point.given.items()})
    jobs = SkyJobs(root, machine, Shell(args.dry_run, args.secret), args.secret, args.poll)
    jobs.task()  # says what the machine lacks
    return jobs


def _environment(cpus: int) -> Mapping[str, str]:
    """What the processes of points need: this repository, and a virtual device for each of their CPUs."""
    path = os.pathsep.join(filter(None, [str(bindings.REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={cpus}".strip()
    return {"PYTHONPATH": path, "XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "3"}


def _places(value: Any) -> Iterator[str]:
    """All text in what a point binds that has a folder in it."""
    if isinstance(value, str):
        if "/" in value and not buckets.is_bucket(value):
            yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _places(inner)


def _check_reached(place: str) -> None:
    """Raises UserError if a place is there on this machine, and not in what is committed, which the others get."""
    head = re.split(r"[*?[]", place)[0]
    path = Path(head if head == place else head.rpartition("/")[0] or ".").expanduser()
    if not path.exists():
        return  # no path, or one that the point itself will miss
    known = subprocess.run(["git", "ls-files", "--", str(path)], cwd=bindings.REPOSITORY, capture_output=True)
    if path.is_absolute() or not known.stdout.strip():
        raise UserError(f"{place!r} is on this machine alone: bind a place in a bucket, or a file that is committed")


def _progress(ended: Iterable[tuple[Point, str | None]], total: int) -> Iterator[tuple[Point, str | None]]:
    for i, (point, failure) in enumerate(ended, 1):
        print(f"[{i}/{total}] {point.name}: {'done' if failure is None else f'failed: {failure}'}", flush=True)
        yield point, failure


def _list(root: epath.Path, points: Sequence[Point], pending: Sequence[Point] | None) -> None:
    """Prints the points; which of them are done is not known if `pending` is None."""
    done = [] if pending is None else [point for point in points if point not in pending]
    for point in points:
        bound = ", ".join(f"{key} = {value!r}" for key, value in point.bindings.items())
        print(f"{root / point.name}: {bound}{' (done)' if point in done else ''}")
    counted = "those that are done are left out" if pending is None else f"{len(done)} of them done"
    print(f"{len(points)} points, {counted}; each runs {', '.join(points[0].stages)}")


if __name__ == "__main__":
    main()
