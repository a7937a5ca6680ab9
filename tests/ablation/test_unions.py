import itertools

import pytest

from mde.ablation import unions
from mde.errors import UserError

UNITS = {"a-0": "a", "a-1": "a", "a-2": "a", "b-0": "b", "c-0": "c", "c-1": "c"}


def test_drawn_unions_are_different_and_spread_over_the_sizes():
    found = unions.draw("abcde", 12, 2, 4, seed=1)
    assert len({frozenset(names) for names in found}) == 12
    assert sorted(map(len, found)) == [2] * 4 + [3] * 4 + [4] * 4
    assert found == unions.draw("abcde", 12, 2, 4, seed=1)
    assert unions.draw("abcde", 8, 2, 4, seed=1) == found[:8]
    everything = unions.draw("abcde", 25, 2, 4)
    assert {frozenset(n) for n in everything} == {
        frozenset(c) for k in (2, 3, 4) for c in itertools.combinations("abcde", k)
    }


def test_unions_that_are_there_are_kept_when_a_source_is_added():
    before = unions.draw("abc", 3, 2, 2)
    after = unions.draw("abcd", 5, 2, 2, drawn=before)
    assert after[:3] == before
    assert len({frozenset(names) for names in after}) == 5


def test_more_unions_than_there_are():
    with pytest.raises(UserError, match="4 unions of 2 to 2 domains: there are only 3"):
        unions.draw("abc", 4, 2, 2)
    with pytest.raises(UserError, match="unions of 3 to 2 domains"):
        unions.draw("abc", 1, 3, 2)
    with pytest.raises(UserError, match="from 1 to 3, the number of sources"):
        unions.draw("abc", 1, 2, 4)


def test_the_union_of_domains_has_their_units_once_or_in_equal_shares():
    assert unions.of_domains(["a", "b"], UNITS) == {"a-0": 1, "a-1": 1, "a-2": 1, "b-0": 1}
    even = unions.of_domains(["a", "b", "c"], UNITS, upsampled=True)
    assert even == {"a-0": 1, "a-1": 1, "a-2": 1, "b-0": 3, "c-0": 1.5, "c-1": 1.5}
    assert unions.weights(even, UNITS) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


def test_partitions_are_what_a_union_has_of_each_domain():
    union = {"a-0": 2.0, "a-1": 4.0, "c-1": 3.0}
    assert unions.partitions(union, UNITS) == {"a": {"a-0": 1, "a-1": 2}, "c": {"c-1": 1}}
    assert unions.weights(union, UNITS) == pytest.approx({"a": 2 / 3, "c": 1 / 3})


def test_a_file_names_units_or_domains(tmp_path):
    path = tmp_path / "unions.csv"
    path.write_text("union,a,c-1,b\n007,1,0,2\nx,0,1.5,0\n")
    assert unions.read(path, UNITS) == {"007": {"a-0": 1, "a-1": 1, "a-2": 1, "b-0": 2}, "x": {"c-1": 1.5}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name,a\nx,1\n", "no column 'union'"),
        ("union,a-9\nx,1\n", "unknown unit or domain in .* 'a-9': did you mean 'a-"),
        ("union,a,a-0\nx,1,1\n", "unit 'a-0' has a column of its own and is in that of its domain"),
        ("union,a\nx,-1\n", "union 'x': a is '-1.*', expected copies"),
        ("union,a\nx,many\n", "union 'x': a is 'many', expected copies"),
        ("union,a\n,1\n", "a row has no name"),
        ("union,a\nx,\n", "union 'x': a is 'nan', expected copies"),
        ("union,a,b\nx,0,0\n", "union 'x': no unit is in it"),
        ("union,a\nx,1\nx,2\n", "union 'x' is there twice"),
    ],
)
def test_files_that_are_refused(tmp_path, text, expected):
    path = tmp_path / "unions.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        unions.read(path, UNITS)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv: no such file"):
        unions.read(tmp_path / "nowhere.csv", UNITS)


def test_a_run_is_named_by_what_it_reads():
    assert unions.run_name({"a-0": 1.0}) == "a-0"
    assert unions.run_name({"a-0": 1.0, "b-0": 1.0}) == unions.run_name({"b-0": 1.0, "a-0": 1.0})
    names = [{"a-0": 2.0}, {"a-0": 1.0, "b-0": 1.0}, {"a-0": 1.0, "b-0": 2.0}, {"a-0": 1.0, "b-1": 1.0}]
    assert len({unions.run_name(copies) for copies in names}) == 4


def test_merges_by_hand():
    union = {"a-0": 1.0, "a-1": 1.0, "a-2": 1.0, "b-0": 2.0}
    part = unions.run_name({"a-0": 1.0, "a-1": 1.0, "a-2": 1.0})
    assert unions.merges(union, UNITS) == {
        "merged": {part: 0.5, "b-0": 0.5},  # the partition of b is its one unit, read once
        "merged-weighted": {part: 0.6, "b-0": 0.4},
        "micro-merged": {"a-0": 0.2, "a-1": 0.2, "a-2": 0.2, "b-0": 0.4},
    }
