"""Bad input: one line that names the culprit and the nearest right name, exit status 2, and nothing changed on disk."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mde import cli
from mde.data import tokens


def contents(study: Path) -> dict[str, bytes]:
    return {str(p.relative_to(study)): p.read_bytes() for p in sorted(study.rglob("*")) if p.is_file()}


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused; returns the line that it printed."""

    def run(*arguments: str, study: Path | None = None) -> str:
        before = contents(study) if study else {}
        with pytest.raises(SystemExit) as status:
            cli.main([*arguments, *([f"--study={study}"] if study else [])])
        assert status.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(lines) == 1, lines
        assert not study or contents(study) == before
        return lines[0]

    return run


TINY = "--gin_file=configs/demo_tiny.gin"


@pytest.fixture(autouse=True)
def _at_the_repository(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("trian.steps = 3", ["stage", "'trian'", "did you mean 'train'"]),
        ("train.step = 3", ["argument of stage 'train'", "'step'", "did you mean 'steps'"]),
        ("train.steps = 'many'", ["train.steps = 'many'", "expected a whole number"]),
        ("train.steps = 0", ["steps=0", "positive"]),
        ("train.checkpoint_every = 0", ["checkpoint_every=0", "positive"]),
        ("train.seed_steps = -5", ["steps=-5", "positive"]),
        ("train.proxy_runs = -1", ["-1 mixtures", "at least one"]),
        ("train.preset = 'tny'", ["preset 'tny'", "did you mean 'tiny'"]),
        ("train.preset = ", ["gin"]),
        ("train.mixtures = 'nowhere.csv'", ["nowhere.csv", "no such file"]),
    ],
)
def test_bindings(refused, prepared, binding, expected):
    line = refused("train", TINY, f"--gin_bindings={binding}", study=prepared)
    for text in expected:
        assert text in line


def test_unknown_command_and_missing_files(refused, tmp_path):
    assert "did you mean 'fit'" in refused("fti", "--study=x")
    assert "no gin file 'nowhere.gin'" in refused("train", "--gin_file=nowhere.gin", study=tmp_path)
    assert "run `mde prepare" in refused("train", TINY, study=tmp_path)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--repeat=3", ["unknown flag '--repeat'", "did you mean '--repeats'"]),
        ("--repeats=many", ["--repeats=many", "expected a whole number"]),
        ("--repeats=1.5", ["--repeats=1.5", "expected a whole number"]),
        ("--mixtures=nowhere.csv", ["both --mixtures and --losses"]),
    ],
)
def test_flags(refused, tmp_path, flag, expected):
    line = refused("fit", flag, study=tmp_path)
    for text in expected:
        assert text in line


def test_a_report_of_no_study(refused, tmp_path):
    assert "holds nothing to report; run `mde prepare" in refused("report", study=tmp_path)
    assert "typo holds nothing to report" in refused("report", f"--study={tmp_path}/typo")
    assert not (tmp_path / "typo").exists()


def test_a_study_where_none_can_be(refused, tmp_path, monkeypatch):
    (tmp_path / "text").touch()
    domains = [f"--domain={name}={tmp_path}/text" for name in "ab"]
    line = refused("prepare", f"--study={tmp_path}/text/study", *domains)
    assert f"{tmp_path}/text/study: {tmp_path}/text is no folder" in line
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)  # as root, everything is allowed
    for command in ("prepare", "import"):
        more = domains if command == "prepare" else ["--source=x", "--run=seed"]
        line = refused(command, f"--study={tmp_path}/new/study", *more)
        assert f"{tmp_path}/new/study: no permission to write to {tmp_path}" in line


def test_a_reader_that_goes_away_ends_a_command_quietly():
    script = f"{sys.executable} -m mde.cli models | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": ""}
    )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_study_has_to_be_named(refused):
    assert "give --study" in refused("fit")


def test_a_stage_before_its_input(refused, prepared):
    assert "run `mde train" in refused("score", study=prepared)


def test_an_argument_that_is_required(refused, prepared):
    assert "'train' needs preset" in refused("train", study=prepared)


def test_unknown_domain(refused, tmp_path):
    line = refused("prepare", TINY, "--gin_bindings=prepare.training_domains = ['pyhton', 'bible']", study=tmp_path)
    assert "domain 'pyhton': did you mean 'python'" in line


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a,-.1,1.1,0,0,0,0", ["'a'", "'python'", "-0.1"]),
        ("a,nan,1,0,0,0,0", ["'a'", "'python'", "nan"]),
        ("a,.5,.4,0,0,0,0", ["'a'", "0.9", "expected 1"]),
        ("a,one,0,0,0,0,0", ["'a'", "'python'", "'one' is not a number"]),
        ("../a,1,0,0,0,0,0", ["'../a'", "expected letters"]),
        ("expert-wiki,1,0,0,0,0,0", ["'expert-wiki'", "does not start with"]),
        ("a,.5,.5", ["line 2", "3 fields", "7"]),
        ("a,1,0,0,0,0,0,0", ["line 2", "8 fields", "7"]),
        ("a,1,0,0,0,0,0\na,0,1,0,0,0,0", ["'a'", "twice"]),
    ],
)
def test_mixtures_off_the_simplex(refused, prepared, row, expected):
    table = prepared / "own.csv"
    table.write_text(f"run,python,cpp,licenses,docs,wiki,bible\n{row}\n")
    line = refused("train", TINY, f"--gin_bindings=train.mixtures = '{table}'", study=prepared)
    for text in ["own.csv", *expected]:
        assert text in line


