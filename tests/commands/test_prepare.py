"""`mde prepare` on corpora of one's own: the layouts of the papers, every kind of tokenizer, bad input, a kill."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from commands import ROOT, command
from prose import jsonl, text

from mde import cli
from mde.commands import pipeline
from mde.commands.prepare import _Preparation
from mde.domains import hygiene, tokenizers
from mde.errors import UserError
from mde.results.scored_text import on_test_text
from mde.study import Study


def documents(study: Study, domain: str, split: str) -> list[str]:
    """The texts of a store, its START and end-of-text checked and taken off."""
    store, tokenizer = study.store(domain, split), tokenizers.load(study.root / "tokenizer")
    tokens = store.read(0, store.n_tokens).tokens
    found = []
    for start, stop, size in zip(store.bounds[:-1], store.bounds[1:], store.bytes, strict=True):
        assert (tokens[start], tokens[stop - 1]) == (tokenizer.start, tokenizer.end)
        found.append(tokenizer.decode(tokens[start + 1 : stop - 1].tolist()))
        assert len(found[-1].encode()) == size
    return found


def held_out(study: Study, domain: str) -> list[str]:
    return documents(study, domain, "validation") + documents(study, domain, "test")


def table(study: Study) -> pd.DataFrame:
    return study.read_table("corpus.csv", "prepare")


@pytest.fixture
def places(tmp_path):
    """Two corpora of 200 documents each, and an evaluation text."""
    for name in ("web", "code"):
        for part in range(2):
            records = [{"text": text((name, part, i)), "id": i} for i in range(100)]
            jsonl(tmp_path / name / f"{part}.jsonl{'.zst' if name == 'web' else ''}", records)
    (tmp_path / "news.txt").write_text("".join(text(("news", i)) for i in range(50)))
    return tmp_path


def prepared(places: Path, training: dict | None = None, evaluation: dict | None = None, **settings) -> Study:
    study = Study(places / "study")
    training = training or {"web": f"{places}/web/*.jsonl.zst", "code": f"{places}/code"}
    settings = {"vocab_size": 360, **settings}
    pipeline.call("prepare", study, training_domains=training, evaluation_domains=evaluation or {}, **settings)
    return study


def test_flags_of_domains(places, capsys, monkeypatch):
    """The short form, from the folder where the files are; it is recorded as arguments of the stage."""
    monkeypatch.chdir(places)
    flags = ["--domain=web=web/*.jsonl.zst", "--domain=code=code", "--eval_domain=news=news.txt", "--vocab_size=360"]
    cli.main(["prepare", "--study=study", *flags])
    study = Study("study")
    record = study.read_json("stages/prepare.json", "prepare")["arguments"]
    assert record["training_domains"] == {"web": "web/*.jsonl.zst", "code": "code"}
    assert record["evaluation_domains"] == {"news": "news.txt"}
    printed = capsys.readouterr().out
    assert re.search(r"web +200 ", printed)
    for name in ("web", "code"):
        expected = {text((name, part, i)) for part in range(2) for i in range(100)}
        found = [documents(study, name, split) for split in ("train", "validation", "test")]
        assert sorted(itertools.chain(*found)) == sorted(expected)  # each of them in one split
        assert 2 <= len(found[1]) <= 25  # of 200 documents 5% are validation text
        assert 2 <= len(found[2]) <= 25  # and 5% test text
    assert "".join(held_out(study, "news")) != (places / "news.txt").read_text()  # by their hashes
    assert sorted("".join(held_out(study, "news"))) == sorted((places / "news.txt").read_text())
    assert documents(study, "news", "validation")
    assert documents(study, "news", "test")
    assert not (study.root / "corpus" / "parts").exists()
    cli.main(["prepare", "--study=study", *flags])
    assert "done before" in capsys.readouterr().out


def test_text_that_is_added_or_edited_is_another_input(places, capsys):
    jsonl(places / "facts.jsonl", [{"question": "a", "choices": ["b", "c"], "answer": 0}])
    flags = [f"--domain={name}={places}/{name}" for name in ("web", "code")]
    flags += [f"--eval_domain=news={places}/news.txt", f"--task=facts={places}/facts.jsonl", "--tokenizer=bytes"]
    for edited in (None, "code/9.jsonl", "news.txt", "facts.jsonl"):
        if edited:
            with (places / edited).open("a") as file:
                file.write('{"question": "d", "choices": ["e", "f"], "answer": 1, "text": "g"}\n')
        for done in (False, True):
            cli.main(["prepare", f"--study={places}/study", *flags])
            assert ("done before" in capsys.readouterr().out) == done, edited


def test_the_demo_takes_the_same_flags(places, monkeypatch):
    """In place of its own domains; the first stage is enough to see it."""
    called = []
    monkeypatch.setattr(pipeline, "run", lambda study, stage, given, force: called.append((stage, given)))
    cli.main(["demo", f"--study={places}/study", f"--domain=web={places}/web", "--domain=wiki", "--eval_domain=news"])
    given = dict(called)["prepare"]
    assert given["training_domains"] == {"web": f"{places}/web", "wiki": "mde:wiki"}
    assert given["evaluation_domains"] == {"news": "mde:news"}
    assert given["vocab_size"] == 2048  # from demo.gin


@pytest.mark.slow
def test_a_demo_of_ones_own_domains_comes_to_its_report(places):
    """Bytes as tokens, so that the shortest path is also one without a trained tokenizer."""
    cli.main(["demo", f"--study={places}/study", "--gin_file=configs/demo_tiny.gin", f"--domain=web={places}/web",
              f"--domain=code={places}/code", f"--eval_domain=news={places}/news.txt",
              "--gin_bindings=prepare.tokenizer = 'bytes'"])  # fmt: skip
    study = Study(places / "study")
    assert study.domains.evaluation == ("web", "code", "news")
    assert set(study.read_json("optimum.json", "optimize")["weights"]) == {"web", "code"}
    assert f"{places}/web" in (study.root / "report.html").read_text()


@pytest.mark.parametrize("kind", ["train", "bytes", "model", "json"])
def test_tokenizers(places, kind):
    if kind == "model":
        path = prepared(places).root / "tokenizer" / "sentencepiece.model"
        given = places / "own.model"
        path.rename(given)
    elif kind == "json":
        import tokenizers as hf

        made = hf.Tokenizer(hf.models.BPE())
        made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = hf.decoders.ByteLevel()
        trainer = hf.trainers.BpeTrainer(
            initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"], vocab_size=300
        )
        made.train_from_iterator([text(i) for i in range(50)], trainer)
        given = places / "own.json"
        made.save(str(given))
    else:
        given = kind
    study = prepared(places, tokenizer=str(given))
    expected = {"train": (360, 0, 1), "bytes": (259, 0, 1), "model": (360, 0, 1), "json": (300, 0, 1)}[kind]
    assert tuple(study.about[key] for key in ("vocab_size", "start", "end")) == expected
    assert len(documents(study, "code", "train") + held_out(study, "code")) == 200


def test_documents_that_are_held_out_stay_so_when_files_are_added(places):
    """Validation text as validation text, test text as test text."""
    study = prepared(places)
    before = {split: set(documents(study, "web", split)) for split in ("validation", "test")}
    jsonl(places / "web" / "00.jsonl.zst", [{"text": text(("more", i))} for i in range(100)])
    study = prepared(places)
    after = {split: set(documents(study, "web", split)) for split in before}
    assert all(before[split] < after[split] for split in before)
    assert not after["validation"] & after["test"]
    assert not (after["validation"] | after["test"]) & set(documents(study, "web", "train"))
    for odd, split in enumerate(before):
        digests = [hygiene.digest(each.encode()) for each in after[split]]
        assert all(each < 0.1 * 2**64 and each % 2 == odd for each in digests)


def test_test_text_that_is_given_is_the_test_split(places):
    """And then all documents that are held out by their hashes are validation text; neither is trained on."""
    jsonl(places / "exam.jsonl", [{"text": text(("exam", i))} for i in range(30)])
    jsonl(places / "web" / "9.jsonl.zst", [{"text": text(("exam", 3)) + "more"}, {"text": text(("exam", 4))}])
    training = {"web": {"files": f"{places}/web", "test": f"{places}/exam.jsonl"}, "code": f"{places}/code"}
    study = prepared(places, training)
    assert sorted(documents(study, "web", "test")) == sorted(text(("exam", i)) for i in range(30))
    assert all(hygiene.digest(each.encode()) < 0.05 * 2**64 for each in documents(study, "web", "validation"))
    assert table(study).loc["web", ["exact_duplicate_documents", "near_duplicate_documents"]].tolist() == [1, 1]
    assert not set(documents(study, "web", "test")) & set(documents(study, "web", "train"))


def test_a_domain_of_one_held_out_document_has_no_test_split_and_says_so(places, capsys):
    (places / "news.txt").write_text(text("alone", 60))
    study = prepared(places, evaluation={"news": f"{places}/news.txt"})
    assert len(documents(study, "news", "validation")) == 1
    assert "news/test" not in study.about["stores"]
    assert "domain 'news': too few held-out documents for a test split" in capsys.readouterr().err
    assert on_test_text(study, {"batch_size": 1}) == {"batch_size": 1, "split": "validation"}
    (places / "news.txt").write_text("".join(text(("news", i)) for i in range(50)))
    study = prepared(places, evaluation={"news": f"{places}/news.txt"})
    assert on_test_text(study, {}) == {"split": "test"}


def test_a_study_that_is_prepared_anew_is_known_anew(places):
    """Through one `Study`, as `mde demo` goes on after `prepare`."""
    study = prepared(places)
    assert study.stages[0] == "prepare"  # which reads what the study says of itself
    training, evaluation = {"web": f"{places}/web", "code": f"{places}/code"}, {"news": f"{places}/news.txt"}
    pipeline.call("prepare", study, training_domains=training, evaluation_domains=evaluation, vocab_size=350)
    assert study.about == Study(study.root).about
    assert study.domains.evaluation == ("web", "code", "news")
    assert study.store("web", "train").n_documents > 100


def test_end_tasks_are_not_added_to_a_study_with_runs(places):
    """They decide which training text is dropped, and the runs were trained without them."""
    jsonl(places / "facts.jsonl", [{"question": "a", "choices": ["b", "c"], "answer": 0}])
    study = prepared(places, tokenizer="bytes")
    (study.root / "runs").mkdir()
    prepared(places, tokenizer="bytes")
    files = lambda: {path: path.read_bytes() for path in (places / "study").rglob("*") if path.is_file()}  # noqa: E731
    before = files()
    with pytest.raises(UserError, match=r"study: holds runs, and other evaluation text .*; use another --study"):
        prepared(places, tokenizer="bytes", tasks={"new": f"{places}/facts.jsonl"})
    assert files() == before


def test_text_that_joins_gives_way_to_what_is_there(places):
    """Of the new text goes what is, nearly is, or has half of what runs may have read; theirs stays as it is."""
    words = text(("code", 0, 5)).split()
    linked = [
        " ".join([*words[:20], "another", *words[21:]]),
        " ".join([*words[:20], "another", *words[21:40], "end", *words[41:]]),
    ]
    long = "".join(text(("page", i)) for i in range(3))
    jsonl(places / "code" / "9.jsonl", [{"text": linked[1]}, {"text": long + text("more", 30)}])
    settings = {"shortest": 10, "near_duplicates": 0.78, "vocab_size": 360}
    study = prepared(places, **settings)
    stays = {
        (name, split): documents(study, name, split)
        for name in ("web", "code")
        for split in ("train", "validation", "test")
    }
    everything = {each for (name, _), found in stays.items() if name == "code" for each in found}
    assert {" ".join(words) + "\n", linked[1]} < everything
    assert any(each.startswith(long) for each in stays["code", "train"])
    (study.root / "runs").mkdir()
    held = [text(("page", 1)), text(("web", 0, 3)), text("held out"), text("also held out", 200)]
    again = [linked[0], text(("code", 1, 4)), text("also held out", 200)[:600], *(text(("new", i)) for i in range(20))]
    jsonl(places / "forum.jsonl", [{"text": each} for each in again])
    jsonl(places / "held.jsonl", [{"text": each} for each in held])
    (places / "news.txt").write_text(text("news", 300))
    training = {
        "forum": {"files": f"{places}/forum.jsonl", "validation": f"{places}/held.jsonl"},
        "web": f"{places}/web/*.jsonl.zst",
        "code": f"{places}/code",
    }
    for repeated in range(3):
        if repeated == 2:
            shutil.rmtree(study.root / "tokens" / "code")  # is made anew as it was
        study = prepared(places, training, {"news": f"{places}/news.txt"}, **settings)
        assert study.joined == (("forum", "news"),)
        assert {key: documents(study, *key) for key in stays} == stays
        assert sorted(documents(study, "forum", "train")) == sorted(text(("new", i)) for i in range(20))
        assert sorted(held_out(study, "forum")) == sorted(held[2:])
        rows = table(study)
        assert rows.loc["forum", ["exact_duplicate_documents", "near_duplicate_documents"]].tolist() == [2, 1]
        assert rows.loc["forum", "overlap_documents"] == 2
        assert rows.loc["forum", "documents"] == len(held) + len(again)
    assert study.domains.training == ("forum", "web", "code")
    assert documents(study, "news", "validation")


def test_what_is_dropped_is_counted(places):
    evaluation = text("evaluation", 300)
    (places / "news.txt").write_text(evaluation)
    words = text(("web", 0, 5)).split()
    near = " ".join([*words[:30], "another", *words[31:]]) + "\n"
    bad = [
        {"text": text(("web", 1, 7))},  # exactly in another file
        {"text": near},
        {"text": "short"},
        {"text": ""},
        {"text": None},
        {"txt": "misnamed"},
        {"text": 5},
        {"text": "y" * 3000},
        {"text": " ".join(evaluation.split()[:50])},
        {"text": text(("code", 0, 3))},  # a domain listed later: here it is the first
    ]
    jsonl(places / "web" / "9.jsonl.zst", bad)
    settings = {"max_document_bytes": 2000, "shortest": 10, "near_duplicates": 0.6}
    study = prepared(places, evaluation={"news": f"{places}/news.txt"}, **settings)
    row = table(study).loc["web"]
    expected = {
        "exact_duplicate": 1, "near_duplicate": 1, "too_short": 1, "empty": 2, "missing_field": 2, "too_large": 1,
        "overlap": 1, "broken_file": 0, "invalid_utf8": 0, "not_json": 0, "other_domain": 0, "held_out": 0,
    }  # fmt: skip
    assert {reason: row[f"{reason}_documents"] for reason in expected} == expected
    assert row["documents"] == 210
    assert row["near_duplicate_bytes"] == len(near)
    assert row["train_documents"] + row["validation_documents"] + row["test_documents"] == 201
    code = table(study).loc["code"]
    assert (code["exact_duplicate_documents"], code["documents"]) == (1, 200)
    assert near not in documents(study, "web", "train")
    problems = pd.read_csv(study.root / "problems.csv")
    assert problems["line"].tolist() == [4, 5, 6, 7, 8]
    assert problems["file"].unique().tolist() == [f"{places}/web/9.jsonl.zst"]
    assert "did you mean 'txt'" in problems["detail"][2]
    # 60% of 5-word shingles: one word of 60 leaves 51 of 61, .84.
    kept = prepared(places, near_duplicates=0.0, overlap_words=0, shortest=0, max_document_bytes=2000)
    assert near in documents(kept, "web", "train") + held_out(kept, "web")
    assert table(kept).loc["web"]["overlap_documents"] == 0


def test_validation_text_beyond_the_limit_is_not_used(places):
    study = prepared(places, validation_share=0.25, validation_bytes=3000)
    row = table(study).loc["web"]
    assert 6000 <= row["validation_bytes"] + row["test_bytes"] < 6000 + 1000
    assert row["held_out_documents"] > 50
    assert row[[f"{kind}_documents" for kind in ("train", "validation", "test", "held_out")]].sum() == 200
    for split in ("validation", "test"):
        held = [hygiene.digest(each.encode()) for each in documents(study, "web", split)]
        assert held == sorted(held)


@pytest.mark.parametrize(
    ("training", "settings", "expected"),
    [
        ({"web": "web/nothing*"}, {}, "domain 'web': no file matches .*nothing"),
        ({"web": {"files": "web", "text_field": "txt"}}, {}, "'web' is empty: .*200 missing_field.*line 1.*'text'"),
        ({"web": "web"}, {"text_field": "ids"}, "is empty: .* did you mean 'id'"),
        ({"web": "web"}, {"on_error": "stop"}, "unknown value of on_error 'stop'"),
        ({"web": "web"}, {"validation_share": 1.5}, "validation_share=1.5 must be between"),
        ({"web": "web"}, {"validation_share": 0.0}, "validation split has no document .*prepare.validation_share"),
        ({"web": "web"}, {"tokenizer": "nowhere.model"}, "no file 'nowhere.model'"),
        ({"web": "web"}, {"vocab_size": 100_000}, "cannot train 100000 pieces"),
        ({"code": "web"}, {}, "at least two training domains"),
    ],
)
def test_what_is_refused(places, training, settings, expected):
    training = {"code": "code", **training}
    with pytest.raises(UserError, match=expected):
        prepared(places, training, root=str(places), **settings)
    assert not (places / "study" / "study.json").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_the_first_problem_stops_it_if_asked_to(places, monkeypatch, killed):
    """Also one that was skipped by a preparation that was killed after both passes, which are kept."""
    with (places / "code" / "1.jsonl").open("ab") as file:
        file.write(b"no json\n")
    if killed:
        with monkeypatch.context() as patched:
            patched.delattr(_Preparation, "_assemble")
            with pytest.raises(AttributeError):
                prepared(places)
    with pytest.raises(UserError, match=r"code/1\.jsonl, line 101: not_json: .*\(domain 'code'\)"):
        prepared(places, on_error="fail")
    assert table(prepared(places)).loc["code", "not_json_documents"] == 1


def test_a_value_of_the_domain_field_that_no_document_has(places):
    jsonl(places / "all.jsonl", [{"text": text(i), "meta": {"kind": "AB"[i % 2]}} for i in range(100)])
    several = {"files": f"{places}/all.jsonl", "domain_field": "meta.kind", "domains": {"A": "a", "b": "b"}}
    with pytest.raises(UserError, match=r"domain 'b' is empty: unknown value of 'meta.kind' 'b'.*known are B"):
        prepared(places, {"all": several})


def config(name: str, root: Path, *more: str) -> Study:
    """A study prepared with a shipped configuration, through the command line, with a vocabulary for little text."""
    cli.main(["prepare", f"--study={root}/study", f"--gin_file=configs/corpora/{name}.gin", f"--root={root}",
              "--vocab_size=360", *more])  # fmt: skip
    return Study(root / "study")


def test_slimpajama(tmp_path):
    names = ["CommonCrawl", "C4", "Github", "Book", "ArXiv", "Wikipedia", "StackExchange"]
    for folder, part in (("train/chunk1", "train"), ("train/chunk2", "train"), ("validation/chunk1", "holdout")):
        records = [
            {"text": text((folder, name, i)), "meta": {"redpajama_set_name": f"RedPajama{name}"}}
            for i in range(30) for name in [*names, "Other"]
        ]  # fmt: skip
        for number in range(2):
            jsonl(tmp_path / folder / f"example_{part}_{number}.jsonl.zst", records[number::2])
    study = config("slimpajama", tmp_path)
    expected = ("commoncrawl", "c4", "github", "books", "arxiv", "wikipedia", "stackexchange")
    assert study.domains.training == study.domains.evaluation == expected
    for domain, name in zip(expected, names, strict=True):
        train = [text((folder, name, i)) for folder in ("train/chunk1", "train/chunk2") for i in range(30)]
        assert sorted(documents(study, domain, "train")) == sorted(train)
        held = [text(("validation/chunk1", name, i)) for i in range(30)]
        assert sorted(held_out(study, domain)) == sorted(held)
    assert table(study).loc["slimpajama", "other_domain_documents"] == 90


def test_s2orc(tmp_path):
    bound = (ROOT / "configs" / "corpora" / "s2orc.gin").read_text()
    fields = dict(re.findall(r"'([A-Z][\w ]+)': '([\w-]+)'", bound))
    assert len(fields) == 23
    records = [
        {"id": f"{i}", "text": text((name, i)), "source": "s2", "metadata": {"s2fieldsofstudy": [name, "Art"]}}
        for name in fields for i in range(60)
    ]  # fmt: skip
    records.append({"id": "x", "text": text("none"), "source": "s2", "metadata": {"s2fieldsofstudy": []}})
    for number in range(3):
        jsonl(tmp_path / f"{number:05d}.json.gz", records[number::3])
    study = config("s2orc", tmp_path, "--validation_share=0.2")
    assert study.domains.training == tuple(fields.values())
    found = documents(study, "medicine", "train") + held_out(study, "medicine")
    assert sorted(found) == sorted(text(("Medicine", i)) for i in range(60))
    assert table(study).loc["s2orc", "missing_field_documents"] == 1


def test_m2d2_wikipedia(tmp_path):
    folders = [
        "Culture_and_the_arts", "General_referece", "Health_and_fitness", "History_and_events", "Human_activites",
        "Mathematics_and_logic", "Natural_and_physical_sciences", "Philosophy_and_thinking",
        "Religion_and_belief_systems", "Society_and_social_sciences", "Technology_and_applied_sciences",
    ]  # fmt: skip
    for folder in folders:
        (tmp_path / folder).mkdir()
        for name, count in (("train", 60), ("valid", 10), ("test", 10)):
            lines = "\n".join(text((folder, name, i)) for i in range(count))
            (tmp_path / folder / f"{name}.txt").write_text(lines)
    study = config("m2d2_wikipedia", tmp_path)
    assert len(study.domains.training) == 11
    for domain, folder in zip(study.domains.training, folders, strict=True):
        found = documents(study, domain, "train")
        assert "".join(found) == (tmp_path / folder / "train.txt").read_text()
        assert all(len(part) < 4000 for part in found)
        for split, name in (("validation", "valid"), ("test", "test")):
            held = documents(study, domain, split)
            assert sorted("".join(held)) == sorted((tmp_path / folder / f"{name}.txt").read_text())


@pytest.fixture
def large(tmp_path):
    """Files in four shards of which each takes a second or so, so that there is something to kill."""
    for domain in ("a", "b"):
        records = [{"text": text((domain, i), 2000)} for i in range(1500)]
        for number in range(4):
            jsonl(tmp_path / domain / f"{number}.jsonl", records[number::4])
    return tmp_path


@pytest.mark.slow
def test_a_killed_preparation_goes_on_and_ends_with_the_same_bytes(large, monkeypatch):
    """Several processes, killed in the first and in the second pass, against one process that is left alone."""
    script = large / "run.py"
    script.write_text(
        "import sys\nfrom mde.domains import corpora\nfrom mde.commands import pipeline, prepare as stage\n"
        "from mde.study import Study\nstage._SMALL = 0\n"
        "shards = corpora.shards\ncorpora.shards = lambda corpus: shards(corpus, 4 << 20)\n"
        "if __name__ == '__main__':\n"
        f"    domains = {{'a': '{large}/a', 'b': '{large}/b'}}\n"
        "    given = {'training_domains': domains, 'vocab_size': 400, 'processes': int(sys.argv[2])}\n"
        "    pipeline.call('prepare', Study(sys.argv[1]), **given)\n"
    )

    def line(study: str, processes: int) -> list[str]:
        return [sys.executable, str(script), str(large / study), str(processes)]

    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    subprocess.run(line("whole", 1), env=environment, check=True, capture_output=True)
    parts = large / "killed" / "corpus" / "parts"
    for pattern in ("*/sample.json", "*/a.train.tokens"):
        process = subprocess.Popen(
            line("killed", 2), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        for _ in range(1200):
            if list(parts.glob(pattern)):
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (large / "killed" / "study.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("*/about.json")}
    assert finished
    subprocess.run(line("killed", 2), env=environment, check=True, capture_output=True)
    whole, killed = (
        {str(p.relative_to(large / name)): p.read_bytes() for p in sorted((large / name).rglob("*")) if p.is_file()}
        for name in ("whole", "killed")
    )
    assert whole == killed


def test_the_command_needs_no_tensorflow(places):
    """And says in one line what is wrong."""
    script = (
        "import sys\nfrom mde import cli\n"
        f"cli.main(['prepare', '--study={places}/study', '--vocab_size=360', '--domain=a={places}/web', "
        f"'--domain=b={places}/code'])\nassert not {{'tensorflow', 'jax'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)
    done = subprocess.run(command("prepare", f"--study={places}/other", "--domain=a=nowhere/*", "--domain=b=x"),
                          cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "mde prepare: error: domain 'a': no file matches 'nowhere/*'"
