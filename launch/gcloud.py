"""The `gcloud` commands of a run on TPU VMs, and what it does on them. Nothing here runs anything."""

import dataclasses
import shlex
import tempfile
from pathlib import Path

from launch.job import Job
from mde.bindings import REPOSITORY

# How queued resources say that there is no machine any more, or that there will be none.
LOST = ("SUSPENDING", "SUSPENDED", "DELETING", "NOT_FOUND")
FAILED = "FAILED"
ACTIVE = "ACTIVE"
STATUS = "mde-exit-status"
UNLESS_IT_RUNS = 'if test -f ~/run.pid && kill -0 "$(cat ~/run.pid)" 2>/dev/null; then exit 0; fi; '


@dataclasses.dataclass(frozen=True)
class TpuVm:
    """A queued resource with the job's name, and the TPU VMs that it turns into, one a slice.

    Attributes:
      job: what runs there.
      project: of Google Cloud.
    """

    job: Job
    project: str

    @property
    def nodes(self) -> list[str]:
        """Names of the TPU VMs."""
        slices = self.job.machine.slices
        return [self.job.name] if slices == 1 else [f"{self.job.name}-{i}" for i in range(slices)]

    @property
    def archive(self) -> Path:
        """The committed repository, on this machine."""
        return Path(tempfile.gettempdir()) / f"{self.job.name}.tar.gz"

    @property
    def environment(self) -> Path:
        """The secrets as a file of shell assignments, on this machine."""
        return Path(tempfile.gettempdir()) / f"{self.job.name}.env"

    def account(self) -> list[str]:
        """Prints the account that is logged in."""
        return ["gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)"]

    def create(self) -> list[str]:
        """Asks for the machine."""
        machine = self.job.machine
        many = [f"--node-count={machine.slices}", f"--node-prefix={self.job.name}"]
        return [
            *self._queued("create"),
            *([f"--node-id={self.job.name}"] if machine.slices == 1 else many),
            f"--accelerator-type={machine.type}",
            f"--runtime-version={machine.runtime}",
            *(["--spot"] if machine.spot else []),
        ]

    def state(self) -> list[str]:
        """Prints the state of the request."""
        return [*self._queued("describe"), "--format=value(state.state)"]

    def reason(self) -> list[str]:
        """Prints why the request failed."""
        return [*self._queued("describe"), "--format=value(state.failedData.error.message)"]

    def delete(self) -> list[str]:
        """Deletes the request and its machines."""
        return [*self._queued("delete"), "--force", "--quiet"]

    def pack(self) -> list[str]:
        """Writes the archive."""
        return ["git", "-C", str(REPOSITORY), "archive", "--format=tar.gz", f"--output={self.archive}", "HEAD"]

    def copy(self, node: str) -> list[str]:
        """Copies the archive, and the secrets if there are any, to all workers."""
        files = [str(self.archive), *([str(self.environment)] if self.job.secrets else [])]
        return ["gcloud", "compute", "tpus", "tpu-vm", "scp", *files, f"{node}:", "--worker=all", *self._where()]

    def install(self, node: str) -> list[str]:
        """Unpacks and installs on all workers, unless the command runs there already, from what was unpacked then."""
        unpack = f"mkdir -p mde && tar -xzf {self.archive.name} -C mde && cd mde"
        protect = f"chmod 600 ~/{self.environment.name} || exit 1; " if self.job.secrets else ""
        return self.ssh(node, "all", f"{protect}{UNLESS_IT_RUNS}{unpack} && {self.job.install}")

    def start(self, node: str) -> list[str]:
        """Starts the command on all workers, detached, unless it runs there already."""
        command = shlex.join(self.job.argv())
        secrets = f"set -a && . ~/{self.environment.name} && set +a && " if self.job.secrets else ""
        inner = f"cd ~/mde && {secrets}{command}; echo $? > ~/run.status"
        return self.ssh(
            node,
            "all",
            f"{UNLESS_IT_RUNS}rm -f ~/run.status; "
            f"nohup setsid bash -c {shlex.quote(inner)} > ~/run.log 2>&1 < /dev/null & echo $! > ~/run.pid",
        )

    def follow(self, byte: int) -> list[str]:
        """Prints the first worker's log from a byte on (1 is the first), and ends with the command."""
        return self.ssh(self.nodes[0], "0", f'tail -c +{byte} -F ~/run.log --pid="$(cat ~/run.pid)" 2>/dev/null')

    def outcome(self, node: str) -> list[str]:
        """Prints the exit status of each worker's command, when it has ended."""
        wait = 'while kill -0 "$(cat ~/run.pid)" 2>/dev/null; do sleep 1; done'
        return self.ssh(node, "all", f'{wait}; echo "{STATUS}=$(cat ~/run.status 2>/dev/null || echo killed)"')

    def ends_of_logs(self, node: str) -> list[str]:
        """Prints the last lines of all workers' logs."""
        return self.ssh(node, "all", 'echo "== $(hostname)"; tail -n 20 ~/run.log')

    def probe(self, node: str, worker: int) -> list[str]:
        """Succeeds if a worker can be reached."""
        return self.ssh(node, str(worker), "true")

    def ssh(self, node: str, worker: str, command: str) -> list[str]:
        """Runs a shell command on a worker, or on all."""
        ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node]
        return [*ssh, f"--worker={worker}", *self._where(), f"--command={command}"]

    def smooth(self) -> list[list[str]]:
        """All commands of a run in which nothing goes wrong."""
        on_nodes = (self.copy, self.install, self.start)
        return [
            self.account(),
            self.create(),
            self.state(),
            self.pack(),
            *(step(node) for step in on_nodes for node in self.nodes),
            self.follow(1),
            *(self.outcome(node) for node in self.nodes),
            self.delete(),
        ]

    def _queued(self, verb: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", verb, self.job.name, *self._where()]

    def _where(self) -> list[str]:
        return [f"--project={self.project}", f"--zone={self.job.machine.zone}"]
