"""What a decoder is: its sizes, and the presets that name them.

A preset is an `ml_collections.ConfigDict`, so that a configuration file can be a delta over another; a model is built
from the frozen `DecoderConfig`. The same fields are kept as JSON beside every checkpoint.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mde.errors import UserError, check_positive, unknown

CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "full"),
    "attention": ("auto", "heads", "xla", "cudnn", "splash"),
    "objective": ("causal", "masked"),
}
_TYPES = {int: "a whole number", float: "a number", bool: "True or False", str: "a name"}


def option(default: Any) -> Any:
    """A field that came after the first studies: it is on record only where it is not the default."""
    return dataclasses.field(default=default, metadata={"option": True})


def on_record(settings: Any) -> dict[str, Any]:
    """The fields of a config or of settings as they are kept beside a run, so that records of before stay valid."""
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if not (field.metadata.get("option") and getattr(settings, field.name) == field.default)
    }


def check_types(settings: Any) -> None:
    """Raises UserError at the first field of a config or of settings that is of another type; an int is a float too."""
    for name, wanted in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        right = isinstance(value, (int, float) if wanted is float else wanted)
        if not right or (isinstance(value, bool) and wanted is not bool):
            raise UserError(f"{name}={value!r}: expected {_TYPES[wanted]}")


def check_not_negative(**numbers: float) -> None:
    """Raises UserError at the first of the named numbers that is below zero, or none."""
    for name, value in numbers.items():
        if not value >= 0:
            raise UserError(f"{name}={value!r} must not be negative")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a LLaMA-shaped decoder, or of the encoder that is the same but sees both sides.

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
      dtype: dtype of the computation; parameters, softmax, logits and loss are float32 always.
      remat: what the backward pass computes again instead of keeping it: nothing (`none`), all but the products of
        activations with weights (`dots`), or whole blocks (`full`).
      objective: `causal`, each token from those before it, or `masked`, hidden tokens from both sides (an encoder).
      attention: `heads` (CPU), `xla`, `cudnn` (GPU, bfloat16), `splash` (TPU, lengths that 128 divides), or
        `auto` for that of the machine.
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
    remat: str = option("none")
    attention: str = option("auto")
    objective: str = option("causal")

    def __post_init__(self) -> None:
        check_types(self)
        sizes = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "rope_theta")
        check_positive(**{name: getattr(self, name) for name in sizes})
        check_not_negative(norm_eps=self.norm_eps)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.d_model % (2 * self.n_heads):
            raise UserError(f"d_model={self.d_model} must be a multiple of 2 * n_heads={2 * self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def masked(self) -> bool:
        """Whether it is an encoder."""
        return self.objective == "masked"

    @property
    def table_rows(self) -> int:
        """Rows of the embedding and of the output projection: the vocabulary, and an encoder's mask token."""
        return self.vocab_size + self.masked

    @property
    def matmul_parameters(self) -> int:
        """Parameters that a token is multiplied with: 6 FLOPs each in training; embedding look-ups are free."""
        attention = self.d_model * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)
        return self.n_layers * (attention + 3 * self.d_model * self.d_ff) + self.d_model * self.table_rows

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters of the blocks and the norms: all but the embedding and the output projection."""
        norms = (2 * self.n_layers + 1) * self.d_model
        return self.matmul_parameters - self.d_model * self.table_rows + norms

    @property
    def parameters(self) -> int:
        """All parameters."""
        tables = 1 if self.tie_embeddings else 2
        return self.non_embedding_parameters + tables * self.d_model * self.table_rows

    def train_flops(self, seq_len: int) -> int:
        """FLOPs of training on one token of a sequence of this length, recomputation not counted.

        Six for each parameter that it is multiplied with, and in every layer 12 · width · positions that it sees for
        attention (PaLM, appendix B): half of seq_len on average, all of it in an encoder.
        """
        twice_seen = seq_len * (1 + self.masked)
        return 6 * self.matmul_parameters + 6 * self.n_layers * self.n_heads * self.head_dim * twice_seen

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


PRESETS = {
    # What a demo can train dozens of on two cores.
    "tiny": _preset(d_model=32, n_layers=1, n_heads=2, d_ff=96),
    "demo": _preset(d_model=96, n_layers=2, n_heads=3, d_ff=256),
    # The sizes of the MDE paper (arXiv 2502.15950), by parameters without embeddings, whatever the vocabulary.
    "70m": _preset(d_model=768, n_layers=10, n_heads=12, d_ff=2048),
    "150m": _preset(d_model=1024, n_layers=12, n_heads=16, d_ff=2816),
    "280m": _preset(d_model=1280, n_layers=14, n_heads=20, d_ff=3456),
    "510m": _preset(d_model=1536, n_layers=20, n_heads=12, n_kv_heads=4, d_ff=4096),
    "1b": _preset(d_model=2048, n_layers=22, n_heads=16, n_kv_heads=4, d_ff=5632),
}


def preset(name: str, vocab_size: int, **overrides: Any) -> DecoderConfig:
    """The named preset with a vocabulary, and with fields overridden."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return DecoderConfig.from_dict({**PRESETS[name].to_dict(), "vocab_size": vocab_size, **overrides})
