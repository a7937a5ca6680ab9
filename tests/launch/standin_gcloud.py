"""Stands in for `gcloud`: keeps queued resources and workers in a directory, and runs on them what it is told to.

A worker is a directory that is its home. `scenario.json` says what goes wrong:

    account        who is logged in
    refuse         message with which requests are refused
    fail           message with which requests fail later
    preempt        how many times the machine is taken away while its log is followed
    unseen         how many times nothing is said of the state
    cuts           bytes of the log after which its connection breaks, one time after the other
    unreachable    [worker, times]: the worker that refuses connections, and how often
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["STANDIN"])
HOSTS = {"v4-8": 1, "v4-16": 2, "v5litepod-16": 4}


def main(argv: list[str]) -> None:
    with open(HOME / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(["gcloud", *argv]) + "\n")
    words = [word for word in argv if not word.startswith("--")]
    flags = dict(word[2:].split("=", 1) for word in argv if word.startswith("--") and "=" in word)
    if words == ["auth", "list"]:
        if account := scenario().get("account", "someone@example.com"):
            print(account)
        else:
            print("No credentialed accounts.", file=sys.stderr)
        return
    assert words[:2] == ["compute", "tpus"]
    assert flags["project"] == "my-project"
    {"queued-resources": queued, "tpu-vm": tpu_vm}[words[2]](words[3], words[4:], flags)


def scenario() -> dict:
    return json.loads((HOME / "scenario.json").read_text())


def change(**fields) -> None:
    aside = HOME / f"scenario.{os.getpid()}"
    aside.write_text(json.dumps(scenario() | fields))
    aside.replace(HOME / "scenario.json")  # the workers read it at any time


def fail(command: str, message: str, status: int = 1) -> None:
    print(f"ERROR: (gcloud.compute.tpus.{command}) {message}", file=sys.stderr)
    sys.exit(status)


def queued(verb: str, words: list[str], flags: dict) -> None:
    request = HOME / f"{words[0]}.json"
    if verb == "create":
        if message := scenario().get("refuse"):
            fail("queued-resources.create", message)
        if request.exists():
            fail("queued-resources.create", f"ALREADY_EXISTS: Resource 'queuedResources/{words[0]}' already exists")
        states = ["WAITING_FOR_RESOURCES", "PROVISIONING", "FAILED" if scenario().get("fail") else "ACTIVE"]
        request.write_text(json.dumps(states))
        for node in [flags["node-id"]] if "node-id" in flags else [f"{words[0]}-{i}" for i in range(2)]:
            for worker in range(HOSTS[flags["accelerator-type"]]):
                (HOME / "workers" / node / str(worker)).mkdir(parents=True)
        print(f"Create request issued for: [{words[0]}]")
    elif not request.exists():
        fail(f"queued-resources.{verb}", f"NOT_FOUND: Resource 'queuedResources/{words[0]}' was not found")
    elif verb == "describe" and "failedData" in flags["format"]:
        print(scenario()["fail"])
    elif verb == "describe" and scenario().get("unseen") and json.loads(request.read_text()) == ["ACTIVE"]:
        change(unseen=scenario()["unseen"] - 1)
        fail("queued-resources.describe", "UNAVAILABLE: The service is currently unavailable. (503)")
    elif verb == "describe":
        state, *later = json.loads(request.read_text())
        request.write_text(json.dumps(later or [state]))
        print(state)
    else:
        assert verb == "delete"
        stop_workers()
        shutil.rmtree(HOME / "workers")
        request.unlink()


def tpu_vm(verb: str, words: list[str], flags: dict) -> None:
    node = words[-1].rstrip(":") if verb == "scp" else words[0]
    everyone = sorted((HOME / "workers" / node).iterdir(), key=lambda path: int(path.name))
    workers = everyone if flags["worker"] == "all" else [everyone[int(flags["worker"])]]
    following = "tail -c +" in flags.get("command", "")
    if following and scenario().get("preempt"):
        change(preempt=scenario()["preempt"] - 1)
        for request in HOME.glob("*.json"):
            if request.name != "scenario.json":
                request.write_text('["SUSPENDED"]')
        wait_for_starts()
        stop_workers()
        fail("tpu-vm.ssh", "[/usr/bin/ssh] exited with return code [255].")
    if following and scenario().get("cuts"):
        size, *later = scenario()["cuts"]
        change(cuts=later)
        print("WARNING: the connection is slow", file=sys.stderr, flush=True)
        log = subprocess.run(["bash", "-c", flags["command"]], env=at_home(workers[0]), stdout=subprocess.PIPE).stdout
        os.write(1, log[:size])
        fail("tpu-vm.ssh", "[/usr/bin/ssh] exited with return code [255].")
    worst = 0
    for worker in workers:
        broken, times = scenario().get("unreachable", [None, 0])
        if worker.name == str(broken) and times:
            change(unreachable=[broken, times - 1])
            fail(f"tpu-vm.{verb}", "[/usr/bin/ssh] exited with return code [255].")
        if verb == "scp":
            for file in words[:-1]:
                shutil.copy(file, worker)
        else:
            worst |= subprocess.run(["bash", "-c", flags["command"]], cwd=worker, env=at_home(worker)).returncode
    sys.exit(worst)


def at_home(worker: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(worker)}


def wait_for_starts() -> None:
    """Until every worker has counted its start: what is taken away is a machine at work."""
    deadline = time.time() + 20
    for pid in (HOME / "workers").rglob("run.pid"):
        log = pid.with_name("run.log")
        while time.time() < deadline and not (log.exists() and "start" in log.read_text()):
            time.sleep(0.01)


def stop_workers() -> None:
    for pid in (HOME / "workers").rglob("run.pid"):
        with contextlib.suppress(ProcessLookupError):
            leader = int(pid.read_text())
            while os.getpgid(leader) != leader:  # `setsid` has only just been started
                time.sleep(0.01)
            os.killpg(leader, signal.SIGKILL)


main(sys.argv[1:])
