"""`mde export`: a trained run as a model for other people's tools."""

import json

from etils import epath

from mde.domains import tokenizers
from mde.errors import UserError, unknown
from mde.models import huggingface, tokenizer_json
from mde.results.trained_runs import load_run, model_config
from mde.study import Study

FORMATS = ("huggingface",)


def export(study: Study, run: str, output: str, format: str = "huggingface") -> None:
    """Writes a run's weights, architecture and tokenizer to a directory.

    Args:
      study: a study with trained runs.
      run: its name.
      output: the directory to write to.
      format: `huggingface`, which `transformers` loads: LlamaForCausalLM and AutoTokenizer.

    Raises:
      UserError: no such run or format, or a tokenizer that `transformers` does not read: bytes, or a SentencePiece
        model other than a byte-pair encoding of texts as they are.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    config = model_config(study)
    done = sorted(path.parent.name for path in (study.root / "runs").glob("*/run.json"))
    if run not in done:
        raise unknown(f"run of {study}", run, done)
    length = study.read_json("training.json", "train")["settings"]["seq_len"]
    directory, where = study.whole.root / "tokenizer", epath.Path(output)
    tokenizer = tokenizers.load(directory)
    kind = json.loads((directory / "about.json").read_text())["kind"]
    if kind == tokenizers.BYTES:
        raise UserError(f"{study}: its tokenizer is {kind!r}, which is no tokenizer.json; export needs one that is")
    params = load_run(study, run, config)
    start, end = tokenizer.start, tokenizer.end
    where.mkdir(parents=True, exist_ok=True)
    if kind == "huggingface":
        tokenizer_json.copy(where, directory / "tokenizer.json", length, start, end)
    else:
        tokenizer_json.save(where, directory / "sentencepiece.model", length, start, end)
    huggingface.save(where, config, params, length, bos_token_id=start, pad_token_id=start, eos_token_id=end)
    print(output)
