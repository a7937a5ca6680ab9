"""Other people's programs, in our models' shapes."""

from typing import Any

from mde.models.config import DecoderConfig
from mde.models.huggingface import FIELDS


def llama(config: DecoderConfig) -> Any:
    """A `LlamaForCausalLM` of `transformers` with fresh parameters; raises ImportError where it is not installed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    return LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope, use_cache=False))
