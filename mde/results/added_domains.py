"""A study that holds runs grows: its tokenizer and its text stay, and domains join them.

Text that joins is compared with what is there, and gives way to it. So tokens depend on the text that was there before
them or came with them, and on none that came later.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mde.ablation import HOME
from mde.errors import UserError
from mde.study import Study, digest

if TYPE_CHECKING:
    from mde.domains.corpora import Corpus

# What is said of all domains, and is shown or built on.
RESULTS = (
    *("fit/choice.json", "optimum.json", "validation/final.json", "final/*/final.json"),
    *("scale.json", "reweighting/*.json", "reweighting/*.csv"),
)
Parts = Sequence[Sequence["Corpus"]]  # corpora by when they joined a study


def parts(study: Study, found: Sequence["Corpus"]) -> Parts:
    """The corpora that the study began with, those that joined it each time, and last those that are new.

    Of a study without runs all are in one part: there is nothing that must stay.

    Raises:
      UserError: training domains of the study that are not among them.
    """
    if not _holds_runs(study):
        return [found]
    asked = {name for corpus in found for name in corpus.names}
    if missing := [name for name in study.domains.training if name not in asked]:
        raise UserError(
            f"{study}: holds runs that were trained on {', '.join(missing)}; name all domains of the study, and those "
            "that join them"
        )
    time = dict.fromkeys(study.domains.evaluation, 0)
    time |= {name: number for number, names in enumerate(study.joined, 1) for name in names}
    new = len(study.joined) + 1
    times = [min(time.get(name, new) for name in corpus.names) for corpus in found]
    made = [[corpus for corpus, at in zip(found, times, strict=True) if at == number] for number in range(new + 1)]
    return [part for part in made if part]


def names(part: Sequence["Corpus"]) -> list[str]:
    """The domains of a part."""
    return [name for corpus in part for name in corpus.names]


def stores(part: Sequence["Corpus"]) -> list[tuple["Corpus", str, str]]:
    """Corpus, split and domain of each token store of some corpora."""
    return [(corpus, split, name) for corpus in part for split in corpus.splits for name in corpus.names]


def digests(found: Parts, sources: Mapping[str, Any], recipe: str, settings: Sequence[Any]) -> dict[str, str]:
    """By domain and split, a name for its tokens; all text but what joined later decides which of it is dropped.

    Args:
      found: the corpora, as `parts` divides them.
      sources: by domain, where its text comes from.
      recipe: names the tokenizer.
      settings: what else decides about the text.
    """
    made: dict[str, str] = {}
    there: dict[str, Any] = {}
    for part in found:
        there |= {name: sources[name] for name in names(part)}
        everything = digest([there, recipe, *settings])
        for corpus, split, name in stores(part):
            own = [] if corpus.registered else [everything]
            own += ["halved"] if corpus.halved and split != "train" else []
            made[f"{name}/{split}"] = digest([recipe, sources[name], split, *own])
    return made


def check(study: Study, found: Parts, sources: Mapping[str, Any], recipe: str, digests: Mapping[str, str]) -> None:
    """Raises UserError if the study holds runs, and what they were trained on would be replaced.

    Args:
      study: the study.
      found: the corpora, as `parts` divides them.
      sources: by domain, where its text comes from.
      recipe: names the tokenizer.
      digests: by domain and split, names the tokens.
    """
    if not _holds_runs(study):
        return
    about = study.about
    kept = [name for part in found for name in names(part) if name in about["sources"]]
    changed = [name for name in kept if digest(about["sources"][name]) != digest(sources[name])]
    trained = [
        name
        for name in study.domains.training
        if about["stores"][f"{name}/train"]["digest"] != digests.get(f"{name}/train")
    ]
    if about["tokenizer"] == recipe and not trained:
        if new := _joining(study, found):
            print(
                f"{study} grows by {', '.join(new)}: its tokenizer and the text of {', '.join(kept)} stay as they are"
            )
        return
    if changed:
        reason = f", and the text of {changed[0]!r}, or a setting that decides on it, is another"
    elif about["tokenizer"] != recipe:
        reason = " that were trained with another tokenizer, or on its domains in another order"
    else:
        reason = ", and other evaluation text or tasks decide anew which of their training text is dropped"
    raise UserError(f"{study}: holds runs{reason}; use another --study")


def set_aside(study: Study, found: Parts) -> None:
    """Moves what was found for fewer domains to STUDY/before-DOMAIN, if some are about to join."""
    if not _holds_runs(study) or not (new := _joining(study, found)):
        return
    for path in [path for pattern in RESULTS for path in study.root.glob(pattern)]:
        place = study.root / f"before-{new[0]}" / path.relative_to(study.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)


def _joining(study: Study, found: Parts) -> list[str]:
    return [name for part in found for name in names(part) if name not in study.about["sources"]]


def _holds_runs(study: Study) -> bool:
    return any((study.root / name).exists() for name in ("runs", HOME))
