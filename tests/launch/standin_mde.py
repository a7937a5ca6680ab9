"""Stands in for the Python that a worker installs: notes how `mde` was called there, and ends as `exits` says.

`exits` has a list of exit statuses for each worker, by the number of its start; "hang" runs until it is killed.
"""

import json
import os
import sys
import time
from pathlib import Path

home, shared = Path(os.environ["HOME"]), Path(os.environ["STANDIN"])
with open(shared / "runs.jsonl", "a") as runs:
    where = home.name, home.parent.name
    line = {"worker": home.name, "node": home.parent.name, "argv": sys.argv[1:], "token": os.environ.get("TOKEN")}
    runs.write(json.dumps(line) + "\n")
earlier = [json.loads(line) for line in (shared / "runs.jsonl").read_text().splitlines()]
starts = sum((run["worker"], run["node"]) == where for run in earlier)
exits = json.loads((shared / "scenario.json").read_text()).get("exits", {}).get(home.name, [0])
print(f"worker {home.name}, start {starts}", flush=True)
print(f"the token is {os.environ.get('TOKEN')}", flush=True)
print("step 1\rstep 2\rstep 3, \N{LATIN SMALL LETTER E WITH ACUTE}nd", flush=True)
end = exits[min(starts, len(exits)) - 1]
if end == "hang":
    time.sleep(60)
sys.exit(end)
