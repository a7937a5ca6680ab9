"""What decides how a run is trained and watched: plain numbers, no JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mde.errors import UserError, check_positive, unknown
from mde.models.config import check_not_negative, check_types, option

SCHEDULES = ("cosine", "wsd")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a run is trained.

    Attributes:
      steps: optimizer steps.
      batch_size: sequences per step.
      seq_len: predicted tokens per sequence.
      learning_rate: peak of the schedule.
      warmup_steps: steps of linear warm-up.
      final_fraction: share of the peak that the schedule ends on.
      weight_decay: AdamW's, on matrices only.
      clip_norm: global norm that gradients are clipped to.
      schedule: after the warm-up, `cosine` from the peak to the end, or `wsd`: the peak is held and the last
        `decay_fraction` of the steps goes down in a straight line (MiniCPM, arXiv 2404.06395).
      decay_fraction: of the steps; for `wsd`.
      z_loss: weight of the squared logarithm of the softmax's denominator.
      loss_chunks: parts of a sequence that logits are computed for at a time.
      accumulate: parts of a batch that are stepped through one after another, their gradients summed.
    """

    steps: int
    batch_size: int
    seq_len: int
    learning_rate: float
    warmup_steps: int = 10
    final_fraction: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    schedule: str = option("cosine")
    decay_fraction: float = option(0.2)
    z_loss: float = option(0.0)
    loss_chunks: int = option(1)
    accumulate: int = option(1)

    def __post_init__(self) -> None:
        check_types(self)
        positive = ("steps", "batch_size", "seq_len", "learning_rate", "clip_norm", "loss_chunks", "accumulate")
        check_positive(**{name: getattr(self, name) for name in positive})
        others = ("warmup_steps", "final_fraction", "weight_decay", "z_loss")
        check_not_negative(**{name: getattr(self, name) for name in others})
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if not 0 <= self.decay_fraction <= 1:
            raise UserError(f"decay_fraction={self.decay_fraction} must lie between 0 and 1")
        for name, size, parts in (
            ("loss_chunks", "seq_len", self.loss_chunks),
            ("accumulate", "batch_size", self.accumulate),
        ):
            if getattr(self, size) % parts:
                raise UserError(f"{name}={parts} does not divide {size}={getattr(self, size)}")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TrainSettings":
        """The settings with these fields; raises UserError at an unknown one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise unknown("training setting", name, known)
        return cls(**fields)

    @property
    def tokens(self) -> int:
        """Predicted tokens a run."""
        return self.steps * self.batch_size * self.seq_len

    @property
    def sequences(self) -> int:
        """Sequences that are stepped through at a time."""
        return self.batch_size // self.accumulate


@dataclasses.dataclass(frozen=True)
class Watching:
    """How a training is watched.

    Attributes:
      validate_every: steps between losses on the validation text of every domain; 0 for never.
      tensorboard: whether each run's directory gets event files.
    """

    validate_every: int = 0
    tensorboard: bool = False
