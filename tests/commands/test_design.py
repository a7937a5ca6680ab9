import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mde import bindings, cli
from mde.commands import train
from mde.regression import swarm

ROOT = Path(__file__).parents[2]
TOKENS = {"web": 5e9, "code": 1e9, "books": 6e8, "wiki": 1e8}
NAMES = tuple(TOKENS)


@pytest.fixture
def design(tmp_path):
    """Draws mixtures as a user does; returns the weights."""

    def run(*flags: str, tokens: object = TOKENS) -> pd.DataFrame:
        output = tmp_path / "mixtures.csv"
        cli.main(["design", f"--output={output}", *([f"--tokens={tokens}"] if tokens else []), *flags])
        return swarm.read_mixtures(output, tolerance=1e-9).values

    return run


@pytest.fixture
def refused(tmp_path, capsys):
    """The one line that refuses a command, which leaves no file."""

    def run(*flags: str) -> str:
        with pytest.raises(SystemExit) as status:
            cli.main(["design", f"--output={tmp_path}/m.csv", *flags])
        assert status.value.code == 2
        assert not list(tmp_path.iterdir())
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    return run


def test_a_swarm_that_train_and_fit_read(design, tmp_path, capsys):
    weights = design("--runs=40", "--temperature=.5")
    assert list(weights) == list(NAMES)
    assert weights.index[0] == "run-000"
    assert ((weights == 0) | (weights >= 0.002 - 1e-12)).all(axis=None)
    drawn = train._read_mixtures(str(tmp_path / "mixtures.csv"), NAMES)
    assert list(drawn.index) == list(weights.index)
    np.testing.assert_allclose(drawn.to_numpy(), weights.to_numpy(), atol=1e-15)
    printed = " ".join(capsys.readouterr().out.split())  # lines are wrapped, and paths are long or short
    assert "40 mixtures of 4 domains" in printed
    assert f"{weights['web'].mean():.2%}" in printed
    assert not list(tmp_path.glob("*.partial"))


def test_more_runs_begin_with_the_ones_before(design):
    fewer, more = design("--runs=9"), design("--runs=33")
    pd.testing.assert_frame_equal(more[:9], fewer, check_exact=True)
    assert not design("--runs=9", "--seed=1").equals(fewer)


def test_all_constraints_at_once(design, capsys):
    weights = design(
        *(
            "--constraints.min={'code': .05}",
            "--constraints.fixed={'wiki': .02}",
            "--constraints.groups={'text': ['web', 'books']}",
        ),
        *(
            "--constraints.group_bounds={'text': [.3, .8]}",
            "--constraints.budget=2e9",
            "--constraints.max_epochs=1",
            "--constraints.max_kl=1",
            "--strengths=1,20",
        ),
    )
    tokens = np.array(list(TOKENS.values()))
    np.testing.assert_allclose(weights["wiki"], 0.02, atol=1e-15)
    assert (weights["code"] >= 0.05).all()
    assert (weights["web"] + weights["books"]).between(0.3, 0.8).all()
    assert (weights.to_numpy() * 2e9 <= tokens * (1 + 1e-9)).all()
    prior = tokens / tokens.sum()
    used = weights.to_numpy().clip(1e-300)
    assert ((used * np.log(used / prior)).sum(axis=1) <= 1 + 1e-9).all()
    most = (weights["books"].max() * 2e9) / TOKENS["books"]
    assert f"{most:.3g}" in capsys.readouterr().out


