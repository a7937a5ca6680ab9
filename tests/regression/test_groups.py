import numpy as np
import pytest

from mde.errors import UserError
from mde.regression.groups import group_folds, mixture_groups, replicate_variance


def test_rows_of_one_mixture_have_one_label_in_order_of_appearance():
    table = np.array([[0.5, 0.5], [0.0, 1.0], [0.5 + 1e-10, 0.5], [-0.0, 1.0], [0.5 + 1e-6, 0.5]])
    assert mixture_groups(table).tolist() == [0, 1, 0, 1, 2]
    features = np.stack([table, table], axis=1)  # [R, J, F]
    assert mixture_groups(features).tolist() == [0, 1, 0, 1, 2]
    features[3, 1, 0] = 0.2  # one target's own feature is enough to tell two rows apart
    assert mixture_groups(features).tolist() == [0, 1, 0, 2, 3]


@pytest.mark.parametrize("n_folds", [2, 4, 50])
def test_folds_are_a_partition_that_never_splits_a_mixture(n_folds):
    groups = np.repeat(np.arange(9), np.arange(1, 10))
    folds = group_folds(groups, n_folds, seed=3)
    assert len(folds) == min(n_folds, 9)
    assert sorted(np.concatenate(folds)) == list(range(45))
    inside = [set(groups[rows]) for rows in folds]
    assert sum(map(len, inside)) == 9
    assert {len(names) for names in inside} <= {9 // len(folds), -(-9 // len(folds))}
    assert [rows.tolist() for rows in folds] == [rows.tolist() for rows in group_folds(groups, n_folds, seed=3)]


def test_one_mixture_cannot_be_split():
    with pytest.raises(UserError, match="all 4 proxy runs have the same mixture"):
        group_folds(np.zeros(4, int), 2, 0)


def test_the_variance_of_replicates_by_hand():
    """Mixture 0 has losses 1, 2, 3 and mixture 2 has 5, 9: squares 2 + 8 with 2 + 1 degrees of freedom."""
    losses = np.array([[1.0, 0.0], [2.0, 0.0], [7.0, 4.0], [3.0, 0.0], [5.0, 1.0], [9.0, 1.0]])
    variance, freedom = replicate_variance(losses, np.array([0, 0, 1, 0, 2, 2]))
    np.testing.assert_allclose(variance, [10 / 3, 0])
    assert freedom == 3


def test_without_replicates_nothing_is_known_of_their_variance():
    variance, freedom = replicate_variance(np.arange(6.0).reshape(3, 2), np.arange(3))
    assert variance.tolist() == [0, 0]
    assert freedom == 0
