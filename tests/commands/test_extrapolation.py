"""`mde optimize` says which of its answers the proxy runs support, and stays near them by default."""

import numpy as np
import pandas as pd
import pytest

import mde
from mde import cli
from mde.study import Study

NAMES = ["web", "code", "books", "wiki"]
EFFECTS = np.array([-0.2, -1.5, 0.3, -0.1])


def swarm(folder, weights: np.ndarray, losses: np.ndarray, metrics=("news", "code"), regressor="ridge") -> Study:
    """A study fitted on these proxy runs, [R, 4] and [R, J]."""
    runs = pd.Index([f"run-{i:02d}" for i in range(len(weights))], name="run")
    pd.DataFrame(weights, runs, NAMES).to_csv(folder / "mixtures.csv")
    pd.DataFrame(losses, runs, list(metrics)).to_csv(folder / "losses.csv")
    files = [f"--{name}={folder / name}.csv" for name in ("mixtures", "losses")]
    settings = [f"--regressors={regressor}", "--features=lambda", "--repeats=2", "--curve_sizes=[]"]
    cli.main(["fit", f"--study={folder / 'study'}", *files, *settings])
    return Study(folder / "study")


def around_uniform(n: int = 30, seed: int = 0) -> np.ndarray:
    """Weights of three domains between .2 and .5 or so; no run trains on wiki."""
    three = np.random.default_rng(seed).dirichlet(np.full(3, 40.0), n)
    return np.hstack([three, np.zeros((n, 1))])


def linear(weights: np.ndarray, noise: float = 0.001) -> np.ndarray:
    rng = np.random.default_rng(1)
    return 3 + weights @ np.stack([EFFECTS, 0.5 * EFFECTS], axis=1) + noise * rng.normal(size=(len(weights), 2))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    weights = around_uniform()
    return swarm(tmp_path_factory.mktemp("narrow"), weights, linear(weights))


def optimize(study: Study, *arguments: str) -> dict:
    cli.main(["optimize", f"--study={study.root}", "--refits=20", "--candidates=128", *arguments])
    return study.read_json("optimum.json", "optimize")


def test_an_optimum_outside_of_the_data_is_shown_and_not_trusted(narrow, capsys):
    found, weights = optimize(narrow), around_uniform()
    support, said = found["support"], capsys.readouterr().out
    # All weight on code is the linear optimum; the runs have .5 of it at most.
    assert support["unrestricted"]["weights"]["code"] == pytest.approx(1, abs=1e-6)
    assert support["unrestricted"]["extrapolates"]
    assert support["unrestricted"]["above_trained"] == ["code"]
    assert support["unrestricted"]["below_recommended"] > 0.3
    recommended = np.array(list(found["weights"].values()))
    away = np.abs(weights - recommended).sum(axis=1) / 2
    assert away.min() <= support["spacing"] + 1e-6
    assert support["max_distance"] == support["spacing"]
    assert support["distance"] == pytest.approx(away.min())
    assert support["nearest_run"] == f"run-{away.argmin():02d}"
    assert found["weights"]["code"] <= 1.1 * weights[:, 1].max() + 1e-6
    assert found["search"]["method"] == "exact"
    assert not support["extrapolates"]
    assert support["largest_weights"]["code"] == pytest.approx(weights[:, 1].max())
    assert "not trusted; --max_distance=none recommends it" in said
    _, high = found["weight_intervals"]["code"]
    assert high <= 1.1 * weights[:, 1].max() + 1e-6  # the optima of refits are as near to the runs


def test_the_limit_can_be_set_and_lifted(narrow):
    free = optimize(narrow, "--max_distance=none")
    assert free["weights"]["code"] == pytest.approx(1, abs=1e-6)
    assert free["support"]["extrapolates"]
    assert free["support"]["unrestricted"] is None
    near = optimize(narrow, "--max_distance=0.02")
    assert near["support"]["distance"] <= 0.02 + 1e-6
    assert near["predictions"]["recommended"]["objective"] > free["predictions"]["recommended"]["objective"]
    for baseline in ("uniform", "best observed"):
        support = near["predictions"][baseline]["support"]
        assert support["extrapolates"] == (baseline == "uniform")  # uniform has a quarter of wiki, which no run has


def test_a_domain_that_no_run_trained_on_gets_weight_only_if_asked(narrow, capsys):
    found = optimize(narrow)
    assert found["weights"]["wiki"] == 0
    assert found["weight_intervals"]["wiki"] == [0, 0]
    assert found["support"]["left_out"] == ["wiki"]
    assert "no proxy run trained on wiki: no weight" in capsys.readouterr().out
    assert optimize(narrow, "--constraints.min={'wiki': 0.1}")["weights"]["wiki"] == pytest.approx(0.1, abs=1e-6)
    assert optimize(narrow, "--constraints.fixed={'wiki': 0.05}")["weights"]["wiki"] == pytest.approx(0.05, abs=1e-6)
    assert optimize(narrow, "--allow_untrained=True")["support"]["left_out"] == []
    with pytest.raises(SystemExit):
        optimize(narrow, "--constraints.groups={'g': ['wiki']}", "--constraints.group_bounds={'g': [0.1, 1]}")
    assert "none of which trained on it" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1.5", "-0.1", "nowhere"])
def test_distances_that_make_no_sense_are_refused(narrow, capsys, value):
    with pytest.raises(SystemExit) as status:
        optimize(narrow, f"--max_distance={value}")
    assert status.value.code == 2
    assert "max_distance" in capsys.readouterr().err


