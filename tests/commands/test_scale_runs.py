"""`mde scale` with runs of its own: what is planned, what is refused, and the whole path."""

import json
import shutil
import zlib

import numpy as np
import pandas as pd
import pytest
from commands import mde

from mde import cli
from mde.errors import UserError
from mde.reporting import scaling as report
from mde.scaling import runs as scale_runs
from mde.scaling import validation as scale_validation
from mde.study import Study

NAMES = ["web", "code", "books"]
TOKENS = {"web": 4e5, "code": 1e5, "books": 2e5}
PER_STEP = 100
EXPONENTS = np.array([0.4, 0.3, 0.5])


def loss(tokens: np.ndarray) -> np.ndarray:
    """Losses [..., 2] of quantities [..., K]."""
    return 1.5 + (tokens / 1e4) ** -EXPONENTS @ np.array([[0.5, 0.1, 0.4], [0.2, 0.8, 0.2]]).T


@pytest.fixture
def study(tmp_path):
    """What `mde scale` reads of a study, as if it had been prepared, trained and scored."""
    study = Study(tmp_path / "study")
    stores = {f"{name}/train": {"tokens": count, "digest": ""} for name, count in TOKENS.items()}
    domains = {"training_domains": NAMES, "evaluation_domains": ["news", "code"]}
    study.write_json("study.json", {"format": 3, **domains, "stores": stores})
    settings = {"steps": 7, "batch_size": 10, "seq_len": 10, "learning_rate": 1e-3}
    study.write_json("training.json", {"settings": settings, "seed_settings": None, "seed": 0})
    study.write_json("scoring.json", {"tokens_per_domain": 100, "batch_size": None})
    return study


@pytest.fixture
def trained(monkeypatch):
    """Runs are not trained but follow power laws; returns the tables that were asked for."""
    asked = []

    def losses(self, runs):
        asked.append(runs)
        noise = [np.random.default_rng(zlib.crc32(run.encode())).normal(0, 1e-4) for run in runs.index]
        values = loss(runs[NAMES].to_numpy(float)) + np.array(noise)[:, None]
        return pd.DataFrame(values, runs.index, ["news", "code"])

    monkeypatch.setattr(scale_runs.Training, "losses", losses)
    return asked


def run(study: Study, *arguments: str) -> dict:
    cli.main(["scale", f"--study={study}", "--resamples=10", *arguments])
    return study.read_json("scale.json", "scale")


OPTIMA = ("optimum at the smallest budget", "optimum at the largest budget")
BUDGETS = ["--unit=steps", "--budgets=[300,600]"]


def test_other_domains_keep_their_quantities_to_the_token():
    base = np.array([0.5, 0.2, 0.3])
    runs = scale_runs.plan(NAMES, base, [30, 61], 3.0, [0, 1], PER_STEP)
    assert len(runs) == 2 * 2 * 7
    assert runs.index.is_unique
    for _, row in runs.iterrows():
        n = row["budget"] / PER_STEP
        quantities = row[NAMES].to_numpy(float) / PER_STEP
        assert quantities.sum() == pytest.approx(row["steps"])
        for k, name in enumerate(NAMES):
            if name != row["domain"]:
                assert quantities[k] == pytest.approx(base[k] * n, rel=1e-12)
            else:  # half a step is all that rounding moves
                times = {"less": 1 / 3, "more": 3.0}[row["role"]]
                assert abs(quantities[k] - times * base[k] * n) <= 0.5
    longer = runs[(runs["role"] == "more") & (runs["budget"] == 3000) & (runs["domain"] == "web")]
    assert list(longer["steps"]) == [60, 60]
    assert set(longer["seed"]) == {0, 1}


def test_what_cannot_be_planned():
    with pytest.raises(UserError, match=r"whole steps cannot give 0\.333 times as much of domain 'code'"):
        scale_runs.plan(NAMES, np.array([0.5, 0.1, 0.4]), [5], 3.0, [0], PER_STEP)
    with pytest.raises(UserError, match="domain 'code' has no weight"):
        scale_runs.plan(NAMES, np.array([0.5, 0.0, 0.5]), [50], 3.0, [0], PER_STEP)
    with pytest.raises(UserError, match=r"factor=1\.0"):
        scale_runs.plan(NAMES, np.full(3, 1 / 3), [50], 1.0, [0], PER_STEP)


