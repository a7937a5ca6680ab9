"""What is said of final models, by hand: two mixtures, one run each, on two of three evaluation domains that count."""

import numpy as np
import pandas as pd
import pytest

from mde.reporting import final
from mde.study import Study


@pytest.fixture
def part(tmp_path):
    study = Study(tmp_path)
    domains = {"training_domains": ["code", "web"], "evaluation_domains": ["code", "web", "news"]}
    study.write_json("study.json", {"format": 3, **domains})
    runs = pd.DataFrame({"role": ["first", "second"], "seed": 1, "steps": 4, "code": [0.5, 0.2], "web": [0.5, 0.8]})
    index = pd.Index(["a", "b"], name="run")
    study.write_table("mixtures.csv", runs.set_axis(index))
    losses = pd.DataFrame([[2.0, 4.0, 9.0], [3.0, 3.0, 9.0]], index, ["code", "web", "news"])
    study.write_table("losses.csv", losses)
    text = pd.DataFrame({"tokens": [300, 100, 500], "bytes": [600, 400, 500]}, ["code", "web", "news"])
    study.write_table("evaluation.csv", text.rename_axis("domain"))
    errors = dict.fromkeys(("error", "error_seeds", "error_text", "freedom", "p", "p_holm", "seeds_needed"), np.nan)
    rows = {"measured": [4.0, 3.0], "noise": np.nan, "seeds": 1, "difference": [0.0, -1.0], **errors}
    summary = pd.DataFrame({**rows, "clear": False}, pd.Index(["first", "second"], name="mixture"))
    study.write_table("summary.csv", summary)
    return study


@pytest.mark.parametrize("objective", ["worst-sp", "avg-sp", {"code": 3, "web": 1}])
def test_bits_per_byte_are_total_bits_over_total_bytes_of_what_counts(part, objective):
    spent = {"tokens": 1, "flops": 1.0, "controlled": 1.0}
    cost = {"run": spent, "runs": 2, **spent, "proxies": {"runs": 1, **spent}}
    about = {"objective": objective, "reference": None, "against": "first", "cost": cost}
    part.write_json("final.json", {**about, "proxy_setting": False, "documents": 6})
    table = final.predictions(part)
    expected = np.array([300 * 2 + 100 * 4, 300 * 3 + 100 * 3]) / (600 + 400) / np.log(2)
    assert table.frame["bits per byte"].tolist() == [f"{bits:.4f}" for bits in expected]
    assert any("of the 2 evaluation domains that the objective counts" in note for note in table.notes)
