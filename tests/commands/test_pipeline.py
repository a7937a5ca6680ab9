"""What is run, what is skipped, and what a study keeps on record."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mde import bindings, cli
from mde.commands import pipeline
from mde.errors import UserError
from mde.regression import estimators
from mde.study import STAGES, Study, digest

TINY = "--gin_file=configs/demo_tiny.gin"


@pytest.fixture
def mde(monkeypatch, capsys):
    """Runs a command in this process; whether it ran its stage or found it done."""

    def run(*arguments: str) -> bool:
        cli.main(arguments)
        return "done before" not in capsys.readouterr().out

    monkeypatch.chdir(bindings.REPOSITORY)
    return run


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """Runs stages that do nothing, on a study that there is nothing else of; whether it ran its stage."""

    def stage(study: Study, size: int = 1, mixtures: str | None = None) -> None:
        pass

    monkeypatch.setattr(pipeline, "_module", lambda name: SimpleNamespace(**{name: stage}))
    study = Study(tmp_path / "study")
    return study, lambda name, **given: pipeline.run(study, name, given)


def test_no_stage_goes_on_from_one_that_is_older_than_what_it_was_made_from(stages):
    _, run = stages
    assert all(run(name) for name in STAGES)
    assert not any(run(name) for name in STAGES[:-1])
    assert run("train", size=2)
    for later in ("evaluate", "fit", "optimize", "validate"):
        for size in (1, 2):
            with pytest.raises(
                UserError, match=r"'train' was run again after 'score'; run `mde score --study=.*` first"
            ):
                run(later, size=size)
    assert run("score")
    with pytest.raises(UserError, match="'score' was run again after 'evaluate'; run `mde evaluate"):
        run("optimize")
    assert run("report")  # shows what there is
    assert all(run(name) for name in STAGES[3:])
    assert not any(run(name, **({"size": 2} if name == "train" else {})) for name in STAGES[:-1])
    assert all(run("report") for _ in range(2))  # whoever asks for it wants to see it


def test_records_of_older_versions_are_taken_as_they_are(stages):
    study, run = stages
    for name in STAGES[:-1]:
        run(name)
        record = study.read_json(f"stages/{name}.json", name)
        del record["before"]
        study.write_json(f"stages/{name}.json", record)
    assert not any(run(name) for name in STAGES[:-1])


def test_a_stage_runs_again_when_its_arguments_or_its_input_change(mde, study):
    where = f"--study={study}"
    quick = "--gin_bindings=fit.regressors = ['ridge']"
    assert not mde("fit", where, TINY)
    assert mde("fit", where, TINY, quick)
    assert not mde("fit", where, TINY, quick)
    assert mde("optimize", where, TINY)  # nothing of its own has changed, but what it reads
    assert not mde("evaluate", where, TINY)
    assert not mde("optimize", where, TINY)
    assert mde("fit", where, TINY, quick, "--force")
    assert mde("optimize", where, TINY)  # whatever the reason was to run `fit` again


def test_the_record_of_a_stage_has_all_its_arguments(finished):
    record = Study(finished[0]).read_json("stages/train.json", "train")
    assert record["arguments"]["steps"] == 20
    assert record["arguments"]["concentration"] == 1.0  # a default
    assert record["seconds"] > 0


@pytest.mark.parametrize("stage", ["train", "score", "evaluate", "fit", "optimize", "validate"])
def test_a_saved_stage_starts_the_same_run_again(mde, finished, stage):
    assert not mde(stage, f"--study={finished[0]}", f"--gin_file={finished[0]}/stages/{stage}.gin")


def test_help_lists_what_gin_can_bind(capsys):
    with pytest.raises(SystemExit) as status:
        cli.main(["fit", "--help"])
    assert status.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--repeats REPEATS random splits,[^\[]* \[default 20\]", text)
    named = re.search(r"names of regressors: ([^.]*)\.", text)
    assert named is not None
    assert set(named[1].split(", ")) == set(estimators.REGRESSORS)


def test_help_is_for_users_and_says_the_version(capsys):
    for words, there in (
        (["report", "--help"], "tables"),
        (["train", "--help"], "--mixture"),
        (["--help"], "--version"),
        (["--version"], "mde "),
    ):
        with pytest.raises(SystemExit) as status:
            cli.main(words)
        said = capsys.readouterr().out
        assert status.value.code == 0
        assert there in said
        assert "Raises" not in said


def test_python_runs_the_package_as_it_runs_the_command():
    done = subprocess.run([sys.executable, "-m", "mde", "--version"], capture_output=True, text=True)
    assert re.fullmatch(r"mde \d+\.\d+\.\d+\n", done.stdout), done.stderr


def test_a_shipped_gin_file_is_found_from_anywhere(monkeypatch, tmp_path, caplog):
    """With the repository on the path its folders could be modules, where gin looks too, and fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(bindings.REPOSITORY))
    given = bindings.from_gin(["configs/demo_tiny.gin"], [])
    assert given["train"]["preset"] == "tiny"
    assert given["prepare"]
    assert not caplog.records


