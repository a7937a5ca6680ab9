"""One tiny study, made by the command a user would type, for all tests of the stages."""

import shutil
from pathlib import Path

import pytest
from commands import demo, mde
from prose import jsonl, text


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study that `mde demo` has finished, and what it printed; read only."""
    study = tmp_path_factory.mktemp("studies") / "tiny"
    return study, mde(*demo(study))


@pytest.fixture
def study(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished study, to spoil."""
    return Path(shutil.copytree(finished[0], tmp_path / "study", ignore=shutil.ignore_patterns("corpus")))


@pytest.fixture
def prepared(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the study in which no more than `mde prepare` is done."""
    copy = tmp_path / "prepared"
    copy.mkdir()
    for name in ("study.json", "tokenizer", "tokens"):
        source = finished[0] / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    (copy / "stages").mkdir()
    shutil.copy(finished[0] / "stages" / "prepare.json", copy / "stages" / "prepare.json")
    return copy


@pytest.fixture(scope="session")
def tasked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted study with end tasks: of held-out text, of a file, and one without choices; read only."""
    from mde import cli

    root = tmp_path_factory.mktemp("tasked")
    for name in ("web", "code"):
        jsonl(root / f"{name}.jsonl", [{"text": text((name, i), 80)} for i in range(150)])
    words = [text(("task", i), 24).split() for i in range(30)]
    facts = [
        {"question": " ".join(w[:9]), "choices": [" ".join(w[i : i + n]) for i, n in ((9, 2), (11, 3), (14, 1))]}
        for w in words
    ]
    jsonl(root / "facts.jsonl", [{**fact, "answer": i % 3} for i, fact in enumerate(facts)])
    jsonl(root / "short.jsonl", [{"question": " ".join(w[:6]), "answer": " ".join(w[6:9])} for w in words])
    study = root / "study"
    tasks = {"facts": str(root / "facts.jsonl"), "short": {"files": str(root / "short.jsonl"), "choices": None}}
    flags = {
        "prepare": [
            *(f"--domain={name}={root}/{name}.jsonl" for name in ("web", "code")),
            *(f"--tasks={tasks}", "--continuations=web", "--continuation_examples=40", "--vocab_size=360"),
        ],
        "train": [
            *("--preset=tiny", "--steps=6", "--batch_size=4", "--seq_len=64", "--learning_rate=1e-2"),
            "--proxy_runs=6",
        ],
        "score": ["--tokens_per_domain=512", "--examples_per_task=25"],
        "evaluate": ["--candidates=16", "--merged_windows=1"],
        "fit": ["--repeats=4", "--regressors=ridge", "--train_mixtures=3"],
    }
    for stage, more in flags.items():
        cli.main([stage, f"--study={study}", *more])
    return study
