"""The pool trainer: a matrix of mixtures in, one checkpoint per run out, in one process with one compilation.

Runs are trained in waves of one run per row of the mesh: parameters are stacked on its `pool` axis and every row of
devices steps its own model, so a run's numbers do not depend on which runs it shares a wave with. Runs of different
lengths share the program: learning rates come with the batches, and are 0 after the end of a run that waits for longer
ones. Runs that have begun come first, so that they go on together, and the longest, so that waves are of nearly equal
lengths. A run that fails stays in its wave, and in its states, to the end.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from mde import hosts
from mde.buckets import write_aside, writing
from mde.data import mixing
from mde.errors import UserError
from mde.models import decoder, sharding
from mde.models.config import DecoderConfig
from mde.training import checkpoints, devices, placement
from mde.training.interruptions import Termination
from mde.training.method import PLAIN, Method, State
from mde.training.metrics import Curves
from mde.training.placement import MeshShape, on_pool, read_by_all, stack
from mde.training.runs import Recipe, Run, pending
from mde.training.settings import TrainSettings, Watching
from mde.training.step import begin, initial
from mde.training.validation import Validation

__all__ = ["Recipe", "Run", "on_pool", "stack", "train_pool"]

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
        the model or the batch, or losses or gradients were not finite (the other runs are trained to the end first).
    """
    if jax.process_count() != hosts.count():
        raise UserError("several processes train together when `mde.hosts.connect` has made them known to each other")
    waiting = pending(runs, recipe, directory)
    begun = {run.name for run in waiting if checkpoints.has_states(_states_of(directory, run), recipe.record(run))}
    waiting.sort(key=lambda run: (run.name not in begun, -recipe.settings_of(run).steps))
    if hosts.is_first():
        _clear_states([run for run in runs if run not in waiting], directory)
    hosts.wait("all have seen what is done")
    if not waiting:
        return
    for run in waiting:
        mixing.check(recipe.stores, np.asarray(run.weights), recipe.settings.seq_len)
    shape = mesh or placement.fitting(len(runs), recipe.model, recipe.settings.sequences)
    shape.check(recipe.model, recipe.settings.sequences)
    trainer = _Trainer(recipe, directory, placement.make_mesh(shape), checkpoint_every, checkpoint_minutes, watching)
    total = sum(recipe.settings_of(run).tokens for run in waiting)
    with (
        Termination() as termination,
        tqdm(
            total=total, unit="tok", unit_scale=True, desc="train", mininterval=1.0, disable=not hosts.is_first()
        ) as bar,
    ):
        bar.set_postfix_str("compiling")
        for wave, real in waves(waiting, shape.pool):
            trainer.train(wave, real, bar, termination)
            if _agreed((), termination.asked)[0]:  # after the last look at it
                raise KeyboardInterrupt
    if trainer.failed:
        causes = ", ".join(f"run {name!r}: {cause}" for name, cause in trainer.failed.items())
        others = len(waiting) - len(trainer.failed)
        raise UserError(f"{causes}; try a lower learning rate (the other {others} runs of {len(waiting)} are trained)")


@dataclasses.dataclass(frozen=True)
class _Wave:
    """Runs that are trained side by side.

    Attributes:
      rows: a run for each row of the mesh.
      progress: the states of the runs that count; rows after those repeat the last and are thrown away.
      curves: their metrics.
    """

    rows: list[Run]
    progress: list[checkpoints.Progress]
    curves: Curves


