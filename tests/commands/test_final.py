"""Full models on named mixtures: another model than the study's small ones, trained once, scored, and compared."""

import itertools
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import ROOT, command

from mde import api, cli
from mde.evaluation import mixture_nll
from mde.reporting import final as report
from mde.reporting import page
from mde.results import comparison, mixtures
from mde.study import Study
from mde.training import pool

# Another preset, length, batch and sequence length than those of the fixture's runs.
ANOTHER = ["--preset=demo", "--model.n_layers=1", "--steps=4", "--batch_size=2", "--seq_len=32"]
HUMAN = "--mixture=['uniform', {'human': {'web': .75, 'code': .25}}]"


@pytest.fixture
def study(tasked, tmp_path):
    """A copy of a fitted study with end tasks, to train final models in."""
    return Study(shutil.copytree(tasked, tmp_path / "study"))


def train(study: Study, *arguments: str) -> Study:
    """The final models that the command leaves."""
    cli.main(["train", f"--study={study}", *arguments])
    (found,) = report.parts(study)
    return Study(found.root)  # opened by itself, as somebody would


def texts(study: Study, domain: str, split: str) -> list[bytes]:
    """The tokens of each document of a store."""
    store = study.store(domain, split)
    return [store.read(a, b).tokens.tobytes() for a, b in itertools.pairwise(store.bounds.tolist())]


def times(part: Study) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(part.root).glob("runs/*/run.json")}


def interrupted(study: Study, arguments: list[str], monkeypatch) -> tuple[str, int]:
    """The program ends when the first run is written; that run, and when it was written."""
    write = pool._finish

    def then_end(lines, record, directory):
        write(lines, record, directory)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pool, "_finish", then_end)
        with pytest.raises(SystemExit) as status:
            train(study, *arguments)
    assert status.value.code == 130
    (path,) = Path(study.root).glob("final/*/runs/*/run.json")
    return path.parent.name, path.stat().st_mtime_ns


def test_the_whole_path(study, tmp_path, capsys, monkeypatch):
    before = (study.root / "stages" / "train.json").read_bytes()
    arguments = [HUMAN, *ANOTHER, "--seeds=2", "--half=true"]
    first, when = interrupted(study, arguments, monkeypatch)
    assert not report.parts(study)
    assert "They are in training" in page.html(study)
    part = train(study, *arguments)
    out = capsys.readouterr().out
    assert times(part)[first] == when  # what was done is not trained again
    assert (study.root / "stages" / "train.json").read_bytes() == before  # the pool of small models stands as it was
    record = part.read_json("runs/" + next(iter(times(part))) + "/run.json", "final")
    assert (record["model"]["d_model"], record["training"]["seq_len"]) == (96, 32)
    assert "seed_model" not in record  # from fresh parameters
    # The small models' rate and width: 1e-2 at 32 is a third of that at 96.
    assert record["training"]["learning_rate"] == pytest.approx(1e-2 / 3)

    runs = part.read_table("mixtures.csv", "final")
    assert sorted(runs["steps"]) == [2, 2, 4, 4, 4, 4]
    assert set(map(tuple, runs.loc[runs["role"] == "human", ["web", "code"]].to_numpy())) == {(0.75, 0.25)}
    losses = part.read_table("losses.csv", "final")
    assert list(losses) == list(study.domains.evaluation) == list(part.domains.evaluation)
    objective = losses.mean(axis=1)  # of all domains, as this study has no other objective
    whole = runs["steps"] == 4
    wide = runs[whole].assign(objective=objective).pivot(index="seed", columns="role", values="objective")
    summary = part.read_table("summary.csv", "final")
    np.testing.assert_allclose(summary["measured"], wide.mean()[summary.index], rtol=1e-12)
    gaps = wide["human"] - wide["uniform"]
    assert summary.loc["human", "difference"] == pytest.approx(gaps.mean())
    assert summary.loc["human", "error_seeds"] == pytest.approx(gaps.std(ddof=1) / np.sqrt(2))
    assert summary.loc["human", "error_text"] > 0
    assert part.read_json("scoring.json", "final")["split"] == "test"
    for name in ("web", "code"):  # none of what the proxy runs were scored on
        assert not set(texts(study, name, "test")) & set(texts(study, name, "validation"))
    assert "End tasks have no test split: facts, short, web-next" in out
    halves = runs[~whole].assign(objective=objective).set_index("role")["objective"]
    slope = halves["human"] - wide.loc[1, "human"]
    assert summary.loc["human", "slope"] == pytest.approx(slope)
    assert summary.loc["human", "tokens_to_equal"] == pytest.approx(2 ** (gaps.mean() / slope))
    accuracies = part.read_table("accuracies.csv", "final")
    assert {"acc/facts", "acc/web-next"} <= set(accuracies)
    for text in ("6 full models, demo", "Final models demo-4-", "tokens to equal", "bits per byte", "± of one run"):
        assert text in out
    assert "Cost: 256 tokens a run" in out
    html = page.html(study)
    assert 'id="the-final-models"' in html
    assert f"Measured objective of the final models {part.root.name}" in html

    # The same command again trains nothing and finds the same.
    done, before = times(part), (part.root / "summary.csv").read_bytes()
    assert times(train(study, *arguments)) == done
    assert (part.root / "summary.csv").read_bytes() == before

    # For other commands they are runs of a study.
    cli.main(["export", f"--study={part}", f"--run={next(iter(done))}", f"--output={tmp_path / 'exported'}"])
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["hidden_size"] == 96


