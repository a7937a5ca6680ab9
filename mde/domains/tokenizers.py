"""The tokenizers a study may have, all behind three numbers and `encode_batch`; none of them needs TensorFlow.

A tokenizer is a file in the study: a SentencePiece model, a `tokenizer.json` of Hugging Face, or nothing, for bytes. It
knows the token that begins a document (START) and the one that ends it.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from mde.buckets import write_aside
from mde.errors import UserError, unknown

BYTES = "bytes"
_FILES = {"sentencepiece": "sentencepiece.model", "huggingface": "tokenizer.json", BYTES: ""}
# What the vocabularies people use call the two; the first that exists is taken.
_STARTS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[BOS]", "[CLS]", "<pad>", "[PAD]")
_ENDS = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "[EOS]", "[SEP]")
_WORDS_KEPT = 1 << 18  # some 60 MB
# From fine to coarse: where a text may be cut so that no piece of the vocabulary lies across a cut. It depends on
# neighbouring characters only, so it holds for every text if it holds for every piece.
_CUTS = (r"\n|\d| *(?:[^\W\d_]+|(?:[^\w \n]|_)+)| +", r"\n| *[^ \n]+| +")
# Likewise for GPT-2's regular expression, on texts whose only white space is ASCII's: before white space, and between
# ASCII letters and other ASCII signs. Apostrophes, digits and what is not ASCII stay with all that is around them.
_GPT2_CUT = re.compile(
    r"[\t-\r ]*(?:[A-Za-z]+(?=[\t-\r !-&(-/:-@[-`{-~]|\Z)|[!-&(-/:-@[-`{-~]+(?=[\t-\r A-Za-z]|\Z)|[^\t-\r ]+)|[\t-\r ]+"
)
_OTHER_SPACE = re.compile(r"[\x1c-\x1f\x85\xa0\u1680\u180e\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff]")
_SPACE = "\u2581"  # SentencePiece's own sign for a space; it reads both as one


class Tokenizer(Protocol):
    """Texts to tokens.

    Attributes:
        vocab_size: how many tokens there are.
        start: the token that begins every document.
        end: the token that ends every document.
    """

    vocab_size: int
    start: int
    end: int

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text (int32), `end` last; a special token's name within a text is plain text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens without `start` and `end`."""


class SentencePieceTokenizer:
    """A SentencePiece model. Where it cuts texts into words, each word is encoded once and remembered."""

    def __init__(self, model: bytes, where: str = "the model"):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{where}: not a SentencePiece model") from error
        self.vocab_size = self._model.vocab_size()
        self.end = self._model.eos_id()
        if self.end < 0:
            raise UserError(f"{where}: has no end-of-text piece (eos), which must end every document")
        self.start = next(i for i in (self._model.bos_id(), self._model.pad_id(), self.end) if i >= 0)
        cut = _cut(model)
        self._words = None if cut is None else _Words(self._model.encode, cut)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`."""
        if self._words is not None:
            return [self._words.encode(text.replace(_SPACE, " "), self.end) for text in texts]
        return [np.array([*tokens, self.end], np.int32) for tokens in self._model.encode(list(texts), num_threads=1)]

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return self._model.decode([int(token) for token in tokens])


class _Words(dict):
    """The tokens of words, encoded when first met; forgotten all at once when there are too many."""

    def __init__(self, encode: Callable[[str], list[int]], cut: Callable[[str], list[str]]):
        super().__init__()
        self._encode, self._cut = encode, cut

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= _WORDS_KEPT:
            self.clear()
        tokens = self._encode(word)
        if len(word) < 64:
            self[word] = tokens
        return tokens

    def encode(self, text: str, end: int) -> np.ndarray:
        tokens = itertools.chain.from_iterable(map(self.__getitem__, self._cut(text)))
        return np.fromiter(itertools.chain(tokens, (end,)), np.int32)


def _cut(model: bytes) -> Callable[[str], list[str]] | None:
    """How to cut a text into words that may be encoded one by one with the same result; None if there is no way."""
    from sentencepiece import sentencepiece_model_pb2

    about: Any = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    spec, trainer = about.normalizer_spec, about.trainer_spec
    as_it_is = not (spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces)
    if trainer.model_type != trainer.BPE or not as_it_is or not spec.escape_whitespaces:
        return None
    kinds = (about.SentencePiece.NORMAL, about.SentencePiece.USER_DEFINED)
    pieces = [piece.piece.replace(_SPACE, " ") for piece in about.pieces if piece.type in kinds]
    for pattern in map(re.compile, _CUTS):
        if all(pattern.fullmatch(piece) for piece in pieces):
            return pattern.findall
    return None


class HuggingFaceTokenizer:
    """A `tokenizer.json`, by the `tokenizers` library; words are remembered where it cuts texts as GPT-2's does."""

    def __init__(self, content: bytes, where: str = "tokenizer.json", start: str | None = None, end: str | None = None):
        try:
            import tokenizers
        except ImportError as error:
            raise UserError(f"{where}: needs the package tokenizers; pip install 'mde[huggingface]'") from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"{where}: not a tokenizer.json: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # their names in a text are text
        cut = _GPT2_CUT.findall if _cuts_like_gpt2(json.loads(content)) else None
        self._words = None if cut is None else _Words(self._tokens, cut)
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.end = self._special(where, "end", end, _ENDS)
        self.start = self._special(where, "start", start, (*_STARTS, self._tokenizer.id_to_token(self.end) or ""))

    def _special(self, where: str, which: str, name: str | None, usual: Sequence[str]) -> int:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if name is not None and name not in vocabulary:
            special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
            raise unknown(f"{which} token of {where}", name, special)
        for candidate in usual if name is None else [name]:
            if candidate in vocabulary:
                return vocabulary[candidate]
        raise UserError(f"{where}: none of {', '.join(usual)} {which}s a document; bind prepare.{which}_token")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`."""
        if self._words is not None and not any(map(_OTHER_SPACE.search, texts)):
            return [self._words.encode(text, self.end) for text in texts]
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*each.ids, self.end], np.int32) for each in encoded]

    def _tokens(self, word: str) -> list[int]:
        return self._tokenizer.encode(word, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)


def _cuts_like_gpt2(about: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` is a byte-level BPE with GPT-2's regular expression and nothing else around it."""
    before, model = about.get("pre_tokenizer") or {}, about.get("model") or {}
    return (
        before.get("type") == "ByteLevel"
        and before.get("use_regex", True)
        and not before.get("add_prefix_space")
        and about.get("normalizer") is None
        and model.get("type") == "BPE"
        and not model.get("dropout")
        and all(token["special"] for token in about.get("added_tokens", []))
    )


