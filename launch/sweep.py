"""Sweeps: `python -m launch.sweep --sweep=configs/sweeps/train_mixtures.gin --root=studies/sweeps/train_mixtures`.

Runs every point of a sweep file that is not done, and gathers their results in one table. It can be stopped at any
time; the same command goes on from there.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import launch.worker
from launch import backends, expansion, results
from launch.expansion import Point
from mde import bindings
from mde.errors import UserError, check_positive

BACKENDS = ("local", "ray")


def main(argv: Sequence[str] | None = None) -> None:
    """Exit status 0 when all points are done, 1 if some failed, 2 after one line that says what was wrong."""
    args = _parser().parse_args(argv)
    try:
        failed = run(args)
    except UserError as error:
        print(f"launch.sweep: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("launch.sweep: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if failed else 0)


def run(args: argparse.Namespace) -> int:
    """Runs a sweep; returns how many points failed."""
    if "://" in args.root:
        raise UserError(f"--root={args.root}: expected a directory that all workers see; mount a bucket to use it")
    check_positive(cpus=args.cpus, **({} if args.workers is None else {"workers": args.workers}))
    root = Path(args.root)
    points = expansion.read(args.sweep, args.gin_bindings)
    pending = [point for point in points if not launch.worker.is_done(root / point.name, point.digest)]
    if args.dry_run:
        _show(points, pending, root)
        return 0
    if not args.gather:
        for point in pending:
            if point.study:
                launch.worker.check_start(Path(point.study), point.stages[0])
        for point in points:
            launch.worker.write(point, root / point.name)
        print(f"{len(points)} points, {len(points) - len(pending)} of them done before", flush=True)
        statuses = dict(_progress(_start(args, [root / point.name for point in pending]), len(pending)))
    else:
        points = [point for point in points if (root / point.name / "point.json").exists()]
        statuses = {}
    table = results.gather(root, [point.name for point in points])
    print(f"{Counter(table['status'])['done']} of {len(table)} points are done; see {root / 'results.csv'}")
    return sum(status != 0 for status in statuses.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("launch.sweep", description=__doc__, allow_abbrev=False)
    parser.add_argument("--sweep", required=True, help="gin file of the sweep")
    parser.add_argument("--root", required=True, help="directory of its studies and results")
    parser.add_argument("--gin_bindings", action="append", default=[], help="one binding; may be repeated")
    parser.add_argument("--backend", choices=BACKENDS, default="local", help="where points run [%(default)s]")
    parser.add_argument("--workers", type=int, help="local: points at a time [as many as the CPUs allow]")
    parser.add_argument("--address", default="auto", help="ray: of the cluster [%(default)s]")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of a point [%(default)s]")
    parser.add_argument("--gpus", type=float, default=0, help="ray: GPUs of a point [%(default)s]")
    parser.add_argument("--tpus", type=float, default=0, help="ray: TPU chips of a point [%(default)s]")
    parser.add_argument("--dry_run", action="store_true", help="print the points and do nothing")
    parser.add_argument("--gather", action="store_true", help="only gather the results there are")
    return parser


def _start(args: argparse.Namespace, directories: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    """The backend, at work on the points."""
    absolute = [directory.absolute() for directory in directories]
    environment = _environment(args.cpus)
    if not absolute:
        return iter(())
    if args.backend == "ray":
        resources = {"CPU": args.cpus, "GPU": args.gpus, "TPU": args.tpus}
        return backends.on_ray(absolute, environment, args.address, {k: v for k, v in resources.items() if v})
    workers = args.workers or max(1, (os.cpu_count() or 1) // args.cpus)
    return backends.local(absolute, environment, workers)


def _environment(cpus: int) -> Mapping[str, str]:
    """What the processes of points need: this repository, and a virtual device for each of their CPUs."""
    path = os.pathsep.join(filter(None, [str(bindings.REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={cpus}".strip()
    return {"PYTHONPATH": path, "XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "3"}


def _progress(ended: Iterator[tuple[Path, int]], total: int) -> Iterator[tuple[Path, int]]:
    for i, (directory, status) in enumerate(ended, 1):
        said = "done" if status == 0 else f"failed: {_why(directory / 'log.txt')}"
        print(f"[{i}/{total}] {directory.name}: {said}", flush=True)
        yield directory, status


def _why(log: Path) -> str:
    """The last error in a log; progress bars may come after it."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return f"{next((line for line in reversed(lines) if 'error: ' in line.lower()), 'lost')} (see {log})"


def _show(points: Sequence[Point], pending: Sequence[Point], root: Path) -> None:
    for point in points:
        bound = ", ".join(f"{key} = {value!r}" for key, value in point.bindings.items())
        print(f"{root / point.name}: {bound}{'' if point in pending else ' (done)'}")
    print(f"{len(points)} points, {len(points) - len(pending)} of them done; each runs {', '.join(points[0].stages)}")


if __name__ == "__main__":
    main()
