"""`mde validate`: train the recommended mixture and its baselines from scratch, and measure who wins."""

from collections.abc import Mapping, Sequence
from typing import Any

from mde import hosts
from mde.errors import check_positive
from mde.reporting import final as report
from mde.results import comparison
from mde.results.mixtures import RECOMMENDED, mixtures
from mde.results.training_options import Running
from mde.study import Study


def validate(
    study: Study,
    seeds: int = 3,
    baselines: Sequence[str | Mapping[str, Any]] | None = None,
    first_seed: int = 1,
    checkpoint_every: int = 500,
) -> None:
    """Trains the recommended mixture and its baselines from scratch, each with several seeds, and compares them.

    Each run starts from fresh parameters and reads as many tokens as a proxy run and the seed model before it, all of
    them from its own mixture. It is scored on the test split, which nothing was fitted or chosen on. The seeds are
    others than those of the proxy runs, so the best observed mixture keeps no luck from having been chosen. Runs are
    named by their mixture: a new recommendation is trained anew, and baselines that stay are kept.

    Args:
      study: a study with an optimum.
      seeds: runs of each mixture.
      baselines: names of mixtures (uniform, proportional, proportional^0.5, unimax, own domains, best observed,
        regmix, mixing-law, mde, mixmin, scale, doremi, doge, or DIRECTORY:NAME of another study), or weights by domain
        under a name of your own, such as `human=web:.7,code:.3`; those that `mde optimize` compared it with
        by default.
      first_seed: seed of the first one.
      checkpoint_every: steps between states to resume from.

    Raises:
      UserError: an unknown name or domain, a baseline whose method has not been run, runs trained another way.
    """
    check_positive(seeds=seeds, checkpoint_every=checkpoint_every)
    scoring, optimum = study.read_json("scoring.json", "score"), study.read_json("optimum.json", "optimize")
    others = [name for name in optimum["predictions"] if name != RECOMMENDED] if baselines is None else baselines
    compared = mixtures(study, [RECOMMENDED, *(name for name in others if name != RECOMMENDED)], "baselines")
    about = comparison.training(study, None, None, from_seed_model=False)
    first = study.read_json("training.json", "train")["seed_settings"]
    steps = about["settings"]["steps"] + (first["steps"] if first else 0)
    about["settings"] = {**about["settings"], "steps": steps}
    table = comparison.runs(compared, range(first_seed, first_seed + seeds), "validation", steps)
    part = study.part(report.VALIDATION)
    comparison.train_and_compare(part, about, scoring, table, compared, Running(checkpoint_every=checkpoint_every))
    if hosts.is_first():
        print(report.text(part))
        print(f"\n`mde report --study={study}` shows the rest")


def inputs(study: Study, arguments: Mapping[str, Any]) -> list[Any]:
    """The baselines' weights: a name stands for another mixture when its method has been run again."""
    baselines = arguments["baselines"]
    return [mixtures(study, baselines, "baselines").to_dict("index")] if baselines else []
