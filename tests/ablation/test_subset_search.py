import numpy as np
import pytest
from numpy.testing import assert_allclose

from mde.ablation.search import search, together
from mde.optimization import objectives

UNITS, DOMAINS = ["a-0", "a-1", "b-0"], ["a", "b"]
WORTH = np.array([[0.5, 0.1], [0.2, 0.2], [-0.3, 0.4]])  # what each unit takes off the loss of each domain


def losses(rows):
    return 5 - rows @ WORTH


GOAL = objectives.make({"a": 3.0, "b": 1.0}, DOMAINS, DOMAINS)


@pytest.mark.parametrize("limit", [8, 7])  # all subsets; random orders
def test_units_that_do_not_interact_are_worth_what_they_take_off(limit):
    found = search(losses, UNITS, DOMAINS, GOAL, limit)
    values = found.values.set_index("domain", append=True)["value"].unstack()
    assert_allclose(values.loc[UNITS, DOMAINS], WORTH, atol=1e-12)
    assert_allclose(values.loc[UNITS, "objective"], WORTH @ [0.75, 0.25], atol=1e-12)
    if limit == 8:
        assert (found.values["error"] == 0).all()
    else:
        assert found.values["error"].isna().all()  # two pairs of orders know no error
    assert list(found.additions.index) == ["a-0", "a-1", "b-0"]
    assert_allclose(found.additions["objective"], [4.6, 4.4, 4.525])
    best = found.candidates.iloc[0]
    assert best[UNITS].tolist() == [1, 1, 0]
    assert best["objective"] == pytest.approx(4.4)
    assert len(found.candidates) == 8 or limit < 8


def test_what_is_given_is_not_added():
    found = search(losses, UNITS, DOMAINS, GOAL, 8, given=["a-0", "b-0"])
    assert list(found.additions.index) == ["a-1"]
    assert found.additions["objective"].tolist() == pytest.approx([4.525])


def test_a_worst_case_is_searched_as_it_is():
    worst = objectives.make("worst-all", DOMAINS, DOMAINS)
    found = search(losses, UNITS, DOMAINS, worst, 8)
    objective = found.values[found.values["domain"] == "objective"]["value"]
    assert objective.sum() == pytest.approx(5 - max(5 - WORTH.sum(axis=0)))
    assert found.candidates["objective"].is_monotonic_increasing


def test_tables_of_several_evaluators_say_whose_they_are():
    found = {name: search(losses, UNITS, DOMAINS, GOAL, 8) for name in ("merged", "mde[0]")}
    assert together(found, "additions")["evaluator"].tolist() == ["merged"] * 3 + ["mde[0]"] * 3
