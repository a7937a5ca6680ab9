"""`mde fit` with each registered regressor on the feature sets that it is given when none are named."""

import numpy as np
import pandas as pd
import pytest

from mde import cli
from mde.commands.fit import default_features
from mde.optimization import simplex
from mde.regression import estimators
from mde.reporting import findings
from mde.results import accuracy
from mde.study import Study

NAMES = ["web", "code", "books"]
MIXTURES = pd.DataFrame(simplex.space_filling(14, 3, seed=1), pd.Index([f"r{i}" for i in range(14)], name="run"), NAMES)
LOSSES = 1 + (0.1 + MIXTURES) ** -0.2
EVALUATED = pd.concat([(LOSSES * 0.9 + 0.22).add_prefix("mde[0]/"), (LOSSES * 1.1).add_prefix("merged/")], axis=1)
ARGUMENTS = ["--repeats=2", "--train_mixtures=11", "--curve_sizes=[]"]


@pytest.fixture
def study(tmp_path):
    """A study with proxy runs of its own and what evaluators say of them."""
    made = Study(tmp_path / "study")
    made.write_json("study.json", {"format": 3, "training_domains": NAMES, "evaluation_domains": NAMES[::-1]})
    runs = MIXTURES.copy()
    runs.insert(0, "role", "proxy")
    runs.insert(1, "seed", 0)
    made.write_table("mixtures.csv", runs)
    made.write_table("losses.csv", LOSSES)
    made.write_table("features.csv", EVALUATED.rename_axis("mixture"))
    for stage in ("prepare", "train", "score", "evaluate"):
        made.write_json(f"stages/{stage}.json", {"digest": stage, "arguments": {}, "seconds": 0.0, "finished": 0.0})
    return made


def elsewhere(folder, evaluation=NAMES) -> list[str]:
    MIXTURES.to_csv(folder / "mixtures.csv")
    LOSSES.set_axis(evaluation, axis=1).to_csv(folder / "losses.csv")
    return [f"--mixtures={folder / 'mixtures.csv'}", f"--losses={folder / 'losses.csv'}"]


@pytest.mark.parametrize("name", sorted(estimators.REGRESSORS))
def test_a_study_with_evaluated_features_is_fitted(study, name):
    cli.main(["fit", f"--study={study}", f"--regressors={name}", *ARGUMENTS])
    choice = study.read_json("fit/choice.json", "fit")
    table = study.read_table("fit/objective.csv", "fit")
    least, mean = (table.loc[table["regressor"] == which, "mse"].min() for which in (name, "mean"))
    assert choice["regressor"] == (name if least < mean else "mean")  # trees of few rows need not be better
    assert not table.duplicated(["regressor", "features"]).any()
    if name not in ("mean", "gbm", "gbm-regmix"):
        assert choice["mse"] < table.loc[table["regressor"] == "mean", "mse"].item()


@pytest.mark.parametrize("name", sorted(set(estimators.REGRESSORS) - {"alone"}))
def test_proxy_runs_from_elsewhere_are_fitted_and_searched(tmp_path, capsys, name):
    fit = ["fit", f"--study={tmp_path / 'study'}", *elsewhere(tmp_path), f"--regressors={name}", *ARGUMENTS]
    if name.endswith("-residual"):
        with pytest.raises(SystemExit) as status:
            cli.main(fit)
        assert status.value.code == 2
        assert f"regressor '{name}' corrects evaluated losses" in capsys.readouterr().err
        return
    cli.main(fit)
    cli.main(["optimize", f"--study={tmp_path / 'study'}", "--candidates=32", "--refits=2"])
    found = Study(tmp_path / "study").read_json("optimum.json", "optimize")
    if name in ("bimix", "power-law", "mixing-law", "ridge", "auto"):  # by symmetry
        np.testing.assert_allclose(list(found["weights"].values()), 1 / 3, atol=0.05)


def test_laws_are_fitted_to_what_they_are_laws_of():
    evaluated = ["mde[0]", "mde[1]", "merged"]
    for law, features in {"mixing-law": "lambda", "log-linear": "lambda", "bimix": "own", "power-law": "own"}.items():
        assert default_features(law, evaluated) == default_features(law, []) == [features]
    assert default_features("gbm-residual", ["mde[0]"]) == ["mde[0]", "mde[0]+lambda"]
    assert default_features("ridge", []) == ["lambda", "sqrt", "log"]


def test_a_domain_that_is_not_trained_on_has_no_own_share(tmp_path, capsys):
    pair = elsewhere(tmp_path, ["web", "code", "news"])
    with pytest.raises(SystemExit) as status:
        cli.main(["fit", f"--study={tmp_path / 'study'}", *pair, "--regressors=bimix", *ARGUMENTS])
    assert status.value.code == 2
    assert "evaluation domain 'news' is not trained on" in capsys.readouterr().err


def test_accuracies_are_predicted_by_what_can():
    names = [name for name in estimators.REGRESSORS if accuracy.predicts(name)]
    assert set(estimators.REGRESSORS) - set(names) == {*estimators.ONLY, "alone"}
    of_residual = [features for name, features in accuracy._methods("acc", ["gp-residual"]) if name == "gp-residual"]
    assert of_residual[0] == "expected[0]"
    assert all(features.startswith("expected[") for features in of_residual)
    rows = pd.DataFrame({"regressor": "gp-residual", "features": of_residual, "mse": 1e-3, "metric": "acc"})
    assert accuracy.told(rows.assign(measured=0.5)).endswith("from the experts' answers (gp-residual on expected[0])")


def test_folds_hold_out_every_proxy_run_as_often(study, capsys):
    fit = ["fit", f"--study={study}", "--regressors=ridge", "--features=sqrt", "--repeats=3", "--curve_sizes=[]"]
    cli.main([*fit, "--folds=4"])
    assert set(study.read_table("fit/predictions.csv", "fit")["splits"]) == {3}
    assert findings.fit_conditions(study).endswith("14 proxy runs, 10 training mixtures, 3 × 4 folds")
    cli.main([*fit, "--folds=14"])
    assert findings.fit_conditions(study).endswith("13 training mixtures, 1 × 14 folds")
    for wrong, says in ((["--folds=1"], "1 folds of 14"), (["--folds=4", "--train_mixtures=9"], "train_mixtures=9")):
        with pytest.raises(SystemExit) as status:
            cli.main([*fit, *wrong])
        assert status.value.code == 2
        assert says in capsys.readouterr().err
