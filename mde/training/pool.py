"""The pool trainer: a matrix of mixtures in, one checkpoint a run out, in one process with one compilation.

Runs are trained in waves of one run a row of the mesh: their parameters are stacked on its `pool` axis and every row of
devices steps its own model, so a run's numbers do not depend on which runs it shares a wave with.
"""

import contextlib
import dataclasses
import functools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from mde.data import mixing
from mde.data.tokens import TokenStore
from mde.errors import UserError
from mde.models import decoder, sharding
from mde.models.config import DecoderConfig, on_record
from mde.training import checkpoints, placement
from mde.training.placement import MeshShape, on_pool, pool_mesh, stack, unstack
from mde.training.step import TrainSettings, TrainState, initial, optimizer, schedule, train_step

__all__ = ["Recipe", "Run", "on_pool", "pool_mesh", "stack", "train_pool", "unstack"]

STEPS_PER_CALL = 10  # optimizer steps of one dispatch: enough to hide its cost, few enough for a lively progress bar


NOT_ARCHITECTURE = ("dtype", "remat", "attention")  # fields of a model's config that say how to compute it
METRICS = ("loss", "grad_norm", "seconds")  # of every step


@dataclasses.dataclass(frozen=True)
class Run:
    """One model to train: a name, a mixture over the domains, and the seed of its data order (and fresh parameters)."""

    name: str
    weights: tuple[float, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the runs of a pool have in common.

    Attributes:
      model: the architecture.
      settings: the training.
      stores: token store of each training domain, in the order of every run's weights.
      start: loads the parameters that every run continues from; None for fresh ones.
      origin: names what `start` and the stores are, for the record beside each checkpoint.
    """

    model: DecoderConfig
    settings: TrainSettings
    stores: Mapping[str, TokenStore]
    start: Callable[[], decoder.Params] | None
    origin: Mapping[str, Any]

    def record(self, run: Run) -> dict[str, Any]:
        """What `run.json` says of a run; two runs with the same record have the same parameters."""
        return {
            "model": on_record(self.model),
            "training": on_record(self.settings),
            "mixture": dict(zip(self.stores, run.weights, strict=True)),
            "seed": run.seed,
            **self.origin,
        }


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

    Raises:
      UserError: a run of this name was trained another way, a domain is empty, the mesh does not divide the devices,
        the model or the batch, or losses were not finite (the other runs are trained to the end first).
    """
    waiting = pending(runs, recipe, directory)
    if not waiting:
        return
    for run in waiting:
        mixing.check(recipe.stores, np.asarray(run.weights), recipe.settings.seq_len)
    shape = mesh or placement.fitting(len(runs), recipe.model, recipe.settings.sequences)
    shape.check(recipe.model, recipe.settings.sequences)
    trainer = _Trainer(recipe, directory, placement.make_mesh(shape), checkpoint_every, checkpoint_minutes)
    total = len(waiting) * recipe.settings.tokens
    with (
        _Termination() as termination,
        tqdm(total=total, unit="tok", unit_scale=True, desc="train", mininterval=1.0) as bar,
    ):
        for wave, real in waves(waiting, shape.pool):
            trainer.train(wave, real, bar, termination)
    if trainer.failed:
        causes = ", ".join(f"run {name!r}: {cause}" for name, cause in trainer.failed.items())
        others = len(waiting) - len(trainer.failed)
        raise UserError(f"{causes}; try a lower learning rate (the other {others} runs of {len(waiting)} are trained)")


def pending(runs: Sequence[Run], recipe: Recipe, directory: epath.Path) -> list[Run]:
    """The runs that are not done; raises UserError if one of them was trained another way."""
    return [run for run in runs if not is_done(directory / run.name, recipe.record(run))]


def imported(directory: epath.Path) -> dict[str, Any] | None:
    """The record of a run that was trained elsewhere, None if it was not."""
    path = directory / "run.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    return record if "imported" in record else None


def is_done(directory: epath.Path, record: Mapping[str, Any]) -> bool:
    """Whether the run was trained as the record says; raises UserError if it was trained another way."""
    path = directory / "run.json"
    if not path.exists():
        return False
    found, wanted = json.loads(path.read_text()), json.loads(json.dumps(record))
    if "imported" in found:  # how it was trained is not ours to say, only that it is such a model
        found, wanted = ({"model": _architecture(each["model"])} for each in (found, wanted))
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{directory}: trained with {key} {_difference(found.get(key), value)}; "
                f"use another --study, or delete the run to train it anew"
            )
    return True


