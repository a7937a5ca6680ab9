"""Models that leave a study, models that come from elsewhere, and trainings that are only planned."""

import json
import shutil

import pytest
from numpy.testing import assert_array_equal

from mde import bindings, cli
from mde.models.config import PRESETS
from mde.results.trained_runs import load_run, model_config
from mde.study import Study

TINY = "--gin_file=configs/demo_tiny.gin"


@pytest.fixture
def mde(monkeypatch, capsys):
    """Runs a command in this process and returns what it printed; an error is what it printed as such."""

    def run(*arguments: str) -> str:
        try:
            cli.main(arguments)
        except SystemExit:
            return capsys.readouterr().err
        return capsys.readouterr().out

    monkeypatch.chdir(bindings.REPOSITORY)
    return run


@pytest.fixture
def exported(mde, study, tmp_path):
    mde("export", f"--study={study}", "--run=expert-docs", f"--output={tmp_path / 'model'}")
    return tmp_path / "model"


def test_a_run_that_was_exported_and_imported_is_the_same_and_is_not_trained_again(mde, study, exported):
    assert {path.name for path in exported.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    config = model_config(Study(study))
    before = load_run(Study(study), "expert-docs", config)
    shutil.rmtree(study / "runs" / "expert-docs")
    mde("import", f"--study={study}", "--run=expert-docs", f"--source={exported}")
    assert "imported" in json.loads((study / "runs" / "expert-docs" / "run.json").read_text())
    after = load_run(Study(study), "expert-docs", config)
    assert_array_equal(after["embed"]["embedding"], before["embed"]["embedding"])
    shutil.rmtree(study / "runs" / "expert-wiki")
    mde("train", f"--study={study}", TINY, "--force")
    assert "imported" in json.loads((study / "runs" / "expert-docs" / "run.json").read_text())
    assert "imported" not in json.loads((study / "runs" / "expert-wiki" / "run.json").read_text())


def test_what_cannot_be_imported_or_exported_is_named(mde, study, exported):
    where = f"--study={study}"
    assert "is there already; delete it" in mde("import", where, "--run=expert-docs", f"--source={exported}")
    about = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(about | {"rms_norm_eps": 1e-5}))
    assert "'expert-doc': did you mean 'expert-docs'" in mde(
        "import", where, "--run=expert-doc", f"--source={exported}"
    )
    assert "unknown run" in mde("import", where, "--run=../proxy-00", f"--source={exported}")
    shutil.rmtree(study / "runs" / "proxy-00")
    message = mde("import", where, "--run=proxy-00", f"--source={exported}")
    assert "norm_eps=1e-05, the study's models have 1e-06" in message
    (exported / "tokenizer.model").write_bytes(b"another")
    assert "is not the tokenizer of the study" in mde("import", where, "--run=proxy-00", f"--source={exported}")
    message = mde("export", where, "--run=expert-doc", f"--output={exported}")
    assert "'expert-doc': did you mean 'expert-docs'" in message
    assert "unknown format 'gguf'" in mde("export", where, "--run=expert-docs", f"--output={exported}", "--format=gguf")


def test_models_prints_every_preset(mde):
    printed = mde("models", "--vocab_size=1000")
    assert [line.split()[0] for line in printed.splitlines()[3:]] == list(PRESETS)
    assert "992.05 M" in printed


def test_plan_prints_what_a_mesh_needs(mde):
    printed = mde(
        "plan", "--preset=tiny", "--mesh=pool=2,data=2", "--batch_size=4", "--seq_len=64", "--vocab_size=512",
        "--device=h100", "--mfu=0.5", "--model.dtype=float32",
    )  # fmt: skip
    assert "tiny on 4 h100 (pool=2,data=2,model=1)" in printed
    assert "fits in 74.5 GiB" in printed
    assert "2 runs, 2 at a time" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mesh=model=3"], "mesh axis model=3 does not divide n_heads=16; of the smaller ones 1, 2 would"),
        (["--mesh=data=12"], "mesh axis data=12 does not divide d_model=2048"),
        (["--mfu=1.5"], "mfu=1.5 must lie between 0 and 1"),
        (["--device=h10"], "unknown device 'h10': did you mean 'h100'"),
        (["--acumulate=2"], "unknown flag '--acumulate': did you mean '--accumulate'"),
        (["--model.d_fff=2"], "unknown flag '--model.d_fff': did you mean '--model.d_ff'"),
    ],
)
def test_plans_that_make_no_sense_are_refused(flags, message, mde):
    assert message in mde("plan", "--preset=1b", *flags)
