"""A study of proxy runs that somebody else made: two CSV files in, a mixture out."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from commands import ROOT

from mde import cli
from mde.commands import pipeline
from mde.errors import UserError
from mde.optimization import simplex
from mde.regression import cross_validation
from mde.results.predictor import Predictor
from mde.study import Study

HEAVY = ("jax", "tensorflow", "flax", "orbax", "grain", "tensorstore", "seqio")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Forty mixtures of three domains, whose losses are linear in √λ and come in another order."""
    folder = tmp_path_factory.mktemp("swarm")
    names = ["web", "code", "books:old"]
    runs = pd.Index([f"r{i}" for i in range(40)], name="run")
    mixtures = pd.DataFrame(simplex.space_filling(40, 3, seed=1), runs, names)
    slopes = np.array([[-1.0, 0.2], [0.1, -2.0], [-0.3, -0.3]])
    losses = pd.DataFrame(3 + np.sqrt(mixtures.to_numpy()) @ slopes, runs, ["news", "code"])
    mixtures.to_csv(folder / "mixtures.csv")
    losses.sample(frac=1, random_state=0).to_csv(folder / "losses.csv")
    return folder, mixtures, losses


@pytest.fixture
def fitted(files, tmp_path, capsys):
    folder, *_ = files
    study = tmp_path / "study"
    pair = [f"--mixtures={folder / 'mixtures.csv'}", f"--losses={folder / 'losses.csv'}"]
    cli.main(["fit", f"--study={study}", *pair, "--regressors=ridge", "--repeats=5"])
    assert "chosen: ridge on sqrt" in capsys.readouterr().out
    return study


def test_it_recommends_predicts_and_reports(fitted, files, tmp_path, capsys):
    folder, mixtures, losses = files
    cli.main(["optimize", f"--study={fitted}", "--refits=5"])
    said = capsys.readouterr().out
    assert "\nPredicted: " in said
    assert f"`mde report --study={fitted}`" in said
    weights = Study(fitted).read_json("optimum.json", "optimize")["weights"]
    grid = simplex.space_filling(20000, 3, seed=2)
    slopes = np.linalg.lstsq(np.sqrt(mixtures), losses - 3, rcond=None)[0].mean(axis=1)
    best = grid[np.argmin(np.sqrt(grid) @ slopes)]
    np.testing.assert_allclose(list(weights.values()), best, atol=0.02)

    cli.main(
        ["predict", f"--regressor={fitted}", f"--mixtures={folder / 'mixtures.csv'}", f"--output={tmp_path}/p.csv"]
    )
    said = capsys.readouterr().out
    assert "the first 5 of 40 mixtures" in said
    assert f"see {tmp_path}/p.csv" in said
    predicted = pd.read_csv(tmp_path / "p.csv", index_col="run")
    assert all(f"{loss:.4f}" in said for loss in predicted["news"].iloc[:5])
    # Ridge keeps a little of its penalty even where the truth is linear.
    np.testing.assert_allclose(predicted[["news", "code"]], losses.loc[predicted.index], atol=2e-3)

    for _ in range(2):
        cli.main(["report", f"--study={fitted}"])
        said = capsys.readouterr().out
        assert "Recommended mixture" in said
        assert f"see {fitted}/report.html" in said
    page = (fitted / "report.html").read_text()
    assert "books:old" in page
    assert "mde validate" not in page


def test_proxy_runs_survive_the_way_out_and_in(fitted, files, tmp_path):
    _, mixtures, losses = files
    for layout, names in (("olmix", ("ratios.csv", "metrics.csv")), ("regmix", ("mixture.csv", "loss.csv"))):
        out = tmp_path / layout
        cli.main(["swarm", f"--study={fitted}", f"--output={out}", f"--layout={layout}"])
        pair = [f"--mixtures={out / names[0]}", f"--losses={out / names[1]}"]
        again = Study(tmp_path / f"again-{layout}")
        cli.main(["fit", f"--study={again}", *pair, "--regressors=ridge", "--repeats=5"])
        found = again.mixtures()[list(mixtures)]
        np.testing.assert_allclose(found.loc[mixtures.index], mixtures, rtol=1e-15, atol=1e-18)
        pd.testing.assert_frame_equal(again.losses().loc[losses.index], losses, check_exact=True)


