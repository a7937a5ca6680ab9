"""End tasks in a study: the layouts they come in, their columns of losses, and accuracies."""

import re

import jax
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from prose import json, jsonl, text

from mde import bindings, cli
from mde.commands import pipeline
from mde.commands import score as command
from mde.domains import tokenizers
from mde.errors import UserError
from mde.models import decoder
from mde.optimization import objectives
from mde.results import scored_text as scoring
from mde.results.trained_runs import load_run, model_config
from mde.study import Study

NAMED = zip("ABCD", ("sun", "moon", "sea", "sky"), strict=True)
CHOICES = [{"text": f"the {what}", "label": label} for label, what in NAMED]
PLAIN = {"text": [c["text"] for c in CHOICES], "label": [c["label"] for c in CHOICES]}
NUMBERED = {"text": PLAIN["text"], "label": ["1", "2", "3", "4"]}
STEM = "What shines by night?"
QUESTIONS = [
    {"question": "Who came?", "answers": [{"text": "Ann", "label": 1}, {"text": "Bob", "label": 0}]},
    {
        "question": "Who left?",
        "answers": [{"text": "Ann", "label": 1}, {"text": "Bob", "label": 1}, {"text": "I", "label": 0}],
    },
]
ROWS = [
    {"paragraph": "Ann came.", "question": q["question"], "answer": a["text"], "label": a["label"]}
    for q in QUESTIONS
    for a in q["answers"]
]
ARC = [("Question: What shines by night?\nAnswer:", " the moon")]
OPENBOOK = [("What shines by night?", " the moon")]
MULTIRC = [
    ("Ann came.\nQuestion: Who came?\nAnswer:", " Ann"),
    ("Ann came.\nQuestion: Who left?\nAnswer:", " Ann"),
    ("Ann came.\nQuestion: Who left?\nAnswer:", " Bob"),
]


YES_OR_NO = [
    (f"Ann came.\nQuestion: {row['question']}\nAnswer: {row['answer']}\nIs the answer correct?", f" {right}")
    for row, right in zip(ROWS, ("yes", "no", "yes", "yes", "no"), strict=True)
]


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def distributed(root):
    """Files in the layouts in which the three tasks are distributed: archives of their authors, and Parquet."""
    ai2 = {"id": "1", "question": {"stem": STEM, "choices": CHOICES}, "answerKey": "B"}
    jsonl(root / "ARC-Challenge" / "ARC-Challenge-Test.jsonl", [ai2])
    jsonl(root / "ARC-Easy" / "ARC-Easy-Test.jsonl", [ai2])
    jsonl(root / "Data" / "Main" / "test.jsonl", [ai2])
    jsonl(root / "MultiRC" / "val.jsonl", [{"idx": 0, "passage": {"text": "Ann came.", "questions": QUESTIONS}}])
    row = {"id": "1", "question": STEM, "choices": NUMBERED, "answerKey": "2"}
    parquet(root / "ARC-Challenge" / "test-00000-of-00001.parquet", [row])
    parquet(root / "ARC-Easy" / "test-00000-of-00001.parquet", [row])
    parquet(root / "main" / "test-0.parquet", [{"id": "1", "question_stem": STEM, "choices": PLAIN, "answerKey": "B"}])
    parquet(root / "multirc" / "validation-0.parquet", ROWS)
    return root


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    for name in ("web", "code"):
        jsonl(root / f"{name}.jsonl", [{"text": text((name, i), 80)} for i in range(120)])
    return distributed(root)


def prepared(root, study, **tasks):
    study = Study(study)
    training = {name: f"{root}/{name}.jsonl" for name in ("web", "code")}
    pipeline.call("prepare", study, training_domains=training, tokenizer="bytes", task_root=str(root), **tasks)
    return study


def answers(study, task, split="validation"):
    """Contexts and answers of a store, split where it says."""
    store, tokenizer = study.store(task, split), tokenizers.load(study.root / "tokenizer")
    found = []
    for first, last, begins, size in zip(store.bounds[:-1], store.bounds[1:], store.answers, store.bytes, strict=True):
        window = store.read(first, last)
        assert_array_equal(np.sign(window.segments), [-1] * begins + [1] * (last - first - begins))
        assert window.tokens[0] == tokenizer.start
        context, answer = (tokenizer.decode(part.tolist()) for part in np.split(window.tokens[1:], [begins - 1]))
        assert len(answer.strip().encode()) == size
        found.append((context, answer))
    return found


