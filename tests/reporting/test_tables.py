import pytest
from finished_study import prepare, train

from mde.commands.report import text
from mde.reporting import tables
from mde.study import Study


def row(table, label):
    return table.frame.loc[label].tolist()


def test_regressors(study):
    table = tables.regressors(study)
    assert row(table, "mean") == ["4.00 ± 0.40", "–"]
    assert row(table, "mde[0]") == ["3.00 ± 0.10", "0.90"]
    assert row(table, "ridge  mde[0]+mde[1] *") == ["0.250 ± 0.010", "0.95"]
    assert table.marked == ("ridge  mde[0]+mde[1] *",)
    assert table.groups[2:4] == ("mixture weights only (λ)",) * 2


def test_the_chosen_regressor_by_domain(study):
    table = tables.fit_by_domain(study)
    assert table.frame.index.tolist() == list(study.domains.evaluation)[::-1]  # least R² first
    assert row(table, study.domains.evaluation[0]) == ["0.250 ± 0.010", "0.90", "0.95", "0.0100"]
    assert "below 0.5 for 1 of 3" in table.notes[0]


def test_recommendation(study):
    table = tables.recommendation(study)
    assert row(table, "code") == ["3,000", "75.0%", "60.0%", "55.0% to 70.0%", "2"]
    assert "2.1000 nats per token (2.0000 to 2.2000), 0.1000 below uniform" in table.notes[0]


@pytest.mark.parametrize(
    ("objectives", "broken", "beta", "says"),
    [
        ({}, ["uniform"], 0, "(2.0000 to 2.2000), 0.2000 below proportional, the next best prediction."),
        (
            {"uniform": 2.05},
            ["uniform"],
            0,
            "0.2000 below proportional, the next best prediction, 0.0500 above uniform, which breaks the constraints.",
        ),
        ({}, ["uniform", "proportional", "best observed"], 0, "2.1000 nats per token (2.0000 to 2.2000)."),
        ({"uniform": 2.05}, [], 1, "(2.0000 to 2.2000), 0.0500 above uniform, which the regressor is less sure of."),
        ({"uniform": 2.05}, [], 0, "(2.0000 to 2.2000), 0.0500 above uniform."),
        ({"uniform": 2.10004}, [], 0, "(2.0000 to 2.2000), level with uniform, the next best prediction."),
    ],
)
def test_a_recommendation_is_compared_with_what_the_constraints_allow(study, objectives, broken, beta, says):
    optimum = study.read_json("optimum.json", "optimize")
    for name, predicted in optimum["predictions"].items():
        predicted["objective"] = objectives.get(name, predicted["objective"])
        predicted["feasible"] = name not in broken
    study.write_json("optimum.json", optimum | {"beta": beta})
    assert tables.recommendation(study).notes[0].endswith(says)


@pytest.mark.parametrize(("low", "said"), [(0.55, False), (0.5999, True), (0.65, True)])
def test_a_share_at_the_edge_of_its_interval_is_explained(study, low, said):
    optimum = study.read_json("optimum.json", "optimize")
    study.write_json("optimum.json", optimum | {"weight_intervals": {"web": [0.3, 0.45], "code": [low, 0.7]}})
    notes = tables.recommendation(study).notes
    assert any(note.startswith("At an edge of its interval: code.") for note in notes) == said


def test_times(study):
    assert row(tables.times(study), "train") == ["20.5"]
    assert row(tables.times(study), "total") == ["79.5"]


def test_text_holds_every_table_in_100_columns(study):
    shown = text(study)
    assert max(map(len, shown.splitlines())) <= 100
    for title in ("Regressors", "Recommended mixture", "Validation runs", "Measured losses", "Time of each stage"):
        assert f"\n\n{title}" in f"\n\n{shown}"
    lines = shown.splitlines()
    heading = lines.index("with mixtures of data experts (MDE)")
    assert lines[heading + 1].startswith("  ridge  mde[0]+mde[1] *  ")


def test_text_leaves_out_what_is_not_done(tmp_path):
    study = Study(tmp_path / "started")
    assert text(study) == ""
    prepare(study)
    train(study)
    assert text(study).splitlines()[0] == "Time of each stage"
    assert "Validation runs" not in text(study)


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (48.67, 0.64, "48.7 ± 0.6"),
        (0.01924, 0.0016, "0.0192 ± 0.0016"),
        (251.0, 47.0, "251 ± 47"),
        (126.0, 0.43, "126.0 ± 0.4"),
        (0.0, 0.0, "0.000 ± 0.000"),
    ],
)
def test_errors_are_shown_to_three_digits(study, value, error, shown):
    table = study.read_table("fit/objective.csv", "fit")
    table.loc[table["regressor"] == "mean", ["mse", "mse_se"]] = value / 1e3, error / 1e3
    study.write_table("fit/objective.csv", table)
    assert row(tables.regressors(study), "mean") == [shown, "–"]
