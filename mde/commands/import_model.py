"""`mde import`: a model that somebody else trained as a run of a study."""

import dataclasses
import hashlib
import json
from typing import Any

from etils import epath

from mde.buckets import write_aside
from mde.errors import UserError, unknown
from mde.models import huggingface
from mde.models.config import on_record
from mde.results.trained_runs import SEED_RUN, model_config
from mde.study import Study
from mde.training import checkpoints
from mde.training.runs import NOT_ARCHITECTURE


def import_model(study: Study, source: str, run: str) -> None:
    """Takes a LLaMA in Hugging Face's format into a study; `mde train` then trains the other runs and leaves it be.

    It must read the study's own tokens: start from a model that `mde export` wrote, or share its tokenizer.

    Args:
      study: a prepared study.
      source: the directory with config.json and *.safetensors.
      run: what it is to be: seed, expert-DOMAIN, or a run of the study's table of mixtures, when it is trained.

    Raises:
      UserError: a model of another architecture, vocabulary or tokenizer than the study's, or a run that the study will
        not have, or has already.
    """
    if run not in (known := _runs(study)):
        raise unknown(f"run of {study}", run, known)
    directory = study.root / "runs" / run
    if directory.exists():
        raise UserError(f"{directory} is there already; delete it to import another")
    config, params = huggingface.load(epath.Path(source))
    if config.vocab_size != study.about["vocab_size"]:
        raise UserError(f"{source}: a vocabulary of {config.vocab_size}, the study's has {study.about['vocab_size']}")
    _check_tokenizer(study, epath.Path(source))
    if (study.root / "training.json").exists():
        wanted = model_config(study)
        config = dataclasses.replace(config, **{name: getattr(wanted, name) for name in NOT_ARCHITECTURE})
        for field in dataclasses.fields(config):
            ours, theirs = getattr(wanted, field.name), getattr(config, field.name)
            if ours != theirs:
                raise UserError(f"{source}: {field.name}={theirs}, the study's models have {ours}")
    about = epath.Path(source) / "config.json"
    weights = [hashlib.blake2b(file.read_bytes()).hexdigest() for file in sorted(about.parent.glob("*.safetensors"))]
    checkpoints.save_params(directory / "params", params)
    record = {"imported": {"from": source, "weights": weights}, "model": on_record(config)}
    write_aside(directory / "run.json", json.dumps(record, indent=1))
    print(directory)


def _runs(study: Study) -> list[str]:
    """Names of the runs that are trained, or will be."""
    table = study.root / "mixtures.csv"
    trained = list(map(str, study.mixtures().index)) if table.exists() else []
    if study.whole is not study:  # full models have neither
        return trained
    return [SEED_RUN, *(f"expert-{name}" for name in study.domains.training), *trained]


def _check_tokenizer(study: Study, source: epath.Path) -> None:
    """Raises UserError where the model comes with a tokenizer of the study's kind that is not the study's."""
    directory = study.whole.root / "tokenizer"
    for theirs, ours, read in (
        (source / "tokenizer.model", directory / "sentencepiece.model", epath.Path.read_bytes),
        (source / "tokenizer.json", directory / "tokenizer.json", _reading),
    ):
        if theirs.exists() and ours.exists() and read(theirs) != read(ours):
            raise UserError(f"{theirs} is not the tokenizer of the study, {ours}")


def _reading(file: epath.Path) -> list[Any]:
    """What in a tokenizer.json decides on the tokens of a text; programs that save it change the rest."""
    import tokenizers

    content = file.read_bytes()
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{file}: not a tokenizer.json: {error}") from error
    about = json.loads(tokenizer.to_str())
    return [about.get(part) for part in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
