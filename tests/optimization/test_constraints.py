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
        ({"tokens": TOKENS, "budget": 1e4, "max_epochs": {"cod": 4}}, "max_epochs 'cod': did you mean 'code'"),
        (
            {"tokens": TOKENS, "budget": 1e4, "max_epochs": {"code": 0}},
            r"max_epochs\['code'\]=0, expected a positive number",
        ),
        ({"tokens": TOKENS, "budget": 1e4, "max_epochs": {}}, "max_epochs={}, expected a positive number"),
        ({"max_epochs": {"code": 4}}, "needs tokens, those that there are by domain"),
        ({"frozen": {"old": {"web": 1, "cod": 1}}}, "frozen group 'old' 'cod': did you mean 'code'"),
        ({"frozen": {"old": {"web": 0, "code": 0}}}, "ratios of frozen group 'old' sum to 0, expected a positive"),
        ({"frozen": {"old": {}}}, "ratios of frozen group 'old' sum to 0"),
        ({"frozen": {"old": {"web": 1, "code": -1}}}, "'old' has ratio -1 of domain 'code', expected 0 or more"),
        ({"frozen": {"old": {"web": float("nan")}}}, "'old' has ratio nan of domain 'web'"),
        ({"frozen": {"old": ("web", "code")}}, "frozen group 'old' is .*, expected ratios by domain, such as"),
        (
            {"frozen": {"old": {"web": 1, "code": 1}, "text": {"books": 1, "web": 1}}},
            "domain 'web' is in the frozen groups 'old' and 'text', expected one of them",
        ),
        (
            {"frozen": {"old": {"web": 3, "code": 1}}, "fixed": {"web": 0.3}, "upper": {"code": 0.05}},
            "the least share 0.3 of 'web' asks for a sum of 0.4, but the greatest share 0.05 of 'code' allows 0.2",
        ),
        (
            {"frozen": {"old": {"web": 1, "code": 3}}, "lower": {"web": 0.4}},
            "'old' the least share 0.4 of 'web' asks for a sum of 1.6, but a sum is at most 1",
        ),
        (
            {"frozen": {"old": {"web": 1, "code": 0}}, "lower": {"code": 0.1}},
            "'code' has ratio 0 in frozen group 'old', but a least share of 0.1",
        ),
        (
            {"frozen": {"old": {"web": 3, "code": 1}}, "upper": {"code": 0.1, "books": 0.1, "wiki": 0.1, "news": 0.2}},
            "greatest shares sum to 0.8, less than 1",
        ),
        (
            {"frozen": {"old": {"web": 9, "code": 1}}, "upper": {"web": 0.1}, "groups": {"g": Group(("code",), 0.1)}},
            r"shares of group 'g' sum to 0.0111111, less than 0.1; .* 'code' \(the ratios of frozen group 'old'\)",
        ),
        (
            {
                "frozen": {"old": {"web": 1, "code": 1}},
                "groups": {"a": Group(("web", "books"), 0.9), "b": Group(("code", "wiki"), 0.5)},
            },
            "no mixture obeys the bounds on shares, groups and ratios at once",
        ),
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


def test_epochs_by_domain_cap_only_those_that_are_named():
    constraints = constrained(tokens=TOKENS, budget=1000, max_epochs={"code": 2, "books": 3})
    np.testing.assert_allclose(constraints.region.high, [1, 0.2, 0.6, 1, 1])
    assert constraints.binding(np.array([0.2, 0.2, 0.6, 0, 0])) == [
        "code is at 2 epochs of its tokens, share 0.2",
        "books is at 3 epochs of its tokens, share 0.6",
    ]


def test_a_bound_on_one_frozen_domain_holds_the_others():
    constraints = constrained(
        frozen={"old": {"web": 6, "code": 4}}, upper={"code": 0.2}, lower={"web": 0.1}, fixed={"news": 0.1}
    )
    np.testing.assert_allclose(constraints.region.high, [0.3, 0.2, 1, 1, 0.1])
    np.testing.assert_allclose(constraints.region.low, [0.1, 0.2 / 3, 0, 0, 0.1])
    given = constrained(frozen={"old": {"web": 0.6, "code": 0.4}}, fixed={"web": 0.3, "code": 0.2})  # the same twice
    assert given.region.contains(np.array([[0.3, 0.2, 0.5, 0, 0]]))[0]


def test_a_fixed_share_heeds_the_tokens_that_there_are():
    counts = {"a": 100.0, "b": 1000.0}
    allowed = Constraints(("a", "b"), fixed={"a": 0.2}, tokens=counts, budget=1000.0, max_epochs=2.0)
    assert allowed.region.low[0] == 0.2
    says = "'a' is fixed at 0.5, but 100 tokens × 2 epochs at a budget of 1,000 allow at most 0.2"
    with pytest.raises(UserError, match=says):
        Constraints(("a", "b"), fixed={"a": 0.5}, tokens=counts, budget=1000.0, max_epochs=2.0)


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


@pytest.mark.parametrize("miss", [1e-8, -1e-8, 9e-7])
def test_fixed_weights_that_miss_one_by_rounding_are_rescaled(miss):
    given = Constraints(("a", "b", "c"), fixed={"a": 0.2, "b": 0.3, "c": 0.5 + miss}, lower={"a": 0.2})
    np.testing.assert_allclose(given.region.centre, np.array([0.2, 0.3, 0.5 + miss]) / (1 + miss), rtol=1e-15)
    part = Constraints(("a", "b", "c"), fixed={"a": 0.5, "b": 0.5 + abs(miss)})
    assert part.region.centre[2] == pytest.approx(0, abs=1e-15)


def test_fixed_weights_that_miss_one_by_more_are_told_with_their_sum():
    says = r"fixed weights sum to 1\.00001, expected 1 within 1e-06; the difference is \+1e-05"
    with pytest.raises(UserError, match=says):
        Constraints(("a", "b"), fixed={"a": 0.5, "b": 0.50001})
    with pytest.raises(UserError, match=r"fixed weights sum to 0\.9, expected 1 within"):
        Constraints(("a", "b"), fixed={"a": 0.5, "b": 0.4})
    with pytest.raises(UserError, match=r"sum to 1\.1, expected at most 1 within"):
        Constraints(("a", "b", "c"), fixed={"a": 0.6, "b": 0.5})
