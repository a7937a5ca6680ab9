"""The points of a sweep as SkyPilot's managed jobs, one a point.

SkyPilot gets a machine for each, brings the job back when the machine is taken away, and keeps a queue that outlives
whoever submitted to it. So this needs no memory of its own: what is done is said by the points' directories, what is
under way by `sky jobs queue`, where jobs are found by their names. Only what was submitted a moment ago may be in
neither, and is waited for.
"""

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from launch import skypilot
from launch.expansion import Point
from launch.machine import Machine
from launch.shell import Shell, error_in, last_error, say
from launch.worker import is_done
from mde.errors import UserError
from mde.study import Study, digest

CHECK = ["sky", "check", "--output=json"]
QUEUE = ["sky", "jobs", "queue", "--all", "--all-users", "--verbose", "--output=json"]
EMPTY = "No in-progress managed jobs"  # said with an error where there is no controller, or one that went to sleep
SUCCEEDED, GONE = "SUCCEEDED", "GONE"  # the second is ours, of a job that the queue does not know any more
# Everything else is on its way: PENDING, STARTING, RUNNING, RECOVERING, ...
ENDED = {
    SUCCEEDED,
    "CANCELLED",
    "FAILED",
    "FAILED_SETUP",
    "FAILED_PRECHECKS",
    "FAILED_NO_RESOURCE",
    "FAILED_CONTROLLER",
    GONE,
}
POINT = "MDE_POINT"  # the variable that tells a job its point
MARK = "submitted.json"
SETTLING = 120  # seconds in which what was submitted comes into the queue


