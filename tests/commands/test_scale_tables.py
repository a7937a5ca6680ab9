"""`mde scale` on somebody else's runs: two CSV files, or one of optima, in; a mixture at a larger budget out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import ROOT
from scipy import optimize

from mde import cli
from mde.reporting import scaling as report
from mde.study import Study

HEAVY = ("jax", "tensorflow", "flax", "orbax", "grain", "tensorstore", "seqio")
NAMES = ["web", "code", "books"]
BUDGETS = (1e6, 2e6, 4e6)
WEIGHTS = np.array([[0.5, 0.1, 0.4], [0.2, 0.8, 0.2]]).T  # [K, J]
EXPONENTS = np.array([0.4, 0.3, 0.5])
# GPT-2 Large at 1.2B tokens (AutoScale, arXiv 2407.20177): average validation perplexity.
PUBLISHED = ("common_crawl", "github", "books", "wiki", "c4", "stackexchange", "arxiv")
LESS = (30.11152249, 28.37687875, 29.85955983, 29.90195668, 30.37704005, 29.23766591, 28.92552215)
MORE = (25.78619752, 27.68033216, 26.25833879, 26.47376351, 25.49797272, 27.01485416, 27.24200395)
N1 = np.array([1.55818971, 0.2, 1.1645966, 1.42333261, 1.49550525, 0.68184781, 0.47652801]) * 0.3e9 / 7
N2 = np.array([1.63121445, 0.2, 1.30180479, 1.21425702, 1.83266187, 0.62006189, 0.2]) * 1.2e9 / 7


def loss(tokens: np.ndarray) -> np.ndarray:
    """Losses [..., J] of quantities [..., K]: powers without an offset, so optima lie on a line (theorem 1)."""
    return 1.5 + (tokens / 1e6) ** -EXPONENTS @ WEIGHTS


def design(names, budget: float, factor: float = 3.0) -> pd.DataFrame:
    k = len(names)
    changed = [1 + np.eye(k) * (times - 1) for times in (1 / factor, factor)]
    tokens = budget / k * np.concatenate([np.ones((1, k)), *changed])
    labels = ["base", *(f"less-{n}" for n in names), *(f"more-{n}" for n in names)]
    return pd.DataFrame(tokens, pd.Index([f"{label}-{budget:g}" for label in labels], name="run"), names)


def write(folder: Path, runs: pd.DataFrame, losses: pd.DataFrame) -> list[str]:
    runs.to_csv(folder / "quantities.csv")
    losses.sample(frac=1, random_state=0).to_csv(folder / "losses.csv")
    return [f"--quantities={folder / 'quantities.csv'}", f"--losses={folder / 'losses.csv'}"]


def made_up(seeds: int = 1, noise: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(seeds):
        for budget in BUDGETS:
            table = design(NAMES, budget)
            table.index = pd.Index([f"{run}-{seed}" for run in table.index], name="run")
            runs.append(table.assign(budget=budget, seed=seed))
    table = pd.concat(runs)
    values = loss(table[NAMES].to_numpy()) + rng.normal(0, noise, (len(table), 2))
    return table[["budget", "seed", *NAMES]], pd.DataFrame(values, table.index, ["news", "code"])


def scaled(study: Path, *arguments: str) -> dict:
    cli.main(["scale", f"--study={study}", "--resamples=20", *arguments])
    return Study(study).read_json("scale.json", "scale")


def test_the_published_runs_give_the_published_optimum(tmp_path):
    runs = design(PUBLISHED, 1.2e9).assign(budget=1.2e9)
    losses = pd.DataFrame({"perplexity": [28.11373645, *LESS, *MORE]}, runs.index)
    found = scaled(tmp_path / "study", *write(tmp_path, runs, losses), "--floor=0.2")
    optimum = np.array([found["ddo"]["optima"][0][name] for name in PUBLISHED]) * 7 / 1.2e9
    np.testing.assert_allclose(optimum, [1.501, 0.2, 1.247, 1.177, 1.666, 0.758, 0.452], atol=5e-4)
    assert found["points"][0]["domains"]["github"]["held"] == -1
    assert "target" not in found["ddo"]


def test_the_published_optima_give_the_published_prediction(tmp_path, capsys):
    table = pd.DataFrame([N1, N2], pd.Index(["0.3B", "1.2B"], name="run"), PUBLISHED)
    table.to_csv(tmp_path / "optima.csv")
    found = scaled(tmp_path / "study", f"--optima={tmp_path / 'optima.csv'}", "--target=412.440e9")
    weights = np.array(list(found["ddo"]["tokens"].values())) / 412.440e9
    np.testing.assert_allclose(weights, [0.2085, 0.0213, 0.2163, 0.0684, 0.4398, 0.0451, 0.0007], atol=5e-5)
    out = capsys.readouterr().out
    assert "412B" in out
    assert "'arxiv': its weight vanishes" in out
    # By default the target is as far beyond the last budget as that is beyond the one before.
    assert scaled(tmp_path / "study", f"--optima={tmp_path / 'optima.csv'}")["ddo"]["target"] == pytest.approx(4.8e9)


def test_three_budgets_lead_to_the_true_optimum(tmp_path, capsys):
    files = write(tmp_path, *made_up(seeds=2, noise=1e-4))
    found = scaled(tmp_path / "study", *files, "--target=16e6", "--floor=0.05")
    slope = np.log(EXPONENTS * WEIGHTS.mean(axis=1))  # of the loss by a domain's tokens in millions, at one
    tokens = lambda price: np.exp((slope - price) / (EXPONENTS + 1))  # noqa: E731
    best = tokens(optimize.brentq(lambda price: tokens(price).sum() - 16, -20, 20)) / 16
    weights = np.array([found["ddo"]["tokens"][name] for name in NAMES]) / 16e6
    # Three losses do not fix the true law's floor: the optimum at each budget is near the truth, not at it.
    np.testing.assert_allclose(weights, best, atol=0.04)
    assert loss(weights * 16e6).mean() < loss(np.full(3, 16e6 / 3)).mean()
    for name, share in zip(NAMES, best, strict=True):
        low, high = found["ddo"]["weights"][name]
        assert low - 0.005 <= share <= high + 0.005  # one set of runs: nine in ten are inside
        assert high - low < 0.1
        assert found["ddo"]["mean"][name] == pytest.approx(share, abs=0.015)
    assert 0.5e-4 < found["noise"] < 1.5e-4 / np.sqrt(2) * 1.5
    out = capsys.readouterr().out
    for text in ("Best mixture along the budget", "90% interval", "Power laws", "Fall of each domain's loss"):
        assert text in out
    effects = Study(tmp_path / "study").read_table("scale/effects.csv", "scale")
    assert list(effects.columns) == ["budget", "news", "code"]
    assert len(effects) == 3 * 3
    first = effects[effects["budget"] == 1e6].loc["code", "news"]
    third = 1e6 / 3
    assert first == pytest.approx(
        loss(np.array([third, third / 3, third]))[0] - loss(np.array([third, 1e6, third]))[0], abs=1e-3
    )


def test_a_target_that_two_budgets_cannot_tell_is_said_to_be_not_known(tmp_path, capsys):
    runs, losses = made_up(seeds=2, noise=1e-4)
    runs = runs[runs["budget"] < BUDGETS[2]]
    found = scaled(tmp_path / "study", *write(tmp_path, runs, losses.loc[runs.index]), "--target=2e7")
    assert "weights" not in found["ddo"]
    said = " ".join(capsys.readouterr().out.split())
    assert "Interval at 20M: not known: two budgets that span a factor of 2 cannot tell" in said
    assert "90% interval" not in said


def test_the_objective_weighs_the_evaluation_domains(tmp_path):
    files = write(tmp_path, *made_up())
    code = scaled(tmp_path / "code", *files, "--objective={'code': 1}")
    news = scaled(tmp_path / "news", *files, "--objective={'news': 1}")
    assert code["ddo"]["tokens"]["code"] > 2 * news["ddo"]["tokens"]["code"]
    assert code["noise"] is None
    assert "weights" not in code["ddo"]
    assert "weights" in scaled(tmp_path / "news", *files, "--noise=1e-3")["ddo"]


def test_a_domain_that_runs_out_is_said_and_heeded(tmp_path, capsys):
    files = write(tmp_path, *made_up())
    found = scaled(tmp_path / "study", *files, "--target=16e6", "--tokens={'books': 3e6}", "--max_epochs=1.5")
    assert found["ddo"]["tokens"]["books"] == pytest.approx(4.5e6)
    assert sum(found["ddo"]["tokens"].values()) == pytest.approx(16e6)
    assert "16M" in capsys.readouterr().out


def test_a_joint_fit_takes_runs_of_several_changes(tmp_path):
    runs, losses = made_up()
    extra = pd.DataFrame([[1e6, 0, 5e5, 2e5, 1e5]], ["several"], list(runs))
    both = pd.concat([runs, extra]).rename_axis("run")
    more = pd.DataFrame(loss(extra[NAMES].to_numpy()), ["several"], list(losses))
    files = write(tmp_path, both, pd.concat([losses, more]).rename_axis("run"))
    joint = scaled(tmp_path / "study", *files, "--fit=joint", "--floor=0.05")
    assert joint["fit"] == "joint"
    np.testing.assert_allclose(sum(joint["ddo"]["optima"][0].values()), 1e6)
    with pytest.raises(SystemExit):
        scaled(tmp_path / "study", *files)


def test_figures_of_the_page(tmp_path):
    study = Study(tmp_path / "study")
    scaled(tmp_path / "study", *write(tmp_path, *made_up(2, 1e-4)), "--target=16e6")
    path = report.path_figure(study)
    assert [trace.name for trace in path.data] == NAMES
    assert all(len(trace.x) == 4 for trace in path.data)
    np.testing.assert_allclose(sum(np.array(trace.y) for trace in path.data), 1)
    heat = report.cross_effects_figure(study).data[0]
    assert np.shape(heat.z) == (3, 2)


def spoiled(runs: pd.DataFrame, losses: pd.DataFrame, how: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs, losses = runs.copy(), losses.copy()
    if how == "column":
        return runs.drop(columns="budget"), losses
    if how == "run":
        return runs, losses.drop(index="base-1e+06-0")
    if how == "missing":
        gone = "less-code-2e+06-0"
        return runs.drop(index=gone), losses.drop(index=gone)
    if how == "rising":
        losses.loc["more-code-2e+06-0"] += 1
    if how == "budget":
        runs.loc[runs["budget"] == 2e6, "budget"] = 3e6
    if how == "quantity":
        runs["web"] = runs["web"].astype(object)
        runs.loc["base-1e+06-0", "web"] = "nan"
    return runs, losses


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("column", "no column 'budget'"),
        ("run", "no row for run 'base-1e+06-0'"),
        ("missing", "no run with less of domain 'code' alone"),
        ("rising", "budget of 2,000,000 tokens: domain 'code'"),
        ("budget", "budget of 3,000,000 tokens: its base run has 2,000,000"),
        ("quantity", "run 'base-1e+06-0', domain 'web': value nan"),
    ],
)
def test_tables_that_are_refused(tmp_path, capsys, how, expected):
    files = write(tmp_path, *spoiled(*made_up(), how))
    with pytest.raises(SystemExit) as status:
        scaled(tmp_path / "study", *files)
    assert status.value.code == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "study" / "scale.json").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--target=3e6"], "budget of 3e+06 tokens: the path starts from optima at up to 4e+06"),
        (["--target=1e9", "--tokens={'web': 1e6, 'code': 1e6, 'books': 1e6}"], "bounds allow"),
        (["--tokens={'wbe': 1e6}"], "unknown domain in tokens 'wbe': did you mean 'web'"),
        (["--objective=worst-all"], "for averages only"),
        (["--fit=jiont"], "unknown fit 'jiont': did you mean 'joint'"),
        (["--budgets=1e6"], "are given"),
        (["--optima=x.csv"], "are given"),
        (["--unit=steps", "--target=20000"], "unit='steps': files of runs and optima are in tokens"),
        (["--noise=-1"], "noise=-1, expected a standard deviation"),
        (["--max_epochs=0"], "max_epochs=0 must be positive"),
    ],
)
def test_arguments_that_are_refused(tmp_path, capsys, arguments, expected):
    files = write(tmp_path, *made_up())
    with pytest.raises(SystemExit) as status:
        scaled(tmp_path / "study", *files, *arguments)
    assert status.value.code == 2
    assert expected in capsys.readouterr().err


def test_one_budget_with_two_seeds_knows_the_noise(tmp_path, capsys):
    runs, losses = made_up(seeds=2, noise=1e-4)
    runs = runs[runs["budget"] == BUDGETS[0]]
    found = scaled(tmp_path / "study", *write(tmp_path, runs, losses.loc[runs.index]))
    printed = capsys.readouterr().out
    assert f"Noise of a run: {found['noise']:.2g} (standard deviation over seeds)." in printed
    assert "One seed each" not in printed


@pytest.mark.parametrize(
    ("count", "words"),
    [(999_600, "1M"), (999_400, "999k"), (999.6e6, "1B"), (999.6e9, "1T"), (999.6, "1k"), (12.0, "12")],
)
def test_tokens_in_three_digits(count, words):
    assert report.tokens(count) == words


def test_a_shortage_at_the_target_is_counted_in_the_tokens_that_there_are(tmp_path):
    table = pd.DataFrame([[10.0, 10.0], [40.0, 40.0]], pd.Index(["a", "b"], name="run"), ["web", "code"])
    table.to_csv(tmp_path / "optima.csv")
    given = [f"--optima={tmp_path / 'optima.csv'}", "--target=200", "--tokens={'web': 10}", "--max_epochs=4"]
    said = scaled(tmp_path / "study", *given)["ddo"]["cautions"]
    assert "domain 'web': 100 tokens are 10.00 times what there is" in said


def test_one_file_of_two(tmp_path, capsys):
    files = write(tmp_path, *made_up())
    with pytest.raises(SystemExit):
        scaled(tmp_path / "study", files[0])
    assert "give both --quantities and --losses" in capsys.readouterr().err


def test_nothing_heavy_is_imported(tmp_path):
    files = write(tmp_path, *made_up())
    program = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY!r}))  # from here on importing one of these is an error
from mde import cli
cli.main(["scale", "--study={tmp_path}/study", "--resamples=2", *{files!r}])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
