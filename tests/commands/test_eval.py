"""lm-evaluation-harness's tasks on our models, and on the same models as Hugging Face has them."""

import json
import shutil
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from etils import epath
from numpy.testing import assert_allclose
from prose import text
from scipy.special import logsumexp

from mde import cli
from mde.commands import eval as eval_stage
from mde.domains import tokenizers
from mde.errors import UserError
from mde.evaluation.language_model import ExpertMixture
from mde.models import decoder
from mde.results.trained_runs import load_run, model_config
from mde.study import Study

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402

from mde.evaluation import downstream  # noqa: E402
from mde.evaluation.downstream import HarnessModel, results_of  # noqa: E402

# Log-probs of some ten tokens of about 5 nats each, in float32 and by two programs.
TOLERANCE = 1e-3

CHOICE = """
task: our_facts
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/facts.jsonl}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
"""
ANSWER = """
task: our_answers
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/short.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: answer
generation_kwargs: {until: ["ka"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
task: our_text
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/code.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""


@pytest.fixture(scope="module")
def task_folder(tasked, tmp_path_factory):
    """Task files of the harness over the files that the study's own tasks were made of."""
    folder = tmp_path_factory.mktemp("harness")
    for name, content in (("facts", CHOICE), ("answers", ANSWER), ("text", ROLLING)):
        (folder / f"{name}.yaml").write_text(content.replace("FOLDER", str(tasked.parent)))
    return folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def models(study):
    config = model_config(study)
    return config, [load_run(study, f"expert-{name}", config) for name in study.domains.training]


def harness(study, mixture, batch_size=4):
    return HarnessModel(mixture, tokenizers.load(study.root / "tokenizer"), 64, batch_size)


def requests(kind, *arguments):
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


PAIRS = [
    ("Kalo mine ruta", " voxi barden"),
    ("", "Kalo mine"),
    ("ends with white space \n", "Filgor"),
    (text("long", 60), " humjax"),
    ("a", "b"),
]
TEXTS = [("Kalo mine ruta voxi.",), (text("rolling", 70),), ("é",)]


@pytest.fixture
def study(tasked, tmp_path):
    """A copy of a study, to write to."""
    return shutil.copytree(tasked, tmp_path / "study", ignore=shutil.ignore_patterns("corpus"))


def eval_(study, *flags):
    cli.main(["eval", f"--study={study}", *flags])


def table(path):
    return pd.read_csv(path).set_index(["task", "metric"])["value"]


def test_the_command_writes_tables_and_agrees_with_the_studys_own_accuracies(tasked, task_folder, tmp_path, capsys):
    output = tmp_path / "run.json"
    flags = ["--tasks=our_facts,our_text", f"--include_path={task_folder}", "--limit=25"]
    eval_(tasked, "--run=expert-web", *flags, f"--output={output}")
    assert "our_facts" in capsys.readouterr().out
    values = table(output.with_suffix(".csv"))
    accuracies = Study(tasked).read_table("accuracies.csv", "score").loc["expert-web"]
    assert values["our_facts", "acc"] == accuracies["acc/facts"]
    assert values["our_facts", "acc_bytes"] == accuracies["acc_norm/facts"]
    assert 1 < values["our_text", "bits_per_byte"] < 10
    about = json.loads(output.read_text())
    assert about["model"]["run"] == "expert-web"
    assert about["results"]["our_facts"]["acc,none"] == values["our_facts", "acc"]


