"""A run on a Slurm cluster: writes a batch file, submits it, and follows it.

    python -m launch.slurm --machine=launch/machines/h100_8.py --set=partition=gpu --name=pool -- \\
        train --study=/shared/study --gin_file=configs/demo.gin

Nodes share this directory and its `.venv`. A job that is preempted, or stopped at its time limit, is queued again and
goes on from what it has saved.
"""

import argparse
import re
import shlex
import time
from pathlib import Path

from launch import job
from launch.job import Job
from launch.shell import Shell, error_in, say
from mde.bindings import REPOSITORY
from mde.errors import UserError

NOTICE = 120  # seconds between the request to stop and the end of the time limit
DONE = "COMPLETED"
UNKNOWN = "Invalid job id"  # what squeue says of a job that is long over


def script(described: Job, folder: Path = REPOSITORY) -> str:
    """The batch file.

    Of a command that several processes run together there is one a GPU, as JAX expects of Slurm; otherwise, and where
    there are no GPUs, one a node.
    """
    machine = described.machine
    gpus = machine.chips_per_host if machine.accelerator == "gpu" else 0
    tasks = gpus if gpus and described.together else 1
    each = machine.cpus_per_chip if gpus else 1  # a CPU machine's chips are its cores
    cpus = each * machine.chips_per_host // tasks
    options = {
        "job-name": described.name,
        "nodes": machine.all_hosts,
        "ntasks-per-node": tasks,
        "cpus-per-task": cpus,
        "gpus-per-node": gpus,
        "partition": machine.partition,
        "time": f"{machine.hours}:00:00",
        "output": f"{described.name}-%j.log",
        "open-mode": "append",
        "signal": f"TERM@{NOTICE}",
        "export": ",".join(["ALL", *described.secrets]),
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "#SBATCH --requeue",
            f"cd {shlex.quote(str(folder))} || exit 1",
            # From Slurm 22.05 on, srun does not take the CPUs of a task over from the batch file.
            f"srun --cpus-per-task={cpus} --kill-on-bad-exit=1 {shlex.join(described.argv(tasks * machine.all_hosts))}",
            "status=$?",
            f'if [ "$status" = {job.STOPPED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            'exit "$status"',
            "",
        ]
    )


def main(args: argparse.Namespace) -> int:
    """Launches; returns the exit status."""
    described = job.from_flags(args, bucket=False)
    described.machine.check_kind("launch.slurm", "gpu", "cpu")
    shell = Shell(args.dry_run, described.secrets)
    file = Path(f"{described.name}.sbatch")
    submit = ["sbatch", "--parsable", str(file)]
    if args.dry_run:
        print(script(described))
        shell.run(submit)
        return 0
    file.write_text(script(described))
    status, output = shell.run(submit, say)
    if status:
        raise UserError(f"the job was refused: {error_in(output)}")
    number = re.search(r"^(\d+)(;|$)", output, re.MULTILINE)  # among warnings, which a cluster's own rules may print
    if not number:
        raise UserError(f"sbatch gave no number of a job: {error_in(output)}")
    return _follow(shell, number[1], described.name, args.poll)


def _follow(shell: Shell, number: str, name: str, poll: float) -> int:
    """Shows the log until the job is neither queued nor running."""
    log, seen, said = Path(f"{name}-{number}.log"), 0, ""
    while True:
        status, state = shell.ask(["squeue", f"--jobs={number}", "--noheader", "--format=%T"], poll, [UNKNOWN])
        if log.exists():
            text = log.read_bytes()
            print(shell.redact(text[seen:].decode(errors="replace")), end="", flush=True)
            seen = len(text)
        if status and UNKNOWN not in state:
            raise UserError(f"cannot see job {number}: {error_in(state)}; it goes on, and writes {log}")
        if status or not state.strip():
            break
        if state.strip() != said:
            said = state.strip()
            say(f"job {number}: {said}")
        time.sleep(poll)
    _, state = shell.run(["sacct", f"--jobs={number}", "--format=State", "--noheader", "--parsable2", "--allocations"])
    say(f"job {number}: {state.strip() or 'unknown'}")
    return 0 if state.strip() == DONE else 1


def _parser() -> argparse.ArgumentParser:
    parser = job.parser("slurm", __doc__)
    parser.add_argument("--poll", type=float, default=20, help="seconds between looks at the queue [%(default)s]")
    return parser


if __name__ == "__main__":
    job.run("slurm", _parser(), main)
