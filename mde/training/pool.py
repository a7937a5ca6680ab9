"""The pool trainer: a matrix of mixtures in, one checkpoint a run out, in one process with one compilation.

Runs are trained in waves of one run a device: their parameters are stacked on the `pool` axis of the mesh and every
device steps its own model, so a run's numbers do not depend on which runs it shares a wave with.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from mde.data import mixing
from mde.data.tokens import TokenStore
from mde.errors import UserError
from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.training import checkpoints
from mde.training.step import TrainSettings, TrainState, optimizer, train_step

STEPS_PER_CALL = 10  # optimizer steps of one dispatch: enough to hide its cost, few enough for a lively progress bar


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
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(self.settings),
            "mixture": dict(zip(self.stores, run.weights, strict=True)),
            "seed": run.seed,
            **self.origin,
        }


def pool_mesh(models: int) -> Mesh:
    """A mesh with a `pool` axis of as many devices as there are, or as there are models if these are fewer."""
    width = min(models, jax.device_count())
    return jax.make_mesh((width,), ("pool",), (AxisType.Auto,), devices=jax.devices()[:width])


def on_pool(mesh: Mesh, function: Callable[..., Any], donate: bool = True) -> Callable[..., Any]:
    """`function` of one model as a jitted function of a stack of them, one a device; all its arguments are stacked."""

    def local(*stacked: Any) -> Any:
        out = function(*jax.tree.map(lambda x: x[0], stacked))
        return jax.tree.map(lambda x: x[None], out)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("pool"), out_specs=P("pool"), check_vma=False)
    return jax.jit(mapped, donate_argnums=0 if donate else ())


def stack(mesh: Mesh, trees: Sequence[Any]) -> Any:
    """Trees of arrays stacked on a leading axis that is sharded over the pool."""
    return jax.device_put(jax.tree.map(lambda *xs: np.stack(xs), *trees), NamedSharding(mesh, P("pool")))


def unstack(stacked: Any) -> Iterator[Any]:
    """The trees of a stack one by one, on the host."""
    host = jax.device_get(stacked)
    for i in range(len(jax.tree.leaves(host)[0])):
        yield jax.tree.map(lambda x, i=i: x[i], host)


def waves(items: Sequence[Any], width: int) -> Iterator[tuple[list[Any], int]]:
    """Cuts items into waves of exactly `width`, the last filled up with repeats; also how many of each are real."""
    for i in range(0, len(items), width):
        wave = list(items[i : i + width])
        yield wave + wave[-1:] * (width - len(wave)), len(wave)


def train_pool(runs: Sequence[Run], recipe: Recipe, directory: epath.Path, checkpoint_every: int) -> None:
    """Trains the runs that are not done yet; `directory/<run>` then holds `params`, `run.json` and `metrics.jsonl`.

    Args:
      runs: what to train.
      recipe: what they have in common.
      directory: parent of the runs' directories.
      checkpoint_every: steps between states to resume from.

    Raises:
      UserError: a run of this name was trained another way, a domain is empty, or a loss is not finite.
    """
    waiting = pending(runs, recipe, directory)
    if not waiting:
        return
    for run in waiting:
        mixing.check(recipe.stores, np.asarray(run.weights), recipe.settings.seq_len)
    mesh = pool_mesh(len(runs))
    advance = on_pool(mesh, functools.partial(_advance, recipe.model, recipe.settings))
    total = len(waiting) * recipe.settings.tokens
    with tqdm(total=total, unit="tok", unit_scale=True, desc="train", mininterval=1.0) as bar:
        for wave, real in waves(waiting, mesh.size):
            _train_wave(wave, real, recipe, directory, checkpoint_every, mesh, advance, bar)


def pending(runs: Sequence[Run], recipe: Recipe, directory: epath.Path) -> list[Run]:
    """The runs that are not done; raises UserError if one of them was trained another way."""
    return [run for run in runs if not is_done(directory / run.name, recipe.record(run))]


def is_done(directory: epath.Path, record: Mapping[str, Any]) -> bool:
    """Whether the run was trained as the record says; raises UserError if it was trained another way."""
    path = directory / "run.json"
    if not path.exists():
        return False
    found, wanted = json.loads(path.read_text()), json.loads(json.dumps(record))
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{directory}: trained with {key} {_difference(found.get(key), value)}; "
                f"use another --study, or delete the run to train it anew"
            )
    return True


def _train_wave(
    wave: list[Run],
    real: int,
    recipe: Recipe,
    directory: epath.Path,
    checkpoint_every: int,
    mesh: Mesh,
    advance: Callable[..., Any],
    bar: tqdm,
) -> None:
    """Trains one run a device from where they stopped to the end."""
    steps = recipe.settings.steps
    progress = [checkpoints.Progress(directory / run.name / "progress", recipe.record(run)) for run in wave[:real]]
    states, curves, start = _resume(wave, progress, recipe)
    bar.update(real * start * recipe.settings.tokens // steps)
    state = stack(mesh, states)
    data = [_batches(run, recipe, start) for run in wave]
    unread: list[tuple[slice, jax.Array]] = []
    for step in range(start, steps, STEPS_PER_CALL):
        stop = min(step + STEPS_PER_CALL, steps)
        calls = [[next(it) for _ in range(step, stop)] for it in data]
        batch = [jax.tree.map(lambda *xs: np.stack(xs), *call) for call in calls]
        state, losses = advance(state, stack(mesh, batch))
        _read(wave, curves, unread)  # one call late, so that the devices never wait for us
        unread.append((slice(step, stop), losses))
        bar.set_postfix(run=wave[0].name, loss=f"{np.mean(curves[:, max(step - 1, 0)]):.3f}", refresh=False)
        bar.update(real * (stop - step) * recipe.settings.tokens // steps)
        due = stop < steps and stop // checkpoint_every > step // checkpoint_every
        if due or stop == steps:
            _read(wave, curves, unread)
        if due:
            for one, saved, curve in zip(progress, unstack(state), curves, strict=False):
                one.save(stop, (saved, curve))
    for run, one, trained, curve in zip(wave, progress, unstack(state), curves, strict=False):
        _finish(run, trained.params, curve, recipe, directory / run.name, one)


def _read(wave: list[Run], curves: np.ndarray, unread: list[tuple[slice, jax.Array]]) -> None:
    """Waits for the losses of calls and keeps them; raises UserError at the first that is not finite."""
    while unread:
        steps, losses = unread.pop(0)
        curves[:, steps] = losses
        bad = ~np.isfinite(curves[:, steps])
        if bad.any():
            run, step = np.argwhere(bad)[0] + (0, steps.start)
            raise UserError(
                f"run {wave[run].name!r}: loss is {curves[run, step]} at step {step}; try a lower learning rate"
            )


def _advance(
    config: DecoderConfig, settings: TrainSettings, state: TrainState, batches: Mapping[str, jax.Array]
) -> tuple[TrainState, jax.Array]:
    """Several train steps of one model; returns the state and the loss of each step."""
    return jax.lax.scan(
        lambda state, batch: train_step(config, settings, state, batch["tokens"], batch["segments"]), state, batches
    )


def _resume(
    wave: list[Run], progress: list[checkpoints.Progress], recipe: Recipe
) -> tuple[list[TrainState], np.ndarray, int]:
    """States and loss curves [runs, steps] of the newest step that all runs have whole, or those to start with."""
    fresh = [(_initial(run, recipe), np.full(recipe.settings.steps, np.nan, np.float32)) for run in wave]
    for step in sorted(set.intersection(*(p.steps() for p in progress)), reverse=True):
        found = [p.restore(step, like) for p, like in zip(progress, fresh, strict=False)]
        if all(f is not None for f in found):
            states, curves = zip(*found, *found[-1:] * (len(wave) - len(found)), strict=True)
            return list(states), np.stack(curves), step
    states, curves = zip(*fresh, strict=True)
    return list(states), np.stack(curves), 0


def _initial(run: Run, recipe: Recipe) -> TrainState:
    params = recipe.start() if recipe.start else decoder.init(recipe.model, run.seed)
    return jax.tree.map(np.asarray, TrainState(params, optimizer(recipe.settings).init(params)))


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
    losses: np.ndarray,
    recipe: Recipe,
    directory: epath.Path,
    progress: checkpoints.Progress,
) -> None:
    """Writes what a run leaves; `run.json` comes last and says that the run is done."""
    lines = [json.dumps({"step": i + 1, "loss": float(loss)}) for i, loss in enumerate(losses)]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    checkpoints.save_params(directory / "params", params)
    progress.finish()
    aside = directory / "run.json.partial"
    aside.write_text(json.dumps(recipe.record(run), indent=1))
    aside.rename(directory / "run.json")


def _difference(found: Any, wanted: Any) -> str:
    """The first thing in which two records differ, in words."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in [*wanted, *found]:
            if found.get(name) != wanted.get(name):
                return f"{name}={found.get(name)!r}, not {wanted.get(name)!r}"
    return f"{found!r}, not {wanted!r}"
