import numpy as np

from mde.regression.support import Support

CORNERS = np.eye(3)


def test_distances_are_total_variation_to_the_nearest_run_by_hand():
    support = Support(np.array([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [0.0, 0.5, 0.5]]))
    # From the first run .4 of the tokens move to the second, and .6 from the second to the third.
    np.testing.assert_allclose(support.spacing, 0.6)
    np.testing.assert_allclose(support.distance(CORNERS), [0, 0.5, 0.5])
    np.testing.assert_allclose(support.distance(np.array([[0.7, 0.3, 0.0]])), [0.1])


def test_distances_are_zero_at_the_runs_and_at_most_one():
    mixtures = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    support = Support(mixtures)
    np.testing.assert_allclose(support.distance(mixtures), 0, atol=1e-12)
    assert Support(CORNERS[:1]).distance(CORNERS[1:]).tolist() == [1, 1]


def test_replicates_do_not_make_the_runs_look_close():
    mixtures = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    replicated = Support(np.repeat(mixtures, 4, axis=0))
    assert replicated.spacing == Support(mixtures).spacing > 0
    np.testing.assert_array_equal(replicated.mixtures, mixtures)


def test_a_single_mixture_has_no_spacing():
    assert Support(np.repeat(CORNERS[:1], 3, axis=0)).spacing == 0
