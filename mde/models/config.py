"""What a decoder is: its sizes, and the presets that name them.

A preset is an `ml_collections.ConfigDict`, so that a configuration file can be a delta over another; a model is built
from the frozen `DecoderConfig`. The same fields are kept as JSON beside every checkpoint.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mde.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a LLaMA-shaped decoder.

    Attributes:
      vocab_size: tokens in the vocabulary.
      d_model: width of the residual stream.
      n_layers: transformer blocks.
      n_heads: query heads; `d_model / n_heads` is the width of a head.
      n_kv_heads: key and value heads (grouped-query attention where fewer than `n_heads`).
      d_ff: width of the SwiGLU.
      tie_embeddings: whether the output projection is the transposed embedding.
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      dtype: dtype of the computation; parameters, softmax and loss are float32 always.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.d_model % (2 * self.n_heads):
            raise UserError(f"d_model={self.d_model} must be a multiple of 2 * n_heads={2 * self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def matmul_parameters(self) -> int:
        """Parameters that a token is multiplied with: 6 FLOPs each in training; embedding look-ups are free."""
        attention = self.d_model * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)
        return self.n_layers * (attention + 3 * self.d_model * self.d_ff) + self.d_model * self.vocab_size

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "DecoderConfig":
        """The config with these fields; raises UserError at an unknown or missing one."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise unknown("model field", name, known)
        missing = [n for n, f in known.items() if f.default is dataclasses.MISSING and n not in fields]
        if missing:
            raise UserError(f"a model needs {', '.join(missing)}")
        return cls(**fields)


def _preset(**fields: Any) -> ConfigDict:
    return ConfigDict({"n_kv_heads": fields["n_heads"], **fields})


# What a demo can train dozens of on two cores.
PRESETS = {
    "tiny": _preset(d_model=32, n_layers=1, n_heads=2, d_ff=96),
    "demo": _preset(d_model=96, n_layers=2, n_heads=3, d_ff=256),
}


def preset(name: str, vocab_size: int, **overrides: Any) -> DecoderConfig:
    """The named preset with a vocabulary, and with fields overridden."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return DecoderConfig.from_dict({**PRESETS[name].to_dict(), "vocab_size": vocab_size, **overrides})
