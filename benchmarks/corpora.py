"""`mde prepare` beside `datasets.map` on the same files: python -m benchmarks.corpora [--bounded=MB]

The contenders read the same JSON lines, tokenize them with one process and store the tokens on disk; the other one
wants `pip install datasets`. With `--bounded` a corpus of so many megabytes is prepared instead, by as many processes
as there are cores, and the memory of all of them is watched.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import psutil
import zstandard

from benchmarks.timing import interleaved
from mde.commands import pipeline
from mde.study import Study

# Read once, so that no contender waits for the disk.
SOURCES = ("scipy", "sklearn", "pandas", "jax", "numpy", "plotly", "tensorflow", "keras")
SHARD = 16  # megabytes of text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=16, help="of text that the contenders read")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bounded", type=int, default=0, help="megabytes of a corpus whose memory is watched")
    parser.add_argument("--directory", type=Path, help="where the bounded corpus is, so that it can be gone on with")
    args = parser.parse_args()
    if args.directory:
        args.directory.mkdir(parents=True, exist_ok=True)
        bounded(args.directory, args.bounded)
        return
    with tempfile.TemporaryDirectory() as directory:
        if args.bounded:
            bounded(Path(directory), args.bounded)
        else:
            compare(Path(directory), args.megabytes, args.rounds)


def texts(megabytes: float) -> list[str]:
    """Documents out of installed packages: code, and the prose of its documentation strings."""
    packages = Path(pipeline.__file__).parents[2] / ".venv" / "lib"
    files = [file for name in SOURCES for file in sorted(packages.glob(f"*/site-packages/{name}/**/*.py"))]
    random.Random(0).shuffle(files)
    found, size = [], 0
    for file in files:
        text = file.read_text(errors="ignore")
        found += [text[i : i + 4000] for i in range(0, len(text), 4000)]
        size += len(text.encode())
        if size > megabytes * 1e6:
            break
    return found


def write(directory: Path, documents: list[str]) -> float:
    """Two domains of JSON lines; returns the megabytes of their text."""
    for number, name in enumerate(("a", "b")):
        lines = [json.dumps({"text": text}) for text in documents[number::2]]
        (directory / f"{name}.jsonl").write_text("\n".join(lines))
    return sum(len(text.encode()) for text in documents) / 1e6


def tokenizer(directory: Path, documents: list[str]) -> Path:
    """A byte-level BPE of 8192 tokens, as `tokenizers` trains it."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=8192,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.train_from_iterator(documents[:1000], trainer)
    made.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def compare(directory: Path, megabytes: int, rounds: int) -> None:
    """Medians of interleaved rounds."""
    documents = texts(megabytes)
    size = write(directory, documents)
    path = tokenizer(directory, documents)
    ours(directory, "train", hygiene=False)  # leaves the model that is given to the contenders
    model = directory / "sentencepiece.model"
    shutil.copy(directory / "study" / "tokenizer" / "sentencepiece.model", model)
    contenders: dict[str, Callable[[], object]] = {
        "datasets.map, tokenizers' BPE": lambda: theirs(directory, path),
        "mde prepare, the same BPE, no hygiene": lambda: ours(directory, str(path), hygiene=False),
        "mde prepare, the same BPE": lambda: ours(directory, str(path), hygiene=True),
        "mde prepare, SentencePiece, no hygiene": lambda: ours(directory, str(model), hygiene=False),
        "mde prepare, SentencePiece": lambda: ours(directory, str(model), hygiene=True),
    }
    seconds = interleaved(contenders, rounds)
    print(f"{size:.1f} MB of text in {len(documents):,} documents, one process; medians of {rounds} rounds")
    base = seconds["datasets.map, tokenizers' BPE"]
    for name, median in seconds.items():
        print(f"{name:40s} {size / median:6.2f} MB/s {base / median:6.2f} x")


def ours(directory: Path, tokenizer: str, hygiene: bool) -> None:
    """A study prepared afresh."""
    shutil.rmtree(directory / "study", ignore_errors=True)
    settings = {} if hygiene else {"near_duplicates": 0.0, "overlap_words": 0}
    places = {name: f"{directory}/{name}.jsonl" for name in ("a", "b")}
    with contextlib.redirect_stdout(io.StringIO()):
        pipeline.call(
            "prepare", Study(directory / "study"), training_domains=places, tokenizer=tokenizer, processes=1, **settings
        )


def theirs(directory: Path, tokenizer: Path) -> None:
    """What a user of `datasets` writes: JSON lines, a batched map, the tokens saved."""
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    cache = directory / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    made = tokenizers.Tokenizer.from_file(str(tokenizer))

    def encode(batch: dict) -> dict:
        return {"ids": [each.ids for each in made.encode_batch_fast(batch["text"])]}

    files = [str(directory / f"{name}.jsonl") for name in ("a", "b")]
    loaded = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(cache))
    mapped = loaded.map(encode, batched=True, remove_columns=["text"])
    mapped.save_to_disk(str(cache / "saved"))


def generate(directory: Path, megabytes: int) -> None:
    """Four domains of documents of 250 words, put together at random out of the words of installed packages.

    They are JSON lines in zstd, in shards of 16 MB of text, as corpora come.
    """
    generator = random.Random(0)
    words = [word for text in texts(2) for word in text.split()][:200_000]
    shards = -(-megabytes // (4 * SHARD))
    for domain, shard in itertools.product(range(4), range(shards)):
        lines, written = [], 0
        while written < megabytes * 1e6 / 4 / shards:
            start = generator.randrange(len(words) - 400)
            chosen = words[start : start + 100] + generator.choices(words, k=150)
            generator.shuffle(chosen)
            lines.append(json.dumps({"text": " ".join(chosen)}) + "\n")
            written += len(lines[-1])
        packed = zstandard.compress("".join(lines).encode())
        (directory / str(domain)).mkdir(exist_ok=True)
        (directory / str(domain) / f"{shard}.jsonl.zst").write_bytes(packed)
    (directory / "megabytes").write_text(str(megabytes))


def bounded(directory: Path, megabytes: int) -> None:
    """Memory of a preparation, all its processes together, while it reads words put together at random."""
    if not (directory / "megabytes").exists():
        generate(directory, megabytes)
    peak = [0]
    stop = threading.Event()

    def watch() -> None:
        this = psutil.Process()
        while not stop.wait(0.5):
            total = 0
            for process in [this, *this.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch)
    thread.start()
    started, busy = time.perf_counter(), sum(os.times()[:4])
    places = {f"domain{i}": f"{directory}/{i}/*.jsonl.zst" for i in range(4)}
    try:
        pipeline.call("prepare", Study(directory / "study"), training_domains=places, vocab_size=4096)
    finally:
        stop.set()
        thread.join()
        print(f"peak of all processes together {peak[0] / 1e6:,.0f} MB resident", flush=True)
    seconds = time.perf_counter() - started
    kept = sum(path.stat().st_size for path in (directory / "study").rglob("*") if path.is_file()) / 1e6
    busy = sum(os.times()[:4]) - busy  # of this process and those that it has waited for
    speeds = f"{megabytes / seconds:.1f} MB/s, {megabytes / busy:.1f} MB a second of a processor's"
    print(f"{megabytes:,} MB of text in {seconds:.0f} s, {speeds}; the study takes {kept:,.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
