"""A run by SkyPilot, on whatever cloud has the machine: writes a task and launches it as a managed job.

    python -m launch.skypilot --machine=launch/machines/h100_8.py --name=pool -- \\
        train --study=gs://BUCKET/study --gin_file=configs/demo.gin

SkyPilot brings the job back after preemption, and the command goes on from what it has saved in the bucket.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

from launch import job
from launch.machine import Machine
from launch.shell import Shell, error_in, say
from mde.bindings import REPOSITORY
from mde.errors import UserError


def task(name: str, machine: Machine, run: str, study: str) -> dict[str, Any]:
    """The task file's content.

    Args:
      name: of the task.
      machine: where.
      run: the shell command that runs in a clone of the repository.
      study: the place that it works at.

    Raises:
      UserError: a machine that SkyPilot does not launch, or a description that leaves out what it needs.
    """
    if machine.slices > 1:
        raise UserError(f"SkyPilot launches single slices; the machine has {machine.slices}")
    if machine.accelerator == "tpu":
        machine.needs("launch.skypilot", "runtime")
    resources: dict[str, Any] = {"use_spot": machine.spot}
    if machine.accelerator == "tpu":
        # One node of SkyPilot is a whole slice, and it runs the command on all of its hosts.
        resources |= {
            "accelerators": f"tpu-{machine.type}:1",
            "accelerator_args": {"runtime_version": machine.runtime},
        }
    elif machine.accelerator == "gpu":
        resources["accelerators"] = f"{machine.type}:{machine.chips_per_host}"
    else:
        resources["cpus"] = f"{machine.chips_per_host}+"
    return {
        "name": name,
        "workdir": str(REPOSITORY),
        "num_nodes": 1 if machine.accelerator == "tpu" else machine.hosts,
        "resources": resources,
        "setup": job.install(machine, study),
        "run": run,
    }


def main(args: argparse.Namespace) -> int:
    """Launches; returns the exit status of SkyPilot, which follows the job."""
    import yaml

    described = job.from_flags(args, bucket=True)
    made = task(described.name, described.machine, shlex.join(described.argv()), described.study)
    shell = Shell(args.dry_run, described.secrets)
    text = yaml.safe_dump(made, sort_keys=False, width=1000)
    file = Path(f"{described.name}.sky.yaml")
    secrets = [flag for name in described.secrets for flag in ("--secret", name)]
    launch = ["sky", "jobs", "launch", "--yes", "--name", described.name, *secrets, str(file)]
    if args.dry_run:
        print(text)
        shell.run(launch)
        return 0
    file.write_text(text)
    status, output = shell.run(launch, say)
    if status:
        raise UserError(f"SkyPilot ended with status {status}: {error_in(output)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    return job.parser("skypilot", __doc__)


if __name__ == "__main__":
    job.run("skypilot", _parser(), main)
