import pandas as pd

from mde.reporting.table import Table

TABLE = Table(
    "Sizes & weights",
    pd.DataFrame({"tokens": ["1", "22"]}, pd.Index(["a+b", "<c>"], name="domain")),
    ("A note.",),
    groups=("first", "second"),
    marked=("<c>",),
)


def test_plain_text_is_aligned_under_its_groups():
    assert str(TABLE).splitlines() == [
        "Sizes & weights",
        "",
        "domain  tokens",
        "first",
        "  a+b        1",
        "second",
        "  <c>       22",
        "",
        "A note.",
    ]


def test_a_notebook_shows_it_with_its_title_and_obeys_no_markup_in_it():
    html = TABLE._repr_html_()
    assert "<h4>Sizes &amp; weights</h4>" in html
    assert '<tr class="marked"><th scope="row">&lt;c&gt;</th><td>22</td></tr>' in html
    assert "<c>" not in html
