"""Our models as directories that Hugging Face's `transformers` loads as `LlamaForCausalLM`, and the way back.

Kernels here are [in, out] and stacked over layers, there [out, in] and one array per layer; both rotate the first half
of a head against the second, so nothing is permuted.
"""

import json
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from mde.buckets import write_aside
from mde.errors import UserError
from mde.models import decoder
from mde.models.config import DecoderConfig

WEIGHTS = "model.safetensors"
# path here (below `layers`) -> name there (below `model.layers.N`), and whether it is a matrix
BLOCK = {
    ("attention", "query", "kernel"): "self_attn.q_proj",
    ("attention", "key", "kernel"): "self_attn.k_proj",
    ("attention", "value", "kernel"): "self_attn.v_proj",
    ("attention", "out", "kernel"): "self_attn.o_proj",
    ("mlp", "gate", "kernel"): "mlp.gate_proj",
    ("mlp", "up", "kernel"): "mlp.up_proj",
    ("mlp", "down", "kernel"): "mlp.down_proj",
    ("attention_norm", "scale"): "input_layernorm",
    ("mlp_norm", "scale"): "post_attention_layernorm",
}
FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
# What a LLaMA may be and our decoder is not, with the values that we can do.
FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_scaling": None}
# What safetensors calls the types of weights that we read.
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def save(directory: epath.Path, config: DecoderConfig, params: decoder.Params, max_length: int, **special: int) -> None:
    """Writes `config.json` and the weights, float32, in safetensors.

    Args:
      directory: where to; made if need be.
      config: architecture.
      params: parameters of one model.
      max_length: tokens that the model was trained to read at a time.
      **special: ids of special tokens, such as `eos_token_id`.
    """
    from safetensors.numpy import save as serialised

    if config.masked:
        raise UserError("an encoder is no LlamaForCausalLM: only causal models are exported")

    about = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        **FIXED,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "max_position_embeddings": max_length,
        "torch_dtype": "float32",
        **special,
    }
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in named_tensors(config, params)}
    write_aside(directory / WEIGHTS, serialised(tensors, {"format": "pt"}))
    write_aside(directory / "config.json", json.dumps(about, indent=1).encode())


def load(directory: epath.Path) -> tuple[DecoderConfig, decoder.Params]:
    """Reads a LLaMA: its architecture and its parameters, of any float type, as float32 NumPy arrays.

    Raises:
      UserError: files are missing or broken, or the model has a part that our decoder has not.
    """
    config = _read_config(directory / "config.json")
    tensors = _read_tensors(directory)

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise UserError(f"{directory}: no tensor {name!r}")
        tensor = np.asarray(tensors.pop(name), np.float32)
        if tensor.shape != shape:
            raise UserError(f"{directory}: {name} has shape {tensor.shape}, config.json says {shape}")
        return tensor

    D, V, F = config.d_model, config.vocab_size, config.d_ff
    heads, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    widths = {"query": (heads, D), "key": (kv_heads, D), "value": (kv_heads, D), "out": (D, heads)}
    widths |= {"gate": (F, D), "up": (F, D), "down": (D, F)}
    layers: dict[str, Any] = {}
    for path, name in BLOCK.items():
        shape = widths.get(path[1], (D,))
        parts = [take(f"model.layers.{i}.{name}.weight", shape).T for i in range(config.n_layers)]
        _put(layers, path, np.stack(parts))
    params: decoder.Params = {
        "embed": {"embedding": take("model.embed_tokens.weight", (V, D))},
        "layers": layers,
        "final_norm": {"scale": take("model.norm.weight", (D,))},
    }
    if not config.tie_embeddings:
        params["unembed"] = {"kernel": np.ascontiguousarray(take("lm_head.weight", (V, D)).T)}
    unknown = [name for name in tensors if name != "lm_head.weight" and "rotary_emb" not in name]
    if unknown:
        raise UserError(f"{directory}: tensor {unknown[0]!r} has no place in our decoder")
    return config, params


def named_tensors(config: DecoderConfig, params: decoder.Params) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters one by one under LLaMA's names, in its layout."""
    yield "model.embed_tokens.weight", params["embed"]["embedding"]
    yield "model.norm.weight", params["final_norm"]["scale"]
    if not config.tie_embeddings:
        yield "lm_head.weight", params["unembed"]["kernel"].T
    for path, name in BLOCK.items():
        stacked = params["layers"]
        for key in path:
            stacked = stacked[key]
        for i, tensor in enumerate(np.asarray(stacked)):
            yield f"model.layers.{i}.{name}.weight", tensor.T


def _read_config(path: epath.Path) -> DecoderConfig:
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: no readable model description ({e})") from e
    if not isinstance(about, dict):
        raise UserError(f"{path}: a model description is a JSON object, found a {type(about).__name__}")
    if about.get("model_type") != "llama":
        raise UserError(f"{path}: model_type {about.get('model_type')!r}, only 'llama' can be imported")
    rope = about.get("rope_scaling") or about.get("rope_parameters") or {}  # the older name goes first in transformers
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_parameters is {rope!r}, expected a JSON object")
    plain = rope.get("rope_type", rope.get("type", "default")) == "default"
    found = {**about, "rope_scaling": None if plain else rope}
    for name, wanted in FIXED.items():
        if found.get(name, wanted) != wanted:
            raise UserError(f"{path}: {name} is {found[name]!r}, our decoder has only {wanted!r}")
    defaults = {"num_key_value_heads": about.get("num_attention_heads"), "tie_word_embeddings": False}
    fields: dict[str, Any] = {ours: about.get(theirs, defaults.get(theirs)) for ours, theirs in FIELDS.items()}
    fields["rope_theta"] = rope.get("rope_theta", about.get("rope_theta", 10_000.0))
    missing = [FIELDS.get(name, name) for name, value in fields.items() if value is None]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing")
    try:
        config = DecoderConfig(**fields)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    if about.get("head_dim") not in (None, config.head_dim):
        raise UserError(f"{path}: head_dim is {about['head_dim']}, our decoder has only hidden_size / heads")
    return config


def _read_tensors(directory: epath.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"{directory}: no *.safetensors file")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            found = deserialize(file.read_bytes())
        except SafetensorError as e:
            raise UserError(f"{file}: damaged ({e})") from e
        for name, tensor in found:
            if tensor["dtype"] not in DTYPES:
                raise UserError(f"{file}: {name} is {tensor['dtype']}, only {', '.join(DTYPES)} can be imported")
            tensors[name] = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return tensors


def _put(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
