"""What a person watches: the metrics of every step of a wave of runs.

They are read from the devices late, kept beside the states to resume from, and written as JSON lines when a run ends;
along the way TensorBoard shows them, if asked, through CLU's metric writers (which bring TensorFlow).
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from mde.models.config import DecoderConfig
from mde.training import devices
from mde.training.settings import TrainSettings
from mde.training.step import schedule

_log = logging.getLogger(__name__)  # not absl's, which the command line silences


KEPT = ("loss", "grad_norm", "seconds")


class Curves:
    """Metrics of the runs of a wave.

    Attributes:
      values: by name, [rows, steps of the longest run]; NaN where there is none (yet).
      rates: the learning rates, of the same shape; 0 after the end of a run.
      failed: by name of each run whose loss or gradient was not finite, when that was.
    """

    def __init__(
        self,
        runs: Mapping[str, TrainSettings],
        rows: int,
        config: DecoderConfig,
        method: Sequence[str] = (),
        validation: Sequence[str] = (),
    ):
        self._runs, self._steps = list(runs), [settings.steps for settings in runs.values()]
        settings = next(iter(runs.values()))
        self._tokens, self._flops = settings.batch_size * settings.seq_len, config.train_flops(settings.seq_len)
        self.rates = np.zeros((rows, max(self._steps)), np.float32)
        for row, settings in enumerate(runs.values()):
            self.rates[row, : settings.steps] = schedule(settings)(np.arange(settings.steps))
        self._kept, self._more = (*KEPT, *method), (*method, *validation)
        names = (*KEPT, *self._more)
        self.values = {name: np.full(self.rates.shape, np.nan, np.float32) for name in names}
        self.failed: dict[str, str] = {}
        self._unread: list[tuple[slice, Mapping[str, jax.Array]]] = []
        self._since = time.perf_counter()
        self._writers: list[Any] = []

    def of(self, row: int) -> dict[str, np.ndarray]:
        """One run's metrics, to keep with its state; not validation, so that a state goes with any way of watching."""
        return {name: self.values[name][row, : self._steps[row]].copy() for name in self._kept}

    def restore(self, rows: Sequence[Mapping[str, np.ndarray]], steps: int) -> None:
        """Takes up the metrics that were kept of the first steps of each run."""
        for row, kept in enumerate(rows):
            for name, values in kept.items():
                self.values[name][row, : len(values)] = values
        self._note_failures(slice(0, steps))

    def resume_clock(self) -> None:
        """Has the time of steps count from here, unless the devices are working on some: they have been idle."""
        if not self._unread:
            self._since = time.perf_counter()

    def expect(self, steps: slice, metrics: Mapping[str, jax.Array]) -> None:
        """Metrics [rows, steps] that the devices may still be working on."""
        self._unread.append((steps, metrics))

    def read(self) -> None:
        """Waits for what is expected; notes, and says, which runs' loss or gradient is not finite."""
        while self._unread:
            steps, metrics = self._unread.pop(0)
            for name, values in metrics.items():
                self.values[name][:, steps] = values
            begun, self._since = self._since, time.perf_counter()
            if "loss" in metrics:
                self.values["seconds"][:, steps] = (self._since - begun) / (steps.stop - steps.start)
            self._note_failures(steps)
            for row, writer in enumerate(self._writers):
                if steps.start < self._steps[row]:
                    line = self._line(row, min(steps.stop, self._steps[row]) - 1)
                    writer.write_scalars(line.pop("step"), line)

    def _note_failures(self, steps: slice) -> None:
        for name in ("loss", "grad_norm"):
            values = self.values[name][: len(self._runs), steps]
            for row, step in np.argwhere(~np.isfinite(values)):
                run = self._runs[row]
                if run not in self.failed and steps.start + step < self._steps[row]:
                    self.failed[run] = f"{name} is {values[row, step]} at step {step + steps.start}"
                    _log.warning("run %r: %s; the others go on", run, self.failed[run])

    def show(self, directory: epath.Path) -> None:
        """Lets TensorBoard see the metrics of each run under its directory."""
        from clu import metric_writers

        self._writers = [metric_writers.SummaryWriter(str(directory / name / "tensorboard")) for name in self._runs]

    def close(self) -> None:
        """Ends what `show` began."""
        for writer in self._writers:
            writer.close()

    def lines(self, row: int) -> Iterator[dict[str, float]]:
        """What `metrics.jsonl` says of each step of a run."""
        return (self._line(row, step) for step in range(self._steps[row]))

    def _line(self, row: int, step: int) -> dict[str, Any]:
        line = {"step": step + 1, "loss": float(self.values["loss"][row, step])}
        line |= {"learning_rate": float(self.rates[row, step]), "grad_norm": float(self.values["grad_norm"][row, step])}
        seconds = float(self.values["seconds"][row, step])
        if math.isfinite(seconds):
            speed = self._tokens / seconds
            line["tokens_per_second"] = round(speed, 1)
            if peak := devices.peak_flops():  # of all devices, those that a mesh leaves idle as well
                line["mfu"] = speed * self._flops * len(self.values["loss"]) / (jax.device_count() * peak)
        more = {name: float(self.values[name][row, step]) for name in self._more}
        return line | {name: value for name, value in more.items() if math.isfinite(value)}
