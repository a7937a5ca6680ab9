"""Every kind of tokenizer: exact against the library that it stands for, kept, checked, refused where it must be."""

import json

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from hypothesis import example, given
from hypothesis import strategies as st

from mde.domains import tokenizers, vocabulary
from mde.errors import UserError

CODE = "def f(x):\n\tif x_1 == 25:\n\t\treturn  'a  b'   # trailing  \n\n\n    pass\r\n"
CORPUS = [CODE * 30, "The quick brown fox jumps over __init__ and 12 or 3 lazy dogs. " * 90]
# Not U+2581, which SentencePiece reads as a space, nor half surrogate pairs, which are not text.
TEXT = st.text(st.one_of(st.sampled_from("ab _-.1 \n\té漢"), st.characters(exclude_categories=("Cs",))), max_size=80)


@pytest.fixture(scope="module")
def model():
    return vocabulary.train_sentencepiece({"all": CORPUS}, 400)


@pytest.fixture(scope="module")
def huggingface():
    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    made.train_from_iterator(CORPUS, trainer)
    return made.to_str().encode()


@given(TEXT)
@example(CODE)
@example("  5  __a.b\n\n x\u20285\0 a\u2581b ")
def test_words_one_by_one_give_what_the_model_gives(model, text):
    tokenizer = tokenizers.SentencePieceTokenizer(model)
    assert tokenizer._words is not None
    (tokens,) = tokenizer.encode_batch([text])
    assert bool(tokenizer._words) == bool(text)  # it did go word by word
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokens.tolist() == [*reference.encode(text), reference.eos_id()]
    assert tokenizer.decode(tokens[:-1]) == text.replace("\u2581", " ")


def test_a_piece_across_a_fine_cut_asks_for_a_coarse_one():
    """A model whose pieces hold digits beside letters and other signs, and one whose pieces hold spaces within."""
    import io

    def train(**settings):
        content = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["ab1 ab1 x.y x.y in the in the in the"] * 50), model_writer=content, vocab_size=24,
            model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
            add_dummy_prefix=False, split_by_unicode_script=False, split_by_number=False, **settings,
        )  # fmt: skip
        return content.getvalue()

    text = "ab1 x.y in the ab1x.y\n in  the"
    for content, expected in ((train(), "ab1"), (train(split_by_whitespace=False), None)):
        cut = tokenizers._cut(content)
        assert (cut and cut("ab1 x")[0]) == expected
        reference = sentencepiece.SentencePieceProcessor(model_proto=content)
        (tokens,) = tokenizers.SentencePieceTokenizer(content).encode_batch([text])
        assert tokens.tolist() == [*reference.encode(text), reference.eos_id()]


def test_a_model_that_changes_the_text_is_not_cut(tmp_path):
    import io

    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=content, vocab_size=60, model_type="bpe", minloglevel=2,
    )  # fmt: skip
    tokenizer = tokenizers.SentencePieceTokenizer(content.getvalue())
    assert tokenizer._words is None
    reference = sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())
    assert tokenizer.encode_batch(["The ﬁrst"])[0].tolist() == [*reference.encode("The ﬁrst"), reference.eos_id()]
    assert (tokenizer.start, tokenizer.end) == (reference.bos_id(), reference.eos_id())  # 1 and 2


