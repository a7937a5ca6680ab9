"""`mde import`: a model that somebody else trained as a run of a study."""

import dataclasses
import hashlib
import json

from etils import epath

from mde.errors import UserError
from mde.models import huggingface
from mde.models.config import on_record
from mde.stages.train import model_config
from mde.study import Study
from mde.training import checkpoints
from mde.training.runs import NOT_ARCHITECTURE


def import_model(study: Study, source: str, run: str) -> None:
    """Takes a LLaMA in Hugging Face's format into a study; `mde train` then trains the other runs and leaves it be.

    It must read the study's own tokens: start from a model that `mde export` wrote, or share its tokenizer.

    Args:
      study: a prepared study.
      source: the directory with config.json and *.safetensors.
      run: what it is to be: seed, expert-DOMAIN, or a run of the table of mixtures.

    Raises:
      UserError: a model of another architecture or vocabulary than the study's, or a run that is there already.
    """
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
    aside = directory / "run.json.partial"
    aside.write_text(json.dumps(record, indent=1))
    aside.rename(directory / "run.json")
    print(directory)


def _check_tokenizer(study: Study, source: epath.Path) -> None:
    """Raises UserError where the model comes with a SentencePiece model that is not the study's."""
    theirs, ours = source / "tokenizer.model", study.root / "tokenizer" / "sentencepiece.model"
    if theirs.exists() and ours.exists() and theirs.read_bytes() != ours.read_bytes():
        raise UserError(f"{theirs} is not the tokenizer of the study, {ours}")
