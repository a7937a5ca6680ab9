"""The tokenizer gives back every text, and is the same whenever it is trained on the same texts."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mde.domains import vocabulary
from mde.errors import UserError

CODE = "def f(x):\n\tif x:\n\t\treturn  'a  b'   # trailing  \n\n\n    pass\r\n"
CORPUS = {
    "code": [CODE * 20, "for i in range(10):\n    print(i)\n" * 50],
    "prose": ["The quick brown fox jumps. " * 90],
}


def drawn(texts, size=3_000_000, seed=0):
    sample = vocabulary.Sample(size, seed)
    for text in texts:
        sample.add(text)
    return sample.chunks()


def train(corpus=CORPUS, vocab_size=320):
    return vocabulary.train_sentencepiece({name: drawn(texts) for name, texts in corpus.items()}, vocab_size)


@pytest.mark.parametrize(
    "text", [CODE, " leading", "\n\n\n", "", "naïve 😀👩‍👩‍👧 漢字 \u200b\ufeff", "<unk></s><pad><0x41>\\n"]
)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unk_id not in tokenizer.encode(text)


# NUL ends strings in C, lone surrogates are not UTF-8, and U+2581 is documented to come back as a space.
@given(st.text(st.characters(exclude_characters="\0\u2581", exclude_categories=("Cs",))))
@example("  \t\n x\n  ")
def test_round_trip_of_anything(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_sign_for_a_space_comes_back_as_a_space(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_tensorflow_and_python_encode_alike(tokenizer):
    assert tokenizer.encode_tf(CODE).numpy().tolist() == tokenizer.encode(CODE)


def test_special_pieces(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 512


def test_the_same_texts_in_any_order_give_the_same_file():
    assert train({name: texts[::-1] for name, texts in reversed(CORPUS.items())}) == train()


def test_the_sample_is_as_long_as_asked_and_follows_the_seed():
    lines = [f"{i:06d} {'x' * 93}\n" for i in range(3000)]
    sample = drawn(["".join(lines)], 50_000)
    assert 50_000 <= sum(map(len, sample)) < 54_001
    assert sample == drawn(["".join(lines)], 50_000)
    assert sample != drawn(["".join(lines)], 50_000, seed=1)
    assert drawn(["tiny"], 50_000) == ["tiny"]


@given(st.lists(st.text("ab\n", max_size=30), max_size=20), st.integers(1, 60), st.integers(0, 20))
def test_samples_of_parts_add_up_to_the_sample_of_the_whole(texts, size, cut):
    merged = vocabulary.Sample(size, seed=0)
    for part in (texts[:cut], texts[cut:]):
        for chunk in drawn(part, size):
            merged.add_chunk(chunk)
    assert merged.chunks() == drawn(texts, size)


def test_chunks_make_up_the_text():
    text = "short\n" * 2000 + "x" * 10_001 + "\n\tend"
    chunks = list(vocabulary._chunks(text))
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= 4_000


def test_wrong_sizes_are_the_users():
    with pytest.raises(UserError, match="too small"):
        train(vocab_size=100)
    with pytest.raises(UserError, match="cannot train 30000 pieces"):
        train(vocab_size=30_000)
    with pytest.raises(UserError, match="no text"):
        train({"code": []})
