import numpy as np
import pandas as pd
import pytest

from mde.optimization import surface as looking
from mde.reporting import surface
from mde.study import Study

NAMES = ["a", "b", "c", "d"]


@pytest.fixture
def four(tmp_path):
    """A study of four domains whose losses are λ·slopes of the domain itself."""
    study = Study(tmp_path / "four")
    study.write_json("study.json", {"format": 3, "training_domains": NAMES, "evaluation_domains": NAMES})
    mixture = np.array([0.1, 0.2, 0.3, 0.4])
    triples, points = looking.triples(mixture), looking.ternary_grid()
    losses = np.stack([3 - looking.sliced(mixture, triple, points) for triple in triples])
    draws = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    arrays = {"triples": triples, "points": points, "losses": losses, "draws": draws, "draw_losses": 3 - draws}
    study.write_arrays(surface.DATA, arrays)
    predictions = {"recommended": {"losses": dict(zip(NAMES, 3 - mixture, strict=True))}}
    weights = dict(zip(NAMES, mixture, strict=True))
    study.write_json("optimum.json", {"objective": {"a": 1}, "weights": weights, "predictions": predictions})
    return study


def test_slices_divide_what_three_domains_have_and_leave_the_others_alone():
    mixture = np.array([0.1, 0.2, 0.3, 0.4])
    triples = looking.triples(mixture)
    assert triples.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    points = looking.ternary_grid()
    assert len(points) == 91
    assert len(np.unique(points, axis=0)) == 91
    found = looking.sliced(mixture, triples[0], points)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(found[:, 0], 0.1)
    assert found.min() >= 0
    np.testing.assert_allclose(looking.sliced(mixture, triples[0], mixture[None, 1:] / 0.9)[0], mixture)


def test_a_step_to_a_domain_is_taken_from_the_others_in_proportion():
    found = looking.moved(np.array([0.5, 0.3, 0.2]), 0.1)
    expected = [[0.6, 0.24, 0.16], [0.5 * 6 / 7, 0.4, 0.2 * 6 / 7], [0.5 * 7 / 8, 0.3 * 7 / 8, 0.3]]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(looking.moved(np.array([0.0, 1.0]))[0], [0.01, 0.99])  # from no share at all
    corner = looking.moved(np.array([0.95, 0.05]), 0.1)
    assert np.isnan(corner[0]).all()
    np.testing.assert_allclose(corner[1], [0.85, 0.15])


def test_the_map_of_steps_has_the_objective_first_and_is_as_dark_below_zero_as_above(four):
    assert surface.moves(four, surface.named_losses(four)) is None  # of a study made before they were kept
    changes = np.arange(16).reshape(4, 4) / 1e3 - 0.004
    changes[3] = np.nan
    four.write_arrays(surface.DATA, four.read_arrays(surface.DATA, "optimize") | {"moves": changes})
    found = surface.moves(four, surface.named_losses(four))
    assert found.index.tolist() == ["objective", *NAMES]
    assert found.columns.tolist() == NAMES
    np.testing.assert_allclose(found.loc["c", "b"], changes[1, 2])
    np.testing.assert_allclose(found.loc["objective"], changes[:, 0], atol=1e-12)  # that of a alone
    (cells,) = surface.move_map(found).data
    assert cells.zmin == -cells.zmax
    assert 6 < cells.zmax <= 7  # thousandths
    assert cells.colorscale[0][1] == "#0b4f8a"  # blue where the loss falls
    assert "one more percent point" in "".join(surface.body(four)).lower()


def test_predicted_gains_stand_against_a_baseline_with_the_greatest_first(four):
    optimum = four.read_json("optimum.json", "optimize")
    assert "less that of the" not in "".join(surface.body(four))  # there is no baseline
    optimum["predictions"]["uniform"] = {"losses": {"a": 2.8, "b": 2.9, "c": 2.6, "d": 2.7}}
    four.write_json("optimum.json", optimum)
    text = "".join(surface.body(four))
    assert "less that of the uniform mixture" in text
    # recommended is at 2.9, 2.8, 2.7, 2.6
    assert '"y":["b","d","a","c"]' in text


def test_many_domains_have_the_slices_of_the_largest_shares():
    mixture = np.arange(1, 11) / 55
    found = looking.triples(mixture)
    assert len(found) == 20
    assert found.min() == 4


def test_a_slice_shows_the_objective_at_its_points_and_the_recommended_mixture(four):
    first, second, *_ = surface.slices(four)
    assert first.domains == ("b", "c", "d")
    np.testing.assert_allclose(first.objective, 2.9)  # that of a, whose share is left alone
    np.testing.assert_allclose(second.objective, 3 - 0.8 * second.points[:, 0])
    figure = surface.ternary(second)
    grid, star = figure.data
    np.testing.assert_allclose(np.array(grid.a) + grid.b + grid.c, 0.8)
    np.testing.assert_allclose([star.a[0], star.b[0], star.c[0]], [0.1, 0.3, 0.4])
    assert figure.layout.ternary.sum == pytest.approx(0.8)


def test_pairs_that_go_against_each_other_come_first():
    draws = pd.DataFrame({"x": [1.0, 2, 3, 4], "y": [8.0, 4, 2, 1], "z": [1.0, 2, 4, 3]})
    ranks = surface.correlations(draws)
    assert ranks.loc["x", "y"] == pytest.approx(-1)
    assert ranks.loc["x", "z"] == pytest.approx(0.8)  # 1 - 6 · 2 / (4 · 15)
    assert surface.opposed(ranks) == [("x", "y"), ("y", "z"), ("x", "z")]
    assert surface.opposed(ranks, 1) == [("x", "y")]


def test_the_section_offers_slices_and_pairs(four):
    text = "".join(surface.body(four))
    assert text.count("<select>") == 2
    assert "<option>b, c, d</option>" in text
    assert text.count("<option>") == 4 + 6
