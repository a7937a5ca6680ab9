"""A SentencePiece model of ours as the `tokenizer.json` that Hugging Face's `tokenizers` reads.

SentencePiece keeps the pieces of a byte-pair encoding in the order in which they were merged, but not from what; here
every way to split a piece into two known ones is a merge, as early as its piece is.
"""

import json
from typing import Any

from etils import epath

SPACE = "▁"  # SentencePiece's sign for a space
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6  # SentencePiece's types of pieces


def save(directory: epath.Path, model_file: epath.Path, max_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the SentencePiece model itself.

    Texts begin with piece 0, which begins every document that our models are trained on.
    """
    import sentencepiece.sentencepiece_model_pb2 as proto

    content = model_file.read_bytes()
    model: Any = proto.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(content)
    pieces = [(piece.piece, piece.type) for piece in model.pieces]
    start, unknown = pieces[0][0], next(piece for piece, kind in pieces if kind == _UNKNOWN)
    end = pieces[model.trainer_spec.eos_id][0]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "pad_token": start,
        "eos_token": end,
        "unk_token": unknown,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer.model").write_bytes(content)
    (directory / "tokenizer.json").write_text(json.dumps(_described(pieces, start), ensure_ascii=False))
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _described(pieces: list[tuple[str, int]], start: str) -> dict[str, Any]:
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
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
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {start: {"id": start, "ids": [0], "tokens": [start]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next(piece for piece, kind in pieces if kind == _UNKNOWN),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": _merges({piece: i for i, (piece, kind) in enumerate(pieces) if kind == _NORMAL}),
        },
    }


def _merges(ids: dict[str, int]) -> list[list[str]]:
    """Pairs of pieces that make a piece, the earliest piece first."""
    return [
        [piece[:cut], piece[cut:]]
        for piece in sorted(ids, key=lambda piece: ids[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