@pytest.mark.parametrize("rows", [5, 8, 10])
def test_a_handful_of_proxy_runs_is_fitted_and_fewer_are_refused(files, tmp_path, capsys, rows):
    _, mixtures, losses = files
    pair = [f"--mixtures={tmp_path}/m.csv", f"--losses={tmp_path}/l.csv"]
    mixtures.iloc[:rows].to_csv(tmp_path / "m.csv")
    losses.loc[mixtures.index[:rows]].to_csv(tmp_path / "l.csv")
    cli.main(["fit", f"--study={tmp_path}/study", *pair, "--repeats=3", "--regressors=ridge"])
    # with 2 mixtures to fit on there is nothing better than their mean
    assert f"chosen: {'mean' if rows == 5 else 'ridge'} on" in capsys.readouterr().out
    mixtures.iloc[:4].to_csv(tmp_path / "m.csv")
    losses.loc[mixtures.index[:4]].to_csv(tmp_path / "l.csv")
    with pytest.raises(SystemExit):
        cli.main(["fit", f"--study={tmp_path}/study", *pair])
    assert "4 proxy runs, expected at least 5 mixtures" in capsys.readouterr().err


def test_a_misspelt_regressor_is_refused_before_others_are_fitted(files, tmp_path, monkeypatch):
    folder, *_ = files
    monkeypatch.setattr(cross_validation, "cross_validate", lambda *args: pytest.fail("something was fitted"))
    pair = {"mixtures": str(folder / "mixtures.csv"), "losses": str(folder / "losses.csv")}
    with pytest.raises(UserError, match="did you mean 'mixing-law'"):
        pipeline.call("fit", Study(tmp_path / "study"), **pair, regressors=["ridge", "mixing_law"])


def test_an_edited_file_is_fitted_anew(fitted, files, capsys):
    folder, *_ = files
    pair = [f"--mixtures={folder / 'mixtures.csv'}", f"--losses={folder / 'losses.csv'}"]
    same = ["fit", f"--study={fitted}", *pair, "--regressors=ridge", "--repeats=5"]
    cli.main(same)
    assert "done before" in capsys.readouterr().out
    text = (folder / "losses.csv").read_text()
    try:
        (folder / "losses.csv").write_text(text.replace("3", "4", 1))
        cli.main(same)
    finally:
        (folder / "losses.csv").write_text(text)
    assert "done before" not in capsys.readouterr().out


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("too late")])
def test_a_stage_that_did_not_come_to_its_end_is_not_done(fitted, files, capsys, monkeypatch, error):
    """Some tables are another run's by then; but what was refused at once has changed nothing."""
    folder, *_ = files
    pair = [f"--mixtures={folder / 'mixtures.csv'}", f"--losses={folder / 'losses.csv'}"]
    same = ["fit", f"--study={fitted}", *pair, "--regressors=ridge", "--repeats=5"]
    with pytest.raises(SystemExit):
        cli.main([*same, "--features=lamda"])
    cli.main(same)
    assert "done before" in capsys.readouterr().out
    tables = {path.name: path.read_bytes() for path in (fitted / "fit").iterdir()}

    def stop(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Study, "write_object", stop)
        with pytest.raises(SystemExit):
            cli.main([*same, "--repeats=6"])
    with pytest.raises(SystemExit):
        cli.main(["optimize", f"--study={fitted}"])
    assert "'optimize' needs 'fit'" in capsys.readouterr().err
    cli.main(same)
    assert "done before" not in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (fitted / "fit").iterdir()} == tables


def test_what_is_refused_leaves_nothing(files, tmp_path, capsys):
    folder, *_ = files
    pair = [f"--mixtures={folder / 'mixtures.csv'}", f"--losses={folder / 'losses.csv'}"]
    for wrong in ("--regressors=rigde", "--objective=avg-al", "--train_mixtures=39", "--features=lamda"):
        with pytest.raises(SystemExit) as status:
            cli.main(["fit", f"--study={tmp_path / 'new'}", *pair, wrong])
        assert status.value.code == 2
        assert capsys.readouterr().err.count("error: ") == 1
        assert not (tmp_path / "new").exists()


def test_another_swarm_takes_the_place_of_the_first(fitted, tmp_path):
    """This one has a single evaluation domain, and all default regressors take it."""
    (tmp_path / "m.csv").write_text("run,a,b\n" + "\n".join(f"r{i},{i / 9},{1 - i / 9}" for i in range(10)))
    (tmp_path / "l.csv").write_text("run,x\n" + "\n".join(f"r{i},{3 - i / 10}" for i in range(10)))
    pair = [f"--mixtures={tmp_path / 'm.csv'}", f"--losses={tmp_path / 'l.csv'}"]
    cli.main(["fit", f"--study={fitted}", *pair, "--repeats=2", "--train_mixtures=6"])
    assert Study(fitted).domains.training == ("a", "b")
    cli.main(["optimize", f"--study={fitted}", "--refits=2"])
    assert Study(fitted).read_json("optimum.json", "optimize")["weights"]["a"] > 0.9


