"""The pool trainer: a matrix of mixtures in, one checkpoint a run out, in one process with one compilation.

Runs are trained in waves of one run a row of the mesh: their parameters are stacked on its `pool` axis and every row of
devices steps its own model, so a run's numbers do not depend on which runs it shares a wave with. Runs of different
lengths share the program: learning rates come with the batches, and are 0 after the end of a run that waits for longer
ones. The longest come first, so that waves are of nearly equal lengths.
"""

import contextlib
import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from mde.data import mixing
from mde.errors import UserError
from mde.models import decoder, sharding
from mde.models.config import DecoderConfig
from mde.training import checkpoints, placement
from mde.training.interruptions import Termination, writing
from mde.training.metrics import Curves, Watching
from mde.training.placement import MeshShape, on_pool, pool_mesh, stack, unstack
from mde.training.runs import Recipe, Run, pending
from mde.training.step import TrainSettings, TrainState, begin, initial, train_step
from mde.training.validation import Validation

__all__ = ["Recipe", "Run", "on_pool", "pool_mesh", "stack", "train_pool", "unstack"]

STEPS_PER_CALL = 10  # optimizer steps of one dispatch: enough to hide its cost, few enough for a lively progress bar


UNWATCHED = Watching()


def waves(items: Sequence[Any], width: int) -> Iterator[tuple[list[Any], int]]:
    """Cuts items into waves of exactly `width`, the last filled up with repeats; also how many of each are real."""
    for i in range(0, len(items), width):
        wave = list(items[i : i + width])
        yield wave + wave[-1:] * (width - len(wave)), len(wave)


def train_pool(
    runs: Sequence[Run],
    recipe: Recipe,
    directory: epath.Path,
    checkpoint_every: int,
    checkpoint_minutes: float | None = None,
    mesh: MeshShape | None = None,
    watching: Watching = UNWATCHED,
) -> None:
    """Trains the runs that are not done yet; `directory/<run>` then holds `params`, `run.json` and `metrics.jsonl`.

    SIGTERM has the states saved before the program ends as if interrupted by the keyboard.

    Args:
      runs: what to train.
      recipe: what they have in common.
      directory: parent of the runs' directories.
      checkpoint_every: steps between states to resume from.
      checkpoint_minutes: minutes after which a state is saved as well; None for never.
      mesh: the devices; one a run, and several where there are more devices than runs, if None.
      watching: what else is measured and shown on the way.

    Raises:
      UserError: a run of this name was trained another way, a domain is empty, the mesh does not divide the devices,
        the model or the batch, or losses were not finite (the other runs are trained to the end first).
    """
    if jax.process_count() > 1:
        raise UserError("a pool is trained by one process: its checkpoints are not written by several yet")
    waiting = pending(runs, recipe, directory)
    if not waiting:
        return
    for run in waiting:
        mixing.check(recipe.stores, np.asarray(run.weights), recipe.settings.seq_len)
    shape = mesh or placement.fitting(len(runs), recipe.model, recipe.settings.sequences)
    shape.check(recipe.model, recipe.settings.sequences)
    trainer = _Trainer(recipe, directory, placement.make_mesh(shape), checkpoint_every, checkpoint_minutes, watching)
    waiting.sort(key=lambda run: -recipe.settings_of(run).steps)
    total = sum(recipe.settings_of(run).tokens for run in waiting)
    with (
        Termination() as termination,
        tqdm(total=total, unit="tok", unit_scale=True, desc="train", mininterval=1.0) as bar,
    ):
        for wave, real in waves(waiting, shape.pool):
            with writing(directory):
                trainer.train(wave, real, bar, termination)
    if trainer.failed:
        causes = ", ".join(f"run {name!r}: {cause}" for name, cause in trainer.failed.items())
        others = len(waiting) - len(trainer.failed)
        raise UserError(f"{causes}; try a lower learning rate (the other {others} runs of {len(waiting)} are trained)")


