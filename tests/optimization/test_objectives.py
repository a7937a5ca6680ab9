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
        ({"trivia": 3, "web": 1}, [0, 1 / 4, 0, 3 / 4]),
    ],
)
def test_weights_follow_names_and_sum_to_one(objective, expected):
    np.testing.assert_allclose(objectives.weights(objective, EVALUATION, TRAINING), expected, atol=1e-15)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("avg-ps", "unknown objective 'avg-ps': did you mean 'avg-sp'"),
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
