"""Pools whose runs re-weight their domains: where the weights go, that they resume, that devices do not matter."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from helpers import write_store
from numpy.testing import assert_allclose, assert_array_equal

from mde.errors import UserError
from mde.models import decoder
from mde.models.config import preset
from mde.training import checkpoints, pool
from mde.training.placement import MeshShape
from mde.training.reweighting import DoGE, DoReMi
from mde.training.runs import Recipe, Run
from mde.training.settings import TrainSettings

pytestmark = [
    pytest.mark.usefixtures("compiled_once"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # see test_pool.py
]

STEPS = 40
SETTINGS = TrainSettings(steps=STEPS, batch_size=7, seq_len=16, learning_rate=1e-2)  # no multiple of the domains
NAMES = ("noise", "known", "new")
UNIFORM = (1 / 3,) * 3
REFERENCES = {"one": "reference-one", "two": "reference-two"}
RUNS = [Run("one", UNIFORM, 0), Run("two", UNIFORM, 1)]


def train(runs, recipe, directory, every=10, devices=1):
    shape = MeshShape(min(len(runs), 2 // devices), devices)
    pool.train_pool(runs, recipe, epath.Path(directory), every, mesh=shape)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Three domains: noise that nobody can learn, a loop that the seed model knows, and another that it does not."""
    root = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    stores = {
        "noise": write_store(root / "noise", [rng.integers(32, 64, 60) for _ in range(60)]),
        "known": write_store(root / "known", [np.tile(np.arange(1, 9), 60)] * 6),
        "new": write_store(root / "new", [np.tile(np.arange(9, 25), 30)] * 6),
    }
    fresh = Recipe(preset("tiny", 64), SETTINGS, stores, None, {})
    train([Run("seed", (0.5, 0.5, 0.0), 0)], fresh, root)
    load = lambda: checkpoints.load_params(epath.Path(root) / "seed" / "params", decoder.init(fresh.model, 0))  # noqa: E731
    return dataclasses.replace(fresh, start=load, origin={"seed_model": "of the test"})


@pytest.fixture(scope="module")
def recipes(plain):
    """A recipe a method, with batches that are drawn uniformly."""
    doremi = dataclasses.replace(plain, method=DoReMi(NAMES), references=REFERENCES)
    return {"doremi": doremi, "doge": dataclasses.replace(plain, method=DoGE(NAMES))}


@pytest.fixture(scope="module")
def references(plain, tmp_path_factory):
    directory = tmp_path_factory.mktemp("references")
    train([dataclasses.replace(run, name=REFERENCES[run.name], seed=run.seed + 100) for run in RUNS], plain, directory)
    return directory


@pytest.fixture(scope="module")
def place(references, tmp_path_factory):
    """Makes directories that hold the finished references and nothing else."""

    def make():
        directory = tmp_path_factory.mktemp("pool")
        for name in REFERENCES.values():
            (directory / name).symlink_to(references / name)
        return directory

    return make


@pytest.fixture(scope="module")
def together(recipes, place):
    """Both runs of each method, trained in a pool of two devices without interruption."""
    found = {}
    for method, recipe in recipes.items():
        found[method] = place()
        train(RUNS, recipe, found[method])
    return found


def trajectory(directory, run, recipe):
    """Weights and scores [steps, 2 K]."""
    lines = map(json.loads, (directory / run.name / "metrics.jsonl").read_text().splitlines())
    return np.array([[line[name] for name in recipe.method.metrics] for line in lines])


def parameters(directory, run, recipe):
    return checkpoints.load_params(epath.Path(directory) / run.name / "params", decoder.init(recipe.model, 0))


def assert_same_run(one, other, run, recipe):
    """To the last bit."""
    assert_array_equal(trajectory(one, run, recipe), trajectory(other, run, recipe))
    jax.tree.map(assert_array_equal, parameters(one, run, recipe), parameters(other, run, recipe))


def test_doremi_takes_from_noise_and_from_what_is_known_and_gives_to_what_can_be_learnt(together, recipes):
    """The reference knows the new loop at the end, and the proxy does not at first: only there is something to gain."""
    for run in RUNS:
        found = trajectory(together["doremi"], run, recipes["doremi"])
        weights, scores = found[:, :3], found[:, 3:]
        noise, known, new = weights.mean(axis=0)
        assert new > 0.6
        assert max(noise, known) < 1 / 3 - 0.1
        assert scores[0, 2] > 1 > 3 * max(scores[0, 0], scores[0, 1])
        assert scores[-1, 2] < 0.2  # the proxy has caught up
        assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
        assert weights.min() >= 1e-3 / 3 * (1 - 1e-6)