def test_words_are_forgotten_when_there_are_too_many(model, monkeypatch):
    tokenizer = tokenizers.SentencePieceTokenizer(model)
    expected = tokenizer.encode_batch(CORPUS)
    monkeypatch.setattr(tokenizers, "_WORDS_KEPT", 3)
    again = tokenizers.SentencePieceTokenizer(model)
    for one, other in zip(again.encode_batch(CORPUS), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(again._words) <= 3


def test_hugging_face(huggingface):
    tokenizer = tokenizers.HuggingFaceTokenizer(huggingface)
    reference = hf.Tokenizer.from_str(huggingface.decode())
    texts = [CODE, "", "naïve 😀"]
    for text, tokens in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokens.dtype == np.int32
        assert tokens.tolist() == [*reference.encode(text).ids, reference.token_to_id("<|endoftext|>")]
        assert tokenizer.decode(tokens[:-1]) == text
    assert tokenizer.start == tokenizer.end == reference.token_to_id("<|endoftext|>")
    assert tokenizer.vocab_size == reference.get_vocab_size()


@given(st.one_of(TEXT, st.text("ab'sé1_(.)  \n\t\xa0\u3000\x1c", max_size=40)))
@example("it's 'll ('s) don't! x\xa0  y \u2028 z  ")
@example("a!\x1c?b  \n\n c1(é)")
def test_gpt2_s_words_one_by_one_give_what_the_library_gives(huggingface, text):
    tokenizer = tokenizers.HuggingFaceTokenizer(huggingface)
    reference = hf.Tokenizer.from_str(huggingface.decode())
    assert tokenizer._words is not None
    assert tokenizer.encode_batch([text])[0][:-1].tolist() == reference.encode(text).ids


@pytest.mark.parametrize("changed", [{"normalizer": {"type": "NFC"}}, {"pre_tokenizer": {"type": "Whitespace"}}])
def test_other_tokenizers_see_whole_texts(huggingface, changed):
    content = json.dumps({**json.loads(huggingface), **changed}).encode()
    tokenizer = tokenizers.HuggingFaceTokenizer(content)
    assert tokenizer._words is None
    expected = hf.Tokenizer.from_str(content.decode()).encode("e\u0301 it's").ids
    assert tokenizer.encode_batch(["e\u0301 it's"])[0][:-1].tolist() == expected


def test_a_special_tokens_name_in_a_text_is_text(huggingface):
    tokenizer = tokenizers.HuggingFaceTokenizer(huggingface)
    (tokens,) = tokenizer.encode_batch(["a<|endoftext|>b"])
    assert tokens.tolist().count(tokenizer.end) == 1
    assert tokenizer.decode(tokens[:-1]) == "a<|endoftext|>b"


def test_special_tokens_of_ones_own(huggingface):
    about = json.loads(huggingface)
    about["added_tokens"][0]["content"] = "<fin>"
    about["model"]["vocab"] = {k.replace("<|endoftext|>", "<fin>"): v for k, v in about["model"]["vocab"].items()}
    content = json.dumps(about).encode()
    with pytest.raises(UserError, match=r"own\.json: none of .* ends a document; bind prepare\.end_token"):
        tokenizers.HuggingFaceTokenizer(content, "own.json")
    with pytest.raises(UserError, match=r"unknown end token of own\.json '<fim>': did you mean '<fin>'"):
        tokenizers.HuggingFaceTokenizer(content, "own.json", end="<fim>")
    made = tokenizers.HuggingFaceTokenizer(content, "own.json", end="<fin>")
    assert made.start == made.end == about["model"]["vocab"]["<fin>"]


@given(TEXT)
def test_bytes(text):
    tokenizer = tokenizers.ByteTokenizer()
    (tokens,) = tokenizer.encode_batch([text])
    assert tokens.tolist() == [*(byte + 3 for byte in text.encode()), 1]  # as in ByT5
    assert tokenizer.decode(tokens[:-1]) == text


def test_a_kept_tokenizer_comes_back_and_no_other_does(tmp_path, model, huggingface):
    for kind, content in (("sentencepiece", model), ("huggingface", huggingface), ("bytes", b"")):
        directory = tmp_path / kind
        tokenizers.keep(directory, "recipe", kind, content)
        assert tokenizers.is_kept(directory, "recipe")
        assert not tokenizers.is_kept(directory, "another")
        made, kept = tokenizers.make(kind, content, ""), tokenizers.load(directory)
        assert (kept.start, kept.end, kept.vocab_size) == (made.start, made.end, made.vocab_size)
        np.testing.assert_array_equal(kept.encode_batch([CODE])[0], made.encode_batch([CODE])[0])
    other = vocabulary.train_sentencepiece({"all": CORPUS}, 390)
    (tmp_path / "sentencepiece" / "sentencepiece.model").write_bytes(other)
    with pytest.raises(UserError, match=r"sentencepiece\.model is not the tokenizer that the study was prepared with"):
        tokenizers.load(tmp_path / "sentencepiece")
    with pytest.raises(UserError, match="no readable tokenizer here"):
        tokenizers.load(tmp_path / "nowhere")


def test_a_tokenizer_of_another_kind_takes_the_place_of_the_one_before(tmp_path, model, huggingface):
    for kind, content, file in (
        ("sentencepiece", model, ["sentencepiece.model"]),
        ("huggingface", huggingface, ["tokenizer.json"]),
        ("bytes", b"", []),
    ):
        tokenizers.keep(tmp_path, kind, kind, content)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["about.json", *file]


@pytest.mark.parametrize(("kind", "expected"), [("sentencepiece", "SentencePiece model"), ("huggingface", "tokenizer")])
def test_files_that_are_none(kind, expected):
    with pytest.raises(UserError, match=f"a.file: not a {expected}"):
        tokenizers.make(kind, b"{}", "a.file")
