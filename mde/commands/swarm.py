"""`mde swarm`: the proxy runs as a pair of CSV files, for other people's tools."""

from etils import epath

from mde.errors import unknown
from mde.regression import swarm as csv_files
from mde.study import Study

# file of mixtures, file of losses, id column, and what surrounds the domains' names in each
LAYOUTS = {
    "olmix": ("ratios.csv", "metrics.csv", "run_id", ("", ""), ("", "")),
    "regmix": ("mixture.csv", "loss.csv", "index", *csv_files.AFFIXES),
}


def swarm(study: Study, output: str, layout: str = "olmix") -> None:
    """Writes the study's proxy runs: mixtures, and losses in the study's unit.

    Args:
      study: a study with scored proxy runs.
      output: the directory to write to.
      layout: `olmix` for ratios.csv and metrics.csv, `regmix` for mixture.csv and loss.csv.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    mixtures_file, losses_file, id_column, *affixes = LAYOUTS[layout]
    runs = study.mixtures()
    mixtures = runs.loc[runs["role"] == "proxy", list(study.domains.training)]
    losses = study.losses(runs=mixtures.index)
    tables = ((mixtures_file, mixtures, ()), (losses_file, losses, study.errors))
    for (file, values, errors), (prefix, suffix) in zip(tables, affixes, strict=True):
        columns = {str(name): f"{prefix}{name}{suffix}" for name in values}
        csv_files.write(epath.Path(output) / file, csv_files.Table(values, id_column, columns, errors))
        print(epath.Path(output) / file)
