import numpy as np
import pytest
from regions import NAMES, UNIFORM, constrained

from mde.errors import UserError
from mde.optimization.constraints import Bounds, Group

TOKENS = {"web": 1000.0, "code": 100.0, "books": 200.0, "wiki": 300.0, "news": 400.0}


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ({"min": {"wbe": 0.1}}, "unknown domain in the constraints' min weights 'wbe': did you mean 'web'"),
        ({"fixed": {"cod": 0.1}}, "fixed weights 'cod': did you mean 'code'"),
        ({"groups": {"g": Group(("boks",))}}, "group 'g' 'boks': did you mean 'books'"),
        ({"tokens": TOKENS | {"x": 1}}, "tokens 'x'"),
        ({"prior": {"nwes": 1}, "max_kl": 1}, "prior 'nwes': did you mean 'news'"),
        ({"max": {"web": 1.2}}, "max weight 1.2 of domain 'web', expected 0 to 1"),
        ({"min": {"web": float("nan")}}, "min weight nan of domain 'web'"),
        (
            {"min": {"web": 0.5}, "max": {"web": 0.3}},
            "'web' has the min weight 0.5, but max weights allow at most",
        ),
        (
            {"min": {"web": 0.7, "code": 0.5}},
            "min weights sum to 1.2, more than 1; the largest is 0.7, of domain 'web'",
        ),
        ({"max": dict.fromkeys(NAMES, 0.1)}, "max weights sum to 0.5, less than 1; the smallest is 0.1"),
        ({"fixed": {"web": 0.5}, "max": {"web": 0.3}}, "'web' is fixed at 0.5, outside its bounds 0 to 0.3"),
        ({"groups": {"g": Group(("web",), 0.6, 0.5)}}, "group 'g' of 1 domains with bounds 0.6 and 0.5"),
        ({"groups": {"g": Group(())}}, "group 'g' of 0 domains"),
        (
            {"min": {"web": 0.4, "code": 0.3}, "groups": {"g": Group(("web", "code"), 0, 0.5)}},
            "min weights of group 'g' sum to 0.7, more than 0.5",
        ),
        (
            {"max": {"web": 0.1, "code": 0.1}, "groups": {"g": Group(("web", "code"), 0.5)}},
            "max weights of group 'g' sum to 0.2, less than 0.5",
        ),
        (
            {"tokens": TOKENS, "budget": 1e4, "max_epochs": 4},
            r"sum to 0.8, less than 1; .* 0.04, of domain 'code' \(100 tokens × 4 epochs at a budget of 10,000\)",
        ),
        (
            {"tokens": TOKENS, "budget": 1000, "max_epochs": 2, "min": {"code": 0.3}},
            "'code' has the min weight 0.3, but 100 tokens × 2 epochs at a budget of 1,000 allow at most 0.2",
        ),
        ({"tokens": {"web": 1}}, "no tokens of domain 'code'"),
        ({"max_epochs": 4}, "max_epochs=4 needs tokens, the available ones per domain"),
        ({"tokens": TOKENS, "budget": -1}, "budget=-1"),
        ({"tokens": TOKENS, "budget": 1e4, "max_epochs": {"cod": 4}}, "max_epochs 'cod': did you mean 'code'"),
        (
            {"tokens": TOKENS, "budget": 1e4, "max_epochs": {"code": 0}},
            r"max_epochs\['code'\]=0, expected a positive number",
        ),
        ({"tokens": TOKENS, "budget": 1e4, "max_epochs": {}}, "max_epochs={}, expected a positive number"),
        ({"max_epochs": {"code": 4}}, "needs tokens, the available ones per domain"),
        ({"ratios": {"old": {"web": 1, "cod": 1}}}, "ratio group 'old' 'cod': did you mean 'code'"),
        ({"ratios": {"old": {"web": 0, "code": 0}}}, "ratios of ratio group 'old' sum to 0, expected a positive"),
        ({"ratios": {"old": {}}}, "ratios of ratio group 'old' sum to 0"),
        ({"ratios": {"old": {"web": 1, "code": -1}}}, "'old' has ratio -1 of domain 'code', expected 0 or more"),
        ({"ratios": {"old": {"web": float("nan")}}}, "'old' has ratio nan of domain 'web'"),
        ({"ratios": {"old": ("web", "code")}}, "ratio group 'old' is .*, expected ratios by domain, such as"),
        (
            {"ratios": {"old": {"web": 1, "code": 1}, "text": {"books": 1, "web": 1}}},
            "domain 'web' is in the ratio groups 'old' and 'text', expected one of them",
        ),
        (
            {"ratios": {"old": {"web": 3, "code": 1}}, "fixed": {"web": 0.3}, "max": {"code": 0.05}},
            "the min weight 0.3 of 'web' asks for a sum of 0.4, but the max weight 0.05 of 'code' allows 0.2",
        ),
        (
            {"ratios": {"old": {"web": 1, "code": 3}}, "min": {"web": 0.4}},
            "'old' the min weight 0.4 of 'web' asks for a sum of 1.6, but a sum is at most 1",
        ),
        (
            {"ratios": {"old": {"web": 1, "code": 0}}, "min": {"code": 0.1}},
            "'code' has ratio 0 in ratio group 'old', but a min weight of 0.1",
        ),
        (
            {"ratios": {"old": {"web": 3, "code": 1}}, "max": {"code": 0.1, "books": 0.1, "wiki": 0.1, "news": 0.2}},
            "max weights sum to 0.8, less than 1",
        ),
        (
            {"ratios": {"old": {"web": 9, "code": 1}}, "max": {"web": 0.1}, "groups": {"g": Group(("code",), 0.1)}},
            r"weights of group 'g' sum to 0.0111111, less than 0.1; .* 'code' \(the ratios of ratio group 'old'\)",
        ),
        (
            {
                "ratios": {"old": {"web": 1, "code": 1}},
                "groups": {"a": Group(("web", "books"), 0.9), "b": Group(("code", "wiki"), 0.5)},
            },
            "no mixture obeys the bounds on weights, groups and ratios at once",
        ),
        ({"max_kl": 0.1}, "max_kl and kl_penalty need a prior"),
        ({"prior": UNIFORM, "max_kl": -1}, "max_kl=-1"),
        ({"prior": {"web": 0.5}, "max_kl": 1}, "prior: row 0: weights sum to 0.5"),
        (
            {"prior": {"web": 0.5, "code": 0.5}, "max_kl": 1, "min": {"news": 0.1}},
            "'news' has the min weight 0.1, but weights of zero in the prior allow at most 0",
        ),
    ],
)
def test_constraints_that_make_no_sense_are_named_in_one_line(bounds, says):
    with pytest.raises(UserError, match=says) as error:
        constrained(**bounds)
    assert "\n" not in str(error.value)