def test_the_shipped_configurations_read_the_layouts_of_the_authors(places, tmp_path):
    given = bindings.from_gin(["configs/tasks/mde_paper.gin"], [])["prepare"]
    study = prepared(places, tmp_path / "study", **given)
    assert study.domains.evaluation == ("web", "code", "arc-easy", "arc-challenge", "openbookqa", "multirc")
    assert study.tasks == study.domains.evaluation[2:]
    expected = {"arc-easy": ARC, "arc-challenge": ARC, "openbookqa": OPENBOOK, "multirc": MULTIRC}
    for name, examples in expected.items():
        assert answers(study, name) == examples
    assert [answer for _, answer in answers(study, "openbookqa", "wrong")] == [" the sun", " the sea", " the sky"]
    assert_array_equal(study.store("multirc", "validation").examples, [0, 1, 1])
    assert_array_equal(study.store("multirc", "wrong").examples, [0, 1])
    table = study.read_table("corpus.csv", "prepare")
    assert table.loc["multirc", "validation_documents"] == 3
    weights = objectives.weights("avg-et", study.domains.evaluation, study.domains.training)
    assert weights.tolist() == [0, 0, *[0.25] * 4]


@pytest.mark.parametrize(
    ("file", "macro", "expected"),
    [
        ("arc", "ARC_CHALLENGE_PARQUET", ARC),
        ("arc", "ARC_EASY_PARQUET", ARC),
        ("openbookqa", "OPENBOOKQA_PARQUET", OPENBOOK),
        ("multirc", "MULTIRC_PARQUET", YES_OR_NO),
    ],
)
def test_the_layouts_of_hugging_face(places, tmp_path, file, macro, expected):
    given = bindings.from_gin([f"configs/tasks/{file}.gin"], [f"prepare.tasks = {{'task': %{macro}}}"])["prepare"]
    assert answers(prepared(places, tmp_path / "study", **given), "task") == expected


def tfds_folder(name, features, example, folder):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    dataset = tf.data.Dataset.from_generator(lambda: [example], output_signature=features.get_tensor_spec())
    splits = {"test": dataset, "validation": dataset}
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name=name, version="1.0.0", features=features, split_datasets=splits, data_dir=folder
    )
    return builder.data_path


def test_the_layouts_of_tfds(places, tmp_path):
    """The features are those of the data sets ai2_arc, openbookqa and super_glue/multirc."""
    import tensorflow_datasets as tfds

    words, label = tfds.features.Text(), tfds.features.ClassLabel(names=list("ABCDE"))
    choices = tfds.features.Sequence({"text": words, "label": label})
    options = {f"choice_{choice['label']}": choice["text"] for choice in CHOICES}
    truth = tfds.features.ClassLabel(names=["False", "True"])
    kinds = {
        ("arc", "ARC_EASY_TFDS"): (
            {"question": words, "choices": choices, "answerKey": label},
            {"question": STEM, "choices": {"text": PLAIN["text"], "label": [0, 1, 2, 3]}, "answerKey": 1},
            ARC,
        ),
        ("openbookqa", "OPENBOOKQA_TFDS"): (
            {"question": dict.fromkeys(("stem", *options), words), "answerKey": label},
            {"question": {"stem": STEM, **options}, "answerKey": 1},
            OPENBOOK,
        ),
        ("multirc", "MULTIRC_TFDS"): (
            {**dict.fromkeys(("paragraph", "question", "answer"), words), "label": truth},
            ROWS[1],
            YES_OR_NO[1:2],
        ),
    }
    tasks, expected = {}, {}
    for (name, macro), (features, example, answer) in kinds.items():
        given = bindings.from_gin([f"configs/tasks/{name}.gin"], [f"prepare.tasks = {{'x': %{macro}}}"])
        layout = given["prepare"]["tasks"]["x"]
        folder = tfds_folder(name, tfds.features.FeaturesDict(features), example, tmp_path / name)
        tasks[name] = {**layout, "files": f"tfds:{folder}:{layout['files'].rsplit(':', 1)[1]}"}
        expected[name] = answer
    study = prepared(places, tmp_path / "study", tasks=tasks)
    assert {name: answers(study, name) for name in tasks} == expected