class _Trainer:
    """The compiled program of a pool, and the waves of runs that go through it.

    Attributes:
      failed: by name of each run whose loss was not finite, when that was.
    """

    def __init__(
        self,
        recipe: Recipe,
        directory: epath.Path,
        mesh: Mesh,
        every: int,
        minutes: float | None,
        watching: Watching,
    ):
        self._recipe, self._directory, self._mesh = recipe, directory, mesh
        self._every, self._minutes, self._watching = every, minutes, watching
        self._state = jax.eval_shape(functools.partial(initial, recipe.model, recipe.settings), 0)
        self._advance = advance(mesh, recipe.model, recipe.settings)
        self._validate = Validation(recipe, mesh) if watching.validate_every else None
        self.failed: dict[str, str] = {}

    def train(self, wave: list[Run], real: int, bar: tqdm, termination: Termination) -> None:
        """Trains one run a row from where they stopped to the end; the first `real` of the wave are kept."""
        settings = {run.name: self._recipe.settings_of(run) for run in wave[:real]}
        extra = self._validate.names if self._validate else ()
        curves = Curves(settings, len(wave), self._recipe.model, extra)
        with contextlib.ExitStack() as stack:
            progress = [stack.enter_context(self._progress(run)) for run in wave[:real]]
            stack.callback(curves.close)
            if self._watching.tensorboard:
                curves.show(self._directory)
            state = self._steps(wave, progress, curves, bar, termination)
        self.failed |= curves.failed
        for i, (run, one) in enumerate(zip(wave, progress, strict=False)):
            if run.name in curves.failed:
                one.drop()  # going on from its states would end the same way
            else:
                params = placement.member(self._mesh, state.params, i)
                _finish(params, curves.lines(i), self._recipe.record(run), self._directory / run.name, one)

    def _progress(self, run: Run) -> checkpoints.Progress:
        return checkpoints.Progress(self._directory / run.name / "progress", self._recipe.record(run))

    def _steps(
        self,
        wave: list[Run],
        progress: list[checkpoints.Progress],
        curves: Curves,
        bar: tqdm,
        termination: Termination,
    ) -> TrainState:
        """All steps of a wave from where it stopped; returns the states."""
        real = len(progress)
        lengths = [self._recipe.settings_of(run).steps for run in wave[:real]]
        batch_tokens = self._recipe.settings.batch_size * self._recipe.settings.seq_len
        tokens = lambda step: batch_tokens * sum(min(step, length) for length in lengths)  # noqa: E731
        state, start = self._resume(wave, progress, curves)
        end = max(lengths)
        bar.update(tokens(start))
        data = [_batches(run, self._recipe, start, end) for run in wave]
        saved = time.monotonic()
        for step in range(start, end, STEPS_PER_CALL):
            stop = min(step + STEPS_PER_CALL, end)
            begun = time.perf_counter()
            calls = [[next(it) for _ in range(step, stop)] for it in data]
            batch = [jax.tree.map(lambda *xs: np.stack(xs), *call) for call in calls]
            rates = stack(self._mesh, list(curves.rates[:, step:stop]))
            state, metrics = self._advance(state, stack(self._mesh, batch, None, "data"), rates)
            curves.read()  # one call late, so that the devices never wait for us
            curves.expect(slice(step, stop), metrics)
            loss = np.mean(curves.values["loss"][:, max(step - 1, 0)])
            bar.set_postfix(run=wave[0].name, loss=f"{loss:.3f}", refresh=False)
            bar.update(tokens(stop) - tokens(step))
            late = self._minutes is not None and time.monotonic() - saved > 60 * self._minutes
            asked = termination.asked  # looked at once: what comes later waits for the next call
            due = asked or late or _passed(step, stop, self._every)
            if self._validate and _passed(step, stop, self._watching.validate_every):
                curves.expect(slice(stop - 1, stop), self._validate(state.params))
            if due or stop == end:
                curves.read()
            curves.values["seconds"][:, step:stop] = (time.perf_counter() - begun) / (stop - step)
            if due and stop < end:
                self._save(wave, progress, stop, state, curves)
                saved = time.monotonic()
            if asked:
                raise KeyboardInterrupt
            if len(curves.failed) == real:
                break
        return state

    def _save(
        self, wave: list[Run], progress: list[checkpoints.Progress], step: int, state: TrainState, curves: Curves
    ) -> None:
        for i, (run, one) in enumerate(zip(wave, progress, strict=False)):
            if run.name not in curves.failed:
                one.save(step, (placement.member(self._mesh, state, i), curves.of(i)))

    def _resume(self, wave: list[Run], progress: list[checkpoints.Progress], curves: Curves) -> tuple[TrainState, int]:
        """States, and metrics, of the newest step that all runs have whole, or those to start with."""
        for step in sorted(set.intersection(*(p.steps() for p in progress)), reverse=True):
            rows = [placement.abstract_member(self._mesh, self._state, i) for i in range(len(progress))]
            like = [(row, curves.of(i)) for i, row in enumerate(rows)]
            found = [one.restore(step, each) for one, each in zip(progress, like, strict=True)]
            whole = [each for each in found if each is not None]
            if len(whole) == len(found):
                curves.restore([kept for _, kept in whole])
                return self._filled([member for member, _ in whole]), step
        return self._fresh(wave), 0

    def _filled(self, members: Sequence[TrainState]) -> TrainState:
        """The members stacked; rows without one get the last one's numbers."""
        last = jax.device_get(members[-1])
        rows = [placement.abstract_member(self._mesh, self._state, i) for i in range(self._mesh.shape["pool"])]
        moved = [jax.device_put(last, jax.tree.map(lambda x: x.sharding, row)) for row in rows[len(members) :]]
        return placement.join(self._mesh, [*members, *moved])

    def _fresh(self, wave: list[Run]) -> TrainState:
        """The states to start with, made where they will lie."""
        recipe, where = self._recipe, sharding.stacked(self._mesh, self._state)
        if recipe.start:
            params = placement.spread(self._mesh, recipe.start())
            return on_pool(self._mesh, functools.partial(begin, recipe.settings), donate=False, out_shardings=where)(
                params
            )
        seeds = stack(self._mesh, [np.int32(run.seed) for run in wave])
        fresh = functools.partial(initial, recipe.model, recipe.settings)
        return on_pool(self._mesh, fresh, donate=False, out_shardings=where)(seeds)