class ByteTokenizer:
    """UTF-8 bytes after three special tokens, as ByT5 has them (arXiv 2105.13626): pad 0, eos 1, unk 2."""

    vocab_size, start, end = 256 + 3, 0, 1

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`."""
        made = [np.frombuffer(text.encode() + b"\0", np.uint8).astype(np.int32) + 3 for text in texts]
        for tokens in made:
            tokens[-1] = self.end
        return made

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return bytes(int(token) - 3 for token in tokens).decode(errors="replace")


def keep(
    directory: epath.PathLike, recipe: str, kind: str, content: bytes, start: str | None = None, end: str | None = None
) -> None:
    """Keeps a tokenizer in a study's directory: its file, and `about.json` with what is to be checked.

    Files of other kinds, which were kept there before, are deleted.
    """
    directory = epath.Path(directory)
    tokenizer = make(kind, content, str(directory), start, end)
    directory.mkdir(parents=True, exist_ok=True)
    about = {
        "kind": kind,
        "recipe": recipe,
        "digest": _digest(content),
        "vocab_size": tokenizer.vocab_size,
        "start": tokenizer.start,
        "end": tokenizer.end,
        "start_token": start,
        "end_token": end,
    }
    for name, written in ((_FILES[kind], content), ("about.json", json.dumps(about, indent=1).encode())):
        if name:
            write_aside(directory / name, written)
    for name in _FILES.values():
        if name not in ("", _FILES[kind]):
            (directory / name).unlink(missing_ok=True)


def is_kept(directory: epath.PathLike, recipe: str) -> bool:
    """Whether the tokenizer of this recipe is in the directory, and whole."""
    try:
        load(directory)
    except UserError:
        return False
    return json.loads((epath.Path(directory) / "about.json").read_text())["recipe"] == recipe


def load(directory: epath.PathLike) -> Tokenizer:
    """The tokenizer that `keep` put into a study.

    Raises:
        UserError: there is none, or not the one that was put there.
    """
    directory = epath.Path(directory)
    try:
        about = json.loads((directory / "about.json").read_text())
        name = _FILES[about["kind"]]
        content = (directory / name).read_bytes() if name else b""
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{directory}: no readable tokenizer here ({error}); run `mde prepare` again") from error
    tokenizer = make(about["kind"], content, str(directory), about["start_token"], about["end_token"])
    found = [_digest(content), tokenizer.vocab_size, tokenizer.start, tokenizer.end]
    if found != [about[key] for key in ("digest", "vocab_size", "start", "end")]:
        raise UserError(f"{directory}: {name} is not the tokenizer that the study was prepared with")
    return tokenizer


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


@functools.lru_cache(
    2
)  # to open one takes as long as to tokenize a megabyte or two; words stay known from shard to shard
def make(kind: str, content: bytes, where: str, start: str | None = None, end: str | None = None) -> Any:
    """A tokenizer of the kind `sentencepiece`, `huggingface` or `bytes` from its file's content."""
    if kind == "sentencepiece":
        return SentencePieceTokenizer(content, where)
    if kind == "huggingface":
        return HuggingFaceTokenizer(content, where, start, end)
    return ByteTokenizer()
