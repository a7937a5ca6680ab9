"""Models of units and unions on a corpus of random tokens: what is trained, what is kept, what may be merged."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from helpers import random_documents, write_store
from numpy.testing import assert_allclose

from mde.ablation import merging, units
from mde.ablation.family import SEED_RUN, Family, Recipe, Text, check_mergeable
from mde.ablation.unions import run_name
from mde.errors import UserError
from mde.evaluation.scoring import evaluation_set
from mde.models.config import DecoderConfig
from mde.training.settings import TrainSettings

CONFIG = DecoderConfig(64, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=16)
SETTINGS = TrainSettings(steps=2, batch_size=2, seq_len=8, learning_rate=1e-2)
TOKENS = SETTINGS.tokens + 1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four sources cut into two units each, by source."""
    where = tmp_path_factory.mktemp("corpus")
    stores = {name: write_store(where / name, random_documents(30, i), name) for i, name in enumerate("abcd")}
    cuts = {name: units.cut(name, store, 2, TOKENS, 0.3) for name, store in stores.items()}
    return stores, cuts


def family(directory, corpus, sources="ab", settings=SETTINGS, seed_steps=3, seed=0):
    stores, cuts = corpus
    views = {name: unit.store for source in sources for name, unit in cuts[source].items()}
    aside = {name: units.set_aside(stores[name], 0.3) for name in "ab"}
    longer = dataclasses.replace(settings, steps=seed_steps) if seed_steps else None
    seed_recipe = Recipe(CONFIG, longer, aside, None, {}) if longer else None
    return Family(epath.Path(directory), Recipe(CONFIG, settings, views, None, {}), seed_recipe, seed)


@pytest.fixture(scope="module")
def data(corpus):
    return evaluation_set({name: corpus[0][name] for name in "ab"}, 60, 8)


@pytest.fixture(scope="module")
def text(data):
    return Text(data, {"a": "text of a", "b": "text of b"})


UNITS = [{f"{source}-{i}": 1.0} for source in "ab" for i in (0, 1)]
UNION = {"a-0": 1.0, "b-0": 2.0}


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    found = family(tmp_path_factory.mktemp("trained"), corpus)
    found.train([*UNITS, UNION], 100)
    return found


@pytest.fixture
def copied(trained, corpus, tmp_path):
    """The trained family, to spoil."""
    shutil.copytree(trained.directory, tmp_path / "family")
    return tmp_path / "family"


def test_every_run_is_trained_once_and_says_on_what(trained):
    registry = trained.registry()
    assert set(registry.index) == {"seed", "a-0", "a-1", "b-0", "b-1", run_name(UNION)}
    assert trained.train([*UNITS, UNION], 100) == []
    assert registry.loc["a-1", "units"] == "a-1:1"
    assert registry.loc[run_name(UNION), "units"] == "a-0:0.3333 b-0:0.6667"
    assert registry.loc["a-0", "tokens"] == SETTINGS.tokens
    assert registry.loc[run_name(UNION), "steps"] == 3 * SETTINGS.steps
    assert registry.drop("seed")["seed_model"].nunique() == 1
    assert trained.record("a-1")["data"]["a-1"].startswith("a[")


def test_a_new_source_costs_its_own_units_and_leaves_the_others_as_they_are(copied, corpus):
    before = {path: path.read_bytes() for path in copied.glob("runs/*/*") if path.is_file()}
    larger = family(copied, corpus, sources="abcd")
    new = larger.train([*UNITS, UNION, {"c-0": 1.0}, {"c-1": 1.0}], 100)
    assert [run.name for run in new] == ["c-0", "c-1"]
    assert set(larger.registry().index) == {"seed", "a-0", "a-1", "b-0", "b-1", "c-0", "c-1", run_name(UNION)}
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_unit_is_the_same_whichever_others_are_there(trained, corpus, tmp_path):
    alone = family(tmp_path, corpus, sources="bda")
    alone.train([{"b-1": 1.0}, UNION], 100)
    for name in ("b-1", run_name(UNION)):
        # A pool of another size may cut batches over devices, which moves the last bits of sums.
        jax.tree.map(lambda x, y: assert_allclose(x, y, atol=1e-6), alone.params(name), trained.params(name))


def test_a_union_of_one_unit_once_is_the_unit(trained):
    assert trained.missing([{"a-0": 1.0}]) == []
    assert [run.steps for run in trained.missing([{"a-0": 2.0}])] == [4]


def test_merges_are_those_of_the_parameters(trained, data, text):
    merged = trained.merged(["a-0", "b-1"], data)
    losses = merged(np.array([[0.25, 0.75], [0.0, 0.0], [1.0, 0.0]]))
    mean = jax.tree.map(lambda x, y: 0.25 * x + 0.75 * y, trained.params("a-0"), trained.params("b-1"))
    assert_allclose(losses[0], _loss(mean, data), atol=1e-5)  # float32
    scored = trained.score(["a-0", SEED_RUN], text)
    assert_allclose(losses[2], scored.loc["a-0"], atol=1e-5)
    assert_allclose(losses[1], scored.loc[SEED_RUN], atol=1e-5)  # no weight at all leaves the seed model


