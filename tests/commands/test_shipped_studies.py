"""Every study that is shipped: planned, and run to its last stage with little text, a tiny preset and few steps."""

import re

import pandas as pd
import pytest
from commands import ROOT, mde
from prose import jsonl, text

from mde.study import STAGES

STUDIES = sorted((ROOT / "configs/studies").glob("*.gin"))
TINY = ("PRESET = 'tiny'", "BATCH = 4", "prepare.vocab_size = 360")
SLIMPAJAMA = ("CommonCrawl", "C4", "Github", "Book", "ArXiv", "Wikipedia", "StackExchange")


def run(command, study, config, *bindings):
    flags = [f"--gin_bindings={binding}" for binding in [*TINY, *bindings]]
    return mde(command, f"--study={study}", f"--gin_file=configs/studies/{config}.gin", *flags)


def instructions(config):
    """The commands that a study's file begins with, in their order, without `plan`, which has a test of its own."""
    written = (ROOT / f"configs/studies/{config}.gin").read_text()
    lines = re.findall(r"^# mde ([a-z]+(?:, [a-z]+)*) ", written, re.MULTILINE)
    first, *stages = [stage for line in lines for stage in line.split(", ")]
    assert first == "plan"
    return stages


@pytest.fixture(scope="module")
def slimpajama(tmp_path_factory):
    root = tmp_path_factory.mktemp("slimpajama")
    for folder in ("train/chunk1", "validation/chunk1"):
        records = [
            {"text": text((folder, name, i), 400), "meta": {"redpajama_set_name": f"RedPajama{name}"}}
            for name in SLIMPAJAMA
            for i in range(40)
        ]
        jsonl(root / folder / "example_0.jsonl.zst", records)
    return root


@pytest.mark.parametrize(
    "config", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem != "mde")) for path in STUDIES]
)
def test_its_cost_is_known_before_anything_is_rented(config):
    printed = mde(
        "plan", f"--gin_file={config.relative_to(ROOT)}", "--preset=tiny", "--batch_size=4", "--seq_len=64",
        "--loss_chunks=1",
    )  # fmt: skip
    assert "device-hours" in printed


def test_its_instructions_lead_to_their_end():
    """Each stage comes after those whose results it reads."""
    assert instructions("mde") == list(STAGES)
    assert instructions("autoscale") == ["prepare", "train", "score", "scale", "report"]
    assert instructions("ablations") == ["prepare", "ablate"]


@pytest.mark.slow
def test_mde(tmp_path, slimpajama):
    few = ("train.steps = 4", "train.seq_len = 32", "train.proxy_runs = 10", "train.warmup_steps = 2")
    small = ("train.validate_every = 2", "score.tokens_per_domain = 256", "evaluate.merged_windows = 1")
    quick = ("evaluate.candidates = 16", "fit.train_mixtures = 6", "fit.repeats = 3", "optimize.refits = 3")
    everything = (*few, *small, *quick, f"prepare.root = {str(slimpajama)!r}", "validate.seeds = 1")
    for stage in instructions("mde"):
        run(stage, tmp_path / "study", "mde", *everything)
    assert len(pd.read_csv(tmp_path / "study/validation/summary.csv")) == 4
    assert (tmp_path / "study/report.html").exists()


@pytest.mark.slow
def test_autoscale(tmp_path, slimpajama):
    few = ("train.steps = 4", "train.seq_len = 32", "train.warmup_steps = 2")
    scale = ("scale.budgets = (1792, 3584)", "scale.target = 7168", "scale.nearest = True")
    everything = (*few, *scale, "score.tokens_per_domain = 256", f"prepare.root = {str(slimpajama)!r}")
    for stage in instructions("autoscale"):
        run(stage, tmp_path / "study", "autoscale", *everything)
    assert (tmp_path / "study/scale.json").exists()


@pytest.mark.slow
def test_ablations(tmp_path):
    fields = ("Art", "Biology", "Chemistry", "Law")
    records = [
        {"text": text((name, i), 400), "metadata": {"s2fieldsofstudy": [name]}} for name in fields for i in range(60)
    ]
    jsonl(tmp_path / "corpus" / "0.json.gz", records)
    named = {name: name.lower() for name in fields}
    corpus = {"s2orc": {"files": "*.json.gz", "domain_field": "metadata.s2fieldsofstudy.0", "domains": named}}
    few = ("STEPS = 4", "SEED_STEPS = (8,)", "ablate.seq_len = 32", "ablate.units = 8", "ablate.unions = 4")
    small = ("ablate.warmup_steps = 2", "ablate.tokens_per_domain = 256", "ablate.merged_windows = 1")
    everything = (
        *few,
        *small,
        f"prepare.training_domains = {corpus!r}",
        f"prepare.root = {str(tmp_path / 'corpus')!r}",
    )
    for stage in instructions("ablations"):
        run(stage, tmp_path / "study", "ablations", *everything, "prepare.validation_share = 0.1")
    assert (tmp_path / "study/ablation/correlations.csv").exists()
