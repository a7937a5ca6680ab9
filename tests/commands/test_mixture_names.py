"""Mixtures by name: what each stands for, and what is said of one that does not exist."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mde.commands import pipeline, validate
from mde.errors import UserError
from mde.optimization import simplex
from mde.optimization.simple_mixtures import unimax
from mde.results import comparison, mixtures, scored_text
from mde.study import STAGES, Study

NAMES = ["web", "code", "books"]
SHARES = {"books": 0.2, "web": 0.5, "code": 0.3}


@pytest.fixture
def study(tmp_path):
    """What names need of a study: domains, proxy runs with losses of a mixing law, and a recommendation."""
    study = Study(tmp_path / "mine")
    stores = {f"{name}/train": {"tokens": count} for name, count in zip(NAMES, (600, 300, 100), strict=True)}
    domains = {"training_domains": NAMES, "evaluation_domains": ["news", "code"]}
    study.write_json("study.json", {"format": 3, **domains, "stores": stores})
    drawn = simplex.space_filling(24, 3, seed=1)
    runs = pd.DataFrame(drawn, [f"r{i}" for i in range(24)], NAMES).rename_axis("run")
    losses = 2 + np.exp(drawn @ np.array([[-2.0, 1.0], [1.0, -2.0], [1.0, 1.0]]))
    study.write_table("losses.csv", pd.DataFrame(losses, runs.index, ["news", "code"]))
    study.write_table("mixtures.csv", runs.assign(role="proxy", seed=0)[["role", "seed", *NAMES]])
    best = dict(zip(NAMES, drawn[3].tolist(), strict=True))
    predictions = {
        "recommended": {"mixture": SHARES, "objective": 2.0, "objective_interval": [1.9, 2.1], "losses": {}},
        "best observed": {"mixture": best, "objective": 2.2, "objective_interval": [2.1, 2.3], "losses": {}},
    }
    about = {"objective": "avg-all", "weights": SHARES, "interval_level": 0.9, "predictions": predictions}
    study.write_json("optimum.json", about)
    return study


def of(study, name):
    return mixtures.mixture(study, name, "baselines").tolist()


def test_every_name_is_a_mixture_in_the_order_of_the_domains(study):
    assert of(study, "recommended") == [0.5, 0.3, 0.2]
    assert of(study, "study:recommended") == of(study, "recommended")
    assert of(study, "proportional") == pytest.approx([0.6, 0.3, 0.1])
    assert of(study, "uniform") == pytest.approx([1 / 3] * 3)
    roots = np.sqrt([600, 300, 100])
    assert of(study, "proportional^0.5") == pytest.approx((roots / roots.sum()).tolist())
    assert of(study, "best observed") == pytest.approx(simplex.space_filling(24, 3, seed=1)[3])
    # Symmetrical laws of the first two domains; the third helps neither.
    np.testing.assert_allclose(of(study, "mixing-law"), [0.5, 0.5, 0], atol=1e-3)
    study.write_json("scale.json", {"ddo": {"tokens": {"code": 1e6, "web": 2e6, "books": 1e6}}})
    assert of(study, "scale") == [0.5, 0.25, 0.25]
    for method in ("doremi", "doge"):
        study.write_json(f"reweighting/{method}.json", {"weights": {"web": 0.2, "books": 0.8}})
        assert of(study, method) == [0.2, 0.0, 0.8]


@pytest.fixture
def experts(study, monkeypatch):
    """Sequences that one expert alone can produce: in news three tokens of web's and one of code's, in code one."""
    tokens = ["web", "web", "web", "code", "code"]
    text = SimpleNamespace(segment_ids=np.array([0, 0, 0, 0, 1]), sequence_ids=np.array([0, 0, 0, 1, 2]))
    columns = {f"expert-{name}": [0.0 if name == token else -60.0 for token in tokens] for name in NAMES}

    def log_probs_of(study, about, runs):
        return np.array([columns[run] for run in runs], np.float32).T

    monkeypatch.setattr(scored_text, "evaluation_data", lambda study, about: text)
    monkeypatch.setattr(scored_text, "log_probs_of", log_probs_of)
    study.write_json("scoring.json", {})
    return study


def test_the_best_mixtures_of_experts_by_hand(experts):
    """Weights are the weights of what each expert has to explain, in tokens (MDE) or in sequences (MixMin).

    Of the average of both domains 3/8 are tokens of web and 1/8 + 1/2 of code. By sequences a token of news counts as
    1/4 of a log-sum-exp: 1/8 for the one of web, 1/8 + 1/2 for those of code.
    """
    np.testing.assert_allclose(of(experts, "mde"), [3 / 8, 5 / 8, 0], atol=1e-4)
    np.testing.assert_allclose(of(experts, "mixmin"), [1 / 6, 5 / 6, 0], atol=1e-4)


@pytest.mark.parametrize("name", ["mde", "mixmin"])
def test_mixtures_of_experts_are_for_averages(experts, name):
    about = experts.read_json("optimum.json", "optimize")
    experts.write_json("optimum.json", about | {"objective": "worst-all"})
    with pytest.raises(UserError, match="minimise averages"):
        of(experts, name)


def test_a_mixture_of_another_study_is_joined_by_domain(study, tmp_path):
    other = Study(tmp_path / "other")
    other.write_json("study.json", {"format": 3, "training_domains": ["code", "web"], "evaluation_domains": ["web"]})
    other.write_json("optimum.json", {"weights": {"code": 0.9, "web": 0.1}})
    assert of(study, f"{other.root}:recommended") == [0.1, 0.9, 0.0]
    assert of(study, f"{other.root}:uniform") == [0.5, 0.5, 0.0]


def test_unimax_fills_small_domains_and_shares_the_rest(study):
    """Tokens 600, 300, 100 twice at 1,000: code and books may have .6 and .2; what books leave is web's and code's."""
    about = study.read_json("optimum.json", "optimize")
    tokens = {"web": 600, "code": 300, "books": 100}
    study.write_json("optimum.json", about | {"tokens": tokens, "budget": 1000, "max_epochs": 2})
    assert of(study, "unimax") == pytest.approx([0.4, 0.4, 0.2])
    study.write_json("optimum.json", about | {"tokens": tokens, "budget": 1000, "max_epochs": 1})
    assert of(study, "unimax") == pytest.approx([0.6, 0.3, 0.1])  # all of it, once
    study.write_json("optimum.json", about | {"tokens": tokens, "budget": 100, "max_epochs": 1})
    assert of(study, "unimax") == pytest.approx([1 / 3] * 3)
    study.write_json("optimum.json", about | {"tokens": tokens, "budget": 1001, "max_epochs": 1})
    with pytest.raises(UserError, match="1,000 tokens × 1 epochs are less than the budget of 1,001"):
        of(study, "unimax")


def test_unimax_needs_a_budget_and_epochs(study):
    with pytest.raises(UserError, match="give `mde optimize` --tokens and --budget and --max_epochs"):
        of(study, "unimax")
    about = study.read_json("optimum.json", "optimize")
    study.write_json("optimum.json", about | {"tokens": {"web": 1, "code": 1, "books": 1}, "budget": 3})
    with pytest.raises(UserError, match="give `mde optimize` --max_epochs"):
        of(study, "unimax")


@pytest.mark.parametrize("k", [1, 2, 7, 24])
def test_unimax_is_what_its_authors_water_by_hand(k):
    """Their algorithm: from the smallest on, each domain gets an equal part of what is left, or its cap."""
    rng = np.random.default_rng(k)
    for _ in range(200):
        caps = rng.lognormal(0, 2, k)
        caps *= rng.uniform(1, 4) / caps.sum()
        left, expected = 1.0, np.zeros(k)
        for i, domain in enumerate(np.argsort(caps)):
            expected[domain] = min(caps[domain], left / (k - i))
            left -= expected[domain]
        np.testing.assert_allclose(unimax(caps), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("recomended", "unknown mixture in baselines 'recomended': did you mean 'recommended'"),
        ("doremi", "reweighting/doremi.json does not exist yet; run `mde reweight --method=doremi --study="),
        ("scale", "run `mde scale"),
        ("mixmin", "run `mde score"),
        ("nowhere:recommended", "nowhere is no study"),
        ("study:doge", "run `mde reweight --method=doge"),
        ("own domains", "`mde optimize` has none for this objective; known are recommended, best observed"),
    ],
)
def test_names_that_stand_for_nothing(study, name, expected):
    with pytest.raises(UserError, match=r"mixture|does not exist") as error:
        of(study, name)
    assert expected in str(error.value)


def test_several_mixtures_in_a_table(study):
    human = {"human": {"web": 0.7, "code": 0.3}}
    found = mixtures.mixtures(study, ["study:recommended", human, {"web": 0.5, "books": 0.5}], "baselines")
    assert found.index.tolist() == ["recommended", "human", "given"]
    assert found.columns.tolist() == NAMES
    assert found.to_numpy().tolist() == [[0.5, 0.3, 0.2], [0.7, 0.3, 0.0], [0.5, 0.0, 0.5]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "no mixture in baselines"),
        (["uniform", "study:uniform"], "mixture 'uniform' is given twice"),
        ([{"human": {"web": 0.7, "cod": 0.3}}], "did you mean 'code'"),
        ([{"human": {"web": 0.7, "code": 0.2}}], "mixture 'human': row 0: weights sum to 0.9"),
        ([{"human": {"web": "much"}}], "mixture 'human'"),
        ([{"human": [1]}], "[1], expected a name or weights by domain"),
        ([{"web": float("nan"), "code": 1}], "domain 'web': weight nan"),
    ],
)
def test_tables_that_are_refused(study, given, expected):
    with pytest.raises(UserError) as error:
        mixtures.mixtures(study, given, "baselines")
    assert expected in str(error.value)


def test_a_run_is_named_by_its_mixture(study):
    """So that another mixture of the same name is another run, and a name may hold anything."""
    found = mixtures.mixtures(study, ["recommended", {"a/b: c": SHARES}], "baselines")
    runs = comparison.runs(found, [1, 2], "validation", 10)
    assert runs["seed"].tolist() == [1, 2, 1, 2]
    assert set(runs["steps"]) == {10}
    assert len(set(runs.index)) == 4
    assert all(set(run) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for run in runs.index)
    again = comparison.runs(
        mixtures.mixtures(study, [{"recommended": {"web": 1.0}}], "baselines"), [1], "validation", 10
    )
    assert again.index[0] not in runs.index


def test_predictions_of_the_optimum_are_kept(study):
    found = comparison.predictions(study, mixtures.mixtures(study, ["best observed", "recommended"], "baselines"))
    assert found.to_numpy().tolist() == [[2.2, 2.1, 2.3], [2.0, 1.9, 2.1]]


def test_a_scale_at_one_budget_has_no_target(study):
    study.write_json("scale.json", {"ddo": {"optima": []}})
    with pytest.raises(UserError, match="at one budget only"):
        of(study, "scale")


def test_a_validation_is_not_done_once_a_baseline_is_another_mixture(study, monkeypatch):
    def stage(study: Study, baselines: Sequence[str] | None = None, mixtures: str | None = None) -> None:
        pass

    inputs = {"validate": validate.inputs}
    modules = {name: SimpleNamespace(**{name: stage, "inputs": inputs.get(name)}) for name in STAGES}
    monkeypatch.setattr(pipeline, "_module", modules.__getitem__)
    for name in STAGES[:-2]:
        pipeline.run(study, name, {})
    for share in (0.2, 0.4):
        study.write_json("reweighting/doremi.json", {"weights": {"web": share, "books": 1 - share}})
        assert pipeline.run(study, "validate", {"baselines": ["doremi"]})
        assert not pipeline.run(study, "validate", {"baselines": ["doremi"]})
