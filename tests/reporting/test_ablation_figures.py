"""Figures and tables of ablations, from tables written by hand."""

import numpy as np
import pandas as pd
import pytest

from mde.reporting import ablation
from mde.study import Study

DOMAINS = ["wiki", "code", "news"]
UNIONS = ["union-00", "union-01", "union-02"]


@pytest.fixture
def study(tmp_path):
    """A study of two seed models, two proxies, two sources and one domain outside."""
    found = Study(tmp_path)
    units = pd.DataFrame({"domain": ["wiki", "code"]}, pd.Index(["wiki-0", "code-0"], name="unit"))
    found.write_table("ablation/units.csv", units)
    losses = [
        pd.DataFrame(np.log([[2.0, 8, 3], [3, 3, 4], [4, 4, 5]]) + shift, pd.Index(UNIONS, name="union"), DOMAINS)
        .assign(model=model)
        .assign(seed_steps=steps)
        for steps in (0, 9)
        for model, shift in (("seq", 0.0), ("merged", 0.1), ("mde[0]", 0.2))
    ]
    found.write_table("ablation/losses.csv", pd.concat(losses))
    rows = [
        {"proxy": proxy, "domain": domain, "unions": 3, "pearson": value, "pearson_low": value - 0.1}
        | {"pearson_high": value + 0.05, "spearman": np.nan, "spearman_low": np.nan, "spearman_high": np.nan}
        | {"partial": value, "partial_low": np.nan, "partial_high": np.nan}
        | {"pearson_effective": 2.5, "seed_steps": steps}
        for steps in (0, 9)
        for proxy, value in (("merged", 0.1 * steps - 0.2), ("mde[0]", 0.5))
        for domain in (*DOMAINS, "mean inside", "mean outside")
    ]
    found.write_table("ablation/correlations.csv", pd.DataFrame(rows).set_index("proxy"))
    columns = {"runs": [1, 2, 0, 3, 3, 3], "tokens": [90, 200, 0, 400, 400, 400], "seed_steps": 9}
    what = ["seed model", "units", "partitions", "unions", "every union of sources", "every subset of units"]
    found.write_table("ablation/cost.csv", pd.DataFrame(columns, pd.Index(what, name="what")))
    values = pd.DataFrame(
        {
            "domain": ["objective", "news"] * 4,
            "value": [0.5, 0.1, 0.2, 0.0, 0.4, 0.1, 0.3, 0.2],
            "error": [0.0] * 4 + [0.01] * 4,
            "evaluator": ["merged"] * 4 + ["mde[0]"] * 4,
        },
        pd.Index(["wiki-0", "wiki-0", "code-0", "code-0"] * 2, name="unit"),
    )
    found.write_table("ablation/values.csv", values)
    subsets = {"wiki-0": [1, 0, 0, 0], "code-0": [1, 1, 0, 1], "objective": [0.9, 1.0, 0.7, 0.8]}
    candidates = pd.DataFrame({**subsets, "evaluator": ["merged", "merged", "mde[0]", "mde[0]"]})
    found.write_table("ablation/candidates.csv", candidates.rename_axis("rank"))
    order = {"step": [1, 2, 1], "objective": [1.0, 0.9, 0.8], "evaluator": ["merged", "merged", "mde[0]"]}
    index = pd.Index(["code-0", "wiki-0", "code-0"], name="unit")
    found.write_table("ablation/additions.csv", pd.DataFrame(order, index))
    return found


def test_perplexities_have_geometric_means_inside_and_outside(study):
    table = ablation.perplexities(study)
    seq = table[table["model"] == "seq"]
    assert seq.loc["union-00", "wiki"] == pytest.approx(2)
    assert seq.loc["union-00", "mean inside"] == pytest.approx(4)  # of 2 and 8
    assert seq.loc["union-00", "mean outside"] == pytest.approx(3)


def test_merges_are_drawn_against_their_unions(study):
    figure = ablation.merges(ablation.perplexities(study), "mean outside")
    assert [trace.name for trace in figure.data] == ["equal", "merged", "mde[0]"]
    merged = figure.data[1]
    assert list(merged.x) == pytest.approx([3, 4, 5])
    assert list(merged.y) == pytest.approx(list(np.exp(0.1) * np.array([3, 4, 5])))
    assert list(merged.text) == UNIONS


def test_the_curve_has_a_point_a_seed_model(study):
    figure = ablation.seed_curve(ablation.correlations(study))
    merged = figure.data[0]
    assert list(merged.y) == pytest.approx([-0.2, 0.7])
    assert list(merged.error_y.arrayminus) == pytest.approx([0.1, 0.1])
    assert list(figure.layout.xaxis.ticktext) == ["0", "9"]


def test_worths_are_bars_and_errors_are_shown_where_there_are_some(study):
    figure = ablation.worth(study.read_table("ablation/values.csv", "ablate"))
    exact, sampled = figure.data
    assert list(exact.x) == [0.5, 0.2]
    assert not exact.error_x.visible
    assert sampled.error_x.visible


def test_the_text_has_every_table(study):
    found = ablation.text(study)
    for part in (
        "Intervals are not known",
        "(effectively",
        "0.70 [0.60, 0.75]",  # merged, the longer seed model
        "-0.20 [-0.30, -0.15]",  # the shorter one
        "+0.4000 ± 0.0100",
        "given",  # mde[0] was not asked about wiki-0
        "Best of 2 subsets by merged: wiki-0, code-0 (0.9000 nats per token).",
        "Best of 2 subsets by mde[0]: none, the seed model (0.7000 nats per token).",
        "2.0",  # unions took twice the tokens of the units
    ):
        assert part in found
    assert found.count("\n\n") >= 5
