"""What is written as gin comes back from gin, and a saved stage starts the same run again."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mde import bindings, gin_text

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20)
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=5), SCALARS, max_size=3))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=VALUES)
def test_a_value_comes_back_exactly(value):
    read = bindings.from_gin([], [gin_text.binding("fit", "features", value)])["fit"]["features"]
    assert repr(read) == repr(value)


def test_a_record_tells_what_was_bound_from_the_defaults():
    text = gin_text.record("optimize", {"candidates": 64, "refits": 200, "seed": 0}, {"candidates": 64})
    assert text.split("\n\n") == [
        "# mde optimize --study=DIR --gin_file=THIS_FILE",
        "# Bound:\noptimize.candidates = 64",
        "# Defaults:\noptimize.refits = 200\noptimize.seed = 0\n",
    ]
