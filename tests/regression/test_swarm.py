"""Pairs of CSV files from elsewhere."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mde.errors import UserError
from mde.regression import swarm

MIXTURES = "run,web,code\na,.25,.75\nb,1,0\nc,0.5,0.5\n"
LOSSES = "run,news,code\nc,3,3.5\na,1,1.5\nb,2,2.5\n"


@pytest.fixture
def pair(tmp_path):
    """Writes the two files and returns their paths."""

    def write(mixtures: str = MIXTURES, losses: str = LOSSES) -> tuple:
        files = tmp_path / "mixtures.csv", tmp_path / "losses.csv"
        for file, text in zip(files, (mixtures, losses), strict=True):
            file.write_text(text)
        return files

    return write


def test_rows_are_joined_by_run_whatever_their_order(pair):
    mixtures, losses = swarm.read_swarm(*pair())
    assert list(mixtures.values.index) == list(losses.values.index) == ["a", "b", "c"]
    np.testing.assert_array_equal(losses.values["news"], [1, 2, 3])
    np.testing.assert_array_equal(mixtures.values["web"], [0.25, 1, 0.5])


@given(st.permutations("abc"), st.permutations("abc"))
def test_any_two_orders_join_alike(tmp_path_factory, first, second):
    def shuffled(text, order):
        header, *rows = text.strip().split("\n")
        return "\n".join([header, *(row for run in order for row in rows if row[0] == run)])

    folder = tmp_path_factory.mktemp("pair")
    (folder / "m.csv").write_text(shuffled(MIXTURES, first))
    (folder / "l.csv").write_text(shuffled(LOSSES, second))
    mixtures, losses = swarm.read_swarm(folder / "m.csv", folder / "l.csv")
    assert "".join(mixtures.values.index) == "".join(first)
    assert dict(losses.values["code"]) == {"a": 1.5, "b": 2.5, "c": 3.5}


def test_olmix_files(pair):
    """`run_id` names the runs; names, indices and nameless columns are no domains; domains may have colons."""
    mixtures, losses = swarm.read_swarm(
        *pair(
            "Unnamed: 0,run_id,name,index,dclm:science:high,dclm:art\n0,x7,one,4,.25,.75\n1,y8,two,5,1,0\n",
            ",run_id,name,arc easy\n0,y8,two,.5\n1,x7,one,.25\n",
        )
    )
    assert list(mixtures.values) == ["dclm:science:high", "dclm:art"]
    assert list(losses.values["arc easy"]) == [0.25, 0.5]
    assert mixtures.id_column == "run_id"


def test_regmix_files_and_rounded_shares(pair):
    mixtures, losses = swarm.read_swarm(
        *pair(
            "index,train_the_pile_arxiv,train_the_pile_cc\n1,0.333,0.664\n2,0.5,0.505\n",
            "index,metric/the_pile_arxiv_val_loss,metric/the_pile_cc_val_loss\n2,3,4\n1,5,6\n",
        )
    )
    assert list(mixtures.values) == list(losses.values) == ["the_pile_arxiv", "the_pile_cc"]
    np.testing.assert_allclose(mixtures.values.loc["1"], [0.333 / 0.997, 0.664 / 0.997], rtol=1e-15)
    assert losses.columns["the_pile_cc"] == "metric/the_pile_cc_val_loss"


def test_what_is_written_is_read_again(pair, tmp_path):
    _, losses = swarm.read_swarm(*pair())
    exact = swarm.Table(
        losses.values / 3, losses.id_column, {"news": "metric/news_val_loss", "code": "metric/code_val_loss"}
    )
    swarm.write(tmp_path / "deep" / "out.csv", exact)
    again = swarm.read_losses(tmp_path / "deep" / "out.csv")
    pd.testing.assert_frame_equal(again.values, exact.values, check_exact=True)
    assert again.columns == exact.columns
    assert not list(tmp_path.rglob("*.partial"))


def test_columns_are_taken_by_name(pair):
    path, _ = pair()
    assert list(swarm.read_mixtures(path, ["code", "web"]).values.loc["a"]) == [0.75, 0.25]


@pytest.mark.parametrize(
    ("mixtures", "losses", "expected"),
    [
        ("run,web,code\na,1,0\n", LOSSES, ["mixtures.csv", "'c'", "2 such runs"]),
        (MIXTURES, "run,news\na,1\nb,2\n", ["losses.csv", "'c'"]),
        (MIXTURES + "a,1,0\n", LOSSES, ["mixtures.csv", "'a'", "twice"]),
        (MIXTURES, LOSSES + "b,1,0\n", ["losses.csv", "'b'", "twice"]),
        (MIXTURES.replace(".25", ".28"), LOSSES, ["mixtures.csv", "'a'", "1.03", "within 0.01"]),
        (MIXTURES.replace("1,0", "2,-1"), LOSSES, ["'b'", "'code'", "-1"]),
        (MIXTURES.replace("1,0", "1,"), LOSSES, ["'b'", "'code'", "nan"]),
        (MIXTURES.replace("1,0", "1,zero"), LOSSES, ["'b'", "'code'", "'zero' is not a number"]),
        (MIXTURES, LOSSES.replace("2.5", "nan"), ["losses.csv", "'b'", "'code'", "nan"]),
        (MIXTURES, LOSSES.replace("2.5", "inf"), ["losses.csv", "'b'", "'code'", "inf"]),
        (MIXTURES, LOSSES + "d,1\n", ["losses.csv, line 5", "2 fields", "3"]),
        ("web,code\n1,0\n", LOSSES, ["no column 'run' or 'run_id' or 'index'", "web, code"]),
        ("run,web,web\na,1,0\n", LOSSES, ["two columns", "'web'"]),
        ("", LOSSES, ["mixtures.csv", "no header"]),
        ("run,web,code\n", LOSSES, ["0 runs"]),
        ("run,name\na,first\n", LOSSES, ["0 domains"]),
        (MIXTURES + " ,1,0\n", LOSSES, ["without a name"]),
    ],
)
def test_bad_files(pair, mixtures, losses, expected):
    with pytest.raises(UserError) as error:
        swarm.read_swarm(*pair(mixtures, losses))
    for text in expected:
        assert text in str(error.value)


def test_wrong_and_missing_domains(pair):
    path, _ = pair()
    with pytest.raises(UserError, match="'code': did you mean 'cod'"):
        swarm.read_mixtures(path, ["web", "cod"])
    with pytest.raises(UserError, match="no column for domain 'books'"):
        swarm.read_mixtures(path, ["web", "code", "books"])
    with pytest.raises(UserError, match="no such file"):
        swarm.read_losses(path.parent / "nowhere.csv")
    (path.parent / "binary.csv").write_bytes(b"run,\xff\xfe")
    with pytest.raises(UserError, match="not a text file"):
        swarm.read_losses(path.parent / "binary.csv")
