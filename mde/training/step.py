"""The optimizer and the train step of one model.

Shapes: B sequences per step, L predicted tokens per sequence, A parts of a batch whose gradients are accumulated.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.models.sharding import constrain
from mde.training.loss import loss, predictions
from mde.training.settings import TrainSettings


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