def test_tokens_of_a_study_and_domains_of_a_prior(design, tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    stores = {f"{name}/train": {"tokens": int(count)} for name, count in TOKENS.items()}
    about = {"format": 3, "training_domains": NAMES, "evaluation_domains": NAMES, "stores": stores}
    (study / "study.json").write_text(json.dumps(about))
    pd.testing.assert_frame_equal(design(tokens=study), design(), check_exact=True)
    prior = dict.fromkeys(NAMES, 0.25)
    pd.testing.assert_frame_equal(design(f"--prior={prior}", tokens=None), design("--prior=uniform"), check_exact=True)


def test_mixtures_of_the_trainer_can_be_asked_for(design, tmp_path):
    given = design("--prior=uniform", "--strengths=4", "--floor=0", "--runs=24")

    class Prepared:
        joined = ()

        class domains:  # noqa: N801
            training = NAMES

    planned = train._plan(Prepared, train.Swarm(), 0)
    observed = planned.loc[planned["role"] == "proxy", list(NAMES)]
    np.testing.assert_allclose(given.to_numpy(), observed.to_numpy(), atol=1e-12)


def test_the_swarm_of_regmix(design):
    weights = design("--gin_file=configs/swarms/regmix.gin", "--runs=48", tokens=None)
    tokens = bindings.from_gin(["configs/swarms/regmix.gin"], [])["design"]["tokens"]
    natural = np.array(list(tokens.values())) / sum(tokens.values())
    assert weights.shape == (48, 17)
    assert (weights.to_numpy() <= 15 * natural / 1 + 1e-6).all()
    assert ((weights == 0) | (weights >= 2e-4 - 1e-12)).all(axis=None)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ["of which domains?", "--tokens", "--prior"]),
        (["--tokens={'web': 5, 'code': 0}"], ["no tokens of domain 'code'", "positive"]),
        (["--tokens={'web': 0, 'code': 0}"], ["no tokens of domain 'web'", "positive"]),
        (["--tokens={'web': 5, 'run': 1}"], ["domain 'run'", "call it otherwise"]),
        (["--tokens=nowhere"], ["nowhere", "mde prepare"]),
        (["--tokens={'web': 1}", "--runs=2"], ["2 mixtures are wanted", "only one"]),
        (["--tokens={'web': 5, 'code': 1}", "--prior=proportinal"], ["'proportinal'", "did you mean 'proportional'"]),
        (["--prior={'web': .5, 'code': .6}"], ["prior", "sum to 1.1"]),
        (["--prior={'web': 1, 'code': 0}", "--constraints.min={'code': .1}"], ["'code'", "min weight of 0.1", "prior"]),
        (["--tokens={'web': 5, 'code': 1}", "--constraints.min={'cod': .1}"], ["'cod'", "did you mean 'code'"]),
        (["--tokens={'web': 5, 'code': 1}", "--constraints.min={'web': .7, 'code': .4}"], ["min weights sum to 1.1"]),
        (
            ["--tokens={'web': 5, 'code': 1}", "--constraints.max_epochs=1", "--constraints.budget=9"],
            ["max weights", "1 epochs"],
        ),
        (
            ["--tokens={'web': 5, 'code': 1}", "--constraints.groups={'a': ['web'], 'b': ['web']}"],
            ["'web'", "'a' and 'b'"],
        ),
        (["--tokens={'web': 5, 'code': 1}", "--strengths=1,2,3"], ["strengths=[1, 2, 3]", "min and the max"]),
        (["--tokens={'web': 5, 'code': 1}", "--strengths=3,2"], ["strengths from 3 to 2", "smaller first"]),
        (["--tokens={'web': 5, 'code': 1}", "--runs=0"], ["runs=0", "positive"]),
        (["--tokens={'web': 5, 'code': 1}", "--seed=-1"], ["seed=-1", "zero or more"]),
        (["--tokens={'web': 5, 'code': 1}", "--output=/proc"], ["/proc", "folder"]),
    ],
)
def test_what_makes_no_sense_is_one_line_and_leaves_nothing(refused, flags, expected):
    line = refused(*flags)
    for text in expected:
        assert text in line, line


def test_a_refusal_leaves_the_file_that_is_there(design, tmp_path):
    design()
    before = (tmp_path / "mixtures.csv").read_bytes()
    with pytest.raises(SystemExit):
        design("--constraints.fixed={'web': 1.5}")
    assert (tmp_path / "mixtures.csv").read_bytes() == before
