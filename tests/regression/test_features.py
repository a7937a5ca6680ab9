import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mde.errors import UserError
from mde.regression import features

MIXTURES = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
MDE = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])  # R = 3 mixtures, J = 3 domains
EVALUATED = {"mde[0]": MDE, "mde[0.03]": 10 * MDE, "merged": 100 * MDE}


def test_functions_of_the_mixture_by_hand():
    np.testing.assert_array_equal(features.assemble("lambda", MIXTURES, {}), MIXTURES)
    np.testing.assert_allclose(features.assemble("sqrt", MIXTURES, {})[0], [0.5, np.sqrt(0.75)], atol=1e-15)
    np.testing.assert_allclose(features.assemble("log", MIXTURES, {})[1], [np.log(1.01), np.log(0.01)], atol=1e-15)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8).filter(any))
def test_features_are_finite_on_faces_and_corners(parts):
    mixture = np.array([parts]) / sum(parts)
    assert np.isfinite(features.assemble("+".join(features.FEATURES), mixture, {})).all()


def test_each_target_sees_its_own_column_of_an_evaluated_feature():
    design = features.assemble("mde[0.03]+lambda+merged", MIXTURES, EVALUATED)
    assert design.shape == (3, 3, 4)
    # Row 1, target 2: its own columns of mde[0.03] and merged, then both weights.
    np.testing.assert_array_equal(design[1, 2], [60, 600, 1, 0])
    np.testing.assert_array_equal(features.assemble("lambda+mde[0.03]+merged", MIXTURES, EVALUATED), design)


def test_all_gives_every_column_to_every_target():
    design = features.assemble("all:mde[0]+lambda", MIXTURES, EVALUATED)
    np.testing.assert_array_equal(design, np.hstack([MDE, MIXTURES]))
    both = features.assemble("mde[0]+all:mde[0]", MIXTURES, EVALUATED)
    np.testing.assert_array_equal(both[0, 1], [2, 1, 2, 3])


def test_evaluated_parts_are_what_must_be_computed_first():
    assert features.evaluated_parts("mde[0]+log+all:mde[0]+merged") == ["mde[0]", "merged"]
    assert features.evaluated_parts("sqrt") == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mde[0.3]", r"unknown feature 'mde\[0\.3\]': did you mean 'mde\[0"),
        ("lamda", "unknown feature 'lamda': did you mean 'lambda'"),
        ("log+log", "distinct names"),
        ("log+", "distinct names"),
        ("all:log", "unknown feature 'all:log'"),
    ],
)
def test_unknown_features_are_refused(name, says):
    with pytest.raises(UserError, match=says):
        features.assemble(name, MIXTURES, EVALUATED)


def test_own_shares_are_those_of_the_evaluated_domains_by_name():
    own = features.own_domain_weights("own+log", MIXTURES, ["web", "code"], ["code", "web"])
    np.testing.assert_array_equal(own["own"], [[0.75, 0.25], [0.001, 1.0], [0.5, 0.5]])  # no share counts as .001
    assert features.assemble("own+log", MIXTURES, own).shape == (3, 2, 3)
    assert features.own_domain_weights("log", MIXTURES, ["web", "code"], ["news"]) == {}
    assert features.evaluated_parts("own+mde[0]") == ["mde[0]"]
    with pytest.raises(UserError, match="feature 'own': evaluation domain 'news' is not trained on"):
        features.own_domain_weights("own", MIXTURES, ["web", "code"], ["web", "news"])


def test_evaluated_losses_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"feature 'mde\[0\]' of shape \(2, 3\), expected one row for each of 3"):
        features.assemble("mde[0]", MIXTURES, {"mde[0]": MDE[:2]})
    with pytest.raises(UserError, match=r"losses of \[2, 3\] domains"):
        features.assemble("mde[0]+merged", MIXTURES, {"mde[0]": MDE, "merged": MDE[:, :2]})
    # A single column would otherwise be broadcast to all three targets.
    with pytest.raises(UserError, match=r"losses of \[1, 3\] domains"):
        features.assemble("mde[0]+merged", MIXTURES, {"mde[0]": MDE, "merged": MDE[:, :1]})
    with pytest.raises(UserError, match=r"losses of \[1, 3\] domains"):
        features.assemble("mde[0]+all:merged", MIXTURES, {"mde[0]": MDE[:, :1], "merged": MDE})


def test_the_traceable_form_is_assemble():
    own = np.stack([MDE, 10 * MDE], axis=2)
    rows = np.concatenate([own, np.repeat(MIXTURES[:, None], 3, axis=1)], axis=2)
    evaluated = {"mde[0]": MDE, "mde[0.03]": 10 * MDE}
    for name in ("cbrt+log", "mde[0.03]+sqrt+mde[0]", "mde[0]"):
        form = features.traceable(name, list(evaluated))
        with jax.enable_x64():
            found = np.stack([form(jnp.array(row)) for row in rows])
        expected = features.assemble(name, MIXTURES, evaluated)
        if expected.ndim == 2:
            assert found.shape == expected.shape
        # A share of zero counts as 1e-9, whose cube root is 1e-3.
        np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], atol=1e-12)
        np.testing.assert_allclose(found[1], expected[1], atol=1.1e-3)
    with jax.enable_x64():
        np.testing.assert_allclose(features.traceable("log")(jnp.array(MIXTURES[0])), np.log(MIXTURES[0] + 0.01))
    with pytest.raises(UserError, match="unknown feature 'lgo': did you mean 'log'"):
        features.traceable("lgo")
