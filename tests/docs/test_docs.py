"""The documentation: it builds without a warning, and its commands run.

Every block of commands says above itself how it is checked: `<!-- run -->` here, `<!-- slow -->` with the slow tests,
and `<!-- needs: … -->` not at all, because of the hardware or the time it takes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mde import bindings
from mde.commands import pipeline
from mde.domains import corpora
from mde.study import STAGES
from mde.values import fits

ROOT = Path(__file__).parents[2]
STAGE_PAGES = [f"stages/{name}.md" for name in (*STAGES, "final", "scale", "ablate", "reweight", "tools")]
BLOCK = re.compile(r"^(?:<!-- (run|slow|needs: [^>]+) -->\n)?```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "build" not in path.parts)]


def blocks(page: Path) -> list[tuple[str, str]]:
    """The blocks of commands of a page, each with what stands above it."""
    return [(how, text) for how, language, text in BLOCK.findall(page.read_text()) if language == "bash"]


def commands(kind: str, pages: list[Path]) -> list[str]:
    return [text for page in pages for how, text in blocks(page) if how == kind]


def run(script: str, folder: Path) -> None:
    """Runs a block in a folder, with the commands of this clone."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "mde").write_text(f'#!/bin/sh\nexec {sys.executable} -m mde.cli "$@"\n')
    (folder / "bin" / "mde").chmod(0o755)
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stderr[-3000:]}"


@pytest.fixture
def folder(tmp_path):
    """What the pages take for granted: two CSV files, and two domains of text."""
    rng = np.random.default_rng(0)
    domains, runs = ["web", "code", "books"], pd.Index([f"r{i}" for i in range(24)], name="run")
    mixtures = rng.dirichlet(np.ones(3), 24)
    pd.DataFrame(mixtures, runs, domains).to_csv(tmp_path / "ratios.csv")
    pd.DataFrame(3 - np.sqrt(mixtures), runs, domains).to_csv(tmp_path / "metrics.csv")
    optima = pd.DataFrame([[2e5, 5e5, 3e5], [5e5, 9e5, 6e5]], pd.Index(["small", "larger"], name="run"), domains)
    optima.to_csv(tmp_path / "optima.csv")
    (tmp_path / "src").mkdir()
    (tmp_path / "web").mkdir()
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py"))[:80]:
        shutil.copy(path, tmp_path / "src")
    texts = [path.read_text(errors="ignore") for path in sorted((library / "encodings").glob("*.py"))[:60]]
    (tmp_path / "web" / "0.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "news.txt").write_text((library / "pydoc_data" / "topics.py").read_text()[:200_000])
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_commands_says_how_it_is_checked(page):
    for how, text in blocks(page):
        assert how, f"{page.name}: {text}"


@pytest.mark.parametrize("name", [*STAGES, *pipeline.TOOLS])
def test_every_command_has_its_flags_on_a_page(name):
    pages = "".join((ROOT / "docs" / page).read_text() for page in STAGE_PAGES)
    flags = pipeline.parameters(name)
    assert not flags or f"```{{flags}} {name}\n" in pages or name == "models"


@pytest.mark.parametrize("stage", ["prepare", "train", "optimize"])
def test_bindings_on_a_stages_page_are_arguments_of_it(stage):
    page = (ROOT / f"docs/stages/{stage}.md").read_text()
    (bound,) = (text for _, language, text in BLOCK.findall(page) if language == "python")
    given = bindings.from_gin([], [bound])[stage]
    known = pipeline.parameters(stage)
    assert all(fits(value, known[name].annotation) for name, value in given.items())
    if stage == "prepare":
        (corpus,) = corpora.parse(given["training_domains"], None, "text", trained=True)
        assert corpus.names == ("wiki", "books")


def test_cheap_commands_run(folder):
    found = commands("run", PAGES)
    assert len(found) >= 2
    for script in found:
        run(script, folder)
    assert (folder / "swarm" / "report.html").exists()


@pytest.mark.slow
def test_the_stages_pages_run_one_after_another(folder):
    for script in commands("slow", [ROOT / "docs" / page for page in STAGE_PAGES]):
        run(script, folder)
    assert (folder / "mine" / "report.html").exists()


def test_it_builds_without_a_warning(tmp_path):
    flags = ["--fail-on-warning", "--keep-going", "--quiet", "-d", str(tmp_path / "doctrees")]
    line = [sys.executable, "-m", "sphinx", *flags, str(ROOT / "docs"), str(tmp_path / "html")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "html" / "stages" / "train.html").read_text()
    for name in pipeline.parameters("train"):
        assert f"--{name}</span>" in page
