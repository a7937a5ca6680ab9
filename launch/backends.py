"""Where the points of a sweep run: here, or on Ray; all workers see one file system, this repository in the same place.

A backend is given directories, and yields each when its point has ended, with why it failed or None.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from launch.shell import last_error
from mde.errors import UserError

RETRIES = 3  # times that a point is started again because the machine it ran on was lost


def attempt(
    directory: str,
    folder: str,
    environment: Mapping[str, str],
    on: str,
    started: list[subprocess.Popen] | None = None,
) -> int:
    """Runs a point in a process that ends with this one, its output in the point's log; its exit status.

    The process is added to those that were started.
    """
    command = [sys.executable, "-m", "launch.worker", directory, "--tied", f"--on={on}"]
    with open(Path(directory) / "log.txt", "ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **environment},
        )
        if started is not None:
            started.append(process)
        try:
            return process.wait()
        finally:
            process.kill()


def local(
    directories: Sequence[Path], environment: Mapping[str, str], workers: int
) -> Iterator[tuple[Path, str | None]]:
    """Processes on this machine, as many at a time as there are workers."""
    folder, started = os.getcwd(), list[subprocess.Popen]()
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(attempt, str(path), folder, environment, "local", started): path for path in directories}
        try:
            for ended in as_completed(running):
                yield running[ended], _failure(running[ended], ended.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:  # a library may have swallowed the interruption that its process was sent
                process.terminate()


def on_ray(
    directories: Sequence[Path], environment: Mapping[str, str], address: str, resources: Mapping[str, float]
) -> Iterator[tuple[Path, str | None]]:
    """Tasks of a Ray cluster; one whose worker or machine is lost is run again elsewhere.

    Args:
      directories: of the points.
      environment: variables of their processes.
      address: of the cluster, or "auto".
      resources: what each point takes: "CPU", "GPU", "TPU", or what else the cluster's nodes call their own.

    Raises:
      UserError: no Ray, no cluster, or none of its nodes has the resources.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("the backend 'ray' needs Ray: pip install 'mde[ray]'") from error
    # Ray's workers are sent these functions and need not find this module; the processes that they start do.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address!r}; start one with `ray start --head`") from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= amount for name, amount in resources.items()) for node in nodes):
            largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in resources}
            raise UserError(f"no node of the Ray cluster has {dict(resources)}; the largest have {largest}")
        options = {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "max_retries": RETRIES}
        others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        task = ray.remote(_on_a_node).options(**options, resources=others)
        folder = os.getcwd()
        waiting = {task.remote(str(path), folder, dict(environment)): path for path in directories}
        while waiting:
            for ended in ray.wait(list(waiting))[0]:
                try:
                    status = ray.get(ended)
                except ray.exceptions.RayError:  # lost more often than it is retried
                    status = 1
                directory = waiting.pop(ended)
                yield directory, _failure(directory, status)
    finally:
        ray.shutdown()


def _failure(directory: Path, status: int) -> str | None:
    """What the log of a point says of how it ended, and where it is; None if all went well."""
    log = directory / "log.txt"
    text = log.read_text(errors="replace") if status and log.exists() else ""
    return f"{last_error(text)} (see {log})" if status else None


def _on_a_node(directory: str, folder: str, environment: Mapping[str, str]) -> int:
    import ray

    return attempt(directory, folder, environment, f"ray node {ray.get_runtime_context().get_node_id()}")
