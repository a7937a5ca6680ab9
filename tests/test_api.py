"""The public names, as somebody in a notebook uses them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mde

DOMAINS = ["web", "code", "books"]


@pytest.fixture(scope="module")
def swarm():
    """Forty runs whose losses are linear in √λ: the optimum of their mean is known in closed form."""
    mixtures = np.random.default_rng(0).dirichlet(np.ones(3), 40)
    slopes = -np.array([[1.0, 0.2, 0.3], [0.1, 2.0, 0.0], [0.2, 0.1, 1.5]])
    return mixtures, 3 + np.sqrt(mixtures) @ slopes, slopes


@pytest.fixture
def study(swarm, tmp_path):
    mixtures, losses, _ = swarm
    runs = pd.Index([f"r{i}" for i in range(40)], name="run")
    for name, values in (("mixtures", mixtures), ("losses", losses)):
        pd.DataFrame(values, runs, DOMAINS).to_csv(tmp_path / f"{name}.csv")
    files = {name: str(tmp_path / f"{name}.csv") for name in ("mixtures", "losses")}
    return mde.Study(tmp_path / "study").run("fit", **files, repeats=5, regressors=["ridge"])


def optimum(slopes):
    """The least of Σ s_k √λ_k on the simplex: λ_k in proportion to s_k² (Cauchy–Schwarz)."""
    squares = slopes.mean(axis=1) ** 2
    return squares / squares.sum()


def test_import_brings_neither_jax_nor_tensorflow():
    code = (
        "import sys, mde; assert not {'numpy', 'jax', 'tensorflow'} & set(sys.modules); "
        "mde.Study, mde.optimize, mde.Ridge, mde.read_swarm; assert not {'jax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("name", mde.__all__)
def test_every_public_name_is_there_and_described(name):
    assert getattr(mde, name).__doc__
    assert name in dir(mde)


def test_an_unknown_name_says_what_is_public():
    with pytest.raises(AttributeError, match=r"optimise.*public are Study"):
        _ = mde.optimise


def test_a_study_is_searched_for_other_questions(study, swarm):
    found = study.search("avg-all")
    np.testing.assert_allclose(found.mixture, optimum(swarm[2]), atol=0.02)  # ridge keeps a little of its penalty
    capped = study.search("avg-all", mde.Constraints(max={"code": 0.2}))
    assert capped.mixture["code"] == pytest.approx(0.2, abs=1e-6)
    assert capped.binding == ("code is at its max weight 0.2",)
    assert capped.objective > found.objective
    assert "Binds: code is at its max weight 0.2." in capped._repr_html_()
    assert not (study.root / "optimum.json").exists()
    study.run("optimize", refits=2)
    recommended = study.read_json("optimum.json", "optimize")["weights"]
    assert list(recommended.values()) == study.search().mixture.tolist()  # the same question, the same answer


def test_the_search_needs_no_study(swarm):
    _, _, slopes = swarm
    found = mde.optimize(lambda mixtures: 3 + np.sqrt(mixtures) @ slopes, DOMAINS, DOMAINS)
    np.testing.assert_allclose(found.mixture, optimum(slopes), atol=2e-3)  # a search by values, of flat ground
    np.testing.assert_allclose(found.losses.mean(), found.objective)
    text = mde.optimize(
        lambda mixtures: 3 + np.sqrt(mixtures) @ slopes,
        DOMAINS,
        DOMAINS,
        constraints=mde.Constraints(
            groups={"text": ["web", "books"]},
            group_bounds={"text": [0, 0.3]},
            tokens=dict.fromkeys(DOMAINS, 1e6),
            budget=2e6,
        ),
    )
    assert text.mixture[["web", "books"]].sum() == pytest.approx(0.3, abs=1e-6)
    assert text.epochs["code"] == pytest.approx(1.4, abs=1e-5)
    assert "1.4" in str(text)


def test_an_unknown_constraint_names_the_nearest(study):
    with pytest.raises(mde.UserError, match=r"'constraints.mux'.*did you mean 'constraints.max'"):
        study.run("optimize", constraints={"mux": {"web": 0.1}})


def test_a_study_shows_its_stages_tables_and_figures(study):
    assert study.run("fit", **study.read_json("stages/fit.json", "fit")["arguments"]) is study
    html = study._repr_html_()
    assert "not yet" in html
    study.run("optimize", refits=5).run("report")
    assert "recommended" in str(study.recommendation())
    assert "ridge  sqrt" in study.regressors()._repr_html_()
    for figure in (study.plot_mixture(), study.plot_errors(), study.plot_predictions()):
        assert figure.layout.paper_bgcolor == "white"
        assert figure.data
    assert study.search().plot().data[0].x.sum() == pytest.approx(1)
