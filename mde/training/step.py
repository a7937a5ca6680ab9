"""The optimizer and the train step of one model.

Shapes: B sequences per step, L predicted tokens per sequence, A parts of a batch whose gradients are accumulated.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mde.errors import UserError, check_positive, unknown
from mde.models import decoder
from mde.models.config import DecoderConfig, check_not_negative, check_types, option
from mde.models.sharding import constrain
from mde.training.loss import loss, predictions

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


class TrainState(NamedTuple):
    """Parameters and optimizer state; the optimizer counts the steps."""

    params: decoder.Params
    opt_state: optax.OptState


def schedule(settings: TrainSettings) -> optax.Schedule:
    """The learning rate by steps done, up to `settings.steps`."""
    peak, end = settings.learning_rate, settings.learning_rate * settings.final_fraction
    warmup = min(settings.warmup_steps, settings.steps - 1)
    if settings.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, settings.steps, end)
    decay = min(round(settings.decay_fraction * settings.steps), settings.steps - warmup)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, end, decay),
        ],
        [warmup, settings.steps - decay],
    )


def optimizer(settings: TrainSettings, rate: jax.Array | float) -> optax.GradientTransformation:
    """Clipping, and AdamW at this learning rate (betas .9 and .95 as language models are trained)."""
    matrices = lambda params: jax.tree.map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), params)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=settings.weight_decay, mask=matrices),
    )


def initial(config: DecoderConfig, settings: TrainSettings, seed: jax.Array) -> TrainState:
    """Fresh parameters and their optimizer state."""
    params = decoder.init(config, seed)
    return begin(settings, params)


def begin(settings: TrainSettings, params: decoder.Params) -> TrainState:
    """The state of a model that training begins, or goes on, from these parameters with."""
    return TrainState(params, optimizer(settings, 0.0).init(params))


def train_step(
    config: DecoderConfig,
    settings: TrainSettings,
    state: TrainState,
    tokens: jax.Array,
    segments: jax.Array,
    rate: jax.Array | float,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step.

    Args:
      config: architecture.
      settings: the training.
      state: before the step.
      tokens: [B, L + 1].
      segments: [B, L + 1] document numbers.
      rate: the learning rate of this step; at 0 the parameters stay as they are.

    Returns:
      The new state, and the batch's `loss` (nats per token) and `grad_norm` (before clipping) at the old one.
    """
    grads, nll = _gradient(config, settings, state.params, tokens, segments)
    metrics = {"loss": nll, "grad_norm": optax.tree.norm(grads)}
    return descend(settings, state, grads, rate), metrics


def descend(settings: TrainSettings, state: TrainState, grads: decoder.Params, rate: jax.Array | float) -> TrainState:
    """The state after the optimizer's step with these gradients."""
    updates, opt_state = optimizer(settings, rate).update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state)


def _gradient(
    config: DecoderConfig, settings: TrainSettings, params: decoder.Params, tokens: jax.Array, segments: jax.Array
) -> tuple[decoder.Params, jax.Array]:
    """Gradient and loss of a batch, in as many parts as are accumulated; every token counts the same in all of them."""
    # Neighbouring sequences go to different parts, so that each part is spread over the data axis like the whole.
    cut = lambda x: x.reshape(-1, settings.accumulate, x.shape[1]).swapaxes(0, 1)  # noqa: E731
    parts = (cut(tokens), cut(segments))
    count = jnp.maximum(jnp.sum(jax.vmap(functools.partial(predictions, config))(*parts)), 1)

    def part(tokens: jax.Array, segments: jax.Array) -> tuple[decoder.Params, jax.Array]:
        tokens, segments = constrain(tokens, "data", None), constrain(segments, "data", None)
        value = lambda params: loss(  # noqa: E731
            config, params, tokens, segments, count=count, z_loss=settings.z_loss, chunks=settings.loss_chunks
        )
        return jax.grad(value, has_aux=True)(params)

    if settings.accumulate == 1:
        return part(tokens, segments)
    none = (jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))
    add = lambda total, batch: (jax.tree.map(jnp.add, total, part(*batch)), None)  # noqa: E731
    return jax.lax.scan(add, none, parts)[0]