def test_mixtures_with_a_wrong_column(refused, prepared):
    table = prepared / "own.csv"
    table.write_text("run,python,cpp,licences,docs,wiki,bible\na,1,0,0,0,0,0\n")
    line = refused("train", TINY, f"--gin_bindings=train.mixtures = '{table}'", study=prepared)
    assert "'licences': did you mean 'licenses'" in line


def test_an_empty_domain(refused, prepared):
    """A store with less than one sequence, whose digest is what the study expects."""
    about = json.loads((prepared / "study.json").read_text())
    wanted = about["stores"]["bible/train"]["digest"]
    tokens.write(prepared / "tokens" / "bible" / "train", [(np.arange(2, 8), 6)], wanted)
    line = refused("train", TINY, "--gin_bindings=train.seed_steps = 0", study=prepared)
    assert "'bible' is empty" in line


def test_tokens_of_another_tokenizer(refused, prepared):
    tokens.write(prepared / "tokens" / "wiki" / "train", [(np.arange(2, 999), 6)], "another")
    line = refused("train", TINY, study=prepared)
    assert "wiki" in line
    assert "another tokenizer" in line


def test_a_study_with_runs_is_not_prepared_anew(refused, finished, study):
    shutil.copytree(finished[0] / "corpus", study / "corpus")
    line = refused("prepare", TINY, "--gin_bindings=prepare.vocab_size = 1024", study=study)
    assert "use another --study" in line


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("train.preset = 'demo'", "d_model=32, not 96"),
        ("train.steps = 30", "steps=20, not 30"),
        ("train.seed_steps = 7", "steps=100, not 7"),
        ("train.seed = 5", "seed"),
    ],
)
def test_runs_that_were_trained_another_way(refused, study, binding, expected):
    line = refused("train", TINY, f"--gin_bindings={binding}", study=study)
    assert expected in line
    assert "--study" in line


def test_a_damaged_checkpoint(refused, study):
    shutil.rmtree(study / "scores" / "expert-wiki")
    for path in (study / "runs" / "expert-wiki" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    line = refused("score", "--force", TINY, study=study)
    assert "expert-wiki/params: damaged checkpoint" in line


@pytest.mark.parametrize(
    "binding",
    [
        "score.batch_size = 0",
        "score.tokens_per_domain = -1",
        "evaluate.taus = ()",
        "evaluate.taus = (2.0,)",
        "evaluate.merged_windows = -1",
        "evaluate.candidates = 0",
        "fit.repeats = 0",
        "fit.train_mixtures = 0",
        "optimize.refits = 0",
        "validate.seeds = 0",
    ],
)
def test_counts_that_make_no_sense(refused, study, binding):
    stage, name = binding.split(" = ")[0].split(".")
    assert {
        "candidates": "0 mixtures",
        "repeats": "0 repeats",
        "taus": "tau",
    }.get(name, f"{name}=") in refused(stage, TINY, f"--gin_bindings={binding}", study=study)


def test_unknown_objective_regressor_and_feature(refused, study):
    assert "did you mean 'avg-all'" in refused("fit", "--gin_bindings=fit.objective = 'avg-al'", study=study)
    assert "did you mean 'ridge'" in refused("fit", "--gin_bindings=fit.regressors = ['rigde']", study=study)
    assert "feature 'mde[5]'" in refused("fit", "--gin_bindings=fit.features = ['mde[5]']", study=study)
    assert "28 proxy runs" in refused("fit", "--gin_bindings=fit.train_mixtures = 27", study=study)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that always fails")
def test_what_the_system_refuses_is_one_line_and_what_is_missing_is_a_bug(refused, tmp_path, monkeypatch):
    line = refused("fit", "--mixtures=/proc/self/mem", "--losses=losses.csv", f"--study={tmp_path}/study")
    assert line.endswith("Input/output error; the same command goes on when that is mended")
    monkeypatch.setattr(cli, "_run", lambda *_: (tmp_path / "nowhere").read_text())
    with pytest.raises(FileNotFoundError):
        cli.main(["fit"])


def test_two_commands_do_not_work_on_one_study(refused, tmp_path):
    """What only reads goes on; a lock that is gone is in nobody's way."""
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    line = refused("fit", f"--study={tmp_path}")
    assert f"{tmp_path}: another command is at work on this study" in line
    assert "holds nothing to report" in refused("report", f"--study={tmp_path}")
    os.close(other)
    for _ in range(2):
        assert "'fit' needs 'prepare'" in refused("fit", f"--study={tmp_path}")