class SkyJobs:
    """Runs points as managed jobs.

    Args:
      root: of the sweep, in a bucket.
      machine: what each point gets.
      shell: runs `sky`, or prints what would be run.
      secrets: names of environment variables to hand on.
      poll: seconds between looks at the queue.
    """

    def __init__(self, root: epath.Path, machine: Machine, shell: Shell, secrets: Sequence[str], poll: float):
        self._root, self._machine, self._shell, self._poll = root, machine, shell, poll
        self._secrets = [flag for name in secrets for flag in ("--secret", name)]
        # By job that was submitted here: the one of its name that was in the queue before, and when that was.
        self._submitted: dict[str, tuple[int | None, float]] = {}

    def name(self, point: Point) -> str:
        """The job's name: the point's, and something that tells this sweep's from another's."""
        return f"{point.name}-{digest(str(self._root))[:6]}"

    def task(self) -> str:
        """The task file that all jobs share."""
        import yaml

        run = f'.venv/bin/python -m launch.worker "${POINT}" --on=skypilot'
        made = skypilot.task("point", self._machine, run, str(self._root))
        return yaml.safe_dump({**made, "envs": {POINT: ""}}, sort_keys=False, width=1000)

    def show(self, points: Sequence[Point]) -> None:
        """Prints the task file and every command, and runs none."""
        print(self.task())
        for argv in (CHECK, QUEUE, *(self._launch(point, "point.sky.yaml") for point in points)):
            self._shell.run(argv)

    def check(self) -> None:
        """Raises UserError if there is no `sky`, or none that has access to a cloud."""
        status, output = self._shell.run(CHECK)
        if status:
            raise UserError(f"`sky check` failed: {error_in(output)}")
        if not any(_json(output, "{").values()):
            raise UserError("SkyPilot has access to no cloud: log in to one; `sky check` says what is missing")

    def run(self, points: Sequence[Point]) -> Iterator[tuple[Point, str | None]]:
        """Submits the points that are not under way, and yields each when its job has ended, with why it failed."""
        waiting = {self.name(point): point for point in points}
        queue = self._settled(waiting)
        states = {name: queue[name]["status"] for name in waiting if name in queue}
        for name in [name for name, state in states.items() if state == SUCCEEDED]:
            if self._failure(waiting[name], queue[name]) is None:  # done since it was last looked at
                yield waiting.pop(name), None
        states = {name: state for name, state in states.items() if state not in ENDED}
        for name, state in states.items():
            say(f"{waiting[name].name}: {state} already")
        adopted = set(states)
        self._submit([point for name, point in waiting.items() if name not in adopted], queue)
        while waiting:
            time.sleep(self._poll)
            queue = self._queue()
            for name, point in list(waiting.items()):
                job = self._of_this_attempt(name, queue)
                if job is None:
                    continue
                if job["status"] not in ENDED:
                    if job["status"] != states.get(name):
                        states[name] = job["status"]
                        say(f"{point.name}: {job['status']}")
                    continue
                failure = self._failure(point, job)
                if failure and name in adopted and job["status"] == SUCCEEDED:  # in what the point was before
                    adopted.discard(name)
                    self._submit([point], queue)
                    continue
                del waiting[name]
                yield point, failure

    def _submit(self, points: Sequence[Point], queue: Mapping[str, Mapping[str, Any]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "point.sky.yaml"
            file.write_text(self.task())
            for number, point in enumerate(points):
                name, study = self.name(point), Study(self._root / point.name)
                before = queue.get(name, {}).get("job_id")
                study.write_json(MARK, {"time": time.time(), "before": before})
                status, output = self._shell.run(self._launch(point, str(file)))
                if status:
                    (study.root / MARK).unlink()
                    raise UserError(
                        f"{point.name} was refused: {error_in(output)} ({number} points were submitted before and go "
                        "on; so does the same command)"
                    )
                self._submitted[name] = before, time.monotonic()
                say(f"{point.name}: submitted ({number + 1} of {len(points)})")

    def _of_this_attempt(self, name: str, queue: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
        """The queue's word on a job; None if it has not come there yet, or only an earlier one of its name has."""
        before, since = self._submitted.get(name, (None, -math.inf))
        job = queue.get(name, {})
        if job.get("job_id") != before:
            return job
        return None if time.monotonic() - since < SETTLING else {"status": GONE}

    def _launch(self, point: Point, file: str) -> list[str]:
        given = f"{POINT}={self._root / point.name}"
        flags = ["--yes", "--detach-run", "--name", self.name(point), "--env", given, *self._secrets]
        return ["sky", "jobs", "launch", *flags, file]

    def _settled(self, waiting: Mapping[str, Point]) -> dict[str, dict[str, Any]]:
        """The queue, once everything is in it that was being submitted when an earlier command was killed."""
        marks = {name: self._root / point.name / MARK for name, point in waiting.items()}
        begun = {name: json.loads(mark.read_text()) for name, mark in marks.items() if mark.exists()}
        while True:
            queue = self._queue()
            late = [name for name in begun if queue.get(name, {}).get("job_id") == begun[name]["before"]]
            if not any(time.time() - begun[name]["time"] < SETTLING for name in late):
                return queue
            say(f"{waiting[late[0]].name}: submitted a moment ago; waiting for it to come into the queue")
            time.sleep(self._poll)

    def _queue(self) -> dict[str, dict[str, Any]]:
        """By name, the newest job in SkyPilot's queue."""
        status, output = self._shell.ask(QUEUE, self._poll, [EMPTY])
        if not status:
            jobs = sorted(_json(output, "["), key=lambda job: job["job_id"])
            return {job["job_name"]: job for job in jobs}
        if EMPTY in output:
            return {}
        raise UserError(
            f"cannot see SkyPilot's queue: {error_in(output)}; the jobs go on, and the same command finds them"
        )

    def _failure(self, point: Point, job: Mapping[str, Any]) -> str | None:
        """Why a job that has ended did not finish its point, and where its logs are; None if it did."""
        if is_done(self._root / point.name, point.digest):
            return None
        if job["status"] == GONE:
            return "its job is gone from SkyPilot's queue"
        logs = f"see `sky jobs logs {job['job_id']}`"
        if job["status"] == SUCCEEDED:
            return f"the job has ended and the point is not done ({logs})"
        if job["status"] != "FAILED":
            controller = f"see `sky jobs logs --controller {job['job_id']}`"
            return f"{job['status']}: {job.get('failure_reason') or 'no reason given'} ({controller})"
        _, output = self._shell.run(["sky", "jobs", "logs", "--no-follow", "--tail=200", str(job["job_id"])])
        return f"{last_error(output)} ({logs})"


def _json(output: str, opening: str) -> Any:
    """The JSON in what `sky` prints, which may begin with words of its API server.

    Raises:
      UserError: there is none.
    """
    lines = output.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.startswith(opening):
            try:
                return json.loads("".join(lines[number:]))
            except ValueError:
                continue
    raise UserError(f"no answer in JSON from `sky`, but {error_in(output)[:200]!r}; SkyPilot 0.14 gives one")