@pytest.mark.parametrize("stage", ["train", "validate"])
def test_there_is_nothing_to_train(fitted, capsys, stage):
    required = ["--preset=tiny", "--steps=1", "--batch_size=1", "--seq_len=8", "--learning_rate=.1"]
    with pytest.raises(SystemExit) as status:
        cli.main([stage, f"--study={fitted}", *(required if stage == "train" else [])])
    assert status.value.code == 2
    assert "proxy runs from elsewhere" in capsys.readouterr().err


def test_a_study_with_proxy_runs_of_its_own_is_left_alone(finished, files, capsys):
    folder, *_ = files
    pair = [f"--mixtures={folder / 'mixtures.csv'}", f"--losses={folder / 'losses.csv'}"]
    with pytest.raises(SystemExit):
        cli.main(["fit", f"--study={finished[0]}", *pair])
    assert "give another --study" in capsys.readouterr().err


def test_tables_of_numbers_need_no_library_that_trains(files, tmp_path):
    folder, *_ = files
    script = f"""
import sys
from mde import cli
study = "--study={tmp_path / "study"}"
pair = ["--mixtures={folder / "mixtures.csv"}", "--losses={folder / "losses.csv"}"]
cli.main(["fit", study, *pair, "--regressors=ridge", "--repeats=2"])
cli.main(["optimize", study, "--refits=2"])
cli.main(["predict", study, pair[0], "--output={tmp_path / "p.csv"}"])
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_learning_curves_go_from_half_the_usual_number_to_a_quarter_more(fitted):
    curve = Study(fitted).read_table("fit/learning.csv", "fit")
    assert sorted(curve["train"].unique()) == [16, 21, 26, 32]  # 40 runs, 32 the usual number, 8 always held out
    assert set(zip(curve["regressor"], curve["features"], strict=True)) == {("ridge", "sqrt")}
    least = curve.set_index("train")["mse"]
    assert least.loc[32] < least.loc[16]
    cross_validated = Study(fitted).read_table("fit/objective.csv", "fit").set_index(["regressor", "features"])
    assert least.loc[32] == cross_validated.loc[("ridge", "sqrt"), "mse"]  # the usual number is not fitted again


def test_methods_that_were_cross_validated_on_fewer_rounds_are_named(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cross_validation, "BUDGET", 1.0)
    settings = ["--regressors=ridge,gp", "--features=log", "--repeats=4", "--curve_sizes=[]"]
    pair = [f"--mixtures={files[0] / 'mixtures.csv'}", f"--losses={files[0] / 'losses.csv'}"]
    cli.main(["fit", f"--study={tmp_path / 'few'}", *pair, *settings])
    said = [line for line in capsys.readouterr().out.splitlines() if "rounds" in line]
    assert said == ["gp on log: scored on the first 2 of 4 rounds, for cost"]


@pytest.mark.parametrize(
    ("proxy_runs", "train", "sizes"), [(28, 16, [8, 12, 16, 20]), (6, 4, [3]), (12, 9, [4, 5, 7, 9])]
)
def test_sizes_of_learning_curves_leave_enough_to_be_cross_validated_on(proxy_runs, train, sizes):
    from mde.commands.fit import _curve_sizes

    assert _curve_sizes(proxy_runs, train) == sizes


def test_the_surface_is_what_the_regressor_predicts_around_the_recommendation(fitted):
    cli.main(["optimize", f"--study={fitted}", "--refits=5"])
    study = Study(fitted)
    found = study.read_arrays("surface.npz", "optimize")
    assert found["triples"].tolist() == [[0, 1, 2]]
    assert found["losses"].shape == (1, 91, 2)
    predictor = Predictor(study)
    # of three domains the slice is the whole simplex
    np.testing.assert_allclose(found["losses"][0], predictor(found["points"]))
    np.testing.assert_allclose(found["draw_losses"], predictor(found["draws"]))


def test_the_moves_are_what_the_regressor_predicts_of_one_more_point(fitted):
    cli.main(["optimize", f"--study={fitted}", "--refits=5", "--constraints.min={'web': .2}"])
    study = Study(fitted)
    share = np.array(list(study.read_json("optimum.json", "optimize")["weights"].values()))
    more = np.array([share[0] + 0.01, *(share[1:] * (0.99 - share[0]) / (1 - share[0]))])
    here, there = Predictor(study)(np.stack([share, more]))
    moves = study.read_arrays("surface.npz", "optimize")["moves"]
    assert moves.shape == (3, 2)
    np.testing.assert_allclose(moves[0], there - here, atol=1e-12)
