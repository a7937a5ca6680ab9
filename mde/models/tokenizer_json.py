"""A study's tokenizer as the `tokenizer.json` that Hugging Face's `tokenizers` reads.

SentencePiece keeps the pieces of a byte-pair encoding in the order in which they were merged, but not from what; here
every way to split a piece into two known ones is a merge, as early as its piece is.
"""

import json
from typing import Any

from etils import epath

from mde.errors import UserError

SPACE = "▁"  # SentencePiece's sign for a space
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6  # SentencePiece's types of pieces


def save(directory: epath.Path, model_file: epath.Path, max_length: int, start: int, end: int) -> None:
    """Writes a SentencePiece model as tokenizer.json, with tokenizer_config.json and the model itself.

    Args:
      directory: where to.
      model_file: the SentencePiece model.
      max_length: tokens that the model was trained to read at a time.
      start: the token that begins every document, and so every text.
      end: the token that ends every document.

    Raises:
      UserError: no byte-pair encoding, or one that changes texts before it cuts them.
    """
    import sentencepiece.sentencepiece_model_pb2 as proto

    content = model_file.read_bytes()
    model: Any = proto.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(content)
    spec, trainer = model.normalizer_spec, model.trainer_spec
    changes = spec.precompiled_charsmap or spec.remove_extra_whitespaces or not spec.escape_whitespaces
    # `tokenizers` cuts texts at symbols of a user's own first, and would put a space before every part.
    parts = spec.add_dummy_prefix and any(piece.type == _USER for piece in model.pieces)
    if trainer.model_type != trainer.BPE or changes or parts or trainer.treat_whitespace_as_suffix:
        raise UserError(
            f"{model_file}: only a byte-pair encoding that takes texts as they are becomes a tokenizer.json"
        )
    unknown = next(piece.piece for piece in model.pieces if piece.type == _UNKNOWN)
    (directory / "tokenizer.model").write_bytes(content)
    (directory / "tokenizer.json").write_text(json.dumps(_described(model, start), ensure_ascii=False))
    _save_config(directory, max_length, model.pieces[start].piece, model.pieces[end].piece, unk_token=unknown)


def copy(directory: epath.Path, file: epath.Path, max_length: int, start: int, end: int) -> None:
    """Copies a tokenizer.json, which goes on to begin texts as it did; the config names the tokens of documents.

    Args:
      directory: where to.
      file: the tokenizer.json.
      max_length: tokens that the model was trained to read at a time.
      start: the token that begins every document.
      end: the token that ends every document.
    """
    import tokenizers

    content = file.read_bytes()
    names: Any = tokenizers.Tokenizer.from_str(content.decode())
    (directory / "tokenizer.json").write_bytes(content)
    (directory / "tokenizer.model").unlink(missing_ok=True)  # of a study with another kind
    _save_config(directory, max_length, names.id_to_token(start), names.id_to_token(end))


def _save_config(directory: epath.Path, max_length: int, start: str, end: str, **more: str) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "pad_token": start,
        "eos_token": end,
        **more,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _described(model: Any, start: int) -> dict[str, Any]:
    pieces = [(piece.piece, piece.type) for piece in model.pieces]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    first = pieces[start][0]
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = model.normalizer_spec.add_dummy_prefix  # a space before every text
    apart = [i for i, (_, kind) in enumerate(pieces) if kind in (_UNKNOWN, _CONTROL, _USER)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": pieces[i][0],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": pieces[i][1] != _USER,
            }
            for i in apart
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*([{"type": "Prepend", "prepend": SPACE}] if prefix else []), spaces],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {first: {"id": first, "ids": [start], "tokens": [first]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next(piece for piece, kind in pieces if kind == _UNKNOWN),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.trainer_spec.byte_fallback,
            "ignore_merges": False,
            "vocab": ids,
            "merges": _merges(scores),
        },
    }


def _merges(scores: dict[str, float]) -> list[list[str]]:
    """Pairs of pieces that make a piece, the piece of the highest score first."""
    return [
        [piece[:cut], piece[cut:]]
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
