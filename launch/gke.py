"""A run on Google Kubernetes Engine: a JobSet for `kubectl`, or with --cluster the same as a workload of `xpk`.

    python -m launch.gke --machine=launch/machines/v5e_16.py --image=IMAGE --name=pool -- \\
        train --study=gs://BUCKET/study --gin_file=configs/demo.gin

The image holds a clone of the repository, installed in `.venv`, as its working directory. Pods that are taken away are
started again, and the command goes on from what it has saved in the bucket.
Errors of the user's (exit status 2) end it.
"""

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import job
from launch.job import Job
from launch.shell import Shell, error_in, say
from mde import hosts
from mde.errors import UserError

RESTARTS = 20
SLICE = "slice"  # what a JobSet calls the job of each slice
ENDS = {"Completed": 0, "Failed": 1}
MISSING = "(NotFound)"  # in what kubectl says of a JobSet that was deleted
ONE_POOL_A_SLICE = {"annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}}
# What a pod ends with because of an error of the user's fails its job, and that fails the JobSet: it would come again.
USERS_ERROR = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
NO_RESTART = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
RESOURCES = {"tpu": "google.com/tpu", "gpu": "nvidia.com/gpu", "cpu": "cpu"}


def jobset(described: Job, image: str, secrets: Sequence[str] = ()) -> dict[str, Any]:
    """The JobSet's manifest: one job per slice, a pod a host. The command is a list: no shell reads it.

    Args:
      described: what runs.
      image: the container's.
      secrets: names of Kubernetes Secrets, whose keys become environment variables.
    """
    machine = described.machine
    selector = {
        "tpu": {
            "cloud.google.com/gke-tpu-accelerator": machine.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": machine.topology,
        },
        "gpu": {"cloud.google.com/gke-accelerator": machine.gke_accelerator},
        "cpu": {},
    }[machine.accelerator]
    if machine.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    container = {
        "name": "mde",
        "image": image,
        "command": _command(described),
        "envFrom": [{"secretRef": {"name": name}} for name in secrets],
        "resources": {"limits": {RESOURCES[machine.accelerator]: machine.chips_per_host}},
    }
    pod = {
        "restartPolicy": "Never",
        "nodeSelector": selector,
        "terminationGracePeriodSeconds": 120,
        "containers": [{key: value for key, value in container.items() if value}],
    }
    pods = {
        "parallelism": machine.hosts,
        "completions": machine.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [USERS_ERROR]},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": described.name, **(ONE_POOL_A_SLICE if machine.accelerator == "tpu" else {})},
        "spec": {
            "failurePolicy": {"maxRestarts": RESTARTS, "rules": [NO_RESTART]},
            "replicatedJobs": [
                {
                    "name": SLICE,
                    "replicas": machine.slices,
                    "template": {"spec": {**pods, "template": {"spec": pod}}},
                }
            ],
        },
    }


def _command(described: Job) -> list[str]:
    """What a container runs; JAX finds the other hosts of TPUs by itself, and is told where those of a JobSet are."""
    machine = described.machine
    escaped = lambda argv: [word.replace("$", "$$") for word in argv]  # noqa: E731  Kubernetes would fill in $(NAME)
    if machine.accelerator == "tpu" or machine.all_hosts == 1:
        return escaped(described.argv())
    first = f"--coordinator={described.name}-{SLICE}-0-0.{described.name}:{hosts.PORT}"
    return [*escaped(described.argv(1)), first, f"--processes={machine.hosts}", "--process=$(JOB_COMPLETION_INDEX)"]


def workload(described: Job, image: str, cluster: str, project: str) -> list[str]:
    """The command of xpk."""
    machine = described.machine
    kinds = {
        "tpu": f"--tpu-type={machine.type}",
        "gpu": f"--device-type={machine.type.lower()}-{machine.memory_gb}gb-{machine.chips_per_host}",
    }
    return [
        "xpk",
        "workload",
        "create",
        f"--workload={described.name}",
        f"--cluster={cluster}",
        f"--project={project}",
        f"--zone={machine.zone}",
        kinds[machine.accelerator],
        f"--num-slices={machine.slices}" if machine.accelerator == "tpu" else f"--num-nodes={machine.hosts}",
        f"--docker-image={image}",
        f"--max-restarts={RESTARTS}",
        f"--command={shlex.join(described.argv())}",
    ]