def test_tokens_cap_shares():
    constraints = constrained(tokens=TOKENS, budget=1000, max_epochs=2, max={"web": 0.5, "code": 0.9})
    np.testing.assert_allclose(constraints.region.high, [0.5, 0.2, 0.4, 0.6, 0.8])


def test_epochs_by_domain_cap_only_those_that_are_named():
    constraints = constrained(tokens=TOKENS, budget=1000, max_epochs={"code": 2, "books": 3})
    np.testing.assert_allclose(constraints.region.high, [1, 0.2, 0.6, 1, 1])
    assert constraints.binding(np.array([0.2, 0.2, 0.6, 0, 0])) == [
        "code is at 2 epochs of its tokens, weight 0.2",
        "books is at 3 epochs of its tokens, weight 0.6",
    ]


def test_a_bound_on_one_frozen_domain_holds_the_others():
    constraints = constrained(
        ratios={"old": {"web": 6, "code": 4}}, max={"code": 0.2}, min={"web": 0.1}, fixed={"news": 0.1}
    )
    np.testing.assert_allclose(constraints.region.high, [0.3, 0.2, 1, 1, 0.1])
    np.testing.assert_allclose(constraints.region.low, [0.1, 0.2 / 3, 0, 0, 0.1])
    given = constrained(ratios={"old": {"web": 0.6, "code": 0.4}}, fixed={"web": 0.3, "code": 0.2})  # the same twice
    assert given.region.contains(np.array([[0.3, 0.2, 0.5, 0, 0]]))[0]


