"""One tiny study, made by the command a user would type, for all tests of the stages."""

import shutil
from pathlib import Path

import pytest
from commands import demo, mde


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
