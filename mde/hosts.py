"""The processes that run one command together, each with devices of its own (`jax.distributed`).

Every process runs the same program on the same study; what all of them would write, the first one writes. With one
process, which is how a command runs unless it is told otherwise, nothing here waits for anybody or imports JAX.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mde.errors import UserError, reason

AUTO = "auto"
PORT = 8476  # of a coordinator whose address is known without one
_count, _index = 1, 0


def cores() -> int:
    """How many cores this process may use; all that there are where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def connect(coordinator: str | None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of a command; must come before JAX looks for devices.

    Args:
      coordinator: HOST:PORT of the first process, or `auto` where the surroundings tell: TPU VMs, Slurm, Open MPI, GKE
        and SkyPilot. None for a command that runs alone.
      processes: how many there are; known to `auto`.
      process: which of them this is, from 0; known to `auto`.

    Raises:
      UserError: flags that do not go together, surroundings that tell nothing, a coordinator that does not answer.
    """
    global _count, _index
    given = [name for name, value in (("--processes", processes), ("--process", process)) if value is not None]
    if coordinator is None:
        if given:
            raise UserError(f"{given[0]} needs --coordinator=HOST:PORT")
        return
    if coordinator == AUTO and given:
        raise UserError(f"--coordinator=auto finds out about {given[0]} itself; leave it out, or give HOST:PORT")
    if coordinator == AUTO:
        coordinator, processes, process = _skypilot()
    elif processes is None or process is None or not 0 <= process < processes:
        raise UserError(
            f"--coordinator={coordinator} --processes={processes} --process={process}: expected how many processes "
            "there are, and which of them this is, counted from 0"
        )
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as e:
        place = f"--coordinator={coordinator or AUTO}"
        raise UserError(f"{place}: the processes do not find each other ({reason(e)})") from e
    _count, _index = jax.process_count(), jax.process_index()


def _skypilot() -> tuple[str | None, int | None, int | None]:
    """What SkyPilot says of the nodes of a job, which JAX does not know of; three times None anywhere else."""
    if "SKYPILOT_NODE_IPS" not in os.environ or "TPU_WORKER_HOSTNAMES" in os.environ:
        return None, None, None
    nodes = os.environ["SKYPILOT_NODE_IPS"].split()
    return f"{nodes[0]}:{PORT}", len(nodes), int(os.environ["SKYPILOT_NODE_RANK"])


def count() -> int:
    """How many processes run this command."""
    return _count


def index() -> int:
    """Which of them this is, from 0."""
    return _index


def is_first() -> bool:
    """Whether this is the process that writes what all know, and speaks for all."""
    return _index == 0


def wait(reason: str) -> None:
    """Goes on when all processes have come here; `reason` names the place."""
    if _count > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(reason)


def gathered(values: Sequence[Any]) -> np.ndarray:
    """Numbers of every process, [processes, values]; all must call it, with as many."""
    if _count == 1:
        return np.asarray(values)[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(values))).reshape(_count, len(values))
