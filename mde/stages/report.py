"""`mde report`: the study as one page, and its tables on the terminal."""

from mde.reporting import page, tables
from mde.study import Study


def report(study: Study) -> None:
    """Writes report.html and prints the tables of whatever stages are done."""
    print(tables.text(study))
    (study.root / "report.html").write_text(page.html(study), encoding="utf-8")
