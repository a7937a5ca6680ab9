"""`mde report`: the study as one page, and its tables on the terminal."""

from mde.reporting import page, tables
from mde.study import Study


def report(study: Study) -> None:
    """Writes report.html and prints the tables of whatever stages are done.

    Raises:
      UserError: there is no study.
    """
    study.read_json("study.json", "prepare")
    print(tables.text(study))
    study.write_text("report.html", page.html(study))