def test_doge_takes_from_what_is_known(together, recipes):
    """Its gradient vanishes; that of the new loop is large until it is learnt."""
    for run in RUNS:
        found = trajectory(together["doge"], run, recipes["doge"])
        weights, scores = found[:, :3], found[:, 3:]
        assert scores[:5, 2].min() > 2 * scores[:5, 1].max()
        noise, known, new = weights.mean(axis=0)
        assert known < 1 / 3 - 0.1
        assert min(noise, new) > 1 / 3
        assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_doge_gives_to_the_domain_that_has_the_text_of_its_target(recipes, place):
    """The target is not trained on, and has the same text as one of the other two."""
    recipe = recipes["doge"]
    names = ("noise", "new", "copy")
    stores = {name: recipe.stores[name.replace("copy", "new")] for name in names}
    recipe = dataclasses.replace(recipe, stores=stores, method=DoGE(names, target="copy"))
    directory = place()
    train(RUNS, recipe, directory, every=1000)
    for run in RUNS:
        weights = trajectory(directory, run, recipe)[:, :3]
        assert_array_equal(weights[:, 2], 0)
        assert weights[:, 1].mean() > 0.7


def test_runs_differ_by_their_seeds_and_end_with_the_weights_after_their_last_step(together, recipes):
    for method, recipe in recipes.items():
        one, two = (trajectory(together[method], run, recipe) for run in RUNS)
        assert len(one) == STEPS
        assert not np.array_equal(one, two)
        assert not np.array_equal(one[-1], one[-2])


@pytest.mark.parametrize("method", ["doremi", pytest.param("doge", marks=pytest.mark.slow)])
def test_a_run_is_the_same_to_the_bit_alone_and_beside_another(method, recipes, place, together):
    directory = place()
    train(RUNS[1:], recipes[method], directory, every=1000)
    assert_same_run(directory, together[method], RUNS[1], recipes[method])


@pytest.mark.parametrize("method", ["doremi", "doge"])
def test_an_interrupted_pool_goes_on_to_the_same_weights(method, recipes, place, together, monkeypatch):
    directory, saved = place(), []
    save, read = checkpoints.Progress.save, pool._batches

    def save_and_stop(self, step, state):
        save(self, step, state)
        saved.append(step)
        if saved.count(20) == len(RUNS):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Progress, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(RUNS, recipes[method], directory)
    assert not (directory / "one" / "run.json").exists()
    starts = []
    monkeypatch.setattr(pool, "_batches", lambda *given: (starts.append(given[2]), read(*given))[1])
    train(RUNS, recipes[method], directory)
    assert starts == [20, 20]
    for run in RUNS:
        assert_same_run(directory, together[method], run, recipes[method])


@pytest.mark.parametrize("method", ["doremi", pytest.param("doge", marks=pytest.mark.slow)])
def test_a_run_on_two_devices_has_the_weights_of_a_run_on_one(method, plain, recipes, place):
    """The same numbers summed in another order; there are as many padded places as the devices need.

    Losses of about 4 differ by some 1e-6 after the first steps, and the difference grows with training as that of any
    two orders of summation does: over 20 steps stays below 1e-4. A lost sequence changes weights by 1e-2.
    """
    short = TrainSettings(steps=20, batch_size=6, seq_len=16, learning_rate=1e-2)
    recipe = dataclasses.replace(recipes[method], settings=short)
    found = []
    for devices in (1, 2):
        directory = place()
        train(RUNS[:1], recipe, directory, every=1000, devices=devices)
        found.append(trajectory(directory, RUNS[0], recipe))
    assert_allclose(found[0], found[1], rtol=0, atol=1e-4)
    assert not np.array_equal(found[0], found[1])  # they were summed another way indeed


def test_a_record_says_how_the_weights_were_found(together, recipes):
    record = json.loads((together["doremi"] / "two" / "run.json").read_text())
    assert record["reweighting"] == {"method": "doremi", "eta": 1.0, "smoothing": 1e-3}
    assert record["reference"] == "reference-two"
    other = dataclasses.replace(recipes["doremi"], method=DoReMi(NAMES, eta=2.0))
    with pytest.raises(UserError, match=r"/one: trained with reweighting eta=1\.0, not 2\.0"):
        train(RUNS, other, together["doremi"])
    target = dataclasses.replace(recipes["doge"], method=DoGE(NAMES, target="new"))
    with pytest.raises(UserError, match="trained with reweighting target=None, not 'new'"):
        train(RUNS, target, together["doge"])
