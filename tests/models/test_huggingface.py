import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from numpy.testing import assert_allclose, assert_array_equal

from mde.errors import UserError
from mde.models import decoder, huggingface, tokenizer_json
from mde.models.config import DecoderConfig

SIZES = {"vocab_size": 64, "d_model": 32, "n_layers": 3, "n_heads": 4, "d_ff": 48, "rope_theta": 500.0}
CONFIGS = {
    "tied-grouped": DecoderConfig(**SIZES, n_kv_heads=2),
    "untied": DecoderConfig(**SIZES, n_kv_heads=4, tie_embeddings=False),
}
TOKENS = np.random.default_rng(0).integers(1, 64, (2, 16))


def parameters(config):
    rng = np.random.default_rng(1)
    norm = lambda path, x: rng.uniform(0.5, 1.5, x.shape) if "norm" in jax.tree_util.keystr(path) else 1.7 * x  # noqa: E731
    return jax.tree.map_with_path(lambda path, x: np.asarray(norm(path, x), np.float32), decoder.init(config, 0))


def our_logits(config, params):
    return np.asarray(jax.jit(decoder.Decoder(config).apply)({"params": params}, TOKENS, np.ones_like(TOKENS)))


@pytest.fixture
def llama():
    """Loads a directory with the real thing."""
    torch = pytest.importorskip("torch", reason="pip install -e '.[peers]' to compare with PyTorch")
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[peers]' to compare with transformers")

    def load(directory):
        model = transformers.LlamaForCausalLM.from_pretrained(str(directory)).eval()

        def logits(tokens):
            with torch.no_grad():
                return model(torch.tensor(tokens)).logits.numpy()

        return model, logits

    return load


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_has_our_logits(name, llama, tmp_path):
    config = CONFIGS[name]
    params = parameters(config)
    huggingface.save(epath.Path(tmp_path), config, params, max_length=16)
    ours = our_logits(config, params)
    _, logits = llama(tmp_path)
    assert np.abs(ours).max() > 5
    assert_allclose(logits(TOKENS), ours, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_saves_comes_back_to_the_bit(name, llama, tmp_path):
    config = CONFIGS[name]
    params = parameters(config)
    huggingface.save(epath.Path(tmp_path / "ours"), config, params, max_length=16)
    llama(tmp_path / "ours")[0].save_pretrained(str(tmp_path / "theirs"))
    found, back = huggingface.load(epath.Path(tmp_path / "theirs"))
    assert found == config
    jax.tree.map(assert_array_equal, back, params)


@pytest.mark.slow
def test_a_model_that_transformers_made_has_its_logits_here(llama, tmp_path):
    import transformers

    about = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(about).save_pretrained(str(tmp_path))
    config, params = huggingface.load(epath.Path(tmp_path))
    assert (config.n_kv_heads, config.rope_theta, config.tie_embeddings) == (1, 1000.0, False)
    ours = our_logits(config, params)
    assert_allclose(llama(tmp_path)[1](TOKENS), ours, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_shards_of_transformers_come_back_to_the_bit(llama, tmp_path):
    import torch
    import transformers

    about = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4
    )
    theirs = transformers.LlamaForCausalLM(about).to(torch.bfloat16)
    theirs.save_pretrained(str(tmp_path), max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    _, params = huggingface.load(epath.Path(tmp_path))
    embedding = theirs.model.embed_tokens.weight.detach().float().numpy()
    assert_array_equal(params["embed"]["embedding"], embedding)
    found = our_logits(huggingface.load(epath.Path(tmp_path))[0], params)
    with torch.no_grad():
        assert_allclose(theirs.float()(torch.tensor(TOKENS)).logits.numpy(), found, rtol=0, atol=1e-4)


@pytest.fixture
def exported(tmp_path):
    config = CONFIGS["untied"]
    huggingface.save(epath.Path(tmp_path), config, parameters(config), max_length=16)
    return tmp_path


def test_parameters_survive_without_transformers(exported):
    config, params = huggingface.load(epath.Path(exported))
    assert config == CONFIGS["untied"]
    jax.tree.map(assert_array_equal, params, parameters(config))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_shards_of_any_float_are_read(dtype, exported):
    tensors = {name: x.astype(dtype) for name, x in safetensors.numpy.load_file(exported / huggingface.WEIGHTS).items()}
    (exported / huggingface.WEIGHTS).unlink()
    names = sorted(tensors)
    for i, part in enumerate((names[:5], names[5:])):
        safetensors.numpy.save_file({name: tensors[name] for name in part}, exported / f"model-{i}-of-2.safetensors")
    _, params = huggingface.load(epath.Path(exported))
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), parameters(CONFIGS["untied"]))
    jax.tree.map(assert_array_equal, params, rounded)