def main(args: argparse.Namespace) -> int:
    """Launches; returns the exit status."""
    described = job.from_flags(args, bucket=True)
    if described.secrets:
        raise UserError("on Kubernetes secrets are Secrets: make one and name it with --secret_ref")
    if described.machine.accelerator != "tpu" and described.machine.slices > 1:
        raise UserError(f"{described.machine.type} has no slices, but hosts: --set=slices=1 --set=hosts=...")
    shell = Shell(args.dry_run)
    if args.cluster:
        return _with_xpk(described, args, shell)
    if described.machine.accelerator != "cpu":
        described.machine.needs("launch.gke", "gke_accelerator")
    if described.machine.accelerator == "tpu":
        described.machine.needs("launch.gke", "topology")
    import yaml

    text = yaml.safe_dump(jobset(described, args.image, args.secret_ref), sort_keys=False, width=1000)
    file = Path(f"{described.name}.jobset.yaml")
    apply = ["kubectl", "apply", f"--filename={file}"]
    if args.dry_run:
        print(text)
        shell.run(apply)
        return 0
    file.write_text(text)
    status, output = shell.run(apply, say)
    if status:
        raise UserError(f"the JobSet was refused: {error_in(output)}")
    return _follow(shell, described.name, args.poll)


def _with_xpk(described: Job, args: argparse.Namespace, shell: Shell) -> int:
    described.machine.check_kind("xpk", "tpu", "gpu")
    if described.machine.accelerator == "gpu" and described.machine.hosts > 1:
        raise UserError("several GPU hosts find each other in a JobSet: launch with kubectl, without --cluster")
    described.machine.needs("xpk", "zone")
    if not args.project:
        raise UserError("xpk needs --project")
    if args.secret_ref:
        raise UserError("xpk hands on no --secret_ref: launch with kubectl, without --cluster")
    status, output = shell.run(workload(described, args.image, args.cluster, args.project), say)
    if status:
        raise UserError(f"the workload was refused: {error_in(output)}")
    return 0


def _follow(shell: Shell, name: str, poll: float) -> int:
    """Shows the first pod's log until the JobSet has ended; pods that are started again are followed again."""
    selector = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/job-index=0"
    first = f"{selector},batch.kubernetes.io/job-completion-index=0"
    while True:
        shell.run(["kubectl", "logs", "--follow", "--tail=-1", f"--selector={first}"], say)
        # The resource is named in full, for a cluster may have other things called alike.
        state = ["kubectl", "get", f"jobsets.jobset.x-k8s.io/{name}", "--output=jsonpath={.status.terminalState}"]
        status, output = shell.ask(state, poll, [MISSING])
        if status:
            goes_on = "" if MISSING in output else "; it goes on, and the same command finds it"
            raise UserError(f"cannot see the state of {name}: {error_in(output)}{goes_on}")
        if output.strip() in ENDS:
            say(f"{name}: {output.strip()}")
            return ENDS[output.strip()]
        time.sleep(poll)


def _parser() -> argparse.ArgumentParser:
    parser = job.parser("gke", __doc__)
    parser.add_argument("--image", required=True, help="container image")
    parser.add_argument("--secret_ref", action="append", default=[], help="Kubernetes Secret to take variables from")
    parser.add_argument("--cluster", help="with xpk: the cluster")
    parser.add_argument("--project", help="with xpk: of Google Cloud")
    parser.add_argument("--poll", type=float, default=20, help="seconds between looks at the state [%(default)s]")
    return parser


if __name__ == "__main__":
    job.run("gke", _parser(), main)
