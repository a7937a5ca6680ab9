"""What `mde fit` says about swarms that are unusual, and what it chooses then."""

import numpy as np
import pandas as pd
import pytest

from mde import cli
from mde.regression import estimators
from mde.regression.estimators import Ridge
from mde.reporting import findings, tables
from mde.results import regressor_choice as choice
from mde.results.proxy_runs import proxy_runs
from mde.study import Study

NAMES = ["web", "code", "books", "wiki"]
FIT = ["--regressors=ridge", "--repeats=8", "--curve_sizes=[]"]


def swarm(rows=24, seed=0, noise=0.01):
    rng = np.random.default_rng(seed)
    runs = pd.Index([f"r{i}" for i in range(rows)], name="run")
    mixtures = pd.DataFrame(rng.dirichlet(np.ones(4), rows), runs, NAMES)
    losses = pd.DataFrame({name: 3 - np.sqrt(mixtures[name]) for name in ("web", "code")})
    return mixtures, losses + noise * rng.normal(size=losses.shape)


@pytest.fixture
def fit(tmp_path, capsys):
    """Fits two tables as a user does; returns the study and what was printed."""

    def run(mixtures, losses, *flags, status=0):
        mixtures.to_csv(tmp_path / "m.csv")
        losses.to_csv(tmp_path / "l.csv")
        arguments = [f"--study={tmp_path / 's'}", f"--mixtures={tmp_path / 'm.csv'}", f"--losses={tmp_path / 'l.csv'}"]
        if status:
            with pytest.raises(SystemExit) as stopped:
                cli.main(["fit", *arguments, *FIT, *flags])
            assert stopped.value.code == status
            (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
            return None, line
        cli.main(["fit", *arguments, *FIT, *flags])
        return Study(tmp_path / "s"), capsys.readouterr().out

    return run


def test_shuffled_losses_have_nothing_to_learn(fit):
    """Some are predicted a little better than by the mean, by luck; then that is said not to be clear."""
    mixtures, losses = swarm(32)
    choices = []
    for seed in range(6):
        study, said = fit(mixtures, losses.sample(frac=1, random_state=seed).set_axis(losses.index))
        chosen = study.read_json("fit/choice.json", "fit")
        choices.append(chosen["regressor"])
        assert (choice.NOTHING in said) == (chosen["regressor"] == "mean")
        assert choice.NOTHING in said or choice.UNCLEAR in said
        table = findings.regressors(study).set_index("group")
        if chosen["regressor"] == "mean":
            assert table.loc["mean", "mse"] <= table["mse"].min()
            assert "nothing to learn" in str(tables.regressors(study))
    assert "mean" in choices
    assert choice.UNCLEAR not in fit(mixtures, losses)[1]


def test_an_outlying_run_is_named_not_scored_and_left_out_when_asked(fit):
    mixtures, losses = swarm()
    broken = losses.copy()
    broken.loc["r17", "web"] += 5
    study, said = fit(mixtures, broken)
    assert "run r17 is" in said
    assert "deviations above what its neighbours say on web; --drop=r17 leaves it out" in said
    outliers = study.read_table("fit/outliers.csv", "fit")
    assert list(outliers.index) == ["r17"]
    assert outliers.loc["r17", "domain"] == "web"
    # Scored, the cell alone would add 2.5² / 24 = .26; ridge still bends towards it.
    assert study.read_json("fit/choice.json", "fit")["mse"] < 0.05
    study, said = fit(mixtures, broken, "--drop=r17")
    assert "deviations" not in said
    assert len(study.losses()) == 24
    assert "r17" not in proxy_runs(study, "avg-all").losses.index
    assert len(proxy_runs(study, "avg-all").losses) == 23
    _, line = fit(mixtures, broken, "--drop=r71", status=2)
    assert "unknown run in drop 'r71': did you mean 'r" in line


class Failing(Ridge):
    def predict(self, X):
        return np.full((len(X), 2), np.inf)


class FailingOnAll(Ridge):
    """It fails on as many rows as there are in all."""

    def fit(self, X, y):
        if len(X) == 24:
            raise np.linalg.LinAlgError("no convergence")
        return super().fit(X, y)


@pytest.mark.parametrize(("how", "why"), [(Failing, "not finite"), (FailingOnAll, "on all proxy runs: no convergence")])
def test_a_failed_method_is_marked_and_not_chosen(fit, monkeypatch, how, why):
    monkeypatch.setitem(estimators.REGRESSORS, "gp", how)
    study, said = fit(*swarm(), "--regressors=gp,ridge", "--features=sqrt")
    assert "gp on sqrt failed: " in said
    assert "chosen: ridge on sqrt" in said
    table = study.read_table("fit/objective.csv", "fit").set_index("regressor")
    assert why in table.loc["gp", "failed"]
    assert np.isnan(table.loc["gp", "mse"])
    shown = tables.regressors(study)
    assert shown.frame.loc["gp  sqrt", "MSE ×10⁻³"] == "failed"
    assert any(why in note for note in shown.notes)
    cli.main(["report", f"--study={study}"])
    _, line = fit(*swarm(), "--regressors=gp", "--features=sqrt", status=2)
    assert "every regressor failed; gp on sqrt: " in line


def test_the_choice_by_hand():
    columns = pd.MultiIndex.from_tuples([("mean", "lambda"), ("auto", "lambda"), ("ridge", "log"), ("ridge", "sqrt")])
    designs = {"lambda": np.ones((4, 3)), "log": np.ones((4, 3)), "sqrt": np.ones((4, 2))}
    methods = list(columns[1:])

    def chosen(*errors):
        rounds = pd.DataFrame(np.array(errors).T, columns=columns)
        cross_validated = choice.CrossValidation(pd.DataFrame(), pd.DataFrame(), {}, rounds, 0.0, [])
        return choice.choose(cross_validated, methods, designs)

    assert chosen([9, 9, 9], [5, 6, 7], [4.9, 6.1, 6.5], [8, 8, 8]) == ("auto", "lambda")
    assert chosen([9, 9, 9], [5, 6, 7], [4, 5.1, 6], [8, 8, 8]) == ("ridge", "log")  # 1 less, ± .03
    # One split in which auto explodes hides behind its own standard error, but not behind twice the error.
    assert chosen([99, 99, 99], [1, 1, 99], [1, 1, 1], [8, 8, 8]) == ("ridge", "log")
    assert chosen([9, 9, 9], [9, 9, 9], [8, 9, 10], [10, 9, 9]) == ("mean", "lambda")
    assert chosen([9, 9, 9], [90, 1, 1], [8, 8.2, 8], [8.1, 8, 8.1]) == ("ridge", "sqrt")  # as good, fewer features


def test_targets_that_do_not_respond_and_constant_ones_are_named(fit):
    mixtures, losses = swarm()
    rng = np.random.default_rng(0)
    study, said = fit(mixtures, losses.assign(noise=2 + rng.normal(size=24), flat=1.5))
    assert "the same loss in all proxy runs: flat" in said
    assert study.read_json("fit/choice.json", "fit")["unresponsive"] == ["noise", "flat"]
    assert "2 of 4 evaluation domains do not respond to the mixture" in said
    assert "Does not respond" in str(tables.fit_by_domain(study))
    _, line = fit(mixtures, losses[[]].assign(flat=1.5), status=2)
    assert "nothing to learn" in line


def test_constant_targets_have_no_part_in_the_scores(fit):
    mixtures, losses = swarm()
    plain, _ = fit(mixtures, losses)
    before = plain.read_json("fit/choice.json", "fit")["mse"]
    study, _ = fit(mixtures, losses.assign(flat=1.5, flatter=2.5))
    assert study.read_json("fit/choice.json", "fit")["mse"] == pytest.approx(before)


def test_replicates_give_the_noise_of_a_run_and_stay_together(fit):
    mixtures, losses = swarm(12, noise=0)
    copies = pd.concat([mixtures, mixtures.rename("{}b".format)])
    shifts = np.tile([0.1, -0.1], 6)
    measured = pd.concat([losses, losses.rename("{}b".format).add(shifts, axis=0)])
    study, said = fit(copies, measured)
    assert "24 proxy runs of 12 mixtures" in said
    chosen = study.read_json("fit/choice.json", "fit")
    assert (chosen["proxy_runs"], chosen["mixtures"], chosen["train_mixtures"]) == (24, 12, 9)
    # two runs .1 apart: a variance of .1² / 2
    assert chosen["noise"]["objective"] == pytest.approx(np.sqrt(0.005))
    assert chosen["noise"]["domains"]["web"] == pytest.approx(np.sqrt(0.005))
    assert chosen["noise"]["freedom"] == 12
    assert "noise of a run: a standard deviation of 0.071 on the objective" in said
    assert "24 proxy runs of 12 mixtures, 9 training mixtures" in findings.fit_conditions(study)
    _, line = fit(copies.iloc[[0, 12]], measured.iloc[[0, 12]], status=2)
    assert "all 2 proxy runs have the same mixture" in line


def test_domains_that_the_runs_say_little_of_are_named(fit):
    mixtures, losses = swarm()
    mixtures = mixtures * 0.8
    mixtures = mixtures.assign(never=0.0, once=0.0, fixed=0.2)
    mixtures.loc["r5", ["once", "fixed"]] = [0.1, 0.2]
    mixtures.loc["r5", NAMES] *= 0.7 / 0.8
    study, said = fit(mixtures, losses)
    assert "no proxy run has trained on never" in said
    assert "only run r5 has trained on once" in said
    assert "the same weight in all proxy runs: fixed" in said
    assert study.read_json("fit/choice.json", "fit")["untrained"] == ["never"]
    few = [f"r{i}" for i in range(6)]
    assert "6 mixtures of 7 domains: fewer than one per domain" in fit(mixtures.loc[few], losses.loc[few])[1]


@pytest.mark.parametrize(
    ("column", "values"),
    [("model_size", 3e7), ("n_tokens", 5e9), ("seed", range(24)), ("flops", 1.5e18), ("step", 500)],
)
def test_columns_that_are_no_losses_are_not_accepted(fit, column, values):
    mixtures, losses = swarm()
    with_it = losses.assign(**{column: values})
    _, line = fit(mixtures, with_it, status=2)
    assert f"l.csv: column '{column}' is no loss" in line
    assert f"--ignore={column}" in line
    study, _ = fit(mixtures, with_it, f"--ignore={column}")
    assert study.domains.evaluation == ("web", "code")
    assert f"column '{column}' is no mixture weight" in fit(mixtures.assign(**{column: values}), losses, status=2)[1]


@pytest.mark.parametrize("name", ["arc_acc", "mmlu/accuracy", "squad:exact_match", "squad f1", "humaneval pass@1"])
def test_accuracies_are_not_minimised_without_a_word(fit, name):
    mixtures, losses = swarm()
    accuracies = losses.assign(**{name: mixtures["web"] * 0.5})
    _, line = fit(mixtures, accuracies, status=2)
    assert f"--higher={name}" in line
    assert f"--lower={name}" in line
    assert fit(mixtures, accuracies, f"--higher={name}")[0].errors == (name,)
    assert fit(mixtures, accuracies, f"--lower={name}")[0].errors == ()
    _, line = fit(mixtures, accuracies, f"--lower={name}", f"--higher={name}", status=2)
    assert "both --higher and --lower" in line
    assert "divide percentages by 100" in fit(mixtures, losses.assign(**{name: mixtures["web"] * 50}), status=2)[1]


def test_losses_whose_names_only_look_alike_are_accepted(fit):
    mixtures, losses = swarm()
    study, _ = fit(mixtures, losses.set_axis(["accounting", "chemistry_em_bpb"[:9]], axis=1))
    assert study.domains.evaluation == ("accounting", "chemistry")


def test_runs_of_fitted_mixtures_are_not_scored(fit, tmp_path, capsys):
    mixtures, losses = swarm()
    study, _ = fit(mixtures, losses)
    others, measured = swarm(10, seed=5)
    both = pd.concat([others.rename("new{}".format), mixtures.iloc[:4].rename("again{}".format)])
    both.to_csv(tmp_path / "b.csv")
    pd.concat([measured.rename("new{}".format), losses.iloc[:4].rename("again{}".format)]).to_csv(tmp_path / "bl.csv")
    output = f"--output={tmp_path / 'p.csv'}"
    cli.main(["predict", f"--study={study}", f"--mixtures={tmp_path}/b.csv", f"--losses={tmp_path}/bl.csv", output])
    said = capsys.readouterr().out
    assert "4 of 14 runs have mixtures that the regressor was fitted on; they are not scored" in said
    assert "the measured losses of 10 runs" in said
    assert len(pd.read_csv(tmp_path / "p.csv")) == 14
    with pytest.raises(SystemExit) as status:
        cli.main(["predict", f"--study={study}", f"--mixtures={tmp_path}/m.csv", f"--losses={tmp_path}/l.csv", output])
    assert status.value.code == 2
    line = capsys.readouterr().err
    assert "0 runs of new mixtures, expected at least 3" in line
    assert "24 of 24 runs have mixtures that the regressor was fitted on" in line


def test_how_many_runs_a_difference_takes(fit, capsys, tmp_path):
    cli.main(["design", "--noise=.002", "--difference=.005"])
    assert "5 seeds per mixture" in capsys.readouterr().out
    mixtures, losses = swarm(12, noise=0)
    copies = pd.concat([mixtures, mixtures.rename("{}b".format)])
    study, _ = fit(copies, pd.concat([losses, losses.rename("{}b".format) + 0.1]))
    cli.main(["design", f"--tokens={study}", "--difference=.1"])
    said = capsys.readouterr().out
    assert "at a noise of 0.0707 per run" in said
    assert "proxy runs: at least " in said
    for flags, why in ((["--difference=.1"], "give --noise"), ([], "give --output")):
        with pytest.raises(SystemExit) as status:
            cli.main(["design", *flags])
        assert status.value.code == 2
        assert why in capsys.readouterr().err
