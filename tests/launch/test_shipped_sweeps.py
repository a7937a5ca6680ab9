"""Every sweep that is shipped, run to its last stage with models and counts that take minutes in all."""

import pandas as pd
import pytest
from swarm_sweep import ROOT

from launch import sweep

SMALL = [
    *(line for line in (ROOT / "configs/demo_tiny.gin").read_text().splitlines() if " = " in line),
    "train.seed_steps = 4",
    "train.steps = 4",
    "train.proxy_runs = 12",
    "fit.train_mixtures = 8",
    "fit.repeats = 3",
    "optimize.refits = 5",
]


def run(name, root, *bindings):
    flags = [f"--gin_bindings={binding}" for binding in [*SMALL, *bindings]]
    with pytest.raises(SystemExit) as status:
        sweep.main([f"--sweep={ROOT / 'configs/sweeps' / name}.gin", f"--root={root}", "--workers=1", *flags])
    assert status.value.code == 0, [log.read_text()[-2000:] for log in root.glob("*/log.txt")]
    return pd.read_parquet(root / "results.parquet")


@pytest.mark.slow
def test_shipped_sweeps(tmp_path):
    """The first trains from text; the others start from what it has left."""
    points = "sweep.points = [{'train.preset': 'tiny', 'train.steps': 3}]"
    first = run("presets", tmp_path / "presets", points)
    assert first["recommended/measured"].notna().all()
    start = f"sweep.study = {str(tmp_path / 'presets' / first.index[0])!r}"

    rates = run("learning_rate", tmp_path / "rates", start, "sweep.grid = {'train.learning_rate': [1e-3, 3e-3]}")
    assert rates["recommended/measured"].nunique() == 2
    assert not (tmp_path / "rates" / "mixtures.csv").exists()  # trained differently: nothing to pool

    chosen = run("train_mixtures", tmp_path / "fits", start, "sweep.grid = {'fit.train_mixtures': [6, 8]}")
    assert list(chosen["fit.train_mixtures"]) == [6, 8]
    assert chosen["predicted"].notna().all()
    assert len(pd.read_csv(tmp_path / "fits" / "mixtures.csv")) == 12
