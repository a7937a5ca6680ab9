"""A run on TPU VMs: gets a machine, installs, starts the command on all workers, follows it, and deletes the machine.

    python -m launch.tpu_vm --machine=launch/machines/v5e_16.py --project=PROJECT --name=pool -- \\
        train --study=gs://BUCKET/study --gin_file=configs/demo.gin

Workers get what is committed here. A machine that is taken away is replaced, and the command goes on from what it has
saved in the bucket. Started a second time, this finds the machine and the run by their name and follows them again.
"""

import argparse
import os
import re
import shlex
import sys
import time

from launch import gcloud, job
from launch.gcloud import TpuVm
from launch.shell import Shell, error_in, say
from mde.errors import UserError

TRIES = 4  # of a step on the workers, which refuse connections for a while after they have started


class Lost(Exception):  # noqa: N818
    """The machine was taken away."""


class UnseenError(UserError):
    """Google Cloud does not say how the machine is, which may well be at work."""


def main(args: argparse.Namespace) -> int:
    """Launches; returns the exit status."""
    project = args.project or os.environ.get("CLOUDSDK_CORE_PROJECT", "")
    if not re.fullmatch(r"[a-z][a-z0-9:.-]+", project):
        raise UserError(f"--project={project}: expected a Google Cloud project (or set CLOUDSDK_CORE_PROJECT)")
    described = job.from_flags(args, bucket=True)
    described.machine.check_kind("launch.tpu_vm", "tpu")
    described.machine.needs("launch.tpu_vm", "zone", "runtime")
    vm = TpuVm(described, project)
    shell = Shell(args.dry_run, described.secrets)
    if args.dry_run:
        for argv in vm.smooth():
            shell.run(argv)
        return 0
    return Launch(vm, shell, args.poll, args.attempts, args.keep).run()