def test_tasks_of_one_name_in_two_folders_are_two_results_and_each_is_whole(study, monkeypatch):
    """The table is there when the rest is written, and what is half written stands beside the last results."""
    monkeypatch.setattr(downstream, "results_of", lambda *_: {"results": {}, "n-shot": {}, "n-samples": {}})
    for folder in ("first", "second", "second"):
        eval_(study, "--run=expert-web", "--tasks=ours", f"--include_path={folder}")
    found = sorted(path.name for path in (study / "evals").iterdir())
    assert len(found) == 4
    assert {name.rpartition(".")[2] for name in found} == {"csv", "json"}

    before = {path: path.read_bytes() for path in (study / "evals").iterdir()}
    monkeypatch.setattr(epath.Path(study).__class__, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        eval_(study, "--run=expert-web", "--tasks=ours", "--include_path=second")
    assert {path: path.read_bytes() for path in before} == before


def test_mixtures_and_merged_models_at_a_corner_are_the_expert(tasked, task_folder, tmp_path):
    flags = ["--tasks=our_facts,our_answers", f"--include_path={task_folder}", "--limit=6", "--num_fewshot=1"]
    corner = "{'code': 1.0}"
    found = {}
    for kind in ("--run=expert-code", f"--merged={corner}", "--mixture=expert-code"):
        output = tmp_path / f"{len(found)}.json"
        eval_(tasked, kind, *flags, f"--output={output}")
        found[kind] = table(output.with_suffix(".csv"))
    first, *others = found.values()
    for other in others:
        pd.testing.assert_series_equal(first, other)


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_a_mixture_is_the_sum_of_its_experts(tasked, tau):
    """By hand in float64: weights follow all of the text before, the context included."""
    study = Study(tasked)
    config, experts = models(study)
    weights = np.array([0.3, 0.7])
    model = harness(study, ExpertMixture(config, experts, weights, tau))
    found = model.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    run = jax.jit(lambda params, tokens, ones: decoder.token_log_probs(config, params, tokens, ones))
    for (context, continuation), (log_prob, _) in zip(PAIRS, found, strict=True):
        before, after = (
            model._encode_pair(context, continuation) if context else ([0], model.tok_encode(continuation)[1:])
        )
        row = [*before, *after][-65:]
        tokens, ones = np.zeros((2, 1, 65), np.int32)
        tokens[0, : len(row)], ones[0, : len(row)] = row, 1
        logs = np.stack([np.asarray(run(p, tokens, ones), np.float64)[0, : len(row) - 1] for p in experts])
        shares = np.log(weights)[:, None] + tau * (np.cumsum(logs, axis=1) - logs)
        expected = logsumexp(shares + logs, axis=0) - logsumexp(shares, axis=0)
        assert_allclose(log_prob, expected[-len(after) :].sum(), atol=TOLERANCE)


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_generation_goes_on_with_what_is_likeliest(tasked, tau):
    """Every token that was added is the greedy one of the whole text up to it, without a cache."""
    study = Study(tasked)
    config, experts = models(study)
    mixture = ExpertMixture(config, experts, [0.4, 0.6], tau)
    prompts = [[0, 40, 41, 42], [0, *range(30, 60)], [0]]
    added = mixture.generate(prompts, 8, lambda tokens: len(tokens) == 5)
    assert [len(tokens) for tokens in added] == [5, 5, 5]
    for prompt, tokens in zip(prompts, added, strict=True):
        row = np.zeros((1, 64), np.int32)
        row[0, : len(prompt) + len(tokens)] = [*prompt, *tokens]
        segments = (np.arange(64)[None] < len(prompt) + len(tokens)).astype(np.int32)
        _, greedy = mixture.score(row, segments)
        assert greedy[0, len(prompt) - 1 : len(prompt) + len(tokens) - 1].all()


def test_answers_end_before_their_stop_sequence(tasked):
    study = Study(tasked)
    config, experts = models(study)
    model = harness(study, ExpertMixture(config, experts[:1]))
    free, short, stopped = {"until": [], "max_gen_toks": 12}, {"until": [], "max_gen_toks": 3}, {"max_gen_toks": 12}
    (whole,) = model.generate_until(requests("generate_until", ("Kalo", free)), disable_tqdm=True)
    stop = whole[4:6]
    asked = requests("generate_until", ("Kalo", short), ("Kalo", {**stopped, "until": [stop]}), ("Kalo", free))
    found = model.generate_until(asked, disable_tqdm=True)
    assert found == [found[0], whole.split(stop)[0], whole]
    assert whole.startswith(found[0])
    assert 0 < len(found[0]) < len(whole)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_sample": True, "temperature": 0.7}, "answer greedily"),
        ({"max_gen_toks": 64}, "64 tokens; the model reads 64"),
    ],
)
def test_generation_that_is_refused(tasked, settings, expected):
    study = Study(tasked)
    config, experts = models(study)
    with pytest.raises(UserError, match=expected):
        harness(study, ExpertMixture(config, experts[:1])).generate_until(requests("generate_until", ("a", settings)))


