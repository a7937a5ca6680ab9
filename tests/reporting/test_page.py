import json
import re
from html.parser import HTMLParser

import pytest
from finished_study import VALIDATION, finish, fit, optimize, prepare, train, validate

from mde.commands.report import report
from mde.reporting import page
from mde.study import Study

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}
CHARTS = 13
EVIL = '<script>alert("code")'


class Reader(HTMLParser):
    """Checks that tags are closed in order, and collects attributes, text and the charts' data."""

    def __init__(self, html):
        super().__init__()
        self.open, self.attributes, self.charts, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else ("", {})
        if attrs.get("type") == "application/json":
            self.charts.append(json.loads(data))
        elif tag not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return page.html(finish(tmp_path_factory.mktemp("module") / "demo"))


@pytest.fixture(scope="module")
def reader(html):
    return Reader(html)


def test_is_well_formed_and_shows_every_section(html, reader):
    headings = re.findall(r"<h2[^>]*>([^<]+)", html)
    elsewhere = (
        "End tasks",
        "The final models",
        "Along the budget",
        "Online re-weighting",
        "Parts of the corpus",
    )  # which this study has not
    assert headings == [section.title for section in page.SECTIONS if section.title not in elsewhere]
    targets = {value[1:] for _, name, value in reader.attributes if name == "href"}
    assert targets == {value for tag, name, value in reader.attributes if (tag, name) == ("h2", "id")}
    assert len(reader.charts) == CHARTS
    for chart in reader.charts:
        assert all(one["data"] for one in ([chart] if "data" in chart else chart.values()))


def test_needs_no_network(html, reader):
    loading = [value for _, name, value in reader.attributes if name in ("src", "href", "srcset", "action")]
    assert all(value.startswith("#") for value in loading)
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\(", page._file("page.css"))


def test_holds_plotly_once_and_stays_small(html):
    assert len(re.findall(r"plotly\.js v\d", html)) == 1
    assert len(html.encode()) < 8e6


def test_charts_are_described_in_words(html, reader):
    labels = [value for tag, name, value in reader.attributes if (tag, name) == ("div", "aria-label")]
    assert (
        len([label for label in labels if label]) >= html.count('class="chart"') == html.count("<figcaption>") == CHARTS
    )


def test_summary_and_verdict(reader):
    text = " ".join(reader.text)
    assert "Regret of the recommended mixture: 0.0000 nats per token" in text
    assert "MSE ratio 0.25 (geometric mean over splits); MDE features improve predictions" in text
    assert "the text of code (installed_text/code/1.0)" in text
    assert "gensim 4.4.0" in text
    assert "Binds: web is at its min weight 0.4." in text


def test_is_the_same_wherever_the_study_lies(study, html):
    assert page.html(study) == html


def test_what_the_study_says_is_escaped(tmp_path):
    study = Study(tmp_path / "<b>study</b>")
    prepare(study, EVIL)
    train(study, EVIL)
    fit(study)
    optimize(study, EVIL)
    validate(study, VALIDATION, EVIL)
    html = page.html(study)
    assert "alert(" in html
    assert EVIL not in html
    assert "<b>study" not in html
    Reader(html)
    assert html.count("<script") == page._file("page.html").count("<script") + CHARTS + page.get_plotlyjs().count(
        "<script"
    )


def test_a_study_of_some_stages_names_the_commands_that_are_missing(tmp_path):
    study = Study(tmp_path / "started")
    assert "mde prepare --study=started" in page.html(study)
    prepare(study)
    train(study)
    html = page.html(study)
    assert len(Reader(html).charts) == 3
    assert "Trade-offs" not in html
    for stage in ("fit", "optimize", "validate"):
        assert f"run <code>mde {stage} --study=started</code>" in html


def test_a_recommendation_without_validation_says_so(study):
    for name in ("mixtures.csv", "losses.csv", "final.json"):
        (study.root / "validation" / name).unlink()
    text = " ".join(Reader(page.html(study)).text)
    assert "Not checked yet" in text
    assert "Measured" not in text


def test_a_study_without_experts_has_a_page(study):
    mixtures = study.mixtures()
    study.write_table("mixtures.csv", mixtures[mixtures["role"] == "proxy"])
    (study.root / "runs" / "seed" / "metrics.jsonl").unlink()
    reader = Reader(page.html(study))
    assert len(reader.charts) == CHARTS - 2
    assert "no metrics" in " ".join(reader.text)


def test_report_writes_the_page_and_prints_the_tables(study, capsys):
    report(study)
    assert (study.root / "report.html").read_text(encoding="utf-8") == page.html(study)
    assert "Regressors, cross-validated" in capsys.readouterr().out


def test_optima_of_somebody_else_have_their_section(study):
    found = {"budgets": [1e6, 2e6], "optima": [{"code": 4e5, "web": 6e5}, {"code": 9e5, "web": 1.1e6}]}
    target = {"target": 4e6, "tokens": {"code": 2e6, "web": 2e6}}
    study.write_json("scale.json", {"domains": ["code", "web"], "ddo": found | target})
    reader = Reader(page.html(study))
    assert len(reader.charts) == CHARTS + 1
    text = " ".join(reader.text)
    assert "Best mixture along the budget" in text
    assert "50.0%" in text
