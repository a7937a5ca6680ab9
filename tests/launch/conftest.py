"""Stand-ins for the programs that launchers call, on the PATH."""

import json
import shutil
import stat
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# All that launchers and workers call of a real machine. Nothing else is on the PATH, so that no test can ever reach a
# real gcloud, sbatch or kubectl that happens to be installed.
TOOLS = (
    "bash",
    "cat",
    "chmod",
    "git",
    "gzip",
    "hostname",
    "mkdir",
    "nohup",
    "rm",
    "setsid",
    "sh",
    "sleep",
    "tail",
    "tar",
)


class StandIns:
    """Programs that record how they were called, and answer as a scenario says."""

    def __init__(self, home: Path):
        self.home = home
        self.programs = home / "programs"
        self.programs.mkdir()
        self.scenario()

    def scenario(self, **fields: object) -> None:
        aside = self.home / "scenario.partial"
        aside.write_text(json.dumps(fields))
        aside.replace(self.home / "scenario.json")  # programs that run may look at any time

    def add(self, name: str, body: str) -> None:
        path = self.programs / name
        path.write_text(body)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(self, name: str = "calls") -> list:
        path = self.home / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def standins(tmp_path, monkeypatch) -> StandIns:
    """The stand-ins, with nothing going wrong."""
    made = StandIns(tmp_path)
    made.add("gcloud", f'#!/bin/sh\nexec {sys.executable} -S {HERE / "standin_gcloud.py"} "$@"\n')
    # A worker's own Python: "installing" makes the environment with the stand-in for `mde`.
    script = f"printf '#!/bin/sh\\nexec {sys.executable} -S {HERE / 'standin_mde.py'} \"$@\"\\n' > .venv/bin/python"
    made.add("python3", f"#!/bin/sh\nmkdir -p .venv/bin && {script} && chmod +x .venv/bin/python\n")
    for name in ("sbatch", "srun", "scontrol", "squeue", "sacct", "kubectl", "xpk"):
        made.add(name, f'#!/bin/sh\nexec {sys.executable} -S {HERE / "standin_queue.py"} {name} "$@"\n')
    made.add("sky", f'#!/bin/sh\nexec {sys.executable} -S {HERE / "standin_sky.py"} "$@"\n')
    monkeypatch.setenv("STANDIN", str(tmp_path))
    for tool in TOOLS:
        (made.programs / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(made.programs))
    monkeypatch.delenv("CLOUDSDK_CORE_PROJECT", raising=False)
    return made


@pytest.fixture
def launched(standins, capfd):
    """Runs a launcher's main in this process; returns its exit status and what it printed."""

    def run(module, *arguments: str) -> tuple[int, str]:
        from launch import job

        with pytest.raises(SystemExit) as status:
            job.run(module.__name__.split(".")[-1], module._parser(), module.main, arguments)
        printed = capfd.readouterr()
        return status.value.code, printed.out + printed.err

    return run
