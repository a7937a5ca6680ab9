"""Masked language modelling (BERT, arXiv 1810.04805, section 3.1): what is hidden, and what stands in its place.

The mask token's number is the size of the vocabulary: it has a row of its own at the end of the embedding. Text with
fixed masks, as it is scored, carries them itself: a hidden token t stands there as ~t, a negative number.

Shapes: B sequences, L targets a sequence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mde.models.config import DecoderConfig

SHARE = 0.15  # of the targets is hidden
REPLACED, KEPT = 0.1, 0.1  # of the hidden ones: another token is shown in training, or the right one


class Cloze(NamedTuple):
    """What an encoder reads, and what it has to say.

    Attributes:
      shown: [B, L] tokens, hidden ones replaced.
      targets: [B, L] the right tokens.
      hidden: [B, L] bool, which of them are to be told.
    """

    shown: jax.Array
    targets: jax.Array
    hidden: jax.Array


def drawn(config: DecoderConfig, targets: jax.Array, mask: jax.Array) -> Cloze:
    """Masks for a batch of training: 15% of the targets, of which 80% become the mask token and 10% a random one.

    They are drawn from the tokens of the batch, which are a function of (mixture, seed, step): so are the masks. The
    same sequence has others in another batch.

    Args:
      config: of the encoder.
      targets: [B, L] tokens.
      mask: [B, L] bool, which of them may be hidden.
    """
    place = jnp.arange(targets.size, dtype=jnp.uint32).reshape(targets.shape) * np.uint32(2654435761) + np.uint32(1)
    key = jax.random.key(jnp.sum(targets.astype(jnp.uint32) * place))
    which, how, other = jax.random.split(key, 3)
    hidden = mask & (jax.random.uniform(which, targets.shape) < SHARE)
    fate = jax.random.uniform(how, targets.shape)
    random = jax.random.randint(other, targets.shape, 0, config.vocab_size)
    instead = jnp.where(fate < REPLACED, random, jnp.where(fate < REPLACED + KEPT, targets, config.vocab_size))
    return Cloze(jnp.where(hidden, instead, targets), targets, hidden)


def fixed(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Tokens [N, L + 1] with 15% of the targets hidden, the same ones whatever follows; [N, L] says which may be."""
    hidden = mask & (np.random.default_rng(0).random(mask.shape) < SHARE)
    return np.concatenate([tokens[:, :1], np.where(hidden, ~tokens[:, 1:], tokens[:, 1:])], axis=1)


def marked(config: DecoderConfig, targets: jax.Array) -> Cloze:
    """The masks that targets [B, L] carry; every hidden token becomes the mask token."""
    hidden = targets < 0
    return Cloze(jnp.where(hidden, config.vocab_size, targets), jnp.where(hidden, ~targets, targets), hidden)
