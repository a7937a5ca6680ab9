"""What mixtures refuse, by name: log-probs, domains, sequences, weights, exponents."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from mde.errors import UserError
from mde.evaluation import MixtureLosses, mixture_nll

GOOD = np.log(np.full((5, 2), 0.5))
DOMAIN = np.array([0, 0, 1, 1, 1])
NAMES = {"domains": ["law", "news"], "experts": ["expert-a", "expert-b"]}


@pytest.mark.parametrize("value", [np.nan, 0.25, np.inf])
def test_what_is_no_log_prob_is_named_by_its_first_token_domain_and_expert(value):
    bad = GOOD.copy()
    bad[3:, 1] = value
    with pytest.raises(UserError, match=rf"token 3 \(domain 'news'\) under expert 'expert-b' is {value}; expected"):
        MixtureLosses(bad, DOMAIN, **NAMES)
    with pytest.raises(UserError, match=rf"token 3 \(domain '1'\) under expert '1' is {value}; expected"):
        MixtureLosses(bad, DOMAIN)


def test_text_that_does_not_fit_is_checked_when_it_is_read():
    bad = GOOD.copy()
    bad[4, 0] = np.nan
    losses = MixtureLosses(bad, DOMAIN, memory=200, **NAMES)
    with pytest.raises(UserError, match=r"token 4 \(domain 'news'\) under expert 'expert-a' is nan"):
        losses([0.5, 0.5])


def test_a_token_impossible_under_every_expert_is_named():
    bad = GOOD.copy()
    bad[2] = -np.inf
    with pytest.raises(UserError, match=r"token 2 \(domain 'news'\) is impossible under every expert"):
        MixtureLosses(bad, DOMAIN, **NAMES)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_a_sequence_impossible_under_every_expert_has_loss_infinity_in_its_domain_alone(tau):
    """Each expert rules out another token, so each token is possible but nothing is left of the posterior."""
    log_probs, ids = GOOD.copy(), np.array([0, 0, 0, 1, 1])
    log_probs[0, 0] = log_probs[1, 1] = -np.inf
    found = mixture_nll(log_probs, ids, np.array([[0.5, 0.5]]), tau=tau, sequence_ids=ids)
    assert found[0, 0] == np.inf
    assert_allclose(found[0, 1], np.log(2), rtol=1e-6)


@pytest.mark.parametrize("domains", [3, ["law", "code", "news"]])
def test_a_domain_without_tokens_is_named_wherever_it_stands(domains):
    with pytest.raises(UserError, match=r"domain '?(1|code)'? has no token"):
        MixtureLosses(GOOD, np.array([0, 0, 2, 2, 2]), domains=domains)
    with pytest.raises(UserError, match=r"domain '?(2|news)'? has no token"):
        MixtureLosses(GOOD, DOMAIN, domains=domains)


@pytest.mark.parametrize("domains", [1, ["law"]])
def test_a_segment_id_beyond_the_domains_is_named(domains):
    with pytest.raises(UserError, match="segment id of token 2 is 1, expected one of 1 domains"):
        MixtureLosses(GOOD, DOMAIN, domains=domains)
    with pytest.raises(UserError, match="segment id of token 0 is -1"):
        MixtureLosses(GOOD, DOMAIN - 1)


def test_shapes_and_numbers_of_names_are_checked():
    with pytest.raises(UserError, match=r"expected \[T, K\] and \[T\]"):
        MixtureLosses(GOOD[0], DOMAIN)
    with pytest.raises(UserError, match=r"expected \[T, K\] and \[T\]"):
        MixtureLosses(GOOD, DOMAIN[1:])
    with pytest.raises(UserError, match=r"1 names of experts \(a\), expected 2"):
        MixtureLosses(GOOD, DOMAIN, experts=["a"])


@pytest.mark.parametrize("row", [[0.5, 0.4], [1.2, -0.2], [np.nan, 1.0]])
def test_weights_off_the_simplex_are_named_by_row_and_value(row):
    losses = MixtureLosses(GOOD, DOMAIN, **NAMES)
    with pytest.raises(UserError, match=r"weights: row 1.*(0\.9|-0\.2|nan).*expected"):
        losses([[0.5, 0.5], row])
    with pytest.raises(UserError, match=r"row 1.*(0\.9|-0\.2|nan).*expected"):
        losses.value_and_grad([[0.5, 0.5], row])


def test_weights_of_another_number_of_experts_are_refused():
    with pytest.raises(
        UserError, match=r"weights: mixtures of shape \(1, 3\), expected .* 2 domains expert-a, expert-b"
    ):
        MixtureLosses(GOOD, DOMAIN, **NAMES)([[0.2, 0.3, 0.5]])


@pytest.mark.parametrize("tau", [-0.1, 1.1, np.nan])
def test_tau_must_lie_between_zero_and_one(tau):
    with pytest.raises(UserError, match=f"tau={tau} must lie in"):
        mixture_nll(GOOD, DOMAIN, [[0.5, 0.5]], tau=tau, sequence_ids=DOMAIN)


def test_tau_needs_sequences():
    with pytest.raises(UserError, match=r"tau=0\.5 needs sequence_ids or bounds"):
        mixture_nll(GOOD, DOMAIN, [[0.5, 0.5]], tau=0.5)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ({"sequence_ids": [0, 1, 2, 3, 2]}, "sequence 2 do not stand together"),
        ({"sequence_ids": [0, 1, 1, 2, 2]}, "token 2 is of another domain"),
        ({"sequence_ids": [0, 1]}, "sequence_ids"),
        ({"bounds": [0, 2, 4]}, "expected ascending positions from 0 to 5"),
        ({"bounds": [0, 2, 2, 5]}, "expected ascending positions from 0 to 5"),
        ({"bounds": [0, 3, 5]}, "token 2 is of another domain"),
        ({"bounds": [0, 2, 5], "sequence_ids": [0, 0, 1, 1, 1]}, "expected one of them"),
    ],
)
def test_sequences_that_are_none_are_refused(sequences, message):
    with pytest.raises(UserError, match=message):
        MixtureLosses(GOOD, DOMAIN, **sequences)


@pytest.mark.parametrize("sizes", [[3], [3, 0], [3, np.nan]])
def test_bytes_are_a_positive_number_a_domain(sizes):
    with pytest.raises(UserError, match="expected a positive number for each of law, news"):
        MixtureLosses(GOOD, DOMAIN, bytes=sizes, **NAMES)


def test_no_candidates_have_no_losses():
    assert mixture_nll(GOOD, DOMAIN, np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64, np.int16])
def test_segment_ids_of_every_whole_type_are_the_same(dtype):
    found = mixture_nll(GOOD, DOMAIN.astype(dtype), [[0.3, 0.7]])
    assert_allclose(found, mixture_nll(GOOD, DOMAIN, [[0.3, 0.7]]), rtol=0, atol=0)


def test_segment_ids_that_are_no_whole_numbers_are_told_in_one_line():
    for ids in (DOMAIN.astype(float), DOMAIN > 0, DOMAIN.astype(str)):
        with pytest.raises(UserError, match=r"segment_ids: .* values, expected whole numbers"):
            MixtureLosses(GOOD, ids)
    with pytest.raises(UserError, match="segment id of token 2 is 18446744073709551615"):
        MixtureLosses(GOOD, np.array([0, 0, 2**64 - 1, 1, 1], np.uint64))
