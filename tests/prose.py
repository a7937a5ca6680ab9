"""Made-up text, and files of it, that tests of several rooms share."""

import gzip
import json
import random
from pathlib import Path

import zstandard

SYLLABLES = ["ka", "lo", "mi", "ne", "ru", "ta", "vo", "xi", "bar", "den", "fil", "gor", "hum", "jax", "pel", "qui"]


def text(seed: object, words: int = 60) -> str:
    """Made-up prose: no two seeds share a run of five words but by chance."""
    generator = random.Random(repr(seed))
    made = ["".join(generator.choices(SYLLABLES, k=2)) for _ in range(words)]
    return " ".join(made).capitalize() + ".\n"


def jsonl(path: Path, records: list[dict]) -> None:
    """JSON lines, packed as the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