def by_hand(study, run, task):
    """Of each example the choices' log-probs, tokens and bytes, right and wrong apart: a window for every document."""
    config = model_config(study)
    params = load_run(study, run, config)
    log_probs = jax.jit(lambda tokens, segments: decoder.token_log_probs(config, params, tokens, segments))
    examples = {}
    for split in ("validation", "wrong"):
        store = study.store(task, split)
        documents = [store.read(*bounds).tokens for bounds in zip(store.bounds[:-1], store.bounds[1:], strict=True)]
        counts = [len(document) - begins for document, begins in zip(documents, store.answers, strict=True)]
        documents = [document[-65:] for document in documents]
        tokens = np.stack([np.pad(document, (0, 65 - len(document))) for document in documents])
        segments = np.stack([np.arange(65) < len(document) for document in documents]).astype(np.int32)
        for i, row in enumerate(np.asarray(log_probs(tokens, segments), np.float64)):
            answer = row[len(documents[i]) - 1 - counts[i] : len(documents[i]) - 1]
            found = examples.setdefault(int(store.examples[i]), {"validation": [], "wrong": []})
            found[split].append((answer.sum(), len(answer), store.bytes[i]))
    return examples


@pytest.mark.parametrize("task", ["facts", "web-next"])
def test_accuracies_and_losses_are_those_of_documents_run_alone(tasked, task):
    study = Study(tasked)
    examples = {number: found for number, found in by_hand(study, "expert-web", task).items() if number < 25}
    assert len(examples) >= 20
    accuracies = study.read_table("accuracies.csv", "score")
    for metric, score in (("acc", lambda choice: choice[0]), ("acc_norm", lambda choice: choice[0] / choice[2])):
        hits = [max(map(score, e["validation"])) > max(map(score, e["wrong"])) for e in examples.values()]
        assert accuracies.loc["expert-web", f"{metric}/{task}"] == np.mean(hits)
    right = np.array([choice for found in examples.values() for choice in found["validation"]])
    loss = -right[:, 0].sum() / right[:, 1].sum()
    assert_allclose(study.losses().loc["expert-web", task], loss, rtol=1e-5)  # sums of float32 of another batch
    evaluation = study.read_table("evaluation.csv", "score").loc[task]
    assert evaluation.tolist() == right[:, 1:].sum(axis=0).tolist()


def test_columns_of_tasks(tasked):
    study = Study(tasked)
    assert study.domains.evaluation == ("web", "code", "facts", "short", "web-next")
    assert list(study.losses()) == list(study.domains.evaluation)
    accuracies = study.read_table("accuracies.csv", "score")
    assert list(accuracies) == [
        "acc/facts",
        "acc_norm/facts",
        "acc/web-next",
        "acc_norm/web-next",
    ]  # short has no choices
    assert list(accuracies.index) == list(study.mixtures().index)
    assert set(study.features()) == {"mde[0]", "mde[0.01]", "mde[0.1]", "mde[1]", "merged"}


def test_an_experts_own_corner_has_the_accuracy_that_was_measured(tasked):
    """And a merged or mixed corner its loss: no mixture is a single model."""
    study = Study(tasked)
    accuracies, answers = study.read_table("accuracies.csv", "score"), study.read_table("answers.csv", "evaluate")
    assert len(answers) == len(accuracies) + 16
    for run in ("expert-web", "expert-code"):
        for tau in (0, 1):
            assert answers.loc[run, f"accuracy[{tau}]/facts"] == accuracies.loc[run, "acc/facts"]
            assert answers.loc[run, f"accuracy_norm[{tau}]/facts"] == accuracies.loc[run, "acc_norm/facts"]
        features = study.features()["mde[0]"].loc[run]
        assert_allclose(features[["facts", "short"]], study.losses().loc[run, ["facts", "short"]], rtol=1e-6)