def test_the_mixture_of_experts_of_least_loss_is_one_to_train(study):
    """Against the losses of the experts' mixtures on a grid, of the study's own scores."""
    study.write_json("optimum.json", {"objective": "avg-all"})
    text = api.Study(study.root).scored_text()
    grid = np.linspace(0, 1, 101)
    pairs = np.stack([grid, 1 - grid], axis=1)
    for name, tau in (("mde", 0.0), ("mixmin", 1.0)):
        losses = mixture_nll(text.log_probs, text.segment_ids, pairs, tau=tau, sequence_ids=text.sequence_ids)
        found = mixtures.mixture(study, name, "mixture")
        np.testing.assert_allclose(found[0], grid[losses.mean(axis=1).argmin()], atol=0.011)


@pytest.mark.slow
def test_they_go_on_from_the_seed_model_if_asked(prepared):
    """With the study's seed model, a run with the small models' own training is the small model, to the bit."""
    few = ["--preset=tiny", "--steps=4", "--batch_size=4", "--seq_len=32", "--learning_rate=1e-2", "--seed_steps=4"]
    cli.main(["train", f"--study={prepared}", *few, "--proxy_runs=1", "--seed=7"])
    cli.main(["score", f"--study={prepared}", "--tokens_per_domain=256"])
    study = Study(prepared)
    mixture = study.mixtures().loc["proxy-00", list(study.domains.training)].to_dict()
    seed = (prepared / "runs/seed/run.json").stat().st_mtime_ns
    # Two seeds, so that runs lie on the devices as those of the pool: one each.
    few = ["--steps=4", "--from_seed_model=true", "--first_seed=7", "--seeds=2"]
    part = train(study, f"--mixture={mixture}", *few)
    assert (prepared / "runs/seed/run.json").stat().st_mtime_ns == seed
    assert not (part.root / "runs" / "seed").exists()
    ours, theirs = part.losses("losses.csv", "final"), study.losses()
    np.testing.assert_array_equal(ours.iloc[0], theirs.loc["proxy-00"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--mixture=recommended"], ["optimum.json", "run `mde optimize"]),
        (["--mixture=unifrm"], ["unknown mixture in mixture 'unifrm'", "did you mean 'uniform'"]),
        (["--mixture=doremi"], ["run `mde reweight --method=doremi"]),
        (["--mixture={'web': .5, 'code': .4}"], ["weights sum to 0.9"]),
        (["--mixture=uniform", "--preset=tny"], ["preset 'tny'", "did you mean 'tiny'"]),
        (["--mixture=uniform", "--from_seed_model=true"], ["no seed model"]),
        (["--mixture=uniform", "--warmup=3"], ["did you mean '--warmup_steps'"]),
        (["--mixture=uniform", "--seeds=0"], ["seeds=0"]),
        (["--mixture=uniform", "--steps=1", "--half=true"], ["steps=1 cannot be halved"]),
        (["--mixture=uniform", "--mixtures=own.csv"], ["unknown flag '--mixtures'", "did you mean '--mixture'"]),
        (["--mixture=3"], ["unknown mixture in mixture '3'"]),
    ],
)
def test_what_is_refused_before_anything_is_trained(study, capsys, arguments, expected):
    with pytest.raises(SystemExit) as status:
        cli.main(["train", f"--study={study}", "--steps=4", *arguments])
    assert status.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for text in expected:
        assert text in error
    assert not (study.root / "final").exists()