def test_a_flag_is_a_binding(mde, study):
    where = f"--study={study}"
    assert mde("fit", where, TINY, "--gin_bindings=fit.repeats = 5", "--repeats=6")
    assert Study(study).read_json("stages/fit.json", "fit")["arguments"]["repeats"] == 6
    assert not mde("fit", where, TINY, "--gin_bindings=fit.repeats = 6")
    assert mde("fit", where, TINY, "--features=log,mde[0]+log", "--regressors=ridge")
    assert Study(study).read_json("stages/fit.json", "fit")["arguments"]["features"] == ["log", "mde[0]+log"]


def test_an_optimum_is_never_predicted_worse_than_what_was_trained(finished):
    predictions = Study(finished[0]).read_json("optimum.json", "optimize")["predictions"]
    objective = {name: predicted["objective"] for name, predicted in predictions.items()}
    assert objective["recommended"] == min(objective.values())


def test_what_is_kept_comes_back_exactly(tmp_path):
    study = Study(tmp_path / "new" / "study")
    table = pd.DataFrame({"a": [1 / 3, np.nextafter(1, 2)]}, pd.Index(["007", "x"], name="run"))
    study.write_table("deep/table.csv", table)
    pd.testing.assert_frame_equal(study.read_table("deep/table.csv", "fit"), table, check_exact=True)
    study.write_json("about.json", {"array": np.arange(2), "number": np.float64(1 / 3)})
    assert study.read_json("about.json", "fit") == {"array": [0, 1], "number": 1 / 3}
    assert not list(tmp_path.rglob("*.partial"))


def test_missing_and_broken_files_name_the_stage_that_makes_them(tmp_path):
    study = Study(tmp_path)
    with pytest.raises(UserError, match=r"optimum\.json does not exist yet; run `mde optimize"):
        study.read_json("optimum.json", "optimize")
    (tmp_path / "optimum.json").write_text("{")
    with pytest.raises(UserError, match=r"optimum\.json: damaged \(Expecting .* run `mde optimize --force` again"):
        study.read_json("optimum.json", "optimize")


def test_tables_say_which_run_or_domain_they_do_not_have(tmp_path):
    study = Study(tmp_path)
    study.describe({"format": 3, "training_domains": ["web", "code"], "evaluation_domains": ["web", "code"]})
    runs = pd.Index(["a", "b"], name="run")
    table = pd.DataFrame({"role": "proxy", "seed": 0, "code": 0.5, "web": 0.5}, runs)
    study.write_table("mixtures.csv", table)
    study.write_table("losses.csv", table[["code", "web"]])
    study.write_table("features.csv", table[["code", "web"]].add_prefix("mde[0]/"))
    assert list(study.mixtures()) == ["role", "seed", "web", "code"]
    assert list(study.losses(runs=["b", "a"]).index) == list(study.features(["b", "a"])["mde[0]"].index) == ["b", "a"]
    with pytest.raises(UserError, match=r"losses\.csv has no row 'c'; run `mde score --study=.*` first"):
        study.losses(runs=["a", "c"])
    with pytest.raises(UserError, match=r"features\.csv has no row 'c'; run `mde evaluate "):
        study.features(["c"])
    study.describe({**study.about, "training_domains": ["web", "new"], "evaluation_domains": ["web", "code", "new"]})
    for read, name, stage in (
        (study.mixtures, "new", "train"),
        (study.losses, "new", "score"),
        (study.features, r"mde\[0\]/new", "evaluate"),
    ):
        with pytest.raises(UserError, match=f"has no column '{name}'; run `mde {stage} "):
            read()


def test_digests_tell_content_apart_and_nothing_else():
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
