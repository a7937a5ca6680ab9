"""The whole path, as a user walks it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import ROOT, command, demo, mde

from mde.study import Study

RESULTS = ("mixtures.csv", "losses.csv", "features.csv", "fit/objective.csv", "optimum.json", "validation/summary.csv")


def results(study: Path) -> dict[str, bytes]:
    return {name: (study / name).read_bytes() for name in RESULTS}


def test_it_recommends_a_mixture_with_intervals_and_validates_it(finished):
    study = Study(finished[0])
    optimum = study.read_json("optimum.json", "optimize")
    weights = np.array(list(optimum["weights"].values()))
    assert set(optimum["weights"]) == set(study.domains.training)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert study.read_json("validation/final.json", "validate")["objective"] == optimum["objective"]
    validation = study.read_table("validation/summary.csv", "validate")
    assert list(validation.index) == ["recommended", "uniform", "proportional"]
    assert (validation["noise"] > 0).all()
    assert (validation["error"][1:] > validation[["error_seeds", "error_text"]].max(axis=1)[1:]).all()
    assert validation["p_holm"][1:].between(0, 1).all()


def test_validation_runs_start_from_scratch_and_are_scored_on_test_text(finished):
    """With as many steps as a proxy run and the seed model before it; the losses are those of the test stores."""
    study = Study(finished[0])
    part = study.part("validation")
    runs = part.read_table("mixtures.csv", "validate")
    assert set(runs["steps"]) == {120}
    for run in runs.index:
        record = part.read_json(f"runs/{run}/run.json", "validate")
        assert "seed_model" not in record
        assert record["training"]["steps"] == 120
    scoring = part.read_json("scoring.json", "validate")
    assert scoring == {**study.read_json("scoring.json", "score"), "split": "test"}
    text = part.read_table("evaluation.csv", "validate")
    for name in study.domains.evaluation:
        assert text.loc[name, "tokens"] == study.store(name, "test").whole_documents(2048)[0] - documents(study, name)
    controlled = part.read_json("final.json", "validate")["cost"]
    assert controlled["run"]["controlled"] == 1
    assert controlled["proxies"]["controlled"] == pytest.approx(20 / 120)


def documents(study: Study, name: str) -> int:
    """How many documents of test text are scored: their first tokens are predicted by nothing."""
    store = study.store(name, "test")
    return int(np.searchsorted(store.bounds, 2048))


def test_news_is_evaluated_and_never_trained_on(finished):
    study = Study(finished[0])
    assert "news" not in study.mixtures().columns
    assert "news" in study.losses().columns
    assert not (finished[0] / "tokens" / "news" / "train").exists()


def test_an_experts_mde_loss_is_its_own_loss(finished):
    """At a corner of the simplex the mixture of experts is one expert, whatever τ is."""
    study = Study(finished[0])
    losses, features = study.losses(), study.features()
    experts = [run for run in losses.index if run.startswith("expert-")]
    assert len(experts) == 6
    for name in ("mde[0]", "mde[0.01]", "mde[0.1]", "mde[1]"):
        # 1e-6 nats per token: what the evaluator promises against float64, in which the losses are summed
        np.testing.assert_allclose(features[name].loc[experts], losses.loc[experts], rtol=0, atol=1e-6)


def test_the_tables_are_printed_and_the_page_is_written(finished):
    study, printed = finished
    assert "ridge" in printed
    before, after = printed.split("mde optimize: ")
    assert re.search(r"recommended: python .*\nPredicted: ", before)
    assert f"`mde validate --study={study}`" in before
    validation = after.split("mde validate: ")[0]
    assert re.search(r"^mixture +measured +difference .* p \(Holm\) .* seeds for 80%", validation, re.MULTILINE)
    assert "Regret of the recommended mixture: " in validation
    assert "100% of the tokens of these runs and 17% of a proxy run's" in " ".join(validation.split())
    assert f"see {study}/report.html" in after
    assert (study / "report.html").stat().st_size > 100_000


def test_a_second_run_does_nothing_and_says_so(finished):
    before = results(finished[0])
    again = mde(*demo(finished[0]))
    assert again.count("done before") == 7
    assert results(finished[0]) == before


@pytest.mark.slow
def test_a_killed_demo_goes_on_and_ends_with_the_same_tables(finished, prepared):
    """Killed twice: amid training, and amid proving, at whatever it was doing then."""
    line = command(*demo(prepared))
    for milestone in ("runs/proxy-05/run.json", "optimum.json"):
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(prepared / milestone)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (prepared / "validation/summary.csv").exists()
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    assert results(prepared) == results(finished[0])


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not come")


@pytest.mark.slow
def test_the_stages_one_by_one_give_what_the_demo_gives(finished, prepared):
    """And rows of a user's own mixture table are joined by name, not by order."""
    table = pd.read_csv(finished[0] / "mixtures.csv")
    own = table[table["role"] == "proxy"].drop(columns=["role", "seed"])
    own[["run", *reversed(own.columns[1:])]].to_csv(prepared / "own.csv", index=False)
    for stage in ("train", "score"):
        mde(
            stage,
            f"--study={prepared}",
            "--gin_file=configs/demo_tiny.gin",
            f"--gin_bindings=train.mixtures = '{prepared / 'own.csv'}'",
        )
    pd.testing.assert_frame_equal(
        pd.read_csv(prepared / "losses.csv"), pd.read_csv(finished[0] / "losses.csv"), check_exact=True
    )


def test_shipped_configurations_bind_only_what_exists():
    from mde import bindings

    files = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.gin")}
    found = {str(path): bindings.from_gin([f"configs/{path}"], []) for path in files if path.parts[0] != "sweeps"}
    assert all(any(given.values()) for given in found.values())
    for name in ("demo.gin", "demo_tiny.gin", "studies/mde.gin"):
        assert found[name]["train"]["proxy_runs"] >= 24


def test_shipped_configurations_are_found_from_anywhere(tmp_path):
    """Also where the path of Python names the repository, whose `configs` gin took for a package."""
    line = "from mde import bindings; print(bindings.from_gin(['configs/studies/mde.gin'], [])['train']['preset'])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "280m\n", done.stderr
    assert "ERROR" not in done.stderr


def test_what_the_demo_says_is_commonly_overridden_is_bound_in_it():
    text = (ROOT / "configs" / "demo.gin").read_text()
    named = re.search(r"Commonly overridden: (.*)\.\n", text)
    assert named
    for name in named[1].split(", "):
        assert f"\n{name} = " in text