def test_a_seed_model_of_another_architecture_is_refused(study, capsys):
    about = study.read_json("training.json", "train")
    study.write_json("training.json", {**about, "seed_settings": about["settings"]})
    with pytest.raises(SystemExit):
        train(study, "--mixture=uniform", "--steps=4", "--preset=demo", "--from_seed_model=true")
    assert "the seed model has d_model=32 and the final models 96" in capsys.readouterr().err


def test_what_starts_afresh_has_the_rate_of_what_did_and_an_encoder_stays_one(study, monkeypatch, capsys):
    """The seed model began afresh, those after it did not; at 32 its rate is three times that at 96."""
    about = study.read_json("training.json", "train")
    about["seed_settings"] = {**about["settings"], "learning_rate": 3e-2}
    study.write_json("training.json", {**about, "model": {**about["model"], "objective": "masked"}})
    trained = []

    def note(part, about, *_):
        trained.append(about)
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "train_runs", note)
    with pytest.raises(SystemExit):
        train(study, "--mixture=uniform", "--steps=4", "--preset=demo")
    assert "from fresh parameters, learning rate 0.01;" in capsys.readouterr().out
    (found,) = trained
    assert found["settings"]["learning_rate"] == pytest.approx(1e-2)
    assert (found["model"]["d_model"], found["model"]["objective"]) == (96, "masked")
    assert found["seed_settings"] is None


def test_the_summary_by_hand(study):
    """Worse by .06 with one seed and by .02 with the other: .04 ± .02; a doubling takes .2 off the second mixture."""
    rows = [("a", 5, 8), ("a", 6, 8), ("b", 5, 8), ("b", 6, 8), ("a", 5, 4), ("b", 5, 4)]
    table = pd.DataFrame(rows, columns=["role", "seed", "steps"], index=["u", "v", "w", "x", "y", "z"])
    goal = comparison.Goal(study, ["a", "b"])
    losses_R = np.array([2.00, 2.10, 2.06, 2.12, 2.15, 2.26])
    domains = np.repeat(np.arange(len(goal.names)), 2)  # two documents each, alike for all runs
    nats = losses_R[:, None] * np.full(len(domains), 5)
    found = comparison.summary(table, (nats, np.full(len(domains), 5), domains), goal, "a")
    np.testing.assert_allclose(found["measured"], [2.05, 2.09])
    np.testing.assert_allclose(found["difference"], [0, 0.04])
    np.testing.assert_allclose(found["error"], [0, 0.02])  # half of what .06 and .02 differ by
    np.testing.assert_allclose(found["slope"], [0.15, 0.20])
    np.testing.assert_allclose(found["tokens_to_equal"], [1, 2**0.2])


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_losses(study, tmp_path):
    """Killed amid a wave, twice; against a study in which nothing happened."""
    other = Study(shutil.copytree(study.root, tmp_path / "other"))
    arguments = [HUMAN, *ANOTHER, "--steps=60", "--checkpoint_every=10"]
    line = command("train", f"--study={study}", *arguments)
    for milestone in ("final/*/runs/*/progress/10", "final/*/runs/*/progress/30"):
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not list(study.root.glob(milestone)) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not report.parts(study)
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    subprocess.run(command("train", f"--study={other}", *arguments), cwd=ROOT, check=True, capture_output=True)
    ours, theirs = report.parts(study)[0], report.parts(other)[0]
    for name in ("mixtures.csv", "losses.csv", "summary.csv"):
        assert (ours.root / name).read_bytes() == (theirs.root / name).read_bytes()