def test_the_whole_path_by_tokens_and_by_steps(study, trained, capsys):
    found = run(study, *BUDGETS, "--target=2400", "--seeds=2", "--validation_seeds=3", "--max_epochs=2")
    ddo, validation = trained
    assert len(ddo) == 2 * 7 * 2
    assert set(validation["role"]) == {"predicted", *OPTIMA, "uniform", "proportional"}
    for label, optimum in zip(OPTIMA, found["ddo"]["optima"], strict=True):  # at 30k and at 60k tokens
        expected = np.array([optimum[name] for name in NAMES]) * 240_000 / sum(optimum.values())
        np.testing.assert_allclose(validation.loc[validation["role"] == label, NAMES].iloc[0].to_numpy(float), expected)
    assert set(validation["seed"]) == {1000, 1001, 1002}  # not those that the prediction was made from
    assert found["ddo"]["target"] == 240_000
    tokens = np.array([found["ddo"]["tokens"][name] for name in NAMES])
    grid = np.random.default_rng(0).dirichlet(np.ones(3), 50_000) * 240_000
    grid = grid[(grid <= 2 * np.array(list(TOKENS.values()))).all(axis=1)]
    best = grid[np.argmin(loss(grid).mean(axis=1))]
    np.testing.assert_allclose(tokens / 240_000, best / 240_000, atol=0.06)
    summary = study.read_table("scale/validation.csv", "scale")
    first = validation.groupby("role", sort=False)[NAMES].first().loc[summary.index]
    np.testing.assert_allclose(summary["objective"], loss(first.to_numpy()).mean(axis=1), atol=3e-4)
    out = capsys.readouterr().out
    assert "Validation at 240k tokens" in out
    assert "tokens to equal" in out
    assert "the best baseline" in out
    assert "Not trained" not in out
    again = run(study, "--budgets=[30e3,60e3]", "--target=240e3", "--seeds=2", "--max_epochs=2")
    assert again["ddo"]["tokens"] == found["ddo"]["tokens"]
    assert "validation" not in again


def test_the_same_run_has_the_same_name_in_every_table():
    mixtures = {"predicted": np.array([0.2, 0.3, 0.5]), "uniform": np.full(3, 1 / 3)}
    planned = scale_validation.plan(NAMES, mixtures, 60, [0, 1], PER_STEP)
    base = scale_runs.plan(NAMES, np.full(3, 1 / 3), [30, 60], 3.0, [0], PER_STEP)
    shared = planned.index.intersection(base.index)
    assert len(shared) == 2  # uniform at the target, and at half of it, with seed 0
    assert set(planned.loc[shared, "role"]) == {"uniform"}


def test_an_optimum_that_would_repeat_a_domain_is_no_baseline_and_this_is_said(study, trained, capsys):
    """For code alone, code's share of the small budgets is more than the 100,000 tokens of it at the target."""
    arguments = [*BUDGETS, "--target=2400", "--objective={'code': 1}", "--validation_seeds=1"]
    found = run(study, *arguments)
    for optimum in found["ddo"]["optima"]:
        assert optimum["code"] / sum(optimum.values()) * 240_000 > 100_000
    assert set(trained[1]["role"]) == {"predicted", "uniform", "proportional"}
    assert (trained[1]["code"] <= 100_000 * (1 + 1e-9)).all()
    out = capsys.readouterr().out
    for label in OPTIMA:
        assert f"validation: {label} is left out: run 'scale-2400-" in out
        assert f"Not trained: {label} (" in out
    assert "tokens of domain 'code', which has 100,000" in out


def test_a_validation_whose_seeds_agree_has_no_number_of_standard_errors(study):
    rows = {"predicted": [2.0, 0.0, 0.0, 0.1, 1.0], "uniform": [2.5, 0.5, 0.0, 0.1, 4.0]}
    columns = ["objective", "difference", "error", "slope", "tokens_to_equal"]
    study.write_table(
        "scale/validation.csv", pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("mixture")
    )
    study.write_table("scale/validation_runs.csv", pd.DataFrame({"seed": [1, 2], "budget": 1e6}, ["a", "b"]))
    study.write_json("scale.json", {"validation": 2})
    assert report.validation(study).title == "Validation at 1M tokens: 0.5000 below uniform, the best baseline"


