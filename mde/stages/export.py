"""`mde export`: a trained run as a model for other people's tools."""

from etils import epath

from mde.errors import UserError, unknown
from mde.models import huggingface, tokenizer_json
from mde.stages.train import load_run, model_config
from mde.study import Study

FORMATS = ("huggingface",)


def export(study: Study, run: str, output: str, format: str = "huggingface") -> None:
    """Writes a run's weights, architecture and tokenizer to a directory.

    Args:
      study: a study with trained runs.
      run: its name.
      output: the directory to write to.
      format: `huggingface`, which `transformers` loads: LlamaForCausalLM and AutoTokenizer.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    config = model_config(study)
    done = sorted(path.parent.name for path in (study.root / "runs").glob("*/run.json"))
    if run not in done:
        raise unknown(f"run of {study}", run, done)
    length = study.read_json("training.json", "train")["settings"]["seq_len"]
    model_file = study.whole.root / "tokenizer" / "sentencepiece.model"
    if not model_file.exists():
        raise UserError(f"{study}: no tokenizer at {model_file}")
    params = load_run(study, run, config)
    huggingface.save(epath.Path(output), config, params, length, bos_token_id=0, pad_token_id=0, eos_token_id=1)
    tokenizer_json.save(epath.Path(output), model_file, length)
    print(output)
