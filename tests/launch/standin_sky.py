"""Stands in for SkyPilot's `sky`: notes each call, keeps a queue of managed jobs, and runs them as local processes.

What it prints is what version 0.14 prints. `scenario.json` says what goes wrong:

    clouds     what `sky check` finds; {} for no credentials
    refuse     message with which submissions are refused, from number `refuse_from` on
    no_answer  how many times the queue does not answer
    preempt    numbers of jobs whose machine is taken away once, when their point has been started
    end        by number of a job, the state that it ends in without having run, and why
    hold       numbers of jobs that stay in the queue until they are not named here any more
    quick      points are not run: they only note that they were started and done
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

HOME = Path(os.environ["STANDIN"])
JOBS = HOME / "jobs"
GREETING = """\x1b[2mFailed to connect to SkyPilot API server at http://127.0.0.1:46580. Starting a local server.\x1b[0m
\x1b[0m\x1b[32m✓ SkyPilot API server started. \x1b[0m\x1b[0m"""


def main(argv: list[str]) -> int:
    if argv[0] in ("controller", "point"):
        {"controller": control, "point": quick_point}[argv[0]](argv[1])
        return 0
    with open(HOME / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(["sky", *argv]) + "\n")
    JOBS.mkdir(exist_ok=True)
    if argv[0] == "check":
        print(GREETING)
        print(json.dumps({"default": scenario().get("clouds", {"GCP": ["compute", "storage"]})}, indent=2))
        return 0
    return {"launch": launch, "queue": queue, "logs": logs}[argv[1]](argv[2:])


def scenario() -> dict:
    return json.loads((HOME / "scenario.json").read_text())


def launch(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    for flag in ("--name", "--env", "--secret"):
        parser.add_argument(flag, action="append", default=[])
    parser.add_argument("--yes", action="store_true", required=True)
    parser.add_argument("--detach-run", action="store_true")
    parser.add_argument("file")
    args = parser.parse_args(argv)
    with locked("jobs.lock"):
        number = str(len(list(JOBS.glob("*.json"))) + 1)
        if "refuse" in scenario() and int(number) >= scenario().get("refuse_from", 1):
            print(scenario()["refuse"], file=sys.stderr)
            return 1
        job = {"job_name": args.name[0], "status": "PENDING", "recovery_count": 0, "submitted_at": time.time()}
        change(number, **job, file=Path(args.file).read_text(), env=args.env)
    if args.detach_run:
        controller = [sys.executable, *(["-S"] if scenario().get("quick") else []), __file__, "controller", number]
        subprocess.Popen(controller, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Managed job {args.name[0]} ID: {number}")
    return 0


def queue(argv: list[str]) -> int:
    assert argv == ["--all", "--all-users", "--verbose", "--output=json"]
    if missing := scenario().get("no_answer"):
        (HOME / "scenario.json").write_text(json.dumps(scenario() | {"no_answer": missing - 1}))
        print("requests.exceptions.ConnectionError: Max retries exceeded", file=sys.stderr)
        return 1
    found = [json.loads(path.read_text()) | {"job_id": int(path.stem)} for path in JOBS.glob("*.json")]
    if not found:
        print("sky.exceptions.ClusterNotUpError: No in-progress managed jobs.", file=sys.stderr)
        return 1
    known = ("job_id", "job_name", "status", "recovery_count", "submitted_at", "failure_reason")
    found.sort(key=lambda job: -job["job_id"])
    print(json.dumps([{"task_id": 0, **{key: job.get(key) for key in known}} for job in found], indent=2))
    return 0


def logs(argv: list[str]) -> int:
    print((JOBS / f"{argv[-1]}.log").read_text())
    return 0


def control(number: str) -> None:
    """Brings a job to its end."""
    if number in scenario().get("end", {}):
        state, reason = scenario()["end"][number]
        change(number, status=state, failure_reason=reason)
        return
    while int(number) in scenario().get("hold", []):
        time.sleep(0.05)
    with locked(f"slot{int(number) % 2}.lock"):  # two at a time
        change(number, status="STARTING")
        taken_away = int(number) in scenario().get("preempt", [])
        process = start(number, endless=taken_away)
        change(number, status="RUNNING")
        if taken_away:
            wait_for_start(number)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            change(number, status="RECOVERING")
            time.sleep(0.5)
            process = start(number)
            change(number, status="RUNNING", recovery_count=1)
        status = process.wait()
        failed = {"status": "FAILED", "failure_reason": "To see the details, run: sky jobs logs"}
        change(number, **(failed if status else {"status": "SUCCEEDED"}))


def start(number: str, endless: bool = False) -> subprocess.Popen:
    """Runs a job's command where its clone of the repository is, with this Python for the one that it installs."""
    job = json.loads((JOBS / f"{number}.json").read_text())
    if scenario().get("quick"):
        command, folder, given = (
            [sys.executable, "-S", __file__, "point", place_of(number)],
            None,
            {"ENDLESS": "1" * endless},
        )
    else:
        import yaml

        task = yaml.safe_load(job["file"])
        given = dict(pair.split("=", 1) for pair in job["env"])
        assert given.keys() <= task["envs"].keys()
        command = ["bash", "-c", task["run"].replace(".venv/bin/python", sys.executable, 1)]
        folder = task["workdir"]
    environment = {**os.environ, **given, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    with open(JOBS / f"{number}.log", "a") as log:
        kept = {"stdout": log, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **kept)


def place_of(number: str) -> str:
    return json.loads((JOBS / f"{number}.json").read_text())["env"][0].split("=", 1)[1]


def wait_for_start(number: str) -> None:
    """Until the point has noted its start in the bucket."""
    for _ in range(600):
        if read(place_of(number), "attempts.jsonl"):
            return
        time.sleep(0.05)


def quick_point(place: str) -> None:
    """Notes what a worker notes."""
    note(place, "started")
    time.sleep(600 if os.environ["ENDLESS"] else 0.3)
    write(place, "done.json", json.dumps({"digest": json.loads(read(place, "point.json"))["digest"]}))
    note(place, "done")


def note(place: str, event: str) -> None:
    write(place, "attempts.jsonl", read(place, "attempts.jsonl") + json.dumps({"event": event}) + "\n")


def read(place: str, name: str) -> str:
    """A file of a point in the bucket; nothing if it is not there."""
    bucket, _, point = place.removeprefix("gs://").partition("/")
    try:
        address = f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/{bucket}/o/{quote(f'{point}/{name}', safe='')}"
        return urllib.request.urlopen(f"{address}?alt=media").read().decode()
    except urllib.error.HTTPError:
        return ""


def write(place: str, name: str, text: str) -> None:
    bucket, _, point = place.removeprefix("gs://").partition("/")
    query = f"uploadType=media&name={quote(f'{point}/{name}', safe='')}"
    address = f"{os.environ['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/{bucket}/o?{query}"
    urllib.request.urlopen(urllib.request.Request(address, text.encode(), method="POST"))


def change(number: str, **fields: object) -> None:
    path = JOBS / f"{number}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(before | fields))
    aside.replace(path)


class locked:  # noqa: N801
    """Holds a lock file."""

    def __init__(self, name: str):
        self.file = open(HOME / name, "w")  # noqa: SIM115

    def __enter__(self) -> None:
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.file.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