def test_the_validation_by_hand():
    mixtures = {"predicted": np.array([0.2, 0.3, 0.5]), "uniform": np.full(3, 1 / 3)}
    runs = scale_validation.plan(NAMES, mixtures, 60, [5, 6], PER_STEP)
    #               target: seeds 5 and 6, half: seed 5
    losses = np.array([2.00, 2.10, 2.15, 2.06, 2.12, 2.26])[:, None]
    found = scale_validation.summary(runs, pd.DataFrame(losses, runs.index), np.array([1.0]))
    np.testing.assert_allclose(found["objective"], [2.05, 2.09])
    np.testing.assert_allclose(found["difference"], [0, 0.04])
    # Uniform is worse by .06 and by .02: what is left is ±.01 four times, with one degree of freedom.
    np.testing.assert_allclose(found["error"], np.sqrt(2 * 4 * 0.01**2 / 2))
    np.testing.assert_allclose(found["slope"], [0.15, 0.20])
    np.testing.assert_allclose(found["tokens_to_equal"], [1, 2 ** (0.04 / 0.20)])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--unit=steps", "--budgets=[300,300]"], ["budgets of 300, 300 steps", "increase"]),
        (["--unit=steps", "--budgets=[600,300]"], ["increase"]),
        ([], ["budgets of none", "one or more"]),
        (["--budgets=10"], ["at least 100 tokens"]),
        ([*BUDGETS, "--target=500"], ["target of 500 steps", "at least the largest budget, 600"]),
        (["--unit=steps", "--budgets=300", "--target=500"], ["one budget says nothing of others"]),
        (["--unit=steps", "--budgets=300", "--validation_seeds=1"], ["validation_seeds", "give two or more"]),
        (["--unit=steps", "--budgets=[2000,4000]"], ["domain 'code', which has 100,000: 4.00 epochs", "max_epochs"]),
        (
            ["--unit=steps", "--budgets=[300,600]", "--target=4000", "--validation_seeds=1"],
            ["133,333 tokens of domain 'code'", "1.33 epochs"],
        ),
        ([*BUDGETS, "--target=8000"], ["target of 800,000 tokens", "have 700,000 in 1 epochs"]),
        ([*BUDGETS, "--base=propotional"], ["mixture in base 'propotional'", "did you mean 'proportional'"]),
        ([*BUDGETS, "--base={'web': 1, 'cod': 0}"], ["domain in base 'cod'", "did you mean 'code'"]),
        ([*BUDGETS, "--base=recommended"], ["run `mde optimize"]),
        ([*BUDGETS, "--from_seed_model=true"], ["no seed model"]),
        ([*BUDGETS, "--seq_len=5"], ["seq_len cannot be another"]),
        ([*BUDGETS, "--unit=epochs"], ["unknown unit 'epochs'"]),
        ([*BUDGETS, "--validation_seeds=-1"], ["validation_seeds=-1, expected how many, or 0"]),
        ([*BUDGETS, "--mde_mixtures=-3"], ["mde_mixtures=-3, expected how many, or 0"]),
    ],
)
def test_what_is_refused_before_anything_is_trained(study, trained, capsys, arguments, expected):
    with pytest.raises(SystemExit) as status:
        run(study, *arguments)
    assert status.value.code == 2
    error = capsys.readouterr().err
    for text in expected:
        assert text in error
    assert not trained
    assert not (study.root / "scale").exists()


def test_losses_that_no_law_fits_leave_the_runs_and_say_what_would_help(study, monkeypatch, capsys):
    def flat(self, runs):
        return pd.DataFrame(3.0, runs.index, ["news", "code"])

    monkeypatch.setattr(scale_runs.Training, "losses", flat)
    with pytest.raises(SystemExit):
        run(study, *BUDGETS)
    error = capsys.readouterr().err
    assert "do not fall, so no power law fits; average more seeds, take factors further from 1, or the nearest" in error
    assert (study.root / "scale" / "losses.csv").exists()
    assert not (study.root / "scale.json").exists()


@pytest.mark.slow
def test_the_shipped_example_trains_compares_and_trains_nothing_twice(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "study", ignore=shutil.ignore_patterns("corpus"))
    command = ["scale", f"--study={copy}", "--gin_file=configs/scale_tiny.gin", "--mde_mixtures=3"]
    mde(*command)
    times = {path: path.stat().st_mtime_ns for path in (copy / "runs").glob("scale-*/run.json")}
    assert len(times) == 2 * (1 + 2 * 6) + 2 * (6 + 3)
    out = mde(*command, "--validation_seeds=1")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for text in ("Best mixture along the budget", "by MDE", "Validation at 246k tokens", "predicted by MDE"):
        assert text in out
    found = json.loads((copy / "scale.json").read_text())
    for method in ("ddo", "mde"):
        assert sum(found[method]["tokens"].values()) == pytest.approx(found[method]["target"])


@pytest.mark.slow
def test_encoders_go_through_it_like_any_other(prepared):
    where, tiny = f"--study={prepared}", "--gin_file=configs/demo_tiny.gin"
    masked = ["--model.objective=masked", "--seed_steps=0", "--steps=10", "--proxy_runs=1"]
    mde("train", where, tiny, *masked)
    mde("score", where, tiny)
    out = mde("scale", where, "--gin_file=configs/scale_tiny.gin")
    assert "Best mixture along the budget" in out
    study = Study(prepared)
    record = study.read_json("runs/expert-wiki/run.json", "train")
    assert record["model"]["objective"] == "masked"
    losses = study.read_table("scale/losses.csv", "scale")
    assert (losses > 1).all().all()
    assert (losses < np.log(2048)).all().all()