class _Trainer:
    """The compiled program of a pool, and the waves of runs that go through it.

    Attributes:
      failed: by name of each run whose loss or gradient was not finite, when that was.
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
        self._state = jax.eval_shape(functools.partial(_first, recipe.model, recipe.settings, recipe.method, False), 0)
        first = functools.partial(_first, recipe.model, recipe.settings, recipe.method, recipe.start is not None)
        where = sharding.stacked(mesh, self._state)
        self._begin = on_pool(mesh, first, donate=False, out_shardings=where)
        self._advance = advance(mesh, recipe.model, recipe.settings, recipe.method)
        self._validate = Validation(recipe, mesh) if watching.validate_every else None
        self.failed: dict[str, str] = {}

    def train(self, rows: list[Run], real: int, bar: tqdm, termination: Termination) -> None:
        """Trains one run per row from where they stopped to the end; the first `real` of the rows are kept."""
        runs = rows[:real]
        settings = {run.name: self._recipe.settings_of(run) for run in runs}
        validation = self._validate.names if self._validate else ()
        curves = Curves(settings, len(rows), self._recipe.model, self._recipe.method.metrics, validation)
        if hosts.is_first():
            with writing(self._directory):
                for run in runs:
                    checkpoints.begin_progress(_states_of(self._directory, run), self._recipe.record(run))
        hosts.wait("the directories of the states are there")
        with contextlib.ExitStack() as stack:
            progress = [stack.enter_context(checkpoints.Progress(_states_of(self._directory, run))) for run in runs]
            stack.callback(curves.close)
            if self._watching.tensorboard and hosts.is_first():
                curves.show(self._directory)
            state = self._steps(_Wave(rows, progress, curves), bar, termination)
        self.failed |= curves.failed
        with writing(self._directory):
            for row, run in enumerate(runs):
                self._end(run, curves, row, state)
        hosts.wait("the runs of a wave are written")

    def _end(self, run: Run, curves: Curves, row: int, state: State) -> None:
        """Writes what is kept of a run that has ended, and deletes its states.

        Those of a run that failed as well: going on from them would end the same way.
        """
        if run.name not in curves.failed:
            params = placement.member(self._mesh, state.params, row)
            checkpoints.save_params(self._directory / run.name / "params", params)
            if hosts.is_first():
                _finish(curves.lines(row), self._recipe.record(run), self._directory / run.name)
        if hosts.is_first():
            _states_of(self._directory, run).rmtree()

    def _steps(self, wave: _Wave, bar: tqdm, termination: Termination) -> State:
        """All steps of a wave from where it stopped; returns the states."""
        curves = wave.curves
        lengths = [self._recipe.settings_of(run).steps for run in wave.rows[: len(wave.progress)]]
        batch_tokens = self._recipe.settings.batch_size * self._recipe.settings.seq_len
        tokens = lambda step: batch_tokens * sum(min(step, length) for length in lengths)  # noqa: E731
        state, start = self._resume(wave)
        end = max(lengths)
        bar.update(tokens(start))
        data, references = self._data(wave, start, end), self._references(wave.rows)
        saved = time.monotonic()
        for step in range(start, end, STEPS_PER_CALL):
            stop = min(step + STEPS_PER_CALL, end)
            curves.resume_clock()
            rates = stack(self._mesh, list(curves.rates[:, step:stop]))
            batches = stack(self._mesh, data(stop - step), None, "data")
            state, metrics = self._advance(state, batches, rates, *references)
            if step == start:
                devices.release()  # compiled, and the first call has only begun
            curves.read()  # one call late, so that the devices never wait for us
            curves.expect(slice(step, stop), metrics)
            known = {"loss": f"{curves.values['loss'][0, step - 1]:.3f}"} if step else {}
            bar.set_postfix(run=wave.rows[0].name, **known, refresh=False)
            bar.update(tokens(stop) - tokens(step))
            late = self._minutes is not None and time.monotonic() - saved > 60 * self._minutes
            asked, late = _agreed(metrics, termination.asked, late)  # what comes later waits for the next call
            due = asked or late or _passed(step, stop, self._every)
            if self._validate and _passed(step, stop, self._watching.validate_every):
                curves.expect(slice(stop - 1, stop), self._validate(state.params))
            if due or stop == end:
                curves.read()
            if due and stop < end:
                self._save(wave, stop, state)
                saved = time.monotonic()
            if asked and stop < end:
                raise KeyboardInterrupt
            if len(curves.failed) == len(lengths):
                break
        return state

    def _data(self, wave: _Wave, start: int, end: int) -> Callable[[int], list[dict[str, np.ndarray]]]:
        """A function that reads so many steps on, for every row; rows of other processes are theirs to read."""
        readers = {
            row: self._arranged(run, _batches(run, self._recipe, start, end), start)
            for row, run in enumerate(wave.rows)
            if hosts.index() in placement.processes_of(self._mesh, row)
        }

        def read(steps: int) -> list[dict[str, np.ndarray]]:
            calls = {row: [next(reader) for _ in range(steps)] for row, reader in readers.items()}
            found = {row: jax.tree.map(lambda *xs: np.stack(xs), *call) for row, call in calls.items()}
            elsewhere = jax.tree.map(np.zeros_like, next(iter(found.values()))) if len(found) < len(wave.rows) else {}
            return [found.get(row, elsewhere) for row in range(len(wave.rows))]

        return read

    def _arranged(
        self, run: Run, batches: Iterator[dict[str, np.ndarray]], start: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Batches of a run from step `start` on, as its method takes them."""
        recipe, weights = self._recipe, np.asarray(run.weights)
        for step, batch in enumerate(batches, start):
            first = step * recipe.settings.batch_size
            yield recipe.method.arranged(batch, weights, first, self._mesh.shape["data"])

    def _references(self, rows: list[Run]) -> list[decoder.Params]:
        """The stack of the models that the runs are compared with, if they are."""
        names = [self._recipe.references.get(run.name) for run in rows]
        found = [
            checkpoints.load_params(self._directory / name / "params", self._state.params) for name in names if name
        ]
        return [placement.stack_params(self._mesh, found)] if found else []

    def _save(self, wave: _Wave, step: int, state: State) -> None:
        with writing(self._directory):
            for row, progress in enumerate(wave.progress):
                progress.save(step, (placement.member(self._mesh, state, row), wave.curves.of(row)))

    def _resume(self, wave: _Wave) -> tuple[State, int]:
        """States, and metrics, of the newest step that all runs have whole, or those to start with."""
        rows = [placement.abstract_member(self._mesh, self._state, row) for row in range(len(wave.rows))]
        for step in sorted(set.intersection(*(one.steps() for one in wave.progress)), reverse=True):
            like = [(rows[row], wave.curves.of(row)) for row in range(len(wave.progress))]
            found = [one.restore(step, each) for one, each in zip(wave.progress, like, strict=True)]
            whole = [each for each in found if each is not None]
            if hosts.gathered([len(whole) == len(found)]).all():
                wave.curves.restore([kept for _, kept in whole], step)
                members = [member for member, _ in whole] + list(map(placement.zeros, rows[len(whole) :]))
                return placement.join(self._mesh, members), step
        return self._fresh(wave.rows), 0

    def _fresh(self, rows: list[Run]) -> State:
        """The states to start with, made where they will lie."""
        if self._recipe.start:
            state = self._begin(placement.spread(self._mesh, self._recipe.start()))
        else:
            state = self._begin(stack(self._mesh, [np.int32(run.seed) for run in rows]))
        devices.release()
        return state


