"""The figure and the table of `mde reweight`, from results written by hand."""

import pandas as pd
import pytest
from finished_study import finish

from mde.reporting import page, reweighting

TRAINING = {"steps": 2, "batch_size": 4, "seq_len": 8}


def found(code, seeds, tokens, **constants):
    by_domain = lambda share: {"code": share, "web": 1 - share}  # noqa: E731
    settings = {**constants, "training": TRAINING, "from_seed_model": True}
    seeds = {str(seed): by_domain(share) for seed, share in enumerate(seeds)}
    return {"weights": by_domain(code), "seeds": seeds, "settings": settings, "tokens": tokens}


@pytest.fixture
def study(tmp_path):
    """A finished study with two rounds of DoReMi, two seeds each, and DoGE with one."""
    study = finish(tmp_path / "demo")
    constants = {"method": "doremi", "eta": 1.0, "smoothing": 1e-3, "rounds": 2}
    study.write_json("reweighting/doremi.json", found(0.7, [0.6, 0.8], 2_000_000, **constants))
    doge = {"method": "doge", "mu": 0.05, "target": None}
    study.write_json("reweighting/doge.json", found(0.3, [0.3], 500_000, **doge))
    rows = [(seed, r, step, 0.1 * r + 0.2 * seed + 0.1 * step) for r in (1, 2) for seed in (0, 1) for step in (1, 2)]
    table = pd.DataFrame(rows, columns=["seed", "round", "step", "code"]).assign(web=lambda t: 1 - t["code"])
    study.write_table("reweighting/doremi.csv", table.set_index("seed"))
    study.write_table("reweighting/doge.csv", table[(table["round"] == 1) & (table["seed"] == 0)].set_index("seed"))
    study.write_table("reweighting/weights.csv", pd.DataFrame({"doremi": [0.7, 0.3]}, pd.Index(["code", "web"])))
    return study


def test_mixtures_stand_beside_those_they_are_compared_with(study):
    table = reweighting.mixtures(study)
    assert list(table.frame) == ["DoReMi", "DoGE", "recommended", "uniform", "proportional"]
    assert table.frame.loc["code", "DoReMi"] == "70.0% ± 10.0%"
    assert list(table.frame.loc["web"])[1:4] == ["70.0%", "40.0%", "50.0%"]
    assert "2 seeds" in table.notes[0]
    assert "rounds 2" in table.notes[0]
    assert "2M tokens, the references' included" in table.notes[0]
    assert table.notes[1].startswith("DoGE: one seed; 2 steps, continued from the seed model; μ 0.05; trained on 500k")


def test_trajectories_are_those_of_the_last_round_a_panel_a_domain(study):
    figure = reweighting.trajectories(study)
    names = list(study.domains.training)
    lines = [(trace.xaxis, trace.name, list(trace.x), list(trace.y)) for trace in figure.data]
    panel = {name: f"x{k + 1}" if k else "x" for k, name in enumerate(names)}
    code = [(name, y) for axis, name, _, y in lines if axis == panel["code"]]
    assert [name for name, _ in code] == ["DoReMi"] * 3 + ["DoGE"]
    for (_, y), expected in zip(code, [[0.3, 0.4], [0.5, 0.6], [0.4, 0.5], [0.2, 0.3]], strict=True):
        assert y == pytest.approx(expected)
    assert sum(trace.showlegend is not False for trace in figure.data) == 2


def test_the_page_has_a_section_where_there_is_something_to_show(study):
    html = page.html(study)
    assert "Online re-weighting" in html
    assert "70.0% ± 10.0%" in html
    (study.root / "reweighting" / "weights.csv").unlink()
    assert "Online re-weighting" not in page.html(study)
