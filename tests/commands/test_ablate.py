"""`mde ablate` as a user runs it."""

import json
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import ROOT, command
from test_demo import wait_for

from mde import cli
from mde.commands import ablate as stage
from mde.study import Study

TINY = "--gin_file=configs/ablate_tiny.gin"
SMALL = (TINY, "--seed_steps=2", "--steps=2", "--batch_size=4", "--seq_len=16", "--tokens_per_domain=64", "--taus=0,1")
UNITS = "--units={'bible': 2, 'cpp': 1, 'docs': 1}"


@pytest.fixture
def ablate(monkeypatch, capsys):
    """Runs the command in this process; what it printed."""

    def run(study: Path, *arguments: str) -> str:
        cli.main(["ablate", f"--study={study}", *arguments])
        return capsys.readouterr().out

    monkeypatch.chdir(ROOT)
    return run


def trained(study: Path) -> dict[str, int]:
    """When each run was finished."""
    return {str(p.relative_to(study)): p.stat().st_mtime_ns for p in study.glob("ablation/*/runs/*/run.json")}


def test_a_study_of_merges_and_a_source_that_is_added(ablate, prepared):
    sources = (*SMALL, UNITS, "--unions=3", "--upsampled=1")
    printed = ablate(prepared, *sources)
    for text in ("seed model of 2 steps: 9 runs trained, 10 there", "the union, mean inside", "every union"):
        assert text in printed
    study = Study(prepared)
    losses = study.read_table("ablation/losses.csv", "ablate")
    proxies = {"merged", "merged-weighted", "micro-merged", "mde[0]", "mde[1]"}
    assert set(losses["model"]) == {"seq", *proxies}
    assert set(losses["seed_steps"]) == {2}
    assert set(losses.index) == {"union-00", "union-01", "union-02", *(n for n in losses.index if n[:2] == "up")}
    table = study.read_table("ablation/correlations.csv", "ablate")
    assert set(table.index) == {*proxies, "size"}
    assert set(table["domain"]) == {*study.domains.evaluation, "mean inside", "mean outside"}
    values = study.read_table("ablation/values.csv", "ablate")
    candidates = study.read_table("ablation/candidates.csv", "ablate")
    assert len(candidates) == 16 * 3  # all subsets of 4 units, by three evaluators
    for name, rows in values[values["domain"] == "objective"].groupby("evaluator"):
        mine = candidates[candidates["evaluator"] == name].set_index(["bible-0", "bible-1", "cpp-0", "docs-0"])
        gain = mine.loc[(0, 0, 0, 0), "objective"] - mine.loc[(1, 1, 1, 1), "objective"]
        assert rows["value"].sum() == pytest.approx(gain, abs=1e-6)
    cost = study.read_table("ablation/cost.csv", "ablate")
    assert list(cost["runs"]) == [1, 4, 1, 4, 7, 15]

    before = trained(prepared)
    more = "--units={'bible': 2, 'cpp': 1, 'docs': 1, 'wiki': 2}"
    ablate(prepared, *SMALL, more, "--unions=3", "--upsampled=1", "--given=wiki", "--candidates=40")
    after = trained(prepared)
    new = {f"ablation/seed-2/runs/wiki-{i}/run.json" for i in (0, 1)}
    assert set(after) - set(before) == new  # its own units and nothing else
    assert {name: after[name] for name in before} == before
    additions = study.read_table("ablation/additions.csv", "ablate")
    assert set(additions.index) == {"bible-0", "bible-1", "cpp-0", "docs-0"}
    values = study.read_table("ablation/values.csv", "ablate")  # 2^6 subsets are more than 40: sampled
    assert values["value"].notna().all()
    assert values["error"].isna().all()  # 40 subsets are too few pairs of orders to know it


def test_text_for_encoders_has_hidden_tokens_and_a_name_of_its_own(prepared):
    corpus = stage._Corpus(Study(prepared), stage.Units(units={"cpp": 1, "docs": 1}), 129, 0.3)
    plain, hidden = (corpus.evaluation(512, 16, masked) for masked in (False, True))
    assert not plain.data.masked
    assert hidden.data.masked
    assert set(plain.names) == set(hidden.names)
    assert all(plain.names[domain] != hidden.names[domain] for domain in plain.names)


@pytest.mark.slow
def test_encoders_are_scored_on_what_is_hidden_from_them(ablate, prepared):
    encoder = "--model.objective=masked"
    few = ("--units={'cpp': 1, 'docs': 1}", "--unions=0", "--tokens_per_domain=512", "--merged_windows=2", encoder)
    printed = ablate(prepared, *SMALL, *few)
    assert "seed model of 2 steps: 2 runs trained, 3 there" in printed
    study = Study(prepared)
    assert study.read_json("ablation/seed-2/runs/cpp-0/run.json", "ablate")["model"]["objective"] == "masked"
    candidates = study.read_table("ablation/candidates.csv", "ablate")
    assert set(candidates["evaluator"]) == {"merged", "mde[0]", "mde[1]"}
    # Two steps teach next to nothing: near the logarithm of the 2,048 tokens.
    assert candidates["objective"].between(6, 9).all()


