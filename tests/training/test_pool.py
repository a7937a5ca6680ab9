import dataclasses
import json
import os
import signal
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import random_documents, write_store
from numpy.testing import assert_allclose, assert_array_equal

from mde.errors import UserError
from mde.models import decoder
from mde.models.config import preset
from mde.training import checkpoints, metrics, pool, validation
from mde.training.loss import loss
from mde.training.metrics import Curves
from mde.training.placement import MeshShape, make_mesh, spread
from mde.training.pool import Recipe, Run
from mde.training.runs import is_done
from mde.training.settings import TrainSettings, Watching

pytestmark = [
    pytest.mark.usefixtures("compiled_once"),
    # Orbax's own threads complain when a restore fails; that it fails is what is tested.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS = 30  # three calls of ten steps, with a state to resume from after each of the first two
SETTINGS = TrainSettings(steps=STEPS, batch_size=4, seq_len=16, learning_rate=1e-2)
A, B, C = Run("a", (1.0, 0.0), 0), Run("b", (0.0, 1.0), 0), Run("c", (0.3, 0.7), 1)


def train_pool(runs, recipe, directory, checkpoint_every, devices=1):
    """A pool with so many devices a run: where runs are compared to the bit these must be the same."""
    shape = MeshShape(min(len(runs), 2 // devices), devices)
    pool.train_pool(runs, recipe, directory, checkpoint_every, mesh=shape)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Two domains: a loop of eight tokens, and noise over the other half of the vocabulary."""
    root = tmp_path_factory.mktemp("stores")
    noise = [d % 32 + 32 for d in random_documents(200, seed=0)]
    stores = {
        "loop": write_store(root / "loop", [np.tile(np.arange(1, 9), 60)] * 4),
        "noise": write_store(root / "noise", noise),
    }
    return Recipe(preset("tiny", 64), SETTINGS, stores, None, {"data": "of the test"})


@pytest.fixture(scope="module")
def together(recipe, tmp_path_factory):
    """Three runs trained in one pool of two devices, without interruption."""
    directory = epath.Path(tmp_path_factory.mktemp("together"))
    train_pool([A, B, C], recipe, directory, checkpoint_every=10)
    return directory


def parameters(directory, run, recipe):
    return checkpoints.load_params(directory / run.name / "params", decoder.init(recipe.model, 0))


def losses(directory, run):
    lines = (directory / run.name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def assert_same_run(one, other, run, recipe):
    """To the last bit."""
    jax.tree.map(assert_array_equal, parameters(one, run, recipe), parameters(other, run, recipe))
    assert losses(one, run) == losses(other, run)


def test_a_run_leaves_parameters_a_record_and_its_losses(together, recipe):
    for run in (A, B, C):
        assert sorted(p.name for p in (together / run.name).iterdir()) == ["metrics.jsonl", "params", "run.json"]
        assert json.loads((together / run.name / "run.json").read_text()) == json.loads(json.dumps(recipe.record(run)))
        assert len(losses(together, run)) == STEPS


def test_a_repetitive_corpus_is_learnt(together):
    a, b = losses(together, A), losses(together, B)
    assert a[0] > 3.5  # about log 64
    assert a[-1] < 1.0  # the loop has no surprise left
    assert np.log(16) < b[-1] < b[0]  # noise over 32 tokens: no better than log 32, give or take what 30 steps forget


def test_the_mixture_decides_what_is_learnt(together, recipe):
    assert losses(together, A)[-1] < losses(together, C)[-1] < losses(together, B)[-1]


def test_an_expert_reads_its_own_domain_only(recipe, tmp_path, monkeypatch, together):
    def forbidden(self, start, stop):
        raise AssertionError("read another domain")

    class Closed(type(recipe.stores["noise"])):
        read = forbidden

    closed = Closed(recipe.stores["noise"].directory)
    alone = dataclasses.replace(recipe, stores={**recipe.stores, "noise": closed})
    train_pool([A], alone, epath.Path(tmp_path), checkpoint_every=10)
    assert_same_run(epath.Path(tmp_path), together, A, recipe)


@pytest.mark.parametrize("runs", [[C], [C, B], [B, C]], ids=lambda runs: "".join(run.name for run in runs))
def test_a_run_is_the_same_to_the_bit_whichever_runs_share_its_pool(runs, recipe, tmp_path, together):
    train_pool(runs, recipe, epath.Path(tmp_path), checkpoint_every=1000)
    for run in runs:
        assert_same_run(epath.Path(tmp_path), together, run, recipe)


def interrupt(monkeypatch, recipe, directory, runs, after):
    """Trains, and stops as if killed once states after `after` steps were saved by every run."""
    save, saved = checkpoints.Progress.save, []

    def save_and_stop(self, step, state):
        save(self, step, state)
        saved.append(step)
        if saved.count(after) == len(runs):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Progress, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_pool(runs, recipe, directory, checkpoint_every=10)
    monkeypatch.setattr(checkpoints.Progress, "save", save)
    assert not any((directory / run.name / "run.json").exists() for run in runs)


@pytest.fixture
def first_steps(monkeypatch):
    """The steps that pools start reading at, one a run."""
    read, starts = pool._batches, []

    def spy(run, recipe, start, stop):
        starts.append(start)
        return read(run, recipe, start, stop)

    monkeypatch.setattr(pool, "_batches", spy)
    return starts


@pytest.mark.parametrize("after", [10, 20])
def test_an_interrupted_run_goes_on_to_the_same_parameters(after, recipe, tmp_path, monkeypatch, together, first_steps):
    directory = epath.Path(tmp_path)
    interrupt(monkeypatch, recipe, directory, [A, C], after)
    first_steps.clear()
    train_pool([A, C], recipe, directory, checkpoint_every=10)
    assert first_steps == [after, after]
    for run in (A, C):
        assert_same_run(directory, together, run, recipe)
        assert not (directory / run.name / "progress").exists()


def test_runs_stopped_at_different_states_go_on_from_one_both_have(recipe, tmp_path, monkeypatch, together):
    directory = epath.Path(tmp_path)
    interrupt(monkeypatch, recipe, directory, [A], 10)
    interrupt(monkeypatch, recipe, directory, [C], 20)
    train_pool([A, C], recipe, directory, checkpoint_every=10)
    for run in (A, C):
        assert_same_run(directory, together, run, recipe)


SHORT = Run("short", (0.5, 0.5), 0, steps=13)  # ends inside a call of the steps, and long before A


def test_a_run_of_its_own_length_is_as_if_all_had_it(recipe, tmp_path, monkeypatch):
    """Beside a longer run, alone, and interrupted when it had ended already: the same to the bit."""
    directory = epath.Path(tmp_path)
    settings = dataclasses.replace(SETTINGS, steps=13)
    alone = dataclasses.replace(recipe, settings=settings)
    train_pool([dataclasses.replace(SHORT, steps=None)], alone, directory / "alone", checkpoint_every=10)
    train_pool([SHORT, A], recipe, directory / "beside", checkpoint_every=10)
    interrupt(monkeypatch, recipe, directory / "stopped", [A, SHORT], 20)
    train_pool([SHORT, A], recipe, directory / "stopped", checkpoint_every=10)
    assert len(losses(directory / "alone", SHORT)) == 13
    for other in ("beside", "stopped"):
        assert_same_run(directory / "alone", directory / other, SHORT, recipe)
        assert_same_run(directory / "beside", directory / other, A, recipe)
    record = json.loads((directory / "beside" / "short" / "run.json").read_text())
    assert record == json.loads(json.dumps(alone.record(dataclasses.replace(SHORT, steps=None))))


def damage(checkpoint, how):
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert files
    for path in files:
        if how == "emptied":
            path.write_bytes(b"")
        elif how == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif "_METADATA" not in path.name and "manifest" not in path.name:
            path.unlink()


def test_a_pool_told_to_stop_saves_its_states_and_goes_on_from_them(
    recipe, tmp_path, monkeypatch, together, first_steps
):
    directory = epath.Path(tmp_path)
    read = pool.Curves.read

    def read_and_terminate(*arguments):
        read(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(pool.Curves, "read", read_and_terminate)
        with pytest.raises(KeyboardInterrupt):
            train_pool([A, C], recipe, directory, checkpoint_every=1000)
    assert signal.getsignal(signal.SIGTERM) == before
    first_steps.clear()
    train_pool([A, C], recipe, directory, checkpoint_every=1000)
    assert first_steps == [10, 10]
    for run in (A, C):
        assert_same_run(directory, together, run, recipe)


def test_a_request_to_stop_that_comes_while_a_run_is_written_is_not_lost(recipe, tmp_path, monkeypatch, together):
    directory = epath.Path(tmp_path)
    finish = pool._finish

    def finish_and_terminate(*arguments):
        finish(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pool, "_finish", finish_and_terminate)
    with pytest.raises(KeyboardInterrupt):
        train_pool([A, C], recipe, directory, checkpoint_every=1000)
    for run in (A, C):
        assert_same_run(directory, together, run, recipe)


def test_a_request_to_stop_that_comes_in_the_last_call_lets_it_end(recipe, tmp_path, monkeypatch, together):
    directory, calls, read = epath.Path(tmp_path), [], pool.Curves.read

    def read_and_terminate(*arguments):
        read(*arguments)
        calls.append(arguments)
        if len(calls) == STEPS // pool.STEPS_PER_CALL:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pool.Curves, "read", read_and_terminate)
    with pytest.raises(KeyboardInterrupt):
        train_pool([A, C], recipe, directory, checkpoint_every=1000)
    for run in (A, C):
        assert_same_run(directory, together, run, recipe)


def test_states_are_saved_every_so_many_minutes_as_well(recipe, tmp_path, monkeypatch):
    saved, save = [], checkpoints.Progress.save
    monkeypatch.setattr(
        checkpoints.Progress, "save", lambda one, step, state: (saved.append(step), save(one, step, state))
    )
    shape = MeshShape(1)
    pool.train_pool([A], recipe, epath.Path(tmp_path / "often"), 1000, checkpoint_minutes=1e-9, mesh=shape)
    assert saved == [10, 20]
    saved.clear()
    pool.train_pool([A], recipe, epath.Path(tmp_path / "seldom"), 1000, checkpoint_minutes=60.0, mesh=shape)
    assert saved == []


@pytest.mark.parametrize("how", ["emptied", "cut", "lost"])
def test_a_damaged_newest_state_is_passed_over_for_the_one_before(
    how, recipe, tmp_path, monkeypatch, together, first_steps
):
    directory = epath.Path(tmp_path)
    interrupt(monkeypatch, recipe, directory, [A, C], 20)
    damage(tmp_path / "c" / "progress" / "20", how)
    first_steps.clear()
    train_pool([A, C], recipe, directory, checkpoint_every=10)
    assert first_steps == [10, 10]
    for run in (A, C):
        assert_same_run(directory, together, run, recipe)


def test_if_every_state_is_damaged_the_run_starts_anew(recipe, tmp_path, monkeypatch, together, first_steps):
    directory = epath.Path(tmp_path)
    interrupt(monkeypatch, recipe, directory, [A, C], 20)
    for step in ("10", "20"):
        damage(tmp_path / "a" / "progress" / step, "emptied")
    first_steps.clear()
    train_pool([A, C], recipe, directory, checkpoint_every=10)
    assert first_steps == [0, 0]
    assert_same_run(directory, together, A, recipe)


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe, run: (dataclasses.replace(recipe, settings=dataclasses.replace(SETTINGS, clip_norm=0.5)), run),
        lambda recipe, run: (recipe, dataclasses.replace(run, weights=(0.5, 0.5))),
        lambda recipe, run: (recipe, dataclasses.replace(run, seed=7)),
    ],
    ids=["settings", "mixture", "seed"],
)
def test_states_of_another_recipe_are_not_resumed_from(change, recipe, tmp_path, monkeypatch, first_steps):
    directory = epath.Path(tmp_path)
    interrupt(monkeypatch, recipe, directory, [C], 20)
    first_steps.clear()
    changed, run = change(recipe, C)
    train_pool([run], changed, directory, checkpoint_every=10)
    assert first_steps == [0]


def test_what_is_done_is_not_trained_again(recipe, together, monkeypatch):
    monkeypatch.setattr(pool, "_Trainer", lambda *_: pytest.fail("trained again"))
    train_pool([A, B, C], recipe, together, checkpoint_every=10)


@pytest.mark.parametrize(
    ("run", "settings", "message"),
    [
        (A, {"learning_rate": 0.02}, r"/a: trained with training learning_rate=0\.01, not 0\.02"),
        (A, {"steps": 40, "learning_rate": 0.02}, r"/a: trained with training steps=30, not 40"),
        (dataclasses.replace(A, weights=(0.5, 0.5)), {}, r"/a: trained with mixture loop=1\.0, not 0\.5"),
        (dataclasses.replace(A, seed=3), {}, r"/a: trained with seed 0, not 3"),
    ],
)
def test_a_run_of_another_recipe_is_refused_and_the_difference_named(run, settings, message, recipe, together):
    changed = dataclasses.replace(recipe, settings=dataclasses.replace(SETTINGS, **settings))
    with pytest.raises(UserError, match=message):
        train_pool([run], changed, together, checkpoint_every=10)


def test_another_architecture_or_origin_is_refused_as_well(recipe, together):
    wide = dataclasses.replace(recipe, model=preset("tiny", 64, d_ff=64))
    with pytest.raises(UserError, match="trained with model d_ff=96, not 64"):
        train_pool([A], wide, together, checkpoint_every=10)
    other = dataclasses.replace(recipe, origin={"data": "other"})
    with pytest.raises(UserError, match="trained with data 'of the test', not 'other'"):
        train_pool([A], other, together, checkpoint_every=10)


def test_states_of_runs_that_are_done_are_cleared_away(recipe, together):
    checkpoints.begin_progress(together / "a" / "progress", recipe.record(A))  # as if killed before all was deleted
    train_pool([A, B, C], recipe, together, checkpoint_every=10)
    assert not (together / "a" / "progress").exists()


def test_the_record_beside_states_is_written_once_and_aside(tmp_path, monkeypatch):
    directory, record = epath.Path(tmp_path) / "progress", {"seed": 1}
    checkpoints.begin_progress(directory, record)
    (directory / "10").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(type(directory), "write_bytes", lambda *_, **__: pytest.fail("written again"))
        checkpoints.begin_progress(directory, record)
    assert checkpoints.has_states(directory, record)
    assert not checkpoints.has_states(directory, {"seed": 2})
    with monkeypatch.context() as patch:  # killed while it is written
        patch.setattr(type(directory), "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            checkpoints.begin_progress(directory, {"seed": 2})
    assert not (directory / "record.json").exists()


def test_run_json_comes_last(recipe, tmp_path, monkeypatch, together):
    directory = epath.Path(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_params", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train_pool([A], recipe, directory, checkpoint_every=10)
    assert not (directory / "a" / "run.json").exists()
    train_pool([A], recipe, directory, checkpoint_every=10)
    assert_same_run(directory, together, A, recipe)


def poisoned(recipe):
    start = decoder.init(recipe.model, 0)
    start["final_norm"]["scale"] = start["final_norm"]["scale"].at[0].set(np.inf)
    return dataclasses.replace(recipe, start=lambda: start, origin={"data": "of the test", "seed_model": "poisoned"})


def test_a_loss_that_is_not_finite_names_the_run(recipe, tmp_path):
    with pytest.raises(UserError, match=r"run 'b': loss is .* at step 0; try a lower learning rate"):
        train_pool([B], poisoned(recipe), epath.Path(tmp_path), checkpoint_every=10)
    assert not (tmp_path / "b" / "run.json").exists()


FIRST = pool._first


def with_infinity(config, settings, method, started, seed):
    """The first state, that of run C with a parameter that is not finite."""
    state = FIRST(config, settings, method, started, seed)
    broken = jax.tree.map(lambda x: jnp.where(seed == C.seed, jnp.inf, 1.0) * x, state.params["final_norm"])
    return state._replace(params={**state.params, "final_norm": broken})


def test_the_others_of_a_pool_go_on_when_a_loss_is_not_finite(recipe, tmp_path, monkeypatch, together):
    monkeypatch.setattr(pool, "_first", with_infinity)
    with pytest.raises(UserError, match=r"run 'c': loss is nan at step 0; .*the other 2 runs of 3 are trained"):
        train_pool([A, C, B], recipe, epath.Path(tmp_path), checkpoint_every=10)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == []
    for run in (A, B):
        assert_same_run(epath.Path(tmp_path), together, run, recipe)


@pytest.mark.parametrize("steps", [STEPS, 13])
def test_a_run_that_fails_does_not_keep_the_others_from_going_on(
    steps, recipe, tmp_path, monkeypatch, together, first_steps
):
    """Nor is it forgotten that it failed, though its steps had ended before."""
    directory, failing = epath.Path(tmp_path), dataclasses.replace(C, steps=steps)
    monkeypatch.setattr(pool, "_first", with_infinity)
    interrupt(monkeypatch, recipe, directory, [A, failing], 20)
    first_steps.clear()
    with pytest.raises(UserError, match=r"run 'c': loss is nan at step 0; .*the other 1 runs of 2 are trained"):
        train_pool([A, failing], recipe, directory, checkpoint_every=10)
    assert first_steps == [20, 20]
    assert_same_run(directory, together, A, recipe)


def test_runs_that_have_begun_go_on_together_before_others(recipe, tmp_path, monkeypatch, together, first_steps):
    directory = epath.Path(tmp_path)
    interrupt(monkeypatch, recipe, directory, [A, B], 20)
    first_steps.clear()
    train_pool([C, A, B], recipe, directory, checkpoint_every=1000)  # as after C failed in a wave before theirs
    assert first_steps == [20, 20, 0, 0]
    for run in (A, B, C):
        assert_same_run(directory, together, run, recipe)


def test_a_gradient_that_is_not_finite_fails_a_run_though_its_losses_are():
    settings = dataclasses.replace(SETTINGS, steps=2)
    curves = Curves({"a": settings, "b": settings}, 2, preset("tiny", 64))
    curves.expect(slice(0, 2), {"loss": np.ones((2, 2)), "grad_norm": np.array([[1, 1], [1, np.nan]])})
    curves.read()
    assert curves.failed == {"b": "grad_norm is nan at step 1"}


def test_a_state_is_restored_onto_another_mesh(recipe, tmp_path, monkeypatch, together):
    """Saved by a pool of one device a run, gone on with by one run on two devices: the same but for rounding."""
    directory = epath.Path(tmp_path)
    interrupt(monkeypatch, recipe, directory, [C], 20)
    train_pool([C], recipe, directory, checkpoint_every=10, devices=2)
    assert losses(directory, C)[:20] == losses(together, C)[:20]
    assert_allclose(losses(directory, C), losses(together, C), rtol=1e-4)
    assert losses(directory, C)[20:] != losses(together, C)[20:]


def test_metrics_say_what_a_person_watches(together):
    lines = [json.loads(line) for line in (together / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert_allclose([line["learning_rate"] for line in lines][:11], np.arange(11) * 1e-3, rtol=1e-6)
    assert all(line["grad_norm"] > 0 and line["tokens_per_second"] > 0 for line in lines)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that have gone by for metrics, as a list of one number."""
    seconds = [0.0]
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(perf_counter=lambda: seconds[0]))
    return seconds


class Working:
    """Metrics that the devices take some seconds to come up with."""

    def __init__(self, shape, clock, seconds):
        self.shape, self.clock, self.seconds = shape, clock, seconds

    def __array__(self, dtype=None, copy=None):
        self.clock[0], self.seconds = self.clock[0] + self.seconds, 0
        return np.ones(self.shape)


def test_the_time_of_steps_is_from_one_that_is_read_to_the_next(clock):
    curves = Curves({"a": SETTINGS}, 1, preset("tiny", 64), validation=["validation/loop"])
    work = lambda steps, seconds: dict.fromkeys(("loss", "grad_norm"), Working((1, steps), clock, seconds))  # noqa: E731
    for step, seconds in ((0, 40.0), (10, 60.0)):
        curves.resume_clock()
        curves.expect(slice(step, step + 10), work(10, seconds))
    curves.expect(slice(19, 20), {"validation/loop": Working((1, 1), clock, 500.0)})
    curves.read()
    clock[0] += 1000  # while a state is saved
    curves.resume_clock()
    curves.expect(slice(20, 30), work(10, 50.0))
    curves.read()
    assert_array_equal(curves.values["seconds"][0, ::10], [4, 6, 5])


def test_saving_a_state_does_not_count_as_time_of_steps(recipe, tmp_path, monkeypatch, clock):
    read = pool._batches

    def timed(*arguments):
        for batch in read(*arguments):
            clock[0] += 0.5  # a run of two
            yield batch

    monkeypatch.setattr(pool, "_batches", timed)
    monkeypatch.setattr(checkpoints.Progress, "save", lambda *_: clock.__setitem__(0, clock[0] + 1000))
    train_pool([A, B], recipe, epath.Path(tmp_path), checkpoint_every=10)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["tokens_per_second"] for line in lines] == [SETTINGS.batch_size * SETTINGS.seq_len] * STEPS


def test_validation_losses_are_those_of_the_model_at_that_step(recipe, tmp_path, monkeypatch, together, first_steps):
    validation = {name: write_store(tmp_path / name, [np.tile(np.arange(1, 9), 6)] * 3) for name in ("loop", "copy")}
    watched = dataclasses.replace(recipe, validation=validation)
    directory = epath.Path(tmp_path / "runs")
    interrupt(monkeypatch, recipe, directory, [A, B], 10)  # a state can be gone on with and watched another way
    pool.train_pool([A, B], watched, directory, 1000, mesh=MeshShape(2), watching=Watching(validate_every=15))
    assert first_steps[-2:] == [10, 10]
    lines = [json.loads(line) for line in (directory / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/loop" in line] == [20, 30]  # the calls that pass 15 and 30
    last = lines[-1]
    assert last["validation/loop"] == last["validation/copy"]
    windows = [validation["loop"].window(i, SETTINGS.seq_len) for i in range(validation["loop"].windows(16))]
    tokens, segments = (np.stack([getattr(w, name) for w in windows]) for name in ("tokens", "segments"))
    log_probs = decoder.token_log_probs(recipe.model, parameters(directory, A, recipe), tokens, segments)
    expected = -np.mean(np.asarray(log_probs)[decoder.target_mask(segments)])
    assert_allclose(last["validation/loop"], expected, rtol=1e-5)
    assert_same_run(directory, together, A, recipe)  # to look does not change a run


def test_validation_is_cut_as_training_is(recipe, tmp_path, monkeypatch):
    """Into parts of a sequence, and over the devices of a model, to which three windows cannot be dealt out evenly."""
    monkeypatch.setattr(validation, "VALIDATION_WINDOWS", 3)
    monkeypatch.setattr(validation, "loss", spied := mock.Mock(wraps=loss))
    text = write_store(tmp_path, [np.arange(1, 50)])
    cut = dataclasses.replace(recipe, settings=dataclasses.replace(SETTINGS, loss_chunks=4), validation={"loop": text})
    mesh = make_mesh(MeshShape(1, 2))
    params = decoder.init(recipe.model, 0)
    found = validation.Validation(cut, mesh)(spread(mesh, jax.device_get(params)))["validation/loop"]
    windows = [text.window(i, SETTINGS.seq_len) for i in range(3)]
    tokens, segments = (np.stack([getattr(w, name) for w in windows]) for name in ("tokens", "segments"))
    assert_allclose(found[0, 0], loss(recipe.model, params, tokens, segments)[1], rtol=1e-5)
    assert [call.kwargs for call in spied.call_args_list] == [{"chunks": 4}]


@pytest.mark.slow
def test_tensorboard_shows_what_metrics_say(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    watching = Watching(tensorboard=True)
    pool.train_pool([A], recipe, epath.Path(tmp_path), 1000, mesh=MeshShape(1), watching=watching)
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    shown = {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")}
    assert shown == pytest.approx({step: losses(epath.Path(tmp_path), A)[step - 1] for step in (10, 20, 30)})


def test_an_imported_run_is_done_if_it_is_such_a_model(recipe, tmp_path):
    directory = epath.Path(tmp_path) / "a"
    directory.mkdir()
    model = {**recipe.record(A)["model"], "dtype": "bfloat16"}
    (directory / "run.json").write_text(json.dumps({"imported": {"from": "elsewhere"}, "model": model}))
    assert is_done(directory, recipe.record(A), {})
    wide = dataclasses.replace(recipe, model=preset("tiny", 64, d_ff=64))
    with pytest.raises(UserError, match="trained with model d_ff=96, not 64"):
        is_done(directory, wide.record(A), {})


def test_after_a_loss_that_was_not_finite_a_better_recipe_does_not_inherit_its_states(recipe, tmp_path, together):
    directory = epath.Path(tmp_path)
    with pytest.raises(UserError, match="loss is"):
        train_pool([B], poisoned(recipe), directory, checkpoint_every=10)
    train_pool([B], recipe, directory, checkpoint_every=10)
    assert_same_run(directory, together, B, recipe)


def test_runs_continue_from_the_start_they_are_given(recipe, tmp_path, together):
    start = parameters(together, A, recipe)
    train_pool([A], dataclasses.replace(recipe, start=lambda: start), epath.Path(tmp_path), checkpoint_every=10)
    assert losses(epath.Path(tmp_path), A)[0] < 1.0 < losses(together, A)[0]
    jax.tree.map(assert_array_equal, start, parameters(together, A, recipe))  # the pool did not change it


@pytest.mark.parametrize("how", ["emptied", "cut", "lost"])
def test_a_damaged_checkpoint_is_a_user_error_that_names_it(how, recipe, tmp_path, together):
    params = parameters(together, A, recipe)
    path = epath.Path(tmp_path) / "params"
    checkpoints.save_params(path, params)
    damage(tmp_path / "params", how)
    with pytest.raises(UserError, match=r"/params: damaged checkpoint"):
        checkpoints.load_params(path, params)


def test_a_checkpoint_that_is_missing_or_of_another_model_is_a_user_error(recipe, together, tmp_path):
    other = decoder.init(preset("tiny", 64, d_ff=64), 0)
    expected = r"/a/params: of another architecture \(layers/mlp/down/kernel: \(1, 96, 32\), the model \(1, 64, 32\)\)"
    with pytest.raises(UserError, match=expected):
        checkpoints.load_params(together / "a" / "params", other)
    untied = decoder.init(preset("tiny", 64, tie_embeddings=False), 0)
    with pytest.raises(UserError, match=r"another architecture \(unembed/kernel: none, the model \(32, 64\)\)"):
        checkpoints.load_params(together / "a" / "params", untied)
    with pytest.raises(UserError, match="/nowhere: no checkpoint here"):
        checkpoints.load_params(epath.Path(tmp_path) / "nowhere", other)


class HttpError(Exception):
    __module__ = "gcsfs.retry"


OUT_OF_REACH = [
    ValueError('PERMISSION_DENIED: Error reading "gs://bucket/manifest.ocdbt": HTTP response code: 401'),
    ValueError("UNKNOWN: Failed to open: \"/nfs/d/1\": Stale file handle [os_error_code='116']"),
    OSError(5, "Input/output error"),
    HttpError("Anonymous caller does not have storage.objects.get access"),
    MemoryError("Unable to allocate 8.00 PiB for an array"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 140737488355328 bytes."),
]


@pytest.mark.parametrize("error", OUT_OF_REACH, ids=lambda error: type(error).__name__)
def test_a_checkpoint_out_of_reach_is_not_called_damaged(error, recipe, together, monkeypatch):
    def refuse(*_, **__):
        raise error

    params = parameters(together, A, recipe)
    monkeypatch.setattr(checkpoints.ocp.StandardCheckpointer, "restore", refuse)
    with pytest.raises(UserError, match=r"/a/params: cannot be read \(.*; nothing was deleted"):
        checkpoints.load_params(together / "a" / "params", params)


@pytest.mark.parametrize(
    "error",
    [
        ValueError('UNAVAILABLE: Error reading "gs://bucket/a/progress/20/manifest.ocdbt"'),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 140737488355328 bytes."),
    ],
    ids=["bucket", "memory"],
)
def test_states_out_of_reach_stop_a_pool_and_are_gone_on_from_later(
    error, recipe, tmp_path, monkeypatch, together, first_steps
):
    def refuse(*_, **__):
        raise error

    directory = epath.Path(tmp_path)
    interrupt(monkeypatch, recipe, directory, [A, C], 20)
    first_steps.clear()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.ocp.CheckpointManager, "restore", refuse)
        with pytest.raises(UserError, match=r"/a/progress/20: cannot be read \([A-Z_]+: .*same command goes on"):
            train_pool([A, C], recipe, directory, checkpoint_every=10)
    assert first_steps == []
    train_pool([A, C], recipe, directory, checkpoint_every=10)
    assert first_steps == [20, 20]
    assert_same_run(directory, together, A, recipe)


def test_a_saved_checkpoint_comes_back_to_the_bit_and_replaces_another(recipe, tmp_path):
    path = epath.Path(tmp_path) / "params"
    one, other = (decoder.init(recipe.model, seed) for seed in (0, 1))
    checkpoints.save_params(path, one)
    checkpoints.save_params(path, other)
    jax.tree.map(assert_array_equal, checkpoints.load_params(path, one), other)


def test_a_directory_that_cannot_be_written_is_a_user_error(recipe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"/file/runs: cannot write \(.*Not a directory"):
        train_pool([A], recipe, epath.Path(tmp_path / "file" / "runs"), checkpoint_every=10)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Failed to write: \"/runs/d/1\": Disk quota exceeded [os_error_code='122']"),
        ValueError("UNKNOWN: Failed to write: \"/runs/d/1\": No space left on device [os_error_code='28']"),
    ],
    ids=["system", "quota", "tensorstore"],
)
def test_a_full_disk_is_a_user_error_and_leaves_no_state_that_counts(error, recipe, tmp_path, monkeypatch, together):
    directory = epath.Path(tmp_path)
    save = checkpoints.Progress.save

    def full(self, step, state):
        if step == 20:
            raise error
        save(self, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Progress, "save", full)
        with pytest.raises(UserError, match=r"cannot write \(.*(No space|quota).*\); the same command goes on"):
            train_pool([A, C], recipe, directory, checkpoint_every=10)
    train_pool([A, C], recipe, directory, checkpoint_every=10)
    assert_same_run(directory, together, A, recipe)


def test_what_cannot_be_read_is_not_said_to_be_unwritable(recipe, tmp_path):
    def lost():
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        train_pool([A], dataclasses.replace(recipe, start=lost), epath.Path(tmp_path), checkpoint_every=10)


def test_waves_are_full_and_keep_every_item_once():
    waves = list(pool.waves([1, 2, 3, 4, 5], 2))
    assert waves == [([1, 2], 2), ([3, 4], 2), ([5, 5], 1)]
    assert list(pool.waves([], 2)) == []


def test_the_bar_shows_no_loss_before_there_is_one(recipe, tmp_path, monkeypatch):
    """Of three runs in two waves: none for the first call of a wave, the loss of the call before for the others."""
    shown = []

    class Bar(pool.tqdm):
        def set_postfix(self, ordered_dict=None, refresh=True, **about):
            shown.append(about)
            super().set_postfix(ordered_dict, refresh, **about)

    monkeypatch.setattr(pool, "tqdm", Bar)
    train_pool([A, B, C], recipe, epath.Path(tmp_path), checkpoint_every=1000)
    calls = STEPS // pool.STEPS_PER_CALL
    assert [about["run"] for about in shown] == ["a"] * calls + ["c"] * calls
    for run, wave in ((A, shown[:calls]), (C, shown[calls:])):
        assert "loss" not in wave[0]
        ends = losses(epath.Path(tmp_path), run)[pool.STEPS_PER_CALL - 1 :: pool.STEPS_PER_CALL]
        assert [about["loss"] for about in wave[1:]] == [f"{loss:.3f}" for loss in ends[: calls - 1]]