class Launch:
    """A run from its request to the end."""

    def __init__(self, vm: TpuVm, shell: Shell, poll: float, attempts: int, keep: bool):
        self.vm = vm
        self.shell = shell
        self.poll = poll
        self.attempts = attempts
        self.keep = keep
        self.created = False

    def run(self) -> int:
        """Runs the command to its end, on as many machines as it takes; returns its exit status."""
        if not self._quietly(self.vm.account())[1].strip():
            raise UserError("no Google Cloud credentials: run `gcloud auth login`")
        status = 1
        try:
            status = self._attempts()
        except KeyboardInterrupt:
            self._leave()
            return job.STOPPED
        except UnseenError:
            self._leave()
            raise
        except BaseException:
            self._clean_up()
            raise
        self._clean_up()
        return status

    def _attempts(self) -> int:
        for attempt in range(1, self.attempts + 1):
            try:
                self._get_machine()
                self._install()
                status = self._follow()
            except Lost:
                say(f"{self.vm.job.name} was taken away ({attempt} of {self.attempts} attempts)")
                self._delete()
                continue
            if status != job.STOPPED:
                return status
            say(f"{self.vm.job.name} was stopped and goes on ({attempt} of {self.attempts} attempts)")
        raise UserError(f"{self.vm.job.name} was taken away {self.attempts} times; the same command goes on from here")

    def _get_machine(self) -> None:
        status, output = self.shell.run(self.vm.create(), say)
        if status and "ALREADY_EXISTS" not in output:
            raise UserError(f"{self.vm.job.machine.type} was refused: {error_in(output)}")
        self.created = True
        said = ""
        while (state := self._state()) != gcloud.ACTIVE:
            if state == gcloud.FAILED:
                reason = self._quietly(self.vm.reason())[1].strip()
                raise UserError(f"{self.vm.job.machine.type} could not be had: {reason or 'no reason given'}")
            if state in gcloud.LOST:
                raise Lost
            if state != said:
                say(f"{self.vm.job.name}: {state}")
            said = state
            time.sleep(self.poll)

    def _install(self) -> None:
        self._check(self.shell.run(self.vm.pack(), say))
        self._write_secrets()
        try:
            for step in (self.vm.copy, self.vm.install, self.vm.start):
                for node in self.vm.nodes:
                    self._remotely(step(node), node)
        finally:
            self.vm.environment.unlink(missing_ok=True)

    def _follow(self) -> int:
        """Shows the first worker's log; returns the worst exit status of all."""
        seen = 0
        while True:
            status, more = self.shell.follow(self.vm.follow(seen + 1), say)
            if not status:
                break
            seen += more  # a connection that broke is made again
            self._check_there()
            time.sleep(self.poll)
        found: list[str] = []
        for node in self.vm.nodes:
            output = self._remotely(self.vm.outcome(node), node)
            found += re.findall(rf"^{gcloud.STATUS}=(\w+)", output, re.MULTILINE)
        if len(found) != self.vm.job.machine.all_hosts or "killed" in found:
            self._check_there()
            raise UserError(f"{self.vm.job.name}: workers ended without a status, or were killed: {', '.join(found)}")
        status = max(map(int, found), key=lambda status: (status not in (0, job.STOPPED), status))
        if status not in (0, job.STOPPED):
            for node in self.vm.nodes:
                self.shell.run(self.vm.ends_of_logs(node), say)
        return status

    def _remotely(self, argv: list[str], node: str) -> str:
        """A step on workers; raises Lost if they are gone, and UserError that names the one that cannot be reached."""
        for _ in range(TRIES):
            status, output = self.shell.run(argv, say)
            if not status:
                return output
            self._check_there()
            time.sleep(self.poll)
        for worker in range(self.vm.job.machine.hosts):
            if self._quietly(self.vm.probe(node, worker))[0]:
                raise UserError(f"worker {worker} of {node} cannot be reached")
        raise UserError(f"a step on {node} failed {TRIES} times: {error_in(output)}")

    def _check_there(self) -> None:
        if self._state() != gcloud.ACTIVE:
            raise Lost

    def _state(self) -> str:
        status, output = self.shell.ask(self.vm.state(), self.poll, ["NOT_FOUND"])
        if not status:
            return output.strip()
        if "NOT_FOUND" in output:
            return "NOT_FOUND"
        raise UnseenError(
            f"cannot see the state of {self.vm.job.name}: {error_in(output)}; it goes on, and the same command finds it"
        )

    def _write_secrets(self) -> None:
        """To a file that nobody else can read: what is on a command line can be seen by all."""
        if self.vm.job.secrets:
            lines = [f"{name}={shlex.quote(os.environ[name])}\n" for name in self.vm.job.secrets]
            self.vm.environment.unlink(missing_ok=True)
            with open(self.vm.environment, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.writelines(lines)

    def _leave(self) -> None:
        say(f"{self.vm.job.name} is still there and costs money. Delete it: {shlex.join(self.vm.delete())}")

    def _clean_up(self) -> None:
        if self.created and not self.keep:
            self._delete()

    def _delete(self) -> None:
        status, output = self.shell.run(self.vm.delete(), say)
        if status and "NOT_FOUND" not in output:
            print(f"could not delete {self.vm.job.name}: {error_in(output)}", file=sys.stderr)

    def _quietly(self, argv: list[str]) -> tuple[int, str]:
        return self.shell.run(argv)

    def _check(self, result: tuple[int, str]) -> None:
        if result[0]:
            raise UserError(error_in(result[1]))


def _parser() -> argparse.ArgumentParser:
    parser = job.parser("tpu_vm", __doc__)
    parser.add_argument("--project", help="of Google Cloud [CLOUDSDK_CORE_PROJECT]")
    parser.add_argument("--keep", action="store_true", help="leave the machine there in the end")
    parser.add_argument("--attempts", type=int, default=20, help="machines to use up at most [%(default)s]")
    parser.add_argument("--poll", type=float, default=20, help="seconds between looks at the state [%(default)s]")
    return parser


if __name__ == "__main__":
    job.run("tpu_vm", _parser(), main)