@pytest.mark.slow
def test_equal_to_the_harnesss_own_model_of_the_exported_checkpoint(tasked, task_folder, tmp_path):
    """Requests of all three kinds, and tasks with and without examples in the context."""
    pytest.importorskip("torch")
    from lm_eval.models.huggingface import HFLM

    study = Study(tasked)
    cli.main(["export", f"--study={tasked}", "--run=expert-web", f"--output={tmp_path / 'model'}"])
    given = {"pretrained": str(tmp_path / "model"), "device": "cpu", "dtype": "float32", "batch_size": 4}
    theirs = HFLM(**given, add_bos_token=True)
    ours = harness(study, ExpertMixture(model_config(study), [load_run(study, "expert-web", model_config(study))]))
    pairs = requests("loglikelihood", *PAIRS)
    expected = theirs.loglikelihood(pairs, disable_tqdm=True)
    found = ours.loglikelihood(pairs, disable_tqdm=True)
    assert_allclose([log_prob for log_prob, _ in found], [log_prob for log_prob, _ in expected], atol=TOLERANCE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    until = [(context or "K", {"until": ["\n"], "max_gen_toks": 10}) for context, _ in PAIRS]
    asked = requests("generate_until", *until)
    assert ours.generate_until(asked, disable_tqdm=True) == theirs.generate_until(asked, disable_tqdm=True)
    rolling = requests("loglikelihood_rolling", *TEXTS)
    without_start = HFLM(**given, add_bos_token=False)  # it puts START before each window itself
    expected = without_start.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert_allclose(ours.loglikelihood_rolling(rolling, disable_tqdm=True), expected, atol=TOLERANCE)
    for few in (0, 2):
        both = [
            results_of(m, ["our_facts", "our_answers"], str(task_folder), few, 20)["results"] for m in (ours, theirs)
        ]
        assert both[0] == both[1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--tasks=our_facts"], "give one of --run, --merged and --mixture, got none"),
        (["--tasks=our_facts", "--run=expert-web", "--mixture=uniform"], "got run, mixture"),
        (["--tasks=our_facts", "--run=expert-wev"], "'expert-wev': did you mean 'expert-web'"),
        pytest.param(
            ["--tasks=our_fact", "--run=expert-web"],
            "lm-evaluation-harness 'our_fact': did you mean 'our_facts'",
            marks=pytest.mark.slow,  # it looks through all of the harness's own task files
        ),
        (["--tasks=our_facts", "--mixture={'wev': 1}"], "domain in --mixture 'wev': did you mean 'web'"),
        (["--tasks=our_facts", "--merged={'web': .5}"], "--merged: "),
        (["--tasks=our_facts", "--mixture=unifrom"], "mixture in --mixture 'unifrom': did you mean 'uniform'"),
        (["--tasks=our_facts", "--mixture=uniform", "--tau=2"], "tau=2 must lie in [0, 1]"),
        (["--tasks=our_facts", "--run=expert-web", "--tau=.5"], "tau=0.5 is of a --mixture"),
        (["--tasks=our_facts", "--run=expert-web", "--output=o.csv"], "output='o.csv': expected the JSON file, o.json"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tasked, task_folder, flags, expected, capsys):
    with pytest.raises(SystemExit):
        eval_(tasked, *flags, f"--include_path={task_folder}")
    assert expected in capsys.readouterr().err


def test_that_the_harness_is_missing_is_said_before_any_model_is_read(tasked, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mde.evaluation.downstream", None)
    monkeypatch.setattr(eval_stage, "load_run", lambda *_: pytest.fail("a model was read"))
    with pytest.raises(SystemExit):
        eval_(tasked, "--tasks=our_facts", "--run=expert-web")
    assert "lm-evaluation-harness is missing" in capsys.readouterr().err
