"""`mde report`: the study as one page, and its tables on the terminal."""

from mde import buckets
from mde.errors import UserError
from mde.reporting import findings, page, tables
from mde.study import Study


def report(study: Study) -> None:
    """Prints the tables of whatever stages are done, and writes report.html.

    Raises:
      UserError: there is nothing to show, or the study cannot be written to.
    """
    if not any(findings.has(study, section.needs) for section in page.SECTIONS):
        raise UserError(f"{study} holds nothing to report; run `mde prepare --study={study}` first")
    buckets.check_writable(study.root)
    print(tables.text(study))
    study.write_text("report.html", page.html(study))
    print(f"\nsee {study.root / 'report.html'}")