def test_a_type_of_weights_that_is_not_read_is_named(exported):
    tensors = safetensors.numpy.load_file(exported / huggingface.WEIGHTS)
    tensors["model.norm.weight"] = np.ones(32, np.int8)
    safetensors.numpy.save_file(tensors, exported / huggingface.WEIGHTS)
    with pytest.raises(UserError, match=r"model\.safetensors: model\.norm\.weight is I8, only F64, F32, F16, BF16"):
        huggingface.load(epath.Path(exported))


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"type": "default"}, None])
def test_rotary_positions_that_are_scaled_by_nothing_are_no_scaling(rope, exported):
    about = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(about | {"rope_scaling": rope}))
    assert huggingface.load(epath.Path(exported))[0] == CONFIGS["untied"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2', only 'llama' can be imported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', our decoder has only 'silu'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling is {'rope_type': 'llama3'"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}},
            "rope_scaling is {'type': 'linear'",
        ),
        ({"rope_parameters": [1]}, r"config.json: rope_parameters is \[1\], expected a JSON object"),
        ({"num_attention_heads": 0}, "config.json: n_heads=0 must be positive"),
        ({"rope_parameters": None, "rope_theta": "10000"}, "config.json: rope_theta='10000': expected a number"),
        ({"head_dim": 64}, "head_dim is 64, our decoder has only hidden_size / heads"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"intermediate_size": 50}, r"gate_proj.weight has shape \(48, 32\), config.json says \(50, 32\)"),
        ({"num_hidden_layers": 4}, "no tensor 'model.layers.3.self_attn.q_proj.weight'"),
        ({"num_hidden_layers": 2}, "tensor 'model.layers.2.* has no place in our decoder"),
    ],
)
def test_what_our_decoder_cannot_be_is_refused_by_name(change, message, exported):
    about = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(about | change))
    with pytest.raises(UserError, match=message):
        huggingface.load(epath.Path(exported))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "no readable model description"),
        ("config.json", b"[]", "config.json: a model description is a JSON object, found a list"),
        ("model.safetensors", b"short", "model.safetensors: damaged"),
        ("model.safetensors", None, "no .*safetensors file"),
    ],
)
def test_broken_files_are_named(file, content, message, exported):
    (exported / file).unlink()
    if content is not None:
        (exported / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        huggingface.load(epath.Path(exported))


def test_the_tokenizer_gives_the_same_ids_and_the_text_back(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    tokenizers = pytest.importorskip("tokenizers", reason="pip install -e '.[peers]' to compare with tokenizers")
    from mde.domains import vocabulary

    sources = sorted((Path(__file__).parents[2] / "mde").rglob("*.py"))
    texts = [path.read_text().replace(tokenizer_json.SPACE, " ") for path in sources]
    # Names of special pieces in a text are read as these pieces by `tokenizers`, and as text by SentencePiece.
    texts = [re.sub("<pad>|</s>|<unk>", "", text) for text in texts]
    model_file = epath.Path(tmp_path) / "sentencepiece.model"
    model_file.write_bytes(vocabulary.train_sentencepiece({"code": texts}, 600))
    tokenizer_json.save(epath.Path(tmp_path), model_file, 128, start=0, end=1)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    strange = ["", " ", "  two  spaces ", "\n\n", "a\tb\r\n", "naïve café", "日本語 \U0001f600", "12345 6.7", "\x00"]
    for text in strange + texts:
        ids = theirs.encode(text).ids
        assert ids == [0, *ours.encode(text)], text[:60]
        assert theirs.decode(ids) == text