def test_python_is_told_the_same(narrow):
    found = mde.Study(narrow.root).search(how=mde.Search(candidates=128))
    written = optimize(narrow)
    assert found.mixture.to_dict() == written["weights"]
    assert found.support["nearest_run"] == written["support"]["nearest_run"]
    assert found.unrestricted.mixture[1] == pytest.approx(1, abs=1e-6)
    assert "Nearest proxy run: " in str(found)
    assert mde.Study(narrow.root).search(how=mde.Search(max_distance="none")).mixture["code"] == pytest.approx(
        1, abs=1e-6
    )


def test_inside_of_the_data_there_is_no_limit(tmp_path):
    """A bowl whose bottom the runs surround."""
    weights = np.random.default_rng(0).dirichlet(np.full(4, 1.0), 60)
    losses = 3 - np.sqrt(weights) @ np.full((4, 2), 0.5)
    runs = pd.Index([f"r{i}" for i in range(60)], name="run")
    for name, values, columns in (("m", weights, NAMES), ("l", losses, ["x", "y"])):
        pd.DataFrame(values, runs, columns).to_csv(tmp_path / f"{name}.csv")
    files = [f"--mixtures={tmp_path / 'm.csv'}", f"--losses={tmp_path / 'l.csv'}"]
    fit = ["--regressors=ridge", "--features=sqrt", "--repeats=2", "--curve_sizes=[]"]
    cli.main(["fit", f"--study={tmp_path / 's'}", *files, *fit])
    found = optimize(Study(tmp_path / "s"))
    np.testing.assert_allclose(list(found["weights"].values()), 0.25, atol=0.01)
    assert found["support"]["max_distance"] is None
    assert not found["support"]["extrapolates"]
    assert found["gain"]["baseline"] == "uniform"  # which it is, but for the noise of the fit
    assert abs(found["gain"]["gain"]) < 1e-3


def test_where_nothing_responds_to_the_mixture_nothing_is_optimised(tmp_path, capsys):
    weights = np.random.default_rng(0).dirichlet(np.full(4, 1.0), 30)
    study = swarm(tmp_path, weights, 3 + np.random.default_rng(1).normal(size=(30, 2)), regressor="mean")
    found = optimize(study, "--constraints.tokens={'web': 400, 'code': 300, 'books': 200, 'wiki': 100}")
    said = capsys.readouterr().out
    np.testing.assert_allclose(list(found["weights"].values()), [0.4, 0.3, 0.2, 0.1], atol=1e-9)
    assert found["weight_intervals"] is None
    assert found["search"]["method"] == "none"
    assert "nothing to optimise" in said
    assert "90% interval" not in str(mde.Study(study.root).recommendation())
    cli.main(["report", f"--study={study.root}"])
    uniform = optimize(study)
    np.testing.assert_allclose(list(uniform["weights"].values()), 0.25, atol=1e-9)


def test_the_part_of_the_objective_that_does_not_respond_is_named(narrow, capsys):
    choice = narrow.read_json("fit/choice.json", "fit")
    try:
        narrow.write_json("fit/choice.json", choice | {"unresponsive": ["news"]})
        found = optimize(narrow, "--objective={'news': 1, 'code': 3}")
        assert found["unresponsive"] == {"domains": ["news"], "share": 0.25}
        assert "25% of the objective's weight is on domains whose loss does not respond" in capsys.readouterr().out
        assert optimize(narrow, "--objective={'news': 1}")["search"]["method"] == "none"
        assert optimize(narrow, "--objective=worst-all")["unresponsive"]["share"] == 0.5
    finally:
        narrow.write_json("fit/choice.json", choice)


def test_a_gain_within_its_error_is_not_called_one(tmp_path, capsys):
    weights = np.random.default_rng(3).dirichlet(np.full(4, 1.0), 24)
    noisy = 3 + 0.1 * np.random.default_rng(4).normal(size=(24, 2)) + 0.3 * weights[:, :1]
    found = optimize(swarm(tmp_path, weights, noisy))
    gain = found["gain"]
    assert gain["gain"] < 1.645 * gain["standard_error"]
    assert not gain["distinguishable"]
    assert f"not distinguishable from {gain['baseline']}" in capsys.readouterr().out


def test_more_of_the_targets_own_domain_is_a_baseline(narrow):
    """News is not trained on and code is: the proxy run with most code."""
    weights = around_uniform()
    found = optimize(narrow, "--objective={'code': 1, 'news': 1}")["predictions"]["own domains"]["mixture"]
    assert list(found.values()) == pytest.approx(weights[weights[:, 1].argmax()].tolist())
    tempered = optimize(narrow, "--constraints.tokens={'web': 400, 'code': 100, 'books': 100, 'wiki': 900}")[
        "predictions"
    ]
    roots = np.array([20, 10, 10, 30]) / 70
    assert list(tempered["proportional^0.5"]["mixture"].values()) == pytest.approx(roots.tolist())


def test_worst_cases_of_laws_are_the_same_for_every_seed(tmp_path):
    weights = np.random.default_rng(0).dirichlet(np.full(4, 1.0), 40)
    losses = 2 + np.exp(weights @ np.random.default_rng(1).normal(size=(4, 3)))
    study = swarm(tmp_path, weights, losses, ("a", "b", "c"), "mixing-law")
    found = [optimize(study, "--objective=worst-all", "--max_distance=none", f"--seed={seed}") for seed in (0, 1, 2)]
    objectives = [one["predictions"]["recommended"]["objective"] for one in found]
    assert np.ptp(objectives) <= 1e-6
    assert all(one["search"]["gap"] <= 1e-6 for one in found)