@pytest.mark.slow
def test_unions_of_a_file(ablate, prepared, tmp_path):
    rows = {"bible": [1, 0, 1], "cpp-0": [1, 2, 0.5], "docs": [0, 1, 0]}
    table = pd.DataFrame(rows, pd.Index(["first", "second", "third"], name="union"))
    table.to_csv(tmp_path / "unions.csv")
    small = (*SMALL, "--seed_steps=0", UNITS, f"--unions_file={tmp_path}/unions.csv", "--candidates=0")
    ablate(prepared, *small)
    study = Study(prepared)
    unions = study.read_table("ablation/unions.csv", "ablate")
    assert unions.loc["third"].to_dict() == {"bible-0": 1, "bible-1": 1, "cpp-0": 0.5, "docs-0": 0}
    registry = study.read_table("ablation/registry.csv", "ablate")
    assert registry.loc[registry["units"] == "cpp-0:0.2 bible-0:0.4 bible-1:0.4", "steps"].tolist() == [5]
    assert not (prepared / "ablation/values.csv").exists()


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs the command, which must be refused and leave nothing; the line that it printed."""

    def run(study: Path, *arguments: str) -> str:
        before = {p: p.read_bytes() for p in study.rglob("*") if p.is_file()}
        with pytest.raises(SystemExit) as status:
            cli.main(["ablate", f"--study={study}", *SMALL, *arguments])
        assert status.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(lines) == 1, lines
        assert {p: p.read_bytes() for p in study.rglob("*") if p.is_file()} == before
        return lines[0]

    monkeypatch.chdir(ROOT)
    return run


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--sources=bibel,cpp", ["training domain", "'bibel'", "did you mean 'bible'"]),
        ("--sources=news,cpp", ["training domain", "'news'"]),
        ("--units={'wikis': 2}", ["'wikis'", "did you mean 'wiki'"]),
        ("--units=3", ["units=3", "at least one for each of"]),
        ("--units=100000", ["units=100000", "there is text for python"]),
        ("--units={'cpp': 99999, 'wiki': 1}", ["domain 'cpp'", "not for 99999"]),
        ("--unions=2 --upsampled=0", ["2 unions", "at least 3"]),
        ("--unions=99", ["99 unions", "there are only"]),
        ("--smallest=9", ["unions of 9 to"]),
        ("--upsampled=17", ["upsampled=17"]),
        ("--unions_file=nowhere.csv", ["nowhere.csv: no such file"]),
        ("--given=docs-7", ["unit or source in given", "'docs-7'", "did you mean 'docs-"]),
        ("--seed_share=1", ["seed_share=1", "between 0 and 1"]),
        ("--seed_steps=-1", ["seed_steps=[-1]", "zero or more"]),
        ("--taus=0,2", ["taus=[0, 2]", "between 0 and 1"]),
        ("--mesh=pol=2", ["mesh axis 'pol'"]),
        ("--objective=avg", ["unknown objective 'avg'"]),
        ("--learning_rate=-1", ["learning_rate=-1", "positive"]),
    ],
)
def test_bad_arguments(refused, prepared, flag, expected):
    line = refused(prepared, *re.split(" (?=--)", flag))
    for text in expected:
        assert text in line


@pytest.mark.slow
def test_units_of_another_seed_model_or_schedule(refused, ablate, prepared):
    small = (UNITS, "--unions=0", "--candidates=0")
    ablate(prepared, *SMALL, *small)
    line = refused(prepared, *small, "--learning_rate=0.5")
    assert "learning_rate=" in line
    assert "not 0.5" in line
    assert "seed_share=0.3, not 0.2" in refused(prepared, *small, "--seed_share=0.2")
    path = prepared / "ablation/seed-2/runs/cpp-0/run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "seed_model": "0123456789abcdef"}))
    line = refused(prepared, *small)
    assert "cpp-0: trained with seed_model '0123456789abcdef', not '" in line
    assert "delete the run" in line


@pytest.mark.slow
def test_a_killed_ablation_goes_on(prepared, tmp_path):
    import shutil

    other = Path(shutil.copytree(prepared, tmp_path / "other"))
    arguments = ("ablate", TINY, "--seed_steps=20")
    subprocess.run(command(*arguments, f"--study={other}"), cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen(command(*arguments, f"--study={prepared}"), cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(prepared / "ablation/seed-20/runs/seed/run.json")
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command(*arguments, f"--study={prepared}"), cwd=ROOT, check=True, capture_output=True)
    for name in ("losses", "values", "registry"):
        tables = [Study(study).read_table(f"ablation/{name}.csv", "ablate") for study in (prepared, other)]
        numbers = [table.select_dtypes(np.number) for table in tables]
        # What is left may be a pool of another size, which cuts batches over devices: last bits of float32, over steps.
        pd.testing.assert_frame_equal(*numbers, atol=1e-4)
