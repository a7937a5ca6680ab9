"""Stands in for the programs of Slurm, Kubernetes and xpk: notes each call, and answers as they would.

`scenario.json` may have `refuse`, a message with which everything is refused; `exits`, the exit statuses that `srun`
ends with, one after the other; `states`, what `squeue` and the state of a JobSet say, one after the other; `deaf`, how
often they say nothing, for a service does not answer; and `warning`, what `sbatch` says beside the job's number.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ["STANDIN"])
JOB = "7"


def main(program: str, argv: list[str]) -> int:
    with open(HOME / "calls.jsonl", "a") as calls:
        calls.write(json.dumps([program, *argv]) + "\n")
    scenario = json.loads((HOME / "scenario.json").read_text())
    if message := scenario.get("refuse"):
        print(message, file=sys.stderr)
        return 1
    if program == "sbatch":
        while submit(argv[-1]) == 130:  # as Slurm does once the job was queued again
            pass
        print(scenario.get("warning", ""), file=sys.stderr, flush=True)
        print(f"{JOB};cluster", flush=True)
        print(scenario.get("warning", ""), file=sys.stderr)
    elif program == "srun":
        status, *later = scenario.get("exits", [0])
        (HOME / "scenario.json").write_text(json.dumps(scenario | {"exits": later or [status]}))
        print(f"srun ends with {status}, TOKEN={os.environ.get('TOKEN')}")
        (HOME / "status").write_text(str(status))
        return status
    elif program == "sacct":
        print("COMPLETED" if (HOME / "status").read_text() == "0" else "FAILED")
    elif program == "squeue" or argv[:1] == ["get"]:
        states, deaf = scenario["states"], scenario.get("deaf", 0)
        if deaf and len(states) < 2:
            (HOME / "scenario.json").write_text(json.dumps(scenario | {"deaf": deaf - 1}))
            print("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", file=sys.stderr)
            return 1
        if not states:
            print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
            return 1
        (HOME / "scenario.json").write_text(json.dumps(scenario | {"states": states[1:]}))
        print(states[0], end="")
    elif program == "kubectl":
        print("jobset.jobset.x-k8s.io/pool created" if argv[0] == "apply" else "a line of the log")
    return 0


def submit(file: str) -> int:
    """Runs a batch file as Slurm would on its first node."""
    with open(f"pool-{JOB}.log", "a") as log:
        return subprocess.run(["bash", file], stdout=log, env={**os.environ, "SLURM_JOB_ID": JOB}).returncode


sys.exit(main(sys.argv[1], sys.argv[2:]))
