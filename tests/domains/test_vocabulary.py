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


def train(path, texts=CORPUS, vocab_size=320, **settings):
    vocabulary.train_sentencepiece(texts, path, vocab_size, **settings)
    return path.read_bytes()


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


def test_the_same_texts_in_any_order_give_the_same_file(tmp_path):
    first = train(tmp_path / "a")
    assert train(tmp_path / "b", {name: iter(texts[::-1]) for name, texts in reversed(CORPUS.items())}) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # nothing left aside


def test_the_sample_is_even_over_domains_and_follows_the_seed():
    lines = [f"{i:06d} {'x' * 93}\n" for i in range(3000)]
    sample = vocabulary._sample(["".join(lines)], 50_000, seed=0)
    assert 50_000 <= sum(map(len, sample)) < 54_001
    assert sample == vocabulary._sample(["".join(lines)], 50_000, seed=0)
    assert sample != vocabulary._sample(["".join(lines)], 50_000, seed=1)
    assert vocabulary._sample(["tiny"], 50_000, seed=0) == ["tiny"]


def test_chunks_make_up_the_text():
    text = "short\n" * 2000 + "x" * 10_001 + "\n\tend"
    chunks = list(vocabulary._chunks(text))
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= 4_000


def test_wrong_sizes_and_missing_files_are_the_users(tmp_path):
    with pytest.raises(UserError, match="too small"):
        train(tmp_path / "a", vocab_size=100)
    with pytest.raises(UserError, match="cannot train 30000 pieces"):
        train(tmp_path / "a", vocab_size=30_000)
    with pytest.raises(UserError, match="no text"):
        train(tmp_path / "a", {"code": []})
    with pytest.raises(UserError, match="no tokenizer at"):
        vocabulary.load(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())
