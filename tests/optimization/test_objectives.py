import numpy as np
import pytest

from mde.errors import UserError
from mde.optimization import objectives

EVALUATION = ["news", "web", "code", "trivia"]
TRAINING = ["code", "web"]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("avg-sp", [0, 1 / 2, 1 / 2, 0]),
        ("avg-et", [1 / 2, 0, 0, 1 / 2]),
        ("avg-all", [1 / 4] * 4),
        ("avg-et+sp", [1 / 4] * 4),
        ({"trivia": 3, "web": 1}, [0, 1 / 4, 0, 3 / 4]),
    ],
)
def test_weights_follow_names_and_sum_to_one(objective, expected):
    np.testing.assert_allclose(objectives.weights(objective, EVALUATION, TRAINING), expected, atol=1e-15)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("avg-ps", "unknown objective 'avg-ps': did you mean 'avg-sp'"),
        ("worst-sp", "objective 'worst-sp': a worst case is for optimize.*fit on an average, such as 'avg-sp'"),
        ({"triva": 1}, "unknown evaluation domain in the objective 'triva': did you mean 'trivia'"),
        ({"web": -1}, "domain 'web' has weight -1"),
        ({"web": float("nan")}, "domain 'web' has weight nan"),
        ({"web": 0}, "every weight is zero"),
        ({}, "every weight is zero"),
    ],
)
def test_a_bad_objective_is_refused(objective, says):
    with pytest.raises(UserError, match=says):
        objectives.weights(objective, EVALUATION, TRAINING)


def test_averages_over_domains_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="training domain 'books' is not among"):
        objectives.weights("avg-sp", EVALUATION, ["web", "books"])
    with pytest.raises(UserError, match="every evaluation domain is a training domain"):
        objectives.weights("avg-et", TRAINING, TRAINING)
    with pytest.raises(UserError, match="occurs twice"):
        objectives.weights("avg-all", ["web", "web"], ["web"])


LOSSES = np.array([[3.0, 2.0, 1.0, 9.0], [1.0, 2.5, 2.0, 8.0]])


def test_a_worst_case_is_the_greatest_loss_of_its_domains():
    make = objectives.make
    np.testing.assert_array_equal(make("worst-all", EVALUATION, TRAINING)(LOSSES), [9, 8])
    np.testing.assert_array_equal(make("worst-sp", EVALUATION, TRAINING)(LOSSES), [2, 2.5])
    np.testing.assert_array_equal(make("worst-et", EVALUATION, TRAINING)(LOSSES), [9, 8])
    baseline = np.array([2.0, 2.0, 1.5, 8.5])
    np.testing.assert_array_equal(make("worst-all", EVALUATION, TRAINING, baseline)(LOSSES), [1, 0.5])


def test_an_objective_stands_where_weights_would():
    goal = objectives.make({"trivia": 1, "web": 1}, EVALUATION, TRAINING)
    np.testing.assert_array_equal(LOSSES @ goal, [5.5, 5.25])
    np.testing.assert_array_equal(np.stack([LOSSES, LOSSES]) @ goal, [[5.5, 5.25]] * 2)
    assert goal.shape == (4,)


def test_what_is_unsure_counts_as_worse():
    deviations = np.array([[0.1, 0.2, 0.0, 0.4], [0.3, 0.0, 0.0, 0.0]])
    goal = objectives.make({"news": 1, "web": 1}, EVALUATION, TRAINING, beta=2.0)
    together, apart = np.ones((4, 4)), np.eye(4)
    mean = goal(LOSSES)
    np.testing.assert_allclose(goal.of_prediction(LOSSES, deviations, together), mean + 2 * np.array([0.15, 0.15]))
    expected = mean + 2 * np.array([np.hypot(0.1, 0.2) / 2, 0.15])
    np.testing.assert_allclose(goal.of_prediction(LOSSES, deviations, apart), expected)
    np.testing.assert_allclose(goal.of_prediction(LOSSES, deviations), mean + 0.3)  # at worst they go together
    worst = objectives.make("worst-all", EVALUATION, TRAINING, beta=2.0)
    np.testing.assert_allclose(worst.of_prediction(LOSSES, deviations), [9.8, 8.0])
    with pytest.raises(UserError, match="beta=2: the regressor does not say how sure it is"):
        goal.of_prediction(LOSSES)
    np.testing.assert_array_equal(
        objectives.make("avg-all", EVALUATION, TRAINING).of_prediction(LOSSES), LOSSES.mean(1)
    )