class _Trainer:
    """The compiled program of a pool, and the waves of runs that go through it.

    Attributes:
      failed: by name of each run whose loss was not finite, when that was.
    """

    def __init__(self, recipe: Recipe, directory: epath.Path, mesh: Mesh, every: int, minutes: float | None):
        self._recipe, self._directory, self._mesh = recipe, directory, mesh
        self._every, self._minutes = every, minutes
        self._state = jax.eval_shape(functools.partial(initial, recipe.model, recipe.settings), 0)
        self._advance = advance(mesh, recipe.model, recipe.settings)
        self.failed: dict[str, str] = {}

    def train(self, wave: list[Run], real: int, bar: tqdm, termination: "_Termination") -> None:
        """Trains one run a row from where they stopped to the end; the first `real` of the wave are kept."""
        records = {run.name: self._recipe.record(run) for run in wave[:real]}
        with contextlib.ExitStack() as stack:
            progress = [
                stack.enter_context(checkpoints.Progress(self._directory / name / "progress", record))
                for name, record in records.items()
            ]
            state, curves = self._steps(wave, progress, bar, termination)
        for i, (run, one) in enumerate(zip(wave, progress, strict=False)):
            if run.name in self.failed:
                one.drop()  # going on from its states would end the same way
                continue
            params = placement.member(self._mesh, state.params, i)
            curve = {name: values[i] for name, values in curves.items()}
            _finish(run, params, curve, self._recipe, self._directory / run.name, one)

    def _steps(
        self, wave: list[Run], progress: list[checkpoints.Progress], bar: tqdm, termination: "_Termination"
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """All steps of a wave from where it stopped; returns the states and metrics [runs, steps]."""
        recipe, real, steps = self._recipe, len(progress), self._recipe.settings.steps
        state, curves, start = self._resume(wave, progress)
        bar.update(real * start * recipe.settings.tokens // steps)
        data = [_batches(run, recipe, start) for run in wave]
        unread: list[tuple[slice, dict[str, jax.Array]]] = []
        saved = time.monotonic()
        for step in range(start, steps, STEPS_PER_CALL):
            stop = min(step + STEPS_PER_CALL, steps)
            begun = time.perf_counter()
            calls = [[next(it) for _ in range(step, stop)] for it in data]
            batch = [jax.tree.map(lambda *xs: np.stack(xs), *call) for call in calls]
            state, metrics = self._advance(state, stack(self._mesh, batch, None, "data"))
            self._read(wave[:real], curves, unread)  # one call late, so that the devices never wait for us
            unread.append((slice(step, stop), metrics))
            bar.set_postfix(run=wave[0].name, loss=f"{np.mean(curves['loss'][:, max(step - 1, 0)]):.3f}", refresh=False)
            bar.update(real * (stop - step) * recipe.settings.tokens // steps)
            minutes = (time.monotonic() - saved) / 60
            due = stop // self._every > step // self._every or (self._minutes is not None and minutes > self._minutes)
            if stop == steps or due or termination.asked:
                self._read(wave[:real], curves, unread)
            curves["seconds"][:, step:stop] = (time.perf_counter() - begun) / (stop - step)
            if stop < steps and (due or termination.asked):
                self._save(wave, progress, stop, state, curves)
                saved = time.monotonic()
            if termination.asked:
                raise KeyboardInterrupt
            if all(run.name in self.failed for run in wave[:real]):
                break
        return state, curves

    def _read(
        self, wave: list[Run], curves: dict[str, np.ndarray], unread: list[tuple[slice, dict[str, jax.Array]]]
    ) -> None:
        """Waits for the metrics of calls and keeps them; takes note of the runs whose loss is not finite."""
        while unread:
            steps, metrics = unread.pop(0)
            for name, values in metrics.items():
                curves[name][:, steps] = values
            losses = curves["loss"][: len(wave), steps]
            for run, step in np.argwhere(~np.isfinite(losses)):
                name = wave[run].name
                if name not in self.failed:
                    self.failed[name] = f"loss is {losses[run, step]} at step {step + steps.start}"
                    logging.warning("run %r: %s; the others go on", name, self.failed[name])

    def _save(
        self,
        wave: list[Run],
        progress: list[checkpoints.Progress],
        step: int,
        state: TrainState,
        curves: dict[str, np.ndarray],
    ) -> None:
        for i, (run, one) in enumerate(zip(wave, progress, strict=False)):
            if run.name not in self.failed:
                curve = {name: values[i].copy() for name, values in curves.items()}
                one.save(step, (placement.member(self._mesh, state, i), curve))

    def _resume(
        self, wave: list[Run], progress: list[checkpoints.Progress]
    ) -> tuple[TrainState, dict[str, np.ndarray], int]:
        """States and metrics [runs, steps] of the newest step that all runs have whole, or those to start with."""
        curve = {name: np.full(self._recipe.settings.steps, np.nan, np.float32) for name in METRICS}
        for step in sorted(set.intersection(*(p.steps() for p in progress)), reverse=True):
            like = [(placement.abstract_member(self._mesh, self._state, i), curve) for i in range(len(progress))]
            found = [one.restore(step, each) for one, each in zip(progress, like, strict=True)]
            if all(f is not None for f in found):
                members, curves = zip(*found, strict=True)
                return self._filled(members), _stacked([*curves, *curves[-1:] * (len(wave) - len(found))]), step
        return self._fresh(wave), _stacked([curve] * len(wave)), 0

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
            begin: Any = functools.partial(_beginning, recipe.settings)
            return on_pool(self._mesh, begin, donate=False, out_shardings=where)(params)
        begin = functools.partial(initial, recipe.model, recipe.settings)
        seeds = stack(self._mesh, [np.int32(run.seed) for run in wave])
        return on_pool(self._mesh, begin, donate=False, out_shardings=where)(seeds)


class _Termination:
    """Takes note of SIGTERM instead of dying of it, where signals can be handled (in the main thread)."""

    def __init__(self) -> None:
        self.asked = False
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "_Termination":
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self.asked = True


def advance(mesh: Mesh, config: DecoderConfig, settings: TrainSettings) -> jax.stages.Wrapped:
    """Several train steps of every model of a pool, jitted: (states, batches) to (states, metrics [pool, steps])."""
    state = jax.eval_shape(functools.partial(initial, config, settings), 0)
    everywhere = P("pool") if jax.process_count() == 1 else P()  # every process reads all metrics
    out = (sharding.stacked(mesh, state), NamedSharding(mesh, everywhere))
    return on_pool(mesh, functools.partial(_advance, config, settings), out_shardings=out)


def _beginning(settings: TrainSettings, params: decoder.Params) -> TrainState:
    return TrainState(params, optimizer(settings).init(params))


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


def _advance(
    config: DecoderConfig, settings: TrainSettings, state: TrainState, batches: Mapping[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Several train steps of one model; returns the state and the metrics of each step."""
    return jax.lax.scan(
        lambda state, batch: train_step(config, settings, state, batch["tokens"], batch["segments"]), state, batches
    )


def _batches(run: Run, recipe: Recipe, start: int) -> Iterator[dict[str, np.ndarray]]:
    settings = recipe.settings
    dataset = mixing.batches(
        recipe.stores,
        np.asarray(run.weights),
        seed=run.seed,
        batch_size=settings.batch_size,
        seq_len=settings.seq_len,
    )
    return mixing.iterate(dataset, start, settings.steps)


def _finish(
    run: Run,
    params: decoder.Params,
    curve: Mapping[str, np.ndarray],
    recipe: Recipe,
    directory: epath.Path,
    progress: checkpoints.Progress,
) -> None:
    """Writes what a run leaves; `run.json` comes last and says that the run is done."""
    lines = [json.dumps(line) for line in _metrics(curve, recipe)]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    checkpoints.save_params(directory / "params", params)
    progress.drop()
    aside = directory / "run.json.partial"
    aside.write_text(json.dumps(recipe.record(run), indent=1))
    aside.rename(directory / "run.json")


def _metrics(curve: Mapping[str, np.ndarray], recipe: Recipe) -> Iterator[dict[str, float]]:
    """What `metrics.jsonl` says of each step."""
    settings = recipe.settings
    rates, tokens = schedule(settings), settings.batch_size * settings.seq_len
    for i in range(settings.steps):
        yield {
            "step": i + 1,
            "loss": float(curve["loss"][i]),
            "learning_rate": float(rates(i)),
            "grad_norm": float(curve["grad_norm"][i]),
            "tokens_per_second": round(tokens / float(curve["seconds"][i]), 1),
        }


def _architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name not in NOT_ARCHITECTURE}


def _difference(found: Any, wanted: Any) -> str:
    """The first thing in which two records differ, in words."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in [*wanted, *found]:
            if found.get(name) != wanted.get(name):
                return f"{name}={found.get(name)!r}, not {wanted.get(name)!r}"
    return f"{found!r}, not {wanted!r}"
