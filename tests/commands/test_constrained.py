"""`mde optimize` under constraints, and `mde iterate`, on proxy runs that come as two tables."""

import numpy as np
import pandas as pd
import pytest

import mde
from mde import cli
from mde.optimization import simplex
from mde.regression import baselines, uncertainty
from mde.results import mixtures
from mde.results.predictor import Predictor
from mde.study import Study

NAMES = ["web", "code", "books"]
SLOPES = np.array([[-1.0, 0.2], [0.1, -2.0], [-0.3, -0.3]])


def losses_of(mixtures: np.ndarray) -> np.ndarray:
    """Linear in √λ, so that ridge on √λ is the truth."""
    return 3 + np.sqrt(mixtures) @ SLOPES


def swarm(folder, more: pd.DataFrame | None = None, noise: float = 0.0) -> list[str]:
    mixtures = pd.concat([pd.DataFrame(simplex.space_filling(30, 3, seed=1), columns=NAMES), more]).rename_axis("run")
    mixtures.to_csv(folder / "mixtures.csv")
    losses = pd.DataFrame(losses_of(mixtures.to_numpy()), mixtures.index, ["news", "code"])
    losses += noise * np.random.default_rng(0).normal(size=losses.shape)
    losses.to_csv(folder / "losses.csv")
    return [f"--mixtures={folder / 'mixtures.csv'}", f"--losses={folder / 'losses.csv'}"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("constrained")
    cli.main(["fit", f"--study={folder}", *swarm(folder), "--regressors=ridge", "--features=['sqrt']", "--repeats=3"])
    return folder


@pytest.fixture(scope="module")
def unsure(tmp_path_factory):
    """The same with a regressor that knows how sure it is."""
    folder = tmp_path_factory.mktemp("unsure")
    cli.main(
        [
            "fit",
            f"--study={folder}",
            *swarm(folder, noise=0.02),
            "--regressors=gp",
            "--features=['sqrt']",
            "--repeats=2",
        ]
    )
    return folder


def optimize(study, *arguments: str) -> dict:
    cli.main(["optimize", f"--study={study}", "--refits=5", "--candidates=256", *arguments])
    return Study(study).read_json("optimum.json", "optimize")


@pytest.mark.parametrize("method", ["auto", "refinement"])
def test_frozen_domains_keep_their_ratio_in_the_mixture_and_its_refits(fitted, method):
    found = optimize(fitted, "--constraints.ratios={'old': {'web': 3, 'code': 2}}", f"--method={method}")
    web, code, books = found["weights"].values()
    assert web == pytest.approx(0.6 * (web + code), abs=2e-9)
    low, high = (np.array([found["weight_intervals"][name][i] for name in ("web", "code")]) for i in (0, 1))
    np.testing.assert_allclose([low[1], high[1]], np.array([low[0], high[0]]) * 2 / 3, atol=1e-8)
    totals = np.linspace(0, 1, 10_001)
    line = np.stack([0.6 * totals, 0.4 * totals, 1 - totals], axis=1)
    best = line[np.argmin(Predictor(Study(fitted))(line).mean(axis=1))]
    np.testing.assert_allclose([web, code, books], best, atol=1e-3)
    assert not found["predictions"]["uniform"]["feasible"]


def grid() -> np.ndarray:
    return simplex.space_filling(30_000, 3, seed=2)


def test_the_answer_is_exact_says_what_binds_and_how_far_the_baselines_are(fitted, monkeypatch):
    tokens = "{'web': 100, 'code': 60, 'books': 400}"
    caps = [
        f"--constraints.tokens={tokens}",
        "--constraints.budget=200",
        "--constraints.max_epochs=1",
        "--constraints.min={'books': 0.1}",
    ]
    found = optimize(fitted, *caps, "--objective={'code': 3, 'news': 1}")
    weights = np.array(list(found["weights"].values()))
    # The objective is 3 - .1 √web - 1.475 √code - .3 √books: code takes all it may, the others go as squared slopes.
    # Ridge shrinks the slopes a little: of a share of .63, one part in a hundred.
    np.testing.assert_allclose(weights, [0.07, 0.3, 0.63], atol=0.0063)
    assert found["search"]["method"] == "exact"
    assert 0 <= found["search"]["gap"] < 1e-6
    assert found["binding"] == ["code is at 1 epochs of its tokens, weight 0.3"]
    assert found["epochs"]["code"] == pytest.approx(1)
    assert found["epochs"]["web"] == pytest.approx(weights[0] * 2)
    compared = found["predictions"]
    sizes = {"web": 100 / 560, "code": 60 / 560, "books": 400 / 560}
    assert compared["proportional"]["mixture"] == pytest.approx(sizes)
    study = Study(fitted)
    np.testing.assert_allclose(mixtures.mixture(study, "proportional", "test"), list(sizes.values()))
    # caps .5, .3 and 2: code takes .3, the others half of the rest each
    assert compared["unimax"]["mixture"] == pytest.approx({"web": 0.35, "code": 0.3, "books": 0.35})
    assert compared["unimax"]["feasible"]
    np.testing.assert_allclose(mixtures.mixture(study, "unimax", "test"), [0.35, 0.3, 0.35])
    centres = []
    monkeypatch.setattr(baselines, "regmix", lambda *given: centres.append(given[-2]) or np.full(3, 1 / 3))
    mixtures.mixture(study, "regmix", "test")
    np.testing.assert_allclose(centres, [list(sizes.values())])
    assert not compared["uniform"]["feasible"]
    assert compared["recommended"]["feasible"]
    for baseline in compared.values():
        expected = baseline["objective"] - compared["recommended"]["objective"]
        assert baseline["above_recommended"] == pytest.approx(expected, abs=1e-12)
        low, high = baseline["objective_interval"]
        assert low <= baseline["objective"] <= high


def test_a_worst_case_is_levelled(fitted):
    """The optimum of a worst case over two domains that pull apart has both at the same loss."""
    found = optimize(fitted, "--objective=worst-all")["predictions"]["recommended"]
    worst = losses_of(grid()).max(axis=1).min()
    assert found["objective"] == pytest.approx(worst, abs=5e-3)
    assert found["objective"] == max(found["losses"].values())
    relative = optimize(fitted, "--objective=worst-all", "--reference=uniform")["predictions"]
    excess = losses_of(grid()) - losses_of(np.full((1, 3), 1 / 3))
    assert relative["recommended"]["objective"] == pytest.approx(excess.max(axis=1).min(), abs=5e-3)
    assert relative["uniform"]["objective"] == pytest.approx(0, abs=1e-12)
    observed = simplex.space_filling(30, 3, seed=1)
    above = (losses_of(observed) - losses_of(np.full((1, 3), 1 / 3))).max(axis=1)
    assert list(relative["best observed"]["mixture"].values()) == pytest.approx(list(observed[np.argmin(above)]))


def test_a_worst_case_has_an_interval_as_wide_as_the_regressor_is_unsure(unsure):
    for prediction in optimize(unsure, "--objective=worst-all")["predictions"].values():
        low, high = prediction["objective_interval"]
        assert low < prediction["objective"] < high
        assert high - low > 0.02  # the noise of a run, one standard deviation


def test_the_optima_of_refits_obey_the_constraints(fitted):
    """All mass wants to go to code, which may have .2: no refit's optimum has more."""
    found = optimize(fitted, "--objective={'code': 1}", "--constraints.max={'code': 0.2}")
    assert found["weight_intervals"]["code"][1] <= 0.2 + 1e-9


def test_what_is_unsure_is_avoided(unsure):
    """With a large β the mixture goes where the regressor knows most, in the middle of what was trained."""
    sure, far = (optimize(unsure, f"--beta={beta}") for beta in (30.0, 0.0))
    mean, deviations = Predictor(Study(unsure)).with_deviations(
        np.array([list(found["weights"].values()) for found in (sure, far)])
    )
    assert deviations[0].mean() < deviations[1].mean()
    assert mean[0].mean() > mean[1].mean()
    assert sure["search"]["method"] == "refinement"
    assert sure["refits"] == 5
    low, high = sure["weight_intervals"]["code"]
    assert low <= sure["weights"]["code"] <= high  # refits avoid it as well
    assert sure["weights"]["code"] < far["weight_intervals"]["code"][0]


def test_refits_of_an_expensive_regressor_are_counted(unsure, capsys, monkeypatch):
    monkeypatch.setattr(uncertainty, "BUDGET", 1.0)
    assert optimize(unsure, "--refits=12")["refits"] == 10
    assert "of 10 refits, not 12" in capsys.readouterr().out
    cli.main(["optimize", f"--study={unsure}", "--candidates=256"])
    assert Study(unsure).read_json("optimum.json", "optimize")["refits"] == 10
    assert "refits" not in capsys.readouterr().out  # nobody asked for a number


def test_gradients_agree_with_values_alone(unsure):
    by_gradient, by_values = (optimize(unsure, f"--method={method}") for method in ("gradient", "refinement"))
    objective = [found["predictions"]["recommended"]["objective"] for found in (by_gradient, by_values)]
    searched = mde.Study(unsure).search(how=mde.Search(method="gradient", candidates=256))
    assert searched.search.method == "gradient"
    assert searched.objective == pytest.approx(objective[0], abs=1e-5)
    assert objective[0] == pytest.approx(objective[1], abs=1e-5)


def test_a_prior_holds_the_mixture(fitted):
    free = optimize(fitted, "--objective={'code': 1}")
    held = optimize(fitted, "--objective={'code': 1}", "--constraints.prior=uniform", "--constraints.max_kl=0.05")
    assert free["weights"]["code"] > held["weights"]["code"] > 0.4
    assert held["binding"] == ["KL to the prior is at 0.05 nats"]
    priced = optimize(fitted, "--objective={'code': 1}", "--constraints.prior=uniform", "--kl_penalty=100")
    assert max(priced["weights"].values()) < 0.36


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--constraints.min={'wbe': 0.1}"],
            "unknown domain in the constraints' min weights 'wbe': did you mean 'web'",
        ),
        (["--constraints.min={'web': 0.7, 'code': 0.5}"], "min weights sum to 1.2"),
        (["--constraints.max_epochs=2"], "max_epochs=2 needs tokens"),
        (
            ["--constraints.groups={'a': ['web']}", "--constraints.group_bounds={'b': [0, 1]}"],
            "unknown group in group_bounds 'b'",
        ),
        (
            ["--constraints.prior=proportional", "--constraints.max_kl=1"],
            "unknown prior 'proportional': known are uniform",
        ),
        (["--constraints.ratios={'old': {'web': 0.6, 'cod': 0.4}}"], "ratio group 'old' 'cod': did you mean 'code'"),
        (
            ["--constraints.ratios={'web': 0.6}"],
            "--constraints.ratios={'web': 0.6}: expected a number by name for each name, such as",
        ),
        (
            ["--constraints.max_epochs={'web': 'x'}"],
            "--constraints.max_epochs={'web': 'x'}: expected a number or a number by name",
        ),
        (["--method=gradeint"], "did you mean 'gradient'"),
        (["--beta=1"], "the regressor does not say how sure it is"),
        (["--objective=worst-all", "--reference=unifrom"], "unknown reference 'unifrom': did you mean 'uniform'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(fitted, capsys, arguments, says):
    with pytest.raises(SystemExit) as status:
        cli.main(["optimize", f"--study={fitted}", *arguments])
    assert status.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(error) == 1
    assert says in error[0]


def test_rounds_plan_what_people_train_elsewhere(fitted, capsys):
    cli.main(["iterate", f"--study={fitted}", "--batch=3", "--constraints.max={'code': 0.3}"])
    assert "train the mixtures of" in capsys.readouterr().out
    plan = pd.read_csv(fitted / "iterate" / "round-01.csv", index_col="run")
    assert list(plan.index) == ["iterate-1-0", "iterate-1-1", "iterate-1-2"]
    assert (plan["code"] <= 0.3 + 1e-9).all()
    np.testing.assert_allclose(plan[NAMES].sum(axis=1), 1, atol=1e-12)
    assert list(pd.read_csv(fitted / "rounds.csv")["runs"]) == [30]
    cli.main(["iterate", f"--study={fitted}", "--batch=3", "--constraints.max={'code': 0.3}"])
    assert "not there yet: iterate-1-0, iterate-1-1, iterate-1-2" in capsys.readouterr().out
    assert not (fitted / "iterate" / "round-02.csv").exists()
    assert set(plan["seed"]) == {int(Study(fitted).mixtures()["seed"].iloc[0])}
    for arguments, says in (
        (["--batch=3", "--constraints.max={'code': 0.1}"], "was planned with max={'code': 0.3}, not {'code': 0.1}"),
        (["--batch=5", "--constraints.max={'code': 0.3}"], "was planned with batch=3, not 5"),
        (
            ["--batch=3", "--constraints.max={'code': 0.3}", "--objective=avg-et"],
            "was planned with objective='avg-all'",
        ),
    ):
        with pytest.raises(SystemExit):
            cli.main(["iterate", f"--study={fitted}", *arguments])
        assert says in capsys.readouterr().err
    (fitted / "iterate" / "round-01.csv").unlink()
    cli.main(["iterate", f"--study={fitted}", "--batch=2"])
    assert len(pd.read_csv(fitted / "iterate" / "round-01.csv")) == 2
    with pytest.raises(SystemExit):
        cli.main(["iterate", f"--study={fitted}", "--batch=0"])
    assert "batch=0 must be positive" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["iterate-1-0", "iterate-1-1"], ["theirs-a", "theirs-b"]])