def test_a_fixed_share_heeds_the_tokens_that_there_are():
    counts = {"a": 100.0, "b": 1000.0}
    allowed = Bounds(("a", "b"), fixed={"a": 0.2}, tokens=counts, budget=1000.0, max_epochs=2.0)
    assert allowed.region.low[0] == 0.2
    says = "'a' is fixed at 0.5, but 100 tokens × 2 epochs at a budget of 1,000 allow at most 0.2"
    with pytest.raises(UserError, match=says):
        Bounds(("a", "b"), fixed={"a": 0.5}, tokens=counts, budget=1000.0, max_epochs=2.0)


def test_the_answer_names_what_binds_and_counts_epochs():
    constraints = constrained(
        min={"news": 0.05},
        max={"web": 0.5},
        fixed={"books": 0.1},
        tokens=TOKENS,
        budget=1000,
        max_epochs=2,
        groups={"text": Group(("books", "wiki"), 0, 0.25), "loose": Group(("web", "news"), 0.1, 0.9)},
        prior=UNIFORM,
    )
    assert constraints.binding(np.array([0.5, 0.2, 0.1, 0.15, 0.05])) == [
        "web is at its max weight 0.5",
        "code is at 2 epochs of its tokens, weight 0.2",
        "books is fixed at 0.1",
        "news is at its min weight 0.05",
        "group text is at its max weight 0.25",
    ]
    epochs = constraints.epochs(np.array([0.5, 0.2, 0.1, 0.15, 0.05]))
    assert epochs == pytest.approx({"web": 0.5, "code": 2, "books": 0.5, "wiki": 0.5, "news": 0.125})
    assert Bounds(NAMES).binding(np.array([1.0, 0, 0, 0, 0])) == []
    assert Bounds(NAMES).epochs(np.full(5, 0.2)) is None


def test_a_cap_on_divergence_binds():
    constraints = constrained(prior=UNIFORM, max_kl=np.log(2.5))
    assert constraints.binding(np.array([0.5, 0.5, 0, 0, 0])) == ["KL to the prior is at 0.9163 nats"]
    assert constraints.binding(np.full(5, 0.2)) == []


@pytest.mark.parametrize("miss", [1e-8, -1e-8, 9e-7])
def test_fixed_weights_that_miss_one_by_rounding_are_rescaled(miss):
    given = Bounds(("a", "b", "c"), fixed={"a": 0.2, "b": 0.3, "c": 0.5 + miss}, min={"a": 0.2})
    np.testing.assert_allclose(given.region.centre, np.array([0.2, 0.3, 0.5 + miss]) / (1 + miss), rtol=1e-15)
    part = Bounds(("a", "b", "c"), fixed={"a": 0.5, "b": 0.5 + abs(miss)})
    assert part.region.centre[2] == pytest.approx(0, abs=1e-15)


def test_fixed_weights_that_miss_one_by_more_are_told_with_their_sum():
    says = r"fixed weights sum to 1\.00001, expected 1 within 1e-06; the difference is \+1e-05"
    with pytest.raises(UserError, match=says):
        Bounds(("a", "b"), fixed={"a": 0.5, "b": 0.50001})
    with pytest.raises(UserError, match=r"fixed weights sum to 0\.9, expected 1 within"):
        Bounds(("a", "b"), fixed={"a": 0.5, "b": 0.4})
    with pytest.raises(UserError, match=r"sum to 1\.1, expected at most 1 within"):
        Bounds(("a", "b", "c"), fixed={"a": 0.6, "b": 0.5})