def test_accuracy_is_cross_validated_out_of_fold_and_predicted(tasked, tmp_path):
    study = Study(tasked)
    table = study.read_table("fit/accuracy.csv", "fit")
    assert set(table["metric"]) == {"acc", "acc_norm"}
    features = set(table.loc[table["metric"] == "acc", "features"])
    assert {"lambda", "expected[0]", "margin[1]+log", "expected[0]+margin[0]+expected[1]+margin[1]"} <= features
    mixtures = tmp_path / "mixtures.csv"
    mixtures.write_text("run,web,code\nhalf,.5,.5\n")
    cli.main(["predict", f"--study={tasked}", f"--mixtures={mixtures}", f"--output={tmp_path / 'losses.csv'}"])
    predicted = pd.read_csv(tmp_path / "losses.csv", index_col=0)
    assert {"web", "short", "acc/facts", "acc_norm/web-next"} <= set(predicted)
    assert predicted["acc/facts"].between(-0.5, 1.5).all()


def test_choices_that_are_scored_are_kept_and_fewer_examples_are_another_score(tasked, tmp_path, monkeypatch):
    study = Study(tasked)
    about = study.read_json("scoring.json", "score")
    expected = study.read_table("accuracies.csv", "score")
    monkeypatch.setattr(scoring.Scorer, "__call__", lambda *args: pytest.fail("scored again"))
    runs = list(expected.index)
    pd.testing.assert_frame_equal(scoring.score_choices(study, about, runs), expected)
    with pytest.raises(UserError, match="no score of this run on this text"):
        scoring.choices_of(study, {**about, "examples_per_task": 3}, runs, "facts")


def test_answers_that_are_longer_than_what_models_read_are_told(tasked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "seq_len", lambda study: 3)
    command._warn_of_long_answers(Study(tasked))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("'")[1] for line in lines] == ["facts", "short", "web-next"]
    store = Study(tasked).store("short", "validation")
    assert f"{(np.diff(store.bounds) - store.answers > 3).sum()} answers are longer than the 3 tokens" in lines[1]


def test_bad_examples_are_counted_and_told(places, tmp_path, capsys):
    good = {"question": "?", "choices": ["a", "b"], "answer": 0}
    path = tmp_path / "bad.jsonl"
    path.write_text(
        "\n".join([json.dumps(good), "{", json.dumps({**good, "answer": "c"}), json.dumps({"choices": []})])
    )
    study = prepared(places, tmp_path / "study", tasks={"bad": str(path)})
    problems = study.read_table("problems.csv", "prepare")
    assert problems["line"].tolist() == [2, 3, 4]
    assert problems["reason"].tolist() == ["not_json", "not_a_choice", "missing_field"]
    assert set(problems.index) == {str(path)}
    table = study.read_table("corpus.csv", "prepare").loc["bad"]
    assert (table["validation_documents"], table["not_a_choice_documents"]) == (1, 1)
    assert re.search(r"bad\.jsonl, line 3: not a choice: answer 'c' is none of 'a', 'b'", capsys.readouterr().out)
    with pytest.raises(UserError, match=r"bad\.jsonl, line 2: not_json: .*\(task 'bad'\)"):
        prepared(places, tmp_path / "other", tasks={"bad": str(path)}, on_error="fail")


def test_a_task_without_an_example_is_refused(places, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "?", "choices": ["a"], "answer": 7}\n')
    with pytest.raises(UserError, match=r"task 'bad' has no example: .*line 1: not_a_choice: answer 7 of 1 choices"):
        prepared(places, tmp_path / "study", tasks={"bad": str(path)})
    with pytest.raises(UserError, match="unknown domain in continuations 'wev': did you mean 'web'"):
        prepared(places, tmp_path / "study", continuations=["wev"])


def test_training_text_that_repeats_a_task_is_dropped(places, tmp_path):
    question = text(("web", 7), 80)
    jsonl(tmp_path / "seen.jsonl", [{"question": question[:300], "choices": [question[301:], "x"], "answer": 0}])
    study = prepared(places, tmp_path / "study", tasks={"seen": str(tmp_path / "seen.jsonl")})
    assert study.read_table("corpus.csv", "prepare").loc["web", "overlap_documents"] == 1


def test_the_flag_of_a_task(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "t.jsonl", [{"question": "?", "choices": ["a", "b"], "answer": 1}])
    domains = [f"--domain={name}={places}/{name}.jsonl" for name in ("web", "code")]
    cli.main(["prepare", "--study=study", *domains, "--tokenizer=bytes", "--task=t=t.jsonl"])
    assert answers(Study("study"), "t") == [("?", " b")]