def advance(mesh: Mesh, config: DecoderConfig, settings: TrainSettings) -> jax.stages.Wrapped:
    """Several train steps of every model of a pool, jitted.

    Takes states, batches and learning rates [pool, steps]; returns states and metrics [pool, steps].
    """
    state = jax.eval_shape(functools.partial(initial, config, settings), 0)
    everywhere = P("pool") if jax.process_count() == 1 else P()  # every process reads all metrics
    out = (sharding.stacked(mesh, state), NamedSharding(mesh, everywhere))
    return on_pool(mesh, functools.partial(_advance, config, settings), out_shardings=out)


def _passed(step: int, stop: int, every: int) -> bool:
    """Whether a multiple of `every` lies among the steps done from `step` to `stop`."""
    return stop // every > step // every


def _advance(
    config: DecoderConfig,
    settings: TrainSettings,
    state: TrainState,
    batches: Mapping[str, jax.Array],
    rates: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Several train steps of one model; returns the state and the metrics of each step."""

    def one(state: TrainState, step: tuple[Mapping[str, jax.Array], jax.Array]) -> Any:
        batch, rate = step
        return train_step(config, settings, state, batch["tokens"], batch["segments"], rate)

    return jax.lax.scan(one, state, (batches, rates))


def _batches(run: Run, recipe: Recipe, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    settings = recipe.settings
    dataset = mixing.batches(
        recipe.stores,
        np.asarray(run.weights),
        seed=run.seed,
        batch_size=settings.batch_size,
        seq_len=settings.seq_len,
    )
    return mixing.iterate(dataset, start, stop)


def _finish(
    params: decoder.Params,
    lines: Iterator[dict[str, float]],
    record: Mapping[str, Any],
    directory: epath.Path,
    progress: checkpoints.Progress,
) -> None:
    """Writes what a run leaves; `run.json` comes last and says that the run is done."""
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoints.save_params(directory / "params", params)
    progress.drop()
    aside = directory / "run.json.partial"
    aside.write_text(json.dumps(record, indent=1))
    aside.rename(directory / "run.json")
