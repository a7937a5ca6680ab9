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
        ("run,web,code\na,1,0\n", LOSSES, ["mixtures.csv", "'c'", "such runs out, 2 in all"]),
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


@pytest.mark.parametrize(
    ("mixtures", "losses", "why"),
    [
        (MIXTURES, LOSSES.replace("2,2.5", ",2.5"), "losses.csv: run 'b', domain 'news': loss nan"),
        (MIXTURES, LOSSES.replace("2.5", "inf"), "losses.csv: run 'b', domain 'code': loss inf"),
        (MIXTURES, LOSSES.replace("b,2,2.5\n", ""), "losses.csv: no row for run 'b'"),
        (MIXTURES.replace("1,0", "1,"), LOSSES, "mixtures.csv: run 'b', domain 'code': weight nan"),
        (MIXTURES.replace("b,1,0\n", ""), LOSSES, "mixtures.csv: no row for run 'b'"),
        (MIXTURES, LOSSES.replace("2,2.5", "nan,nan"), "losses.csv: run 'b', domain 'news': loss nan"),
    ],
)
def test_an_incomplete_run_is_refused_or_dropped(pair, mixtures, losses, why):
    files = pair(mixtures, losses)
    with pytest.raises(UserError) as error:
        swarm.read_swarm(*files)
    assert why in str(error.value)
    assert "--incomplete=drop leaves such runs out, 1 in all" in str(error.value)
    trained, observed = swarm.read_swarm(*files, incomplete="drop")
    assert list(trained.values.index) == list(observed.values.index) == ["a", "c"]
    np.testing.assert_array_equal(observed.values.to_numpy(), [[1, 1.5], [3, 3.5]])
    assert list(observed.dropped) == ["b"]
    assert why in observed.dropped["b"]


def test_what_is_dropped_is_incomplete_and_nothing_else(pair):
    _, observed = swarm.read_swarm(*pair(), incomplete="drop")
    assert list(observed.values.index) == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"losses.csv: no run is complete; the first, .*'a'"):
        swarm.read_swarm(*pair("run,web,code\na,,1\n", "run,news\na,1\n"), incomplete="drop")
    with pytest.raises(UserError, match="unknown value of incomplete 'dorp': did you mean 'drop'"):
        swarm.read_swarm(*pair(), incomplete="dorp")
    with pytest.raises(UserError, match=r"'b'.*'two' is not a number"):
        swarm.read_swarm(*pair(MIXTURES, LOSSES.replace("2,2.5", "two,2.5")), incomplete="drop")
    with pytest.raises(UserError, match=r"mixtures.csv: .*'a'.*1.75"):
        swarm.read_swarm(*pair(MIXTURES.replace(".25", "1"), LOSSES), incomplete="drop")


def test_columns_that_are_no_domains_are_named(pair):
    mixtures = "run,State,web,code\na,finished,.25,.75\nb,crashed,1,0\n"
    losses = "run,meta/gpu,meta/hours,news\nb,H100,3,2\na,H100,4,1\n"
    with pytest.raises(
        UserError, match="column 'State': 'finished' is not a number; --ignore='State' leaves the column"
    ):
        swarm.read_swarm(*pair(mixtures, losses))
    trained, observed = swarm.read_swarm(*pair(mixtures, losses), ignore=["State", "meta/*"])
    assert list(trained.values) == ["web", "code"]
    assert list(observed.values) == ["news"]
    with pytest.raises(UserError, match="unknown column in ignore 'Stat': did you mean 'State'"):
        swarm.check_ignored(["State", "Stat"], *pair(mixtures, losses))
    assert list(swarm.read_mixtures(pair(mixtures, losses)[0], ["web", "code"], ignore=["State"]).values) == [
        "web",
        "code",
    ]


def test_errors_are_written_as_the_values_they_come_from(pair, tmp_path):
    files = pair(MIXTURES, "run,news,arc_acc\na,1,.25\nb,2,1\nc,3,0\n")
    _, losses = swarm.read_swarm(*files, higher=["*_acc"])
    np.testing.assert_array_equal(losses.values["arc_acc"], [0.75, 0, 1])
    np.testing.assert_array_equal(losses.values["news"], [1, 2, 3])
    swarm.write(tmp_path / "again.csv", losses)
    np.testing.assert_array_equal(swarm.read_losses(tmp_path / "again.csv").values["arc_acc"], [0.25, 1, 0])
