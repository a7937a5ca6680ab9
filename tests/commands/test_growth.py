"""A study that holds runs grows by a domain: what is there stays to the bit, and only that domain's share is new."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prose import jsonl, text

from mde import cli
from mde.commands import pipeline
from mde.data import tokens
from mde.study import Study, digest
from mde.training import pool

LATER = ("train", "score", "evaluate", "fit")
NEW = ["expert-forum", *(f"proxy-forum-{i:02d}" for i in range(3))]


def flags(study: Path, stage: str) -> dict:
    """The arguments that a stage of a study was run with."""
    return json.loads((study / "stages" / f"{stage}.json").read_text())["arguments"]


def grow(study: Path, stages: tuple[str, ...] = LATER, **domains: Path | str) -> None:
    """The commands of before, with further domains; `mde prepare` first."""
    given = flags(study, "prepare")
    given["training_domains"] = given["training_domains"] | {name: str(place) for name, place in domains.items()}
    for stage in ("prepare", *stages):
        pipeline.run(Study(study), stage, given if stage == "prepare" else flags(study, stage))


@pytest.fixture(scope="module")
def forum(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("forum") / "forum.jsonl"
    jsonl(place, [{"text": text(("forum", i), 80)} for i in range(150)])
    return place


@pytest.fixture(scope="module")
def grown(tasked, forum, tmp_path_factory) -> Path:
    """The study with end tasks, grown by a third domain and gone through all stages again; read only."""
    study = Path(shutil.copytree(tasked, tmp_path_factory.mktemp("grown") / "study"))
    grow(study, forum=forum)
    return study


@pytest.fixture
def copied(tasked, tmp_path) -> Path:
    """A copy of the study before it has grown, to spoil."""
    return Path(shutil.copytree(tasked, tmp_path / "study"))


def files(study: Path, *patterns: str) -> dict[str, tuple[bytes, int]]:
    """Contents and times of the files below the folders that match."""
    found = [path for pattern in patterns for folder in study.glob(pattern) for path in folder.rglob("*")]
    return {str(p.relative_to(study)): (p.read_bytes(), p.stat().st_mtime_ns) for p in found if p.is_file()}


def test_what_was_there_is_neither_trained_nor_scored_again(tasked, grown):
    there = ("tokenizer", "tokens/web", "tokens/code", "runs/*", "scores/*/*")
    before, after = files(tasked, *there), files(grown, *there)
    tokenized = {name: tokens.TokenStore(grown / "tokens" / name / "train").digest for name in ("web", "code")}
    assert tokenized == {name: tokens.TokenStore(tasked / "tokens" / name / "train").digest for name in tokenized}
    assert {name: after[name] for name in before} == before
    added = {tuple(name.split("/")[:2]) for name in after if name not in before and name.startswith("runs/")}
    assert added == {("runs", run) for run in NEW}
    old = set(Study(tasked).mixtures().index)
    scored = {tuple(name.split("/")[1:3]) for name in after if name not in before and name.startswith("scores/")}
    everywhere = ("web", "code", "forum", *Study(tasked).tasks)
    assert scored == {(run, "forum") for run in old} | set(itertools.product(NEW, everywhere))


def test_the_table_of_runs_grows_by_the_new_domains_share(tasked, grown):
    before, after = Study(tasked).mixtures(), Study(grown).mixtures()
    assert Study(grown).domains.training == ("web", "code", "forum")
    assert list(after.index.difference(before.index)) == NEW
    kept = after.loc[before.index]
    pd.testing.assert_frame_equal(kept.drop(columns="forum"), before)
    assert (kept["forum"] == 0).all()
    new = after.loc[NEW[1:], ["web", "code", "forum"]]
    assert (new > 0).all().all()
    np.testing.assert_allclose(new.sum(axis=1), 1)


@pytest.mark.slow
def test_a_study_made_so_from_the_start_with_this_tokenizer_says_the_same(tasked, grown, forum, tmp_path):
    fresh = tmp_path / "study"
    runs = Study(grown).mixtures()
    runs[runs["role"] == "proxy"].drop(columns=["role", "seed"]).to_csv(tmp_path / "own.csv")
    given = {stage: flags(grown, stage) for stage in ("prepare", *LATER)}
    given["prepare"]["tokenizer"] = str(grown / "tokenizer" / "sentencepiece.model")
    given["train"]["mixtures"] = str(tmp_path / "own.csv")
    for stage, arguments in given.items():
        pipeline.run(Study(fresh), stage, arguments)
    ours, theirs = Study(grown), Study(fresh)
    for name, split in itertools.product(("web", "code", "forum"), ("train", "validation")):
        one, other = ours.store(name, split), theirs.store(name, split)
        np.testing.assert_array_equal(one.read(0, one.n_tokens).tokens, other.read(0, other.n_tokens).tokens)
    counts = [column for column in ours.read_table("corpus.csv", "prepare") if column.endswith(("documents", "tokens"))]
    found = [study.read_table("corpus.csv", "prepare", counts) for study in (ours, theirs)]
    pd.testing.assert_frame_equal(*found)
    pd.testing.assert_frame_equal(ours.losses(), theirs.losses(runs=ours.losses().index), check_exact=True)
    assert set(ours.losses().index) == set(theirs.losses().index)
    for name, losses in ours.features(ours.losses().index).items():
        pd.testing.assert_frame_equal(losses, theirs.features(losses.index)[name], rtol=1e-6)  # sums in float32


@pytest.mark.slow
def test_it_grows_once_more_and_goes_to_the_end(grown, tmp_path):
    study = Path(shutil.copytree(grown, tmp_path / "study"))
    for name in ("notes", "mail"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": text((name, i), 80)} for i in range(150)])
    before = files(study, "runs/*", "tokens/*/*")
    grow(study, ("train", "score", "evaluate", "fit"), **{n: tmp_path / f"{n}.jsonl" for n in ("notes", "mail")})
    for stage in ("optimize", "validate", "report"):
        pipeline.run(Study(study), stage, {"seeds": 1} if stage == "validate" else {})
    after = files(study, "runs/*", "tokens/*/*")
    stays = {name: content for name, content in before.items() if not re.match("tokens/(facts|short|web-next)/", name)}
    assert {name: after[name] for name in stays} == stays
    opened = Study(study)
    assert opened.joined == (("forum",), ("notes", "mail"))
    observed = opened.mixtures()
    assert [run for run in observed.index if "notes" in run or "mail" in run] == [
        "expert-notes", "expert-mail",
        *(f"proxy-{name}-{i:02d}" for name in ("notes", "mail") for i in range(3)),
    ]  # fmt: skip
    assert (observed.loc[["proxy-notes-00", "proxy-mail-00"], "mail"] > 0).tolist() == [False, True]
    assert set(opened.read_json("optimum.json", "optimize")["weights"]) == {"web", "code", "forum", "notes", "mail"}
    # and nothing is done twice
    assert not pipeline.run(opened, "train", flags(study, "train"))
    assert json.loads((study / "before-notes" / "fit" / "choice.json").read_text())["features"]
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool._Trainer, "train", lambda self, rows, *_: trained.extend(rows))
        pipeline.run(opened, "train", flags(study, "train"), force=True)
    assert not trained


def test_a_preparation_that_is_killed_goes_on(grown, copied, forum, monkeypatch):
    write = tokens.write_blocks

    def killed(directory, *arguments):
        if directory.name == "validation" and directory.parent.name == "forum":
            raise KeyboardInterrupt
        return write(directory, *arguments)

    monkeypatch.setattr(tokens, "write_blocks", killed)
    asked = flags(copied, "prepare")
    asked["training_domains"]["forum"] = str(forum)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(Study(copied), "prepare", asked)
    monkeypatch.undo()
    assert Study(copied).domains.training == ("web", "code")
    assert (copied / "fit" / "choice.json").exists()
    with pytest.raises(cli.UserError, match="'train' needs 'prepare'"):
        pipeline.run(Study(copied), "train", flags(copied, "train"))
    pipeline.run(Study(copied), "prepare", asked)
    assert Study(copied).about == Study(grown).about
    assert not (copied / "corpus" / "parts").exists()


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on(grown, copied, forum, monkeypatch):
    asked = flags(copied, "train")
    grow(copied, (), forum=forum)
    end = pool._Trainer._end

    def killed(self, run, *arguments):
        if run.name == NEW[2]:
            raise KeyboardInterrupt
        end(self, run, *arguments)

    monkeypatch.setattr(pool._Trainer, "_end", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(Study(copied), "train", asked)
    monkeypatch.undo()
    pipeline.run(Study(copied), "train", asked)
    pd.testing.assert_frame_equal(Study(copied).mixtures(), Study(grown).mixtures())
    for run in NEW:
        assert (copied / "runs" / run / "run.json").read_text() == (grown / "runs" / run / "run.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training_domains": {"web": None}}, "were trained on code; name all domains of the study"),
        ({"vocab_size": 380}, "trained with another tokenizer"),
        ({"tokenizer": "bytes"}, "and the text of 'web', or a setting that decides on it"),  # nothing is sampled
        ({"shortest": 90}, "and the text of 'web', or a setting that decides on it, is another"),
        ({"training_domains": {"web": None, "code": "forum"}}, "and the text of 'code', or a setting"),
        ({"tasks": {"more": "facts.jsonl"}}, "and other evaluation text or tasks decide anew"),
    ],
)
def test_other_changes_are_refused_and_change_nothing(tasked, copied, forum, changes, message):
    asked = flags(copied, "prepare")
    places = {**asked["training_domains"], "forum": str(forum)}
    asked["training_domains"] = places
    if "training_domains" in changes:
        changes = {"training_domains": {n: places[p or n] for n, p in changes["training_domains"].items()}}
        changes["training_domains"].setdefault("forum", str(forum))
    if "tasks" in changes:
        changes = {"tasks": {**asked["tasks"], "more": f"{tasked.parent}/facts.jsonl"}}
    contents = lambda: {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}  # noqa: E731
    before = contents()
    with pytest.raises(cli.UserError, match=re.escape(message)):
        pipeline.run(Study(copied), "prepare", asked | changes)
    assert contents() == before


def test_the_seed_model_stays(prepared_seeded, forum):
    """What joins it continues from the seed model of before, which has never read it."""
    study, arguments = prepared_seeded
    before = files(study, "runs/*")
    grow(study, (), forum=forum)
    for _ in range(2):
        pipeline.call("train", Study(study), **arguments)
        after = files(study, "runs/*")
        assert {name: after[name] for name in before} == before
    records = {run: json.loads((study / "runs" / run / "run.json").read_text()) for run in ("expert-web", NEW[0])}
    assert records["expert-web"]["seed_model"] == records["expert-forum"]["seed_model"]
    seed = json.loads((study / "runs" / "seed" / "run.json").read_text())
    assert set(seed["mixture"]) == set(seed["data"]) == {"web", "code"}
    with pytest.raises(cli.UserError, match=r"runs/seed: trained with training steps=2, not 3"):
        pipeline.call("train", Study(study), **arguments | {"seed_steps": 3})


@pytest.fixture
def prepared_seeded(copied) -> tuple[Path, dict]:
    """A study with a seed model and experts."""
    for name in ("runs", "scores"):
        shutil.rmtree(copied / name)
    arguments = flags(copied, "train") | {"steps": 2, "seed_steps": 2, "proxy_runs": 0}
    pipeline.call("train", Study(copied), **arguments)
    return copied, arguments


def test_runs_of_earlier_versions_are_known(prepared_seeded, forum):
    """Their records name all stores in one digest, and weights of nothing."""
    study, arguments = prepared_seeded
    stores = {name: Study(study).store(name, "train").digest for name in ("web", "code")}
    paths = {run: study / "runs" / run / "run.json" for run in ("seed", "expert-web", "expert-code")}
    records = {run: json.loads(path.read_text()) for run, path in paths.items()}
    earlier = {
        run: record | {"data": digest(stores), "mixture": dict.fromkeys(stores, 0.0) | record["mixture"]}
        for run, record in records.items()
    }
    for run, record in earlier.items():
        record |= {"seed_model": digest(earlier["seed"])} if run != "seed" else {}
        paths[run].write_text(json.dumps(record))
    before = files(study, "runs/*")
    pipeline.call("train", Study(study), **arguments)
    assert files(study, "runs/*") == before
    grow(study, (), forum=forum)
    pipeline.call("train", Study(study), **arguments)
    after = files(study, "runs/*")
    assert {name: after[name] for name in before} == before
    changed = pd.DataFrame([[0.5, 0.5, 0.0]], pd.Index(["own"], name="run"), ["web", "code", "forum"])
    changed.to_csv(study / "own.csv")
    shutil.copytree(study / "runs" / "expert-web", study / "runs" / "own")
    with pytest.raises(cli.UserError, match=r"trained with mixture web=1.0, not 0.5"):
        pipeline.call("train", Study(study), **arguments | {"mixtures": str(study / "own.csv")})
