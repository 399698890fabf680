from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from lrrt_stage import RULES, LRCurve, LRRange
from lrrt_stage.plots import drawing
from pipeline import TrainOptions
from pipeline.jobs.jobs import FailedJob, TrainingJob
from pipeline.studies import report
from pipeline.studies.report import FINDINGS, study_frame, write_findings
from pipeline.studies.study import Findings

NASTY = "<b>bold</b> & </script><script>alert(1)</script>"
PNG = b"\x89PNG\r\n\x1a\n"
SOURCE = {
    "task": "digits mlp",
    "setting": "digits, model mlp",
    "run": "a study (12ab)",
    "date": "2026-11-26 10:00",
}


class Page(HTMLParser):
    """What a browser would make of a page: tags with attributes, text, and scripts apart."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "hr"):
            self.inside.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "script":
            self.scripts.append(data)
        elif not (self.inside and self.inside[-1] == "style"):
            self.text += data


def findings(title="A title", **more):
    figure, (ax,) = drawing.new_figure()
    ax.plot([0.1, 1.0], [2.0, 1.0], label=more.pop("label", "loss"))
    table = pd.DataFrame({"test": ["a", more.pop("cell", "b")], "lr": [0.012345678, np.nan]})
    return Findings(
        title,
        more.pop("question", "A question?"),
        more.pop("sentences", ["One answer.", "And another."]),
        more.pop("advice", "Do this."),
        {"x": 0.5, "unknown": math.nan},
        {"curves": figure},
        {more.pop("heading", "A table"): table},
    )


def written(folder, found=None, source=SOURCE):
    write_findings(found or findings(), folder, "smoothing", "robust", source)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_a_study_is_written_as_figures_numbers_and_a_report(tmp_path):
    written(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"curves.png", "curves.svg", FINDINGS, "report.html"}
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    content = json.loads((tmp_path / FINDINGS).read_text(encoding="utf-8"))
    assert (content["kind"], content["rule"], content["advice"]) == (
        "smoothing", "robust", "Do this."
    )  # fmt: skip
    assert content["metrics"]["x"] == 0.5
    assert content["tables"]["A table"]["data"] == [["a", 0.012345678], ["b", None]]


def test_the_report_shows_all_of_it_and_needs_no_other_file(tmp_path):
    page = Page(written(tmp_path))
    assert page.inside == []
    for text in ("A title", "A question?", "One answer.", "And another.", "A table", "0.01235", "–",
                 *SOURCE.values(), RULES["robust"].explanation, "Do this."):  # fmt: skip
        assert text in page.text
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data) == (tmp_path / "curves.svg").read_bytes()
    assert "A title" in image["alt"]
    # The last thing that a reader sees is what to do.
    assert page.text.strip().endswith("Do this.")
    assert [tag for tag, attributes in page.tags if tag != "img" and "src" in attributes] == []
    assert [tag for tag, _ in page.tags if tag in ("link", "iframe", "script", "a")] == []


def test_what_a_user_wrote_is_shown_and_not_run(tmp_path):
    nasty = findings(
        NASTY, question=NASTY, sentences=[NASTY], label=NASTY, cell=NASTY, heading=NASTY,
        advice=NASTY,
    )  # fmt: skip
    page = Page(written(tmp_path, nasty, dict.fromkeys(SOURCE, NASTY)))
    assert page.inside == []
    assert [attributes for tag, attributes in page.tags if tag == "b" and attributes] == []
    assert page.scripts == []
    assert page.text.count(NASTY) >= 10


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_explained_in_plain_words(rule):
    text = RULES[rule].explanation
    assert len(text) > 20
    assert not {"`", "\n"} & set(text)


@pytest.mark.parametrize(("rows", "is_open"), [(12, True), (13, False)])
def test_long_tables_are_folded(tmp_path, rows, is_open):
    long = Findings("T", "Q?", [], "Do.", tables={"Tests": pd.DataFrame({"x": range(rows)})})
    page = Page(written(tmp_path, long))
    (attributes,) = (attributes for tag, attributes in page.tags if tag == "details")
    assert ("open" in attributes) == is_open


def test_the_tidy_table_has_a_row_per_test_and_iteration(measured, job):
    def test(name, loss, **labels):
        curve = LRCurve([0.1, 1.0, 10.0][: len(loss)], loss)
        return measured(replace(job(), name=name, labels=labels), curve)

    frame = study_frame(
        [test("a", [3.0, 2.0, 4.0], group="x"), test("b", [3.0, math.nan], group="y", step=2)]
    )
    assert frame["test"].tolist() == ["a"] * 3 + ["b"] * 2
    assert frame["group"].tolist() == ["x"] * 3 + ["y"] * 2
    assert frame["iteration"].tolist() == [0, 1, 2, 0, 1]
    assert frame["lr"].tolist() == [0.1, 1.0, 10.0, 0.1, 1.0]
    assert np.array_equal(frame["loss"], [3, 2, 4, 3, math.nan], equal_nan=True)
    # The plan's average, which here is the loss itself.
    assert np.array_equal(frame["smoothed_loss"], frame["loss"], equal_nan=True)
    assert np.array_equal(frame["step"], [math.nan] * 3 + [2] * 2, equal_nan=True)


def test_validation_losses_are_in_it_where_they_were_taken(measured, job):
    watched = LRCurve([0.1, 1.0], [3.0, 2.0], val_loss=[4.0, 5.0], full_val_loss=[math.nan, 6.0])
    frame = study_frame([measured(job(), LRCurve([0.1], [3.0])), measured(job(), watched)])
    assert np.array_equal(frame["val_loss"], [math.nan, 4, 5], equal_nan=True)
    assert np.array_equal(frame["full_val_loss"], [math.nan, math.nan, 6], equal_nan=True)


def test_a_row_per_range_test_also_of_those_that_failed(measured, suggesting, job, flat):
    good = suggesting(job(3, 4, batch_size=8), 1e-4, 1e-2)
    silent, broken = measured(job(5), flat), replace(job(6), labels={"group": "x"})
    training = TrainingJob("t", job().task, LRRange(0.1, 1.0), TrainOptions())
    frame = report.tests_frame(
        [
            good,
            silent,
            FailedJob(broken, "out of memory"),
            FailedJob(training, "a training that failed"),
        ]
    ).set_index("test")

    assert list(frame.index) == [good.job.name, silent.job.name, broken.name]
    first, second, third = (frame.iloc[index] for index in range(3))
    assert (first["seed"], first["data_seed"], first["batch_size"]) == (3, 4, 8)
    assert (first["lr_min"], first["lr_max"]) == pytest.approx((1e-4, 1e-2))
    assert (first["iterations"], first["stop"], first["error"]) == (71, "completed", "")
    assert first["suggestion.article"] == pytest.approx(1e-2)
    assert first["suggestion.minimum"] == pytest.approx(1e-2)
    assert math.isnan(second["lr_max"])
    assert math.isnan(second["suggestion.article"])
    assert (third["error"], third["seed"], third["group"]) == ("out of memory", 6, "x")
    assert math.isnan(third["iterations"])
