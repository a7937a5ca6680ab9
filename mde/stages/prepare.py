"""`mde prepare`: text into tokens."""

from collections.abc import Sequence
from typing import Any

from etils import epath
from tqdm import tqdm

from mde.data import tokens
from mde.errors import UserError
from mde.study import FORMAT, Study, digest


def prepare(
    study: Study, training_domains: Sequence[str], evaluation_domains: Sequence[str], vocab_size: int, seed: int = 0
) -> None:
    """Trains a tokenizer on the training domains and keeps every domain's tokens once.

    Args:
      study: where to.
      training_domains: names of registered domains, trained and evaluated on.
      evaluation_domains: further domains that are evaluated on and never trained on.
      vocab_size: pieces of the tokenizer.
      seed: of the sample that the tokenizer is trained on.

    Raises:
      UserError: an unknown domain, one named twice, or fewer than two to train on; a study that holds runs already,
        trained with another tokenizer or on other text.
    """
    from mde.domains import registry, vocabulary  # TensorFlow comes with them

    everything = [*training_domains, *evaluation_domains]
    if len(training_domains) < 2 or len(set(everything)) < len(everything):
        raise UserError(
            f"prepare needs at least two training domains and each domain once, got {', '.join(everything)}"
        )
    for name in everything:
        registry.get(name)
    corpus = study.root / "corpus"
    sources = {name: registry.provenance(name, corpus) for name in tqdm(everything, "harvest", unit="domain")}

    model = study.root / "tokenizer" / "sentencepiece.model"
    recipe = digest([training_domains, vocab_size, seed, [sources[name] for name in training_domains]])
    if (study.root / "runs").exists() and study.about["tokenizer"] != recipe:
        raise UserError(
            f"{study}: holds runs that were trained with another tokenizer or on other text; use another --study"
        )
    if not _is(model.parent / "recipe", recipe):
        texts = {name: registry.texts(name, "train", corpus) for name in training_domains}
        vocabulary.train_sentencepiece(texts, model, vocab_size, seed=seed)
        (model.parent / "recipe").write_text(recipe)
    encoder = vocabulary.load(model)

    stores: dict[str, Any] = {}
    splits = [(name, split) for name in training_domains for split in ("train", "validation")]
    splits += [(name, "validation") for name in evaluation_domains]
    for name, split in (bar := tqdm(splits, "tokenize", unit="split")):
        bar.set_postfix(domain=name)
        directory = study.root / "tokens" / name / split
        wanted = digest([recipe, sources[name], split])
        if not (directory / "store.json").exists() or tokens.TokenStore(directory).digest != wanted:
            tokens.write(directory, registry.tokenized(name, split, encoder, corpus), wanted)
        store = tokens.TokenStore(directory)
        if not store.n_documents:
            raise UserError(f"domain {name!r} is empty: its {split} split has no document")
        stores[f"{name}/{split}"] = {
            "tokens": store.n_tokens,
            "documents": store.n_documents,
            "bytes": store.n_bytes,
            "digest": wanted,
        }
    study.write_json(
        "study.json",
        {
            "format": FORMAT,
            "training_domains": list(training_domains),
            "evaluation_domains": everything,
            "vocab_size": vocab_size,
            "tokenizer": recipe,
            "stores": stores,
            "sources": sources,
        },
    )
    study.__dict__.pop("about", None)


def _is(path: epath.Path, text: str) -> bool:
    return path.exists() and path.read_text() == text