def test_losses_of_a_union_of_one_unit_are_the_same_for_all(trained, data, text):
    unions = {"one": {"a-0": 1.0}, "two": UNION}
    found = merging.losses(trained, unions, {"a-0": "a", "b-0": "b"}, text, [0.0, 1.0])
    assert list(found["model"].unique()) == ["seq", "merged", "merged-weighted", "micro-merged", "mde[0]", "mde[1]"]
    one = found.loc["one", ["a", "b"]].to_numpy()
    assert_allclose(one, np.broadcast_to(one[0], one.shape), atol=1e-5)
    table = found.set_index("model", append=True).loc["two"]
    params = {name: trained.params(name) for name in ("a-0", "b-0")}
    weighted = jax.tree.map(lambda x, y: x / 3 + 2 * y / 3, params["a-0"], params["b-0"])
    assert_allclose(table.loc["micro-merged"].astype(float), _loss(weighted, data), atol=1e-5)
    assert_allclose(table.loc["merged-weighted"].astype(float), _loss(weighted, data), atol=1e-5)
    half = jax.tree.map(lambda x, y: (x + y) / 2, params["a-0"], params["b-0"])
    assert_allclose(table.loc["merged"].astype(float), _loss(half, data), atol=1e-5)
    assert_allclose(table.loc["seq"].astype(float), _loss(trained.params(run_name(UNION)), data), atol=1e-5)


def test_subsets_are_scored_by_merging_and_by_mixing(trained, data, text):
    rows = np.array([[False, False], [True, False], [True, True]])
    scored = trained.score(["a-0", "b-0", SEED_RUN], text)
    for name, losses in merging.evaluators(trained, ["a-0", "b-0"], text, [0.0], 99):
        found = losses(rows)
        assert_allclose(found[0], scored.loc[SEED_RUN], atol=1e-5)
        assert_allclose(found[1], scored.loc["a-0"], atol=1e-5)
        log_probs = np.asarray(trained.log_probs(["a-0", "b-0"], text))
        expected = {
            "merged": lambda: _loss(_mean(trained, "a-0", "b-0"), data),
            "mde[0]": lambda p=log_probs: data.losses(np.log(np.exp(p.astype(np.float64)).mean(axis=1))),
        }
        assert_allclose(found[2], expected[name](), atol=1e-5)


@pytest.mark.slow
def test_without_a_seed_model_all_begin_with_the_same_parameters(corpus, data, text, tmp_path):
    found = family(tmp_path, corpus, seed_steps=0)
    found.train(UNITS[:2], 100)
    assert set(found.registry().index) == {"a-0", "a-1"}
    losses = found.merged(["a-0", "a-1"], data)(np.zeros((1, 2)))
    assert_allclose(losses[0], found.score([SEED_RUN], text).loc[SEED_RUN], atol=1e-5)


def test_another_seed_model_or_schedule_is_refused_before_anything_is_trained(copied, corpus):
    with pytest.raises(UserError, match=r"seed: trained with training .*steps=3, not 9"):
        family(copied, corpus, seed_steps=9).train([{"c-0": 1.0}], 100)
    other = dataclasses.replace(SETTINGS, learning_rate=0.5)
    with pytest.raises(UserError, match=r"learning_rate=0\.01, not 0\.5"):
        family(copied, corpus, settings=other).missing(UNITS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed_model": "another"}, r"different seed models \(another, \w{16}\)"),
        ({"seed_model": None}, r"different seed models \(none, fresh parameters of seed 0, \w{16}\)"),
        ({"training": {"learning_rate": 0.5}}, "different schedules .*'learning_rate': 0.5"),
        ({"training": {"steps": 7}}, "different schedules .*'steps of a unit': 7.*'steps of a unit': 2"),
        ({"model": {"d_ff": 32}}, "different architectures .*'d_ff': 32"),
    ],
)
def test_runs_that_were_trained_differently_are_not_merged(copied, corpus, data, change, reason):
    path = copied / "runs/b-0/run.json"
    record = json.loads(path.read_text())
    for key, value in change.items():
        record[key] = {**record[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"'b-0' and 'a-0' cannot be merged: trained with {reason}.*delete the one"):
        family(copied, corpus).merged(["a-0", "b-0"], data)


def test_partitions_of_any_size_may_be_merged(trained):
    names = ["a-0", run_name(UNION)]
    check_mergeable({name: trained.record(name) for name in names}, "here")


def test_a_run_that_is_not_there(trained, data):
    with pytest.raises(UserError, match=r"c-0/run\.json: this run is not trained yet"):
        trained.merged(["c-0"], data)


def _mean(trained, *names):
    trees = [trained.params(name) for name in names]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def _loss(params, data):
    """Losses of one model by another way: the decoder on all windows at once."""
    from mde.models import decoder

    log_probs = decoder.token_log_probs(CONFIG, params, data.tokens, data.segments)
    return data.losses(np.asarray(log_probs)[data.mask])
