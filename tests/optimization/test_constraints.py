import numpy as np
import pytest
from regions import NAMES, UNIFORM, constrained

from mde.errors import UserError
from mde.optimization.constraints import Constraints, Group

TOKENS = {"web": 1000.0, "code": 100.0, "books": 200.0, "wiki": 300.0, "news": 400.0}


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ({"lower": {"wbe": 0.1}}, "unknown domain in the constraints' lower bounds 'wbe': did you mean 'web'"),
        ({"fixed": {"cod": 0.1}}, "fixed shares 'cod': did you mean 'code'"),
        ({"groups": {"g": Group(("boks",))}}, "group 'g' 'boks': did you mean 'books'"),
        ({"tokens": TOKENS | {"x": 1}}, "tokens 'x'"),
        ({"prior": {"nwes": 1}, "max_kl": 1}, "prior 'nwes': did you mean 'news'"),
        ({"upper": {"web": 1.2}}, "upper share 1.2 of domain 'web', expected 0 to 1"),
        ({"lower": {"web": float("nan")}}, "lower share nan of domain 'web'"),
        (
            {"lower": {"web": 0.5}, "upper": {"web": 0.3}},
            "'web' has the least share 0.5, but upper bounds allow at most",
        ),
        (
            {"lower": {"web": 0.7, "code": 0.5}},
            "least shares sum to 1.2, more than 1; the greatest is 0.7, of domain 'web'",
        ),
        ({"upper": dict.fromkeys(NAMES, 0.1)}, "greatest shares sum to 0.5, less than 1; the least is 0.1"),
        ({"fixed": {"web": 0.5}, "upper": {"web": 0.3}}, "'web' is fixed at 0.5, outside its bounds 0 to 0.3"),
        ({"groups": {"g": Group(("web",), 0.6, 0.5)}}, "group 'g' of 1 domains with bounds 0.6 and 0.5"),
        ({"groups": {"g": Group(())}}, "group 'g' of 0 domains"),
        (
            {"lower": {"web": 0.4, "code": 0.3}, "groups": {"g": Group(("web", "code"), 0, 0.5)}},
            "least shares of group 'g' sum to 0.7, more than 0.5",
        ),
        (
            {"upper": {"web": 0.1, "code": 0.1}, "groups": {"g": Group(("web", "code"), 0.5)}},
            "greatest shares of group 'g' sum to 0.2, less than 0.5",
        ),
        (
            {"tokens": TOKENS, "budget": 1e4, "max_epochs": 4},
            r"sum to 0.8, less than 1; .* 0.04, of domain 'code' \(100 tokens × 4 epochs at a budget of 10,000\)",
        ),
        (
            {"tokens": TOKENS, "budget": 1000, "max_epochs": 2, "lower": {"code": 0.3}},
            "'code' has the least share 0.3, but 100 tokens × 2 epochs at a budget of 1,000 allow at most 0.2",
        ),
        ({"tokens": {"web": 1}}, "no tokens of domain 'code'"),
        ({"max_epochs": 4}, "max_epochs=4 needs tokens, those that there are by domain"),
        ({"tokens": TOKENS, "budget": -1}, "budget=-1"),
        ({"max_kl": 0.1}, "max_kl and kl_penalty need a prior"),
        ({"prior": UNIFORM, "max_kl": -1}, "max_kl=-1"),
        ({"prior": {"web": 0.5}, "max_kl": 1}, "prior: row 0: shares sum to 0.5"),
        (
            {"prior": {"web": 0.5, "code": 0.5}, "max_kl": 1, "lower": {"news": 0.1}},
            "'news' has the least share 0.1, but shares of zero in the prior allow at most 0",
        ),
    ],
)
def test_constraints_that_make_no_sense_are_named_in_one_line(bounds, says):
    with pytest.raises(UserError, match=says) as error:
        constrained(**bounds)
    assert "\n" not in str(error.value)


def test_tokens_cap_shares():
    constraints = constrained(tokens=TOKENS, budget=1000, max_epochs=2, upper={"web": 0.5, "code": 0.9})
    np.testing.assert_allclose(constraints.region.high, [0.5, 0.2, 0.4, 0.6, 0.8])


def test_the_answer_names_what_binds_and_counts_epochs():
    constraints = constrained(
        lower={"news": 0.05},
        upper={"web": 0.5},
        fixed={"books": 0.1},
        tokens=TOKENS,
        budget=1000,
        max_epochs=2,
        groups={"text": Group(("books", "wiki"), 0, 0.25), "loose": Group(("web", "news"), 0.1, 0.9)},
        prior=UNIFORM,
    )
    assert constraints.binding(np.array([0.5, 0.2, 0.1, 0.15, 0.05])) == [
        "web is at its greatest share 0.5",
        "code is at 2 epochs of its tokens, share 0.2",
        "books is fixed at 0.1",
        "news is at its least share 0.05",
        "group text is at its greatest share 0.25",
    ]
    epochs = constraints.epochs(np.array([0.5, 0.2, 0.1, 0.15, 0.05]))
    assert epochs == pytest.approx({"web": 0.5, "code": 2, "books": 0.5, "wiki": 0.5, "news": 0.125})
    assert Constraints(NAMES).binding(np.array([1.0, 0, 0, 0, 0])) == []
    assert Constraints(NAMES).epochs(np.full(5, 0.2)) is None


def test_a_cap_on_divergence_binds():
    constraints = constrained(prior=UNIFORM, max_kl=np.log(2.5))
    assert constraints.binding(np.array([0.5, 0.5, 0, 0, 0])) == ["KL to the prior is at 0.9163 nats"]
    assert constraints.binding(np.full(5, 0.2)) == []
