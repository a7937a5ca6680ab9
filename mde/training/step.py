"""The optimizer and the train step of one model."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mde.errors import check_positive
from mde.models import decoder
from mde.models.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a run is trained.

    Attributes:
      steps: optimizer steps.
      batch_size: sequences a step.
      seq_len: predicted tokens a sequence.
      learning_rate: peak of the schedule.
      warmup_steps: steps of linear warm-up; a cosine down to `final_fraction` of the peak follows.
      final_fraction: share of the peak that the schedule ends on.
      weight_decay: AdamW's, on matrices only.
      clip_norm: global norm that gradients are clipped to.
    """

    steps: int
    batch_size: int
    seq_len: int
    learning_rate: float
    warmup_steps: int = 10
    final_fraction: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        names = ("steps", "batch_size", "seq_len", "learning_rate", "clip_norm")
        check_positive(**{name: getattr(self, name) for name in names})

    @property
    def tokens(self) -> int:
        """Predicted tokens a run."""
        return self.steps * self.batch_size * self.seq_len


class TrainState(NamedTuple):
    """Parameters and optimizer state; the optimizer counts the steps."""

    params: decoder.Params
    opt_state: optax.OptState


def optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipping (betas .9 and .95 as language models are trained)."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=min(settings.warmup_steps, settings.steps - 1),
        decay_steps=settings.steps,
        end_value=settings.learning_rate * settings.final_fraction,
    )
    matrices = lambda params: jax.tree.map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), params)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=settings.weight_decay, mask=matrices),
    )


def loss(config: DecoderConfig, params: decoder.Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Mean negative log-likelihood in nats per predicted token of a batch of [B, L + 1] tokens."""
    mask = decoder.target_mask(segments)
    log_probs = decoder.token_log_probs(config, params, tokens, segments)
    return -jnp.sum(jnp.where(mask, log_probs, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def train_step(
    config: DecoderConfig, settings: TrainSettings, state: TrainState, tokens: jax.Array, segments: jax.Array
) -> tuple[TrainState, jax.Array]:
    """One optimizer step; returns the new state and the batch's loss before it."""
    value, grads = jax.value_and_grad(lambda params: loss(config, params, tokens, segments))(state.params)
    updates, opt_state = optimizer(settings).update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), value
