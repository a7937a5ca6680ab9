"""Orbax checkpoints of runs: the parameters that a finished run leaves, and the states it resumes from.

Orbax writes aside and renames, so a checkpoint that exists is whole unless something damaged it afterwards.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mde import hosts
from mde.buckets import reading, write_aside, writing
from mde.errors import UserError, reason
from mde.models.decoder import Params

_log = logging.getLogger(__name__)  # not absl's, which the command line silences

RECORD = "record.json"  # beside a run's states: how the run is trained


def save_params(path: epath.Path, params: Params) -> None:
    """Writes the parameters of a finished run, replacing what was there; all processes do it together."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(_absolute(path), params, force=True)


def load_params(path: epath.Path, like: Params) -> Params:
    """Reads a finished run's parameters as NumPy arrays; no process waits for another.

    Args:
      path: the checkpoint.
      like: a tree of the shapes and dtypes that the model has.

    Raises:
      UserError: the checkpoint is missing, cannot be read, is damaged, or that of another architecture.
    """
    try:
        with reading(path):
            if not path.exists():
                raise UserError(f"{path}: no checkpoint here; run `mde train` first")
            with ocp.StandardCheckpointer(multiprocessing_options=_by_itself()) as checkpointer:
                return _of_shape(checkpointer.restore(_absolute(path), _abstract(like)), like)
    except (UserError, jax.errors.JaxRuntimeError):  # the second is of the devices
        raise
    except Exception as e:  # Orbax has no error class of its own: what a broken file raises depends on where it broke
        if difference := _difference(path, like):
            raise UserError(
                f"{path}: of another architecture ({difference}); "
                f"use another --study, or delete {path.parent} to train it anew"
            ) from e
        raise UserError(
            f"{path}: damaged checkpoint ({reason(e)}); delete {path.parent} and run `mde train` again"
        ) from e


def begin_progress(directory: epath.Path, record: Mapping[str, Any]) -> None:
    """Makes the directory of a run's states, or keeps it; states of a run with another record are deleted."""
    if _is_of(directory, record):
        return
    if directory.exists():
        directory.rmtree()
    directory.mkdir(parents=True, exist_ok=True)
    write_aside(directory / RECORD, _text(record))


def has_states(directory: epath.Path, record: Mapping[str, Any]) -> bool:
    """Whether a run of this record has states to resume from."""
    return _is_of(directory, record) and any(path.name.isdigit() for path in directory.iterdir())


def _is_of(directory: epath.Path, record: Mapping[str, Any]) -> bool:
    return (directory / RECORD).exists() and (directory / RECORD).read_text() == _text(record)


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)


class Progress:
    """The states that one run resumes from, by step; the newest two are kept. All processes save and restore together.

    Args:
      directory: that `begin_progress` made.
    """

    def __init__(self, directory: epath.Path):
        self._directory = directory
        # Several runs save at once: processes that wait for each other over one must not take it for another.
        apart = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=directory.parent.name)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=False, enable_async_checkpointing=True, multiprocessing_options=apart
        )
        self._manager = ocp.CheckpointManager(_absolute(directory), options=options)

    def steps(self) -> set[int]:
        """Steps that a state was saved after."""
        return set(self._manager.all_steps())

    def save(self, step: int, state: Any) -> None:
        """Begins to save the state after `step` steps, which is copied before this returns and written afterwards."""
        if step in self._manager.all_steps():  # damaged, or ahead of where the runs of the pool could go on together
            self._manager.delete(step)
        self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def restore(self, step: int, like: Any) -> Any | None:
        """The state after `step` steps, or None with a warning if it is damaged.

        Args:
          step: one of `steps()`.
          like: arrays, or shapes with shardings: where the state is wanted, whatever mesh it was saved from.

        Raises:
          UserError: the state cannot be read, which says nothing of what it is.
        """
        try:
            with reading(self._directory / str(step)):
                return _of_shape(self._manager.restore(step, args=ocp.args.StandardRestore(_abstract(like))), like)
        except (UserError, jax.errors.JaxRuntimeError):
            raise
        except Exception as e:  # see `load_params`
            _log.warning("%s: step %d is damaged (%s); going further back", self._directory, step, str(e)[:200])
            return None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until what is being saved is written."""
        with writing(self._directory):
            self._manager.close()


def _by_itself() -> ocp.options.MultiprocessingOptions:
    """Lets Orbax do something in this process alone."""
    return ocp.options.MultiprocessingOptions(primary_host=hosts.index(), active_processes={hosts.index()})


def _abstract(tree: Any) -> Any:
    """Stand-ins that say where to: the host, wherever the checkpoint was written, unless there is a sharding."""
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.ShapeDtypeStruct) and x.sharding else np.empty(x.shape, x.dtype), tree
    )


def _of_shape(tree: Any, like: Any) -> Any:
    """The tree, whose shapes Orbax does not compare; raises ValueError at the first that is not as it should be."""

    def check(path: Any, found: Any, wanted: Any) -> None:
        if found.shape != wanted.shape:
            raise ValueError(f"{jax.tree_util.keystr(path)} has shape {found.shape}, the model {wanted.shape}")

    jax.tree.map_with_path(check, tree, like)
    return tree


def _difference(path: epath.Path, like: Params) -> str | None:
    """The first array, in words, that a checkpoint says it has otherwise than a model; None if there is none.

    None as well if it does not say what it has, for then it is damaged.

    Raises:
      UserError: it cannot be read.
    """
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_by_itself())
    try:
        with reading(path):
            metadata = handler.metadata(_absolute(path))
    except UserError:
        raise
    except Exception:  # see `load_params`
        return None
    found, wanted = _shapes(metadata.tree), _shapes(like)
    names = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    return f"{names[0]}: {found.get(names[0], 'none')}, the model {wanted.get(names[0], 'none')}" if names else None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _absolute(path: epath.Path) -> epath.Path:
    return path if "://" in str(path) else path.resolve()
