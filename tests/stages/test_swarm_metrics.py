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
    assert study.unit == "bits per byte"
    cli.main(["optimize", f"--study={study}", "--refits=2", "--upper={'web': 0.2}", "--candidates=64"])
    cli.main(["iterate", f"--study={study}"])
    cli.main(["report", f"--study={study}"])
    said = capsys.readouterr().out
    assert "uniform breaks the constraints, +" in said
    assert "Predicted: " in said
    recommended = mde.Study(study.root).search()
    assert recommended.losses.name == "bits per byte"
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
    assert study.unit == "nats per token"
    cli.main(["optimize", f"--study={study}", "--refits=2", "--candidates=64"])
    cli.main(["report", f"--study={study}"])
    assert "nats per token (" in capsys.readouterr().out


def test_an_optimum_without_a_study_has_the_unit_it_is_given():
    def predict(mixtures):
        return 1 + mixtures**2

    found = mde.optimize(predict, NAMES, NAMES, unit="bits per byte", candidates=64)
    assert "bits per byte; web" in str(found)
    assert "nats per token; web" in str(mde.optimize(predict, NAMES, NAMES, candidates=64))


def test_how_files_are_read_is_refused_without_them(files, tmp_path, capsys):
    study = fit(tmp_path / "s", files)
    assert "--unit says how files are read" in refused(capsys, "fit", f"--study={study}", "--unit=bits per byte")
    pair = [f"--mixtures={files / 'mixtures.csv'}", f"--losses={files / 'losses.csv'}"]
    assert "--unit is empty" in refused(capsys, "fit", f"--study={study}", *pair, "--unit= ")