def test_a_round_that_was_trained_elsewhere_is_followed_by_the_next(tmp_path, capsys, names):
    """Whoever trained it may call the runs as they like and round their weights."""
    fit = ["fit", f"--study={tmp_path}", "--regressors=ridge", "--features=sqrt", "--repeats=1", "--curve_sizes=[]"]
    iterate = ["iterate", f"--study={tmp_path}", "--rounds=2", "--batch=2", "--threshold=0"]
    cli.main([*fit, *swarm(tmp_path)])
    cli.main(iterate)
    plan = pd.read_csv(tmp_path / "iterate" / "round-01.csv", index_col="run")[NAMES]
    cli.main([*fit, *swarm(tmp_path, plan[:1])])
    capsys.readouterr()
    cli.main(iterate)
    assert capsys.readouterr().out.endswith("not there yet: iterate-1-1\n")

    cli.main([*fit, *swarm(tmp_path, plan.round(5).set_axis(names))])
    cli.main(iterate)
    following = pd.read_csv(tmp_path / "iterate" / "round-02.csv", index_col="run")[NAMES]
    assert list(following.index) == ["iterate-2-0", "iterate-2-1"]
    assert not np.allclose(following, plan, atol=1e-3)
    assert list(pd.read_csv(tmp_path / "rounds.csv")["runs"]) == [30, 32]
    cli.main([*fit, *swarm(tmp_path, pd.concat([plan, following]))])
    cli.main(iterate)
    assert "2 rounds are done" in capsys.readouterr().out


def test_rounds_and_searches_minimise_what_the_fit_was_cross_validated_on(tmp_path, capsys):
    only_code = "--objective={'code': 1}"
    arguments = ["--regressors=ridge", "--features=sqrt", "--repeats=1", "--curve_sizes=[]"]
    cli.main(["fit", f"--study={tmp_path}", *swarm(tmp_path, noise=0.01), only_code, *arguments])
    cli.main(["iterate", f"--study={tmp_path}", "--rounds=1", "--batch=1"])
    observed = Study(tmp_path).losses()["code"].min()
    assert pd.read_csv(tmp_path / "rounds.csv")["objective"][0] == pytest.approx(observed, abs=0.05)
    found = mde.Study(tmp_path).search(how=mde.Search(candidates=64))
    assert found.mixture["code"] == pytest.approx(4 / 4.09, abs=0.02)  # weights go with squared slopes
    assert mde.Study(tmp_path).search("avg-all", how=mde.Search(candidates=64)).mixture["code"] < 0.85
