"""The tokenizer that leaves a study with a model is the study's own, of whatever kind."""

import io
import json
import shutil

import pytest
import sentencepiece
import tokenizers as hf
from etils import epath

from mde.commands.export import export
from mde.commands.import_model import import_model
from mde.domains import tokenizers
from mde.errors import UserError
from mde.models import decoder
from mde.models.config import on_record, preset
from mde.study import Study
from mde.training import checkpoints

CORPUS = ["The quick brown fox jumps over __init__ and 12 or 3 lazy dogs. " * 9, "def f(x):\n\treturn  x + 1\n" * 9]
TEXTS = ["The quick  dog", " a\n\tb", "naïve 日本", "lazy", "", "  "]


def trained_sentencepiece(**options):
    model = io.BytesIO()
    settings = {
        "vocab_size": 330,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, **{**settings, **options}
    )
    return model.getvalue()


def trained_huggingface():
    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer, made.decoder = hf.pre_tokenizers.ByteLevel(add_prefix_space=False), hf.decoders.ByteLevel()
    alphabet, special = hf.pre_tokenizers.ByteLevel.alphabet(), ["[CLS]", "<|x|>", "<|endoftext|>"]
    made.train_from_iterator(
        CORPUS, hf.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special)
    )
    return made.to_str().encode()


# LLaMA's: <unk>, <s>, </s>, and a space before every text; ours: a piece for padding first, and none before a text.
KINDS = {
    "llama": ("sentencepiece", trained_sentencepiece),
    "ours": (
        "sentencepiece",
        lambda: trained_sentencepiece(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, add_dummy_prefix=False),
    ),
    "huggingface": ("huggingface", trained_huggingface),
    "unigram": (
        "sentencepiece",
        lambda: trained_sentencepiece(model_type="unigram", byte_fallback=False, vocab_size=46),
    ),
    "bytes": ("bytes", lambda: b""),
}


@pytest.fixture
def made(tmp_path):
    """Makes a study of one run whose tokenizer is of a kind; it was prepared with another one before."""

    def make(name):
        kind, content = KINDS[name]
        study = Study(tmp_path / "study")
        tokenizers.keep(study.root / "tokenizer", "before", "sentencepiece", trained_sentencepiece(vocab_size=300))
        tokenizers.keep(study.root / "tokenizer", "now", kind, content())
        tokenizer = tokenizers.load(study.root / "tokenizer")
        config = preset("tiny", 400)  # more than any of them has: the same parameters do for all
        about = {"format": 3, "vocab_size": 400, "training_domains": ["web"], "evaluation_domains": ["web"]}
        study.write_json("study.json", about)
        study.write_json("training.json", {"model": on_record(config), "settings": {"seq_len": 16}})
        checkpoints.save_params(epath.Path(study.root) / "runs" / "seed" / "params", decoder.init(config, 0))
        study.write_json("runs/seed/run.json", {})
        return study, tokenizer

    return make


EXPORTED = pytest.mark.parametrize(("name", "start", "end"), [("llama", 1, 2), ("ours", 0, 1), ("huggingface", 0, 2)])


def check_texts(name, tokenizer, encode, decode):
    begins = [] if name == "huggingface" else [tokenizer.start]  # a tokenizer.json says itself how texts begin
    for text, ours in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        ids = encode(text)
        assert [*ids, tokenizer.end] == [*begins, *ours], text
        assert decode(ids) == text


@EXPORTED
def test_the_study_s_tokenizer_is_exported(name, start, end, made, tmp_path):
    study, tokenizer = made(name)
    export(study, "seed", str(tmp_path))
    theirs = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    check_texts(name, tokenizer, lambda text: theirs.encode(text).ids, theirs.decode)
    model, config = (json.loads((tmp_path / f"{file}config.json").read_text()) for file in ("", "tokenizer_"))
    for token, expected in (("bos", start), ("pad", start), ("eos", end)):
        assert model[f"{token}_token_id"] == theirs.token_to_id(config[f"{token}_token"]) == expected
    assert (tmp_path / "tokenizer.model").exists() == (name != "huggingface")


@pytest.mark.slow
@EXPORTED
def test_transformers_reads_texts_as_the_study_does(name, start, end, made, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[peers]' to compare with transformers")
    study, tokenizer = made(name)
    export(study, "seed", str(tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert (theirs.bos_token_id, theirs.eos_token_id) == (start, end)
    check_texts(
        name,
        tokenizer,
        lambda text: theirs(text)["input_ids"],
        lambda ids: theirs.decode(ids, skip_special_tokens=True),
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [("bytes", "its tokenizer is 'bytes'"), ("unigram", r"sentencepiece\.model: only a byte-pair encoding")],
)
def test_a_tokenizer_that_transformers_does_not_read_is_named(name, message, made, tmp_path):
    study, _ = made(name)
    with pytest.raises(UserError, match=message):
        export(study, "seed", str(tmp_path / "exported"))
    assert not (tmp_path / "exported" / "config.json").exists()


@pytest.mark.parametrize("name", ["llama", "huggingface"])
def test_a_model_that_reads_other_tokens_is_not_imported(name, made, tmp_path):
    study, _ = made(name)
    export(study, "seed", str(tmp_path / "exported"))
    import_model(study, str(tmp_path / "exported"), "expert-web")
    shutil.rmtree(study.root / "runs" / "expert-web")
    file = tmp_path / "exported" / ("tokenizer.json" if name == "huggingface" else "tokenizer.model")
    if name == "huggingface":
        about = json.loads(file.read_text())
        file.write_text(json.dumps(about | {"decoder": None}, indent=1))  # the tokens stay the same
        import_model(study, str(tmp_path / "exported"), "expert-web")
        shutil.rmtree(study.root / "runs" / "expert-web")
        file.write_text(json.dumps(about | {"normalizer": {"type": "Lowercase"}}))
    else:
        file.write_bytes(trained_sentencepiece(vocab_size=320))
    with pytest.raises(UserError, match=f"{file.name} is not the tokenizer of the study"):
        import_model(study, str(tmp_path / "exported"), "expert-web")
    with pytest.raises(UserError, match=r"unknown run of .* 'expert-wev': did you mean 'expert-web'"):
        import_model(study, str(tmp_path / "exported"), "expert-wev")