def test_a_recorded_objective_comes_back():
    optimum = {
        "objective": "worst-sp",
        "reference": "uniform",
        "beta": 0.5,
        "predictions": {"uniform": {"losses": {"code": 1.5, "trivia": 0.0, "web": 2.0, "news": 0.0}}},
    }
    goal = objectives.recorded(optimum, EVALUATION, TRAINING)
    np.testing.assert_array_equal(goal(LOSSES), [0, 0.5])
    assert goal.beta == 0.5


def test_objectives_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="'worst-al': did you mean 'worst-all'"):
        objectives.make("worst-al", EVALUATION, TRAINING)
    with pytest.raises(UserError, match="only a worst case has a reference"):
        objectives.make("avg-all", EVALUATION, TRAINING, np.zeros(4))
    with pytest.raises(UserError, match="beta=nan"):
        objectives.make("avg-all", EVALUATION, TRAINING, beta=float("nan"))


TASKS = ["minerva_algebra", "minerva_geometry", "humaneval", "mbpp", "mbpp_plus", "arc"]
FAMILIES = {"math": ["minerva_*"], "code": ["mbpp*", "humaneval"]}


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("avg-families", [1 / 6, 1 / 6, 1 / 9, 1 / 9, 1 / 9, 1 / 3]),  # math, code, and arc by itself
        ({"math": 3, "code": 1}, [3 / 8, 3 / 8, 1 / 12, 1 / 12, 1 / 12, 0]),
        ({"mbpp*": 1, "arc": 1}, [0, 0, 0, 1 / 4, 1 / 4, 1 / 2]),
        ({"math": 1, "minerva_algebra": 1}, [3 / 4, 1 / 4, 0, 0, 0, 0]),
        ("avg-all", [1 / 6] * 6),
    ],
)
def test_a_family_shares_its_weight_among_its_members(objective, expected):
    families = objectives.in_families(FAMILIES, TASKS)
    assert families == {"math": TASKS[:2], "code": TASKS[2:5]}
    np.testing.assert_allclose(objectives.weights(objective, TASKS, [], families), expected, rtol=1e-15)
    plain = objectives.expanded(objective, TASKS, [], families)
    np.testing.assert_allclose(objectives.weights(plain, TASKS, []), expected, rtol=1e-15)


def test_an_objective_that_needs_no_families_stays_as_it_is():
    families = objectives.in_families(FAMILIES, TASKS)
    for objective in ("avg-all", "worst-all", "avg-lal", {"arc": 2, "mbpp": 1}):
        assert objectives.expanded(objective, TASKS, [], families) == objective


@pytest.mark.parametrize(
    ("families", "says"),
    [
        ({"math": ["minerv_*"]}, "unknown evaluation domain in family 'math' 'minerv_.*did you mean 'minerva_"),
        ({"code": ["humanevel"]}, "in family 'code' 'humanevel': did you mean 'humaneval'"),
        ({"code": ["mbpp*"], "python": ["mbpp"]}, "'mbpp' is in families 'code' and 'python', expected one"),
        ({"arc": ["mbpp"]}, "family 'arc' has the name of an evaluation domain"),
        ({"math": []}, "family 'math' is empty"),
    ],
)
def test_bad_families_are_refused(families, says):
    with pytest.raises(UserError, match=says):
        objectives.in_families(families, TASKS)


def test_objectives_of_families_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="objective avg-families: there are no families"):
        objectives.weights("avg-families", TASKS, [])
    with pytest.raises(UserError, match="unknown evaluation domain in the objective 'mth': did you mean 'math'"):
        objectives.weights({"mth": 1}, TASKS, [], objectives.in_families(FAMILIES, TASKS))
    with pytest.raises(UserError, match="domain 'math' has weight -1"):
        objectives.weights({"math": -1}, TASKS, [], objectives.in_families(FAMILIES, TASKS))
