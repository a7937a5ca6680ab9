"""`mde iterate` on a study that trains its own runs."""

import signal
import subprocess
from pathlib import Path

import pytest
from commands import ROOT, command, mde
from test_demo import wait_for

from mde.study import Study

pytestmark = pytest.mark.slow
ITERATE = ("iterate", "--rounds=2", "--batch=2", "--threshold=0", "--checkpoint_every=10")


def tables(study: Path) -> dict[str, bytes]:
    return {name: (study / name).read_bytes() for name in ("mixtures.csv", "losses.csv", "features.csv", "rounds.csv")}


def test_rounds_add_runs_and_a_killed_one_goes_on(study, tmp_path):
    import shutil

    other = Path(shutil.copytree(study, tmp_path / "other"))
    printed = mde(*ITERATE, f"--study={study}")
    assert "2 rounds are done" in printed
    found = Study(study)
    runs = found.mixtures()
    assert list(runs.index[-4:]) == ["iterate-1-0", "iterate-1-1", "iterate-2-0", "iterate-2-1"]
    assert set(runs["role"][-4:]) == {"proxy"}
    assert found.losses().loc[runs.index].notna().all(axis=None)
    assert all(table.loc[runs.index].notna().all(axis=None) for table in found.features().values())
    rounds = found.read_table("rounds.csv", "iterate")
    assert list(rounds["runs"]) == [28, 30, 32]
    assert "done before" not in mde("fit", f"--study={study}", "--gin_file=configs/demo_tiny.gin")

    process = subprocess.Popen(
        command(*ITERATE, f"--study={other}"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(other / "runs/iterate-1-0/run.json")
    process.send_signal(signal.SIGKILL)
    process.wait()
    mde(*ITERATE, f"--study={other}")
    assert tables(other) == tables(study)