def _states_of(directory: epath.Path, run: Run) -> epath.Path:
    return directory / run.name / "progress"


def _clear_states(done: Sequence[Run], directory: epath.Path) -> None:
    """Deletes what is left of the states of runs that were killed when they were done."""
    for run in done:
        if _states_of(directory, run).exists():
            _states_of(directory, run).rmtree()


def _first(config: DecoderConfig, settings: TrainSettings, method: Method, started: bool, given: Any) -> State:
    """The state before the first step: of parameters if there are some to start from, or else of a seed."""
    return method.begin(begin(settings, given) if started else initial(config, settings, given))


def advance(mesh: Mesh, config: DecoderConfig, settings: TrainSettings, method: Method = PLAIN) -> jax.stages.Wrapped:
    """Several train steps of every model of a pool, jitted.

    Takes states, batches, learning rates [pool, steps] and the models to compare with, if any; returns states and
    metrics [pool, steps].
    """
    state = jax.eval_shape(functools.partial(_first, config, settings, method, False), 0)
    out = (sharding.stacked(mesh, state), NamedSharding(mesh, read_by_all()))
    return on_pool(mesh, functools.partial(_advance, config, settings, method), out_shardings=out)


def _passed(step: int, stop: int, every: int) -> bool:
    """Whether a multiple of `every` lies among the steps done from `step` to `stop`."""
    return stop // every > step // every


def _advance(
    config: DecoderConfig,
    settings: TrainSettings,
    method: Method,
    state: State,
    batches: Mapping[str, jax.Array],
    rates: jax.Array,
    *reference: decoder.Params,
) -> tuple[State, dict[str, jax.Array]]:
    """Several train steps of one model; returns the state and the metrics of each step."""

    def one(state: State, step: tuple[Mapping[str, jax.Array], jax.Array]) -> Any:
        return method.step(config, settings, state, *step, *reference)

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


def _agreed(running: Any, *flags: bool) -> tuple[bool, ...]:
    """Whether any process has raised each flag; they speak through the devices, when nothing is running there."""
    if hosts.count() > 1:
        jax.block_until_ready(running)
    return tuple(bool(column.any()) for column in hosts.gathered(flags).T)


def _finish(lines: Iterator[dict[str, float]], record: Mapping[str, Any], directory: epath.Path) -> None:
    """Writes what a run leaves beside its parameters; `run.json` comes last and says that the run is done."""
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_aside(directory / "run.json", json.dumps(record, indent=1))
