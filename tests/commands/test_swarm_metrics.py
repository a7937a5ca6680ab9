"""What a swarm from elsewhere measures: its unit, metrics of which more is better, failed runs, families of tasks."""

import numpy as np
import pandas as pd
import pytest

import mde
from mde import cli
from mde.optimization import simplex
from mde.study import Study

NAMES = ["web", "code", "books"]
FIT = ["--regressors=ridge", "--features=sqrt", "--repeats=3", "--curve_sizes=[]"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Thirty mixtures, two losses and two accuracies, all linear in √λ."""
    folder = tmp_path_factory.mktemp("measured")
    runs = pd.Index([f"r{i}" for i in range(30)], name="run")
    mixtures = pd.DataFrame(simplex.space_filling(30, 3, seed=1), runs, NAMES)
    roots = np.sqrt(mixtures.to_numpy())
    losses = pd.DataFrame(1.5 + roots @ [[-0.5, 0.1], [0.0, -0.9], [-0.1, -0.1]], runs, ["news", "code"])
    accuracies = pd.DataFrame(0.2 + roots @ [[0.3, 0.0], [0.0, 0.2], [0.1, 0.3]], runs, ["arc_acc", "quiz_acc"])
    mixtures.to_csv(folder / "mixtures.csv")
    losses.to_csv(folder / "losses.csv")
    losses.join(accuracies).to_csv(folder / "all.csv")
    return folder


def fit(study, files, *arguments: str, losses: str = "losses.csv") -> Study:
    pair = [f"--mixtures={files / 'mixtures.csv'}", f"--losses={files / losses}"]
    cli.main(["fit", f"--study={study}", *pair, *FIT, *arguments])
    return Study(study)


def refused(capsys, *arguments: str) -> str:
    """The one line that a refused command says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as status:
        cli.main(list(arguments))
    assert status.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


def test_losses_are_shown_in_the_unit_that_they_have(files, tmp_path, capsys):
    study = fit(tmp_path / "s", files, "--unit=bits per byte")
    assert study.unit_of(["news", "code"]) == "bits per byte"
    cli.main(["optimize", f"--study={study}", "--refits=2", "--constraints.max={'web': 0.2}", "--candidates=64"])
    cli.main(["iterate", f"--study={study}"])
    cli.main(["report", f"--study={study}"])
    said = capsys.readouterr().out
    assert "uniform breaks the constraints, +" in said
    assert "Predicted: " in said
    recommended = mde.Study(study.root).search()
    assert recommended.unit == "bits per byte"
    shown = f"{said} {recommended} {recommended.table().html()} {mde.Study(study.root).recommendation()}"
    page = (study.root / "report.html").read_text()
    for words in ("Predicted, bits per byte", "observed, bits per byte", "news, bits per byte"):
        assert words in page
    assert "nats per token" not in shown
    assert "nats per token" not in page
    plot = mde.Study(study.root).plot_predictions()
    assert plot.layout.xaxis.title.text == "observed, bits per byte"


def test_the_unit_is_nats_per_token_where_none_is_named(files, tmp_path, capsys):
    study = fit(tmp_path / "s", files)
    assert study.unit_of(["news"]) == "nats per token"
    cli.main(["optimize", f"--study={study}", "--refits=2", "--candidates=64"])
    cli.main(["report", f"--study={study}"])
    assert "nats per token (" in capsys.readouterr().out


def test_an_optimum_without_a_study_has_the_unit_it_is_given():
    def predict(mixtures):
        return 1 + mixtures**2

    found = mde.optimize(predict, NAMES, NAMES, unit="bits per byte", how=mde.Search(candidates=64))
    assert "bits per byte; web" in str(found)
    assert "nats per token; web" in str(mde.optimize(predict, NAMES, NAMES, how=mde.Search(candidates=64)))


def test_how_files_are_read_is_refused_without_them(files, tmp_path, capsys):
    study = fit(tmp_path / "s", files)
    assert "--unit says how files are read" in refused(capsys, "fit", f"--study={study}", "--unit=bits per byte")
    pair = [f"--mixtures={files / 'mixtures.csv'}", f"--losses={files / 'losses.csv'}"]
    assert "--unit is empty" in refused(capsys, "fit", f"--study={study}", *pair, "--unit= ")


ERRORS = "--higher=*_acc"


def test_more_is_better_of_some_metrics(files, tmp_path, capsys):
    """Fitted as errors, 1 − accuracy, beside losses; wherever values are written they are accuracies again."""
    study = fit(tmp_path / "s", files, ERRORS, losses="all.csv")
    given = pd.read_csv(files / "all.csv", index_col="run")
    kept = study.losses()
    np.testing.assert_allclose(kept["arc_acc"], 1 - given["arc_acc"], rtol=1e-15)
    np.testing.assert_array_equal(kept["news"], given["news"])
    assert study.errors == ("arc_acc", "quiz_acc")
    cli.main(["predict", f"--regressor={study}", f"--mixtures={files / 'mixtures.csv'}", f"--output={tmp_path}/p.csv"])
    # Ridge keeps a little of its penalty even where the truth is linear.
    np.testing.assert_allclose(pd.read_csv(tmp_path / "p.csv", index_col="run"), given, atol=2e-3)
    cli.main(["swarm", f"--study={study}", f"--output={tmp_path}/out"])
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out/metrics.csv", index_col="run_id"), given, rtol=1e-14)


def test_the_mixture_of_most_accuracy_is_found(files, tmp_path, capsys):
    study = fit(tmp_path / "s", files, ERRORS, "--objective={'arc_acc': 1}", losses="all.csv")
    cli.main(["optimize", f"--study={study}", "--refits=2", "--candidates=64", "--max_distance=none"])
    # .3 √web + .1 √books is greatest where web : books is 9 : 1
    found = study.read_json("optimum.json", "optimize")
    np.testing.assert_allclose(list(found["weights"].values()), [0.9, 0, 0.1], atol=0.01)
    assert found["predictions"]["recommended"]["objective"] == pytest.approx(0.8 - np.sqrt(0.1), abs=2e-3)
    cli.main(["report", f"--study={study}"])
    said = capsys.readouterr().out
    assert " error (0.48" in said
    assert "Error is 1 − value, where more is better: arc_acc, quiz_acc." in said
    page = (study.root / "report.html").read_text()
    assert "Predicted, error" in page
    assert "arc_acc, error" in page
    assert "news, nats per token" in page
    recommended = mde.Study(study.root).search()
    assert recommended.unit == "error"
    assert recommended.losses["arc_acc"] == pytest.approx(0.8 - np.sqrt(0.1), abs=2e-3)
    assert "arc_acc 0.51" in str(recommended)
    assert mde.Study(study.root).search("avg-all").unit == "nats per token and error"


@pytest.mark.parametrize(
    ("higher", "expected"),
    [
        ("arc_ac", ["unknown metric in higher", "'arc_ac': did you mean 'arc_acc'"]),
        ("brc_*", ["unknown metric in higher", "'brc_*'"]),
        ("news,*_acc", ["all.csv: run 'r0', domain 'news': 1.", "where more is better expected 0 to 1", "by 100"]),
    ],
)
def test_metrics_that_cannot_be_errors_are_refused(files, tmp_path, capsys, higher, expected):
    pair = [f"--mixtures={files / 'mixtures.csv'}", f"--losses={files / 'all.csv'}"]
    said = refused(capsys, "fit", f"--study={tmp_path / 'new'}", *pair, f"--higher={higher}")
    for text in expected:
        assert text in said
    assert not (tmp_path / "new").exists()


def test_failed_runs_and_other_columns_are_left_out(files, tmp_path, capsys):
    mixtures = pd.read_csv(files / "mixtures.csv", index_col="run").assign(State="finished")
    losses = pd.read_csv(files / "losses.csv", index_col="run").assign(Host="n1")
    losses.loc["r3", "code"] = np.nan
    mixtures.to_csv(tmp_path / "mixtures.csv")
    losses.drop(index="r5").to_csv(tmp_path / "losses.csv")
    pair = [f"--mixtures={tmp_path / 'mixtures.csv'}", f"--losses={tmp_path / 'losses.csv'}"]
    study = tmp_path / "s"
    assert "--ignore='State' leaves" in refused(capsys, "fit", f"--study={study}", *pair)
    assert "2 in all" in refused(capsys, "fit", f"--study={study}", *pair, "--ignore=State,Host")
    assert not study.exists()
    found = fit(study, tmp_path, "--incomplete=drop", "--ignore=State,Host")
    said = capsys.readouterr().out
    assert f"dropped: {tmp_path}/losses.csv: run 'r3', domain 'code': loss nan" in said
    assert f"dropped: {tmp_path}/losses.csv: no row for run 'r5'" in said
    assert "28 runs, 3 domains trained on, 2 evaluated: nats per token" in said
    assert len(found.losses()) == 28
    cli.main(["predict", f"--regressor={study}", pair[0], f"--output={tmp_path}/p.csv"])
    assert len(pd.read_csv(tmp_path / "p.csv")) == 30


def test_families_weigh_as_one(files, tmp_path, capsys):
    """Two accuracies and a loss: the family of accuracies counts as much as each loss does."""
    families = "--families={'tasks': ['*_acc']}"
    study = fit(tmp_path / "s", files, ERRORS, families, "--objective=avg-families", losses="all.csv")
    thirds = {"news": 1 / 3, "code": 1 / 3, "arc_acc": 1 / 6, "quiz_acc": 1 / 6}
    assert study.read_json("fit/choice.json", "fit")["objective"] == pytest.approx(thirds)
    cli.main(["optimize", f"--study={study}", "--refits=2", "--candidates=64"])
    cli.main(["report", f"--study={study}"])
    words = "average loss over families of evaluation domains (tasks) and 2 domains in none"
    assert words in " ".join(capsys.readouterr().out.split())
    assert words in (study.root / "report.html").read_text()
    cli.main(["optimize", f"--study={study}", "--refits=2", "--candidates=64", "--objective={'tasks': 1}"])
    found = study.read_json("optimum.json", "optimize")
    assert found["objective"] == {"arc_acc": 0.5, "quiz_acc": 0.5}
    predicted = found["predictions"]["recommended"]
    assert predicted["objective"] == pytest.approx(
        (predicted["losses"]["arc_acc"] + predicted["losses"]["quiz_acc"]) / 2
    )
    by_pattern = mde.Study(study.root).search({"*_acc": 1})
    np.testing.assert_allclose(by_pattern.mixture, list(found["weights"].values()), atol=1e-3)
    said = refused(capsys, "optimize", f"--study={study}", "--objective={'task': 1}")
    assert "did you mean 'tasks'" in said
    wrong = ["fit", f"--study={study}", f"--mixtures={files / 'mixtures.csv'}", f"--losses={files / 'all.csv'}", ERRORS]
    assert "'arc_ac': did you mean 'arc_acc'" in refused(capsys, *wrong, "--families={'tasks': ['arc_ac']}")
