from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrrt_stage import LRCurve, LRRTError, Smoothing
from tests.strategies import ANY_FLOAT, curves, read_or_named

LR = [0.1, 0.2, 0.4]
# Neither has a short decimal form: a round trip through text must not lose the last bit.
LOSS = [1 / 3, np.pi, 2**-40 / 7]


def test_csv_round_trip_is_exact(tmp_path):
    curve = LRCurve(LR, LOSS, val_loss=LOSS[::-1], stop="diverged", epochs=1.5)
    path = curve.to_csv(tmp_path / "curve.csv")
    assert LRCurve.from_csv(path, stop="diverged", epochs=1.5) == curve


def test_csv_has_the_published_columns(tmp_path):
    LRCurve(LR, LOSS).to_csv(tmp_path / "a.csv", Smoothing(beta=0.0))
    frame = pd.read_csv(tmp_path / "a.csv", converters={"smoothed_loss": float})
    assert list(frame) == ["iteration", "lr", "loss", "smoothed_loss"]
    assert frame["iteration"].tolist() == [0, 1, 2]
    assert frame["smoothed_loss"].tolist() == LOSS
    LRCurve(LR, LOSS, val_loss=LOSS).to_csv(tmp_path / "b.csv")
    assert list(pd.read_csv(tmp_path / "b.csv"))[-1] == "val_loss"


def test_a_non_finite_last_loss_survives_the_round_trip(tmp_path):
    curve = LRCurve(LR, [1.0, 2.0, np.nan])
    assert LRCurve.from_csv(curve.to_csv(tmp_path / "curve.csv")) == curve
    assert len(curve.finite) == 2


def test_curves_do_not_change():
    curve = LRCurve(LR, LOSS)
    with pytest.raises(ValueError, match="read-only"):
        curve.loss[0] = 0.0


def test_curves_differ_by_a_single_bit():
    assert LRCurve(LR, LOSS) != LRCurve(LR, [np.nextafter(LOSS[0], 1), *LOSS[1:]])
    assert LRCurve(LR, LOSS) != LRCurve(LR, LOSS, stop="diverged")


def test_lengths_must_agree():
    with pytest.raises(LRRTError, match=r"loss has shape \(2,\), lr has 3 values"):
        LRCurve(LR, LOSS[:2])


def test_a_file_that_is_no_curve_is_named(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LRRTError, match="has no column"):
        LRCurve.from_csv(tmp_path / "other.csv")


@given(curves(ANY_FLOAT))
def test_any_curve_comes_back_from_csv_unchanged(curve):
    with TemporaryDirectory() as folder:
        path = curve.to_csv(Path(folder) / "curve.csv")
        assert LRCurve.from_csv(path, stop=curve.stop) == curve


LINES = st.text("lr,os0123456789.-+einfa\n\r\"'\0 _", max_size=100)


@given(st.binary(max_size=100) | LINES.map(lambda lines: f"lr,loss\n{lines}".encode()))
def test_any_file_is_a_curve_or_named_in_one_line(content):
    found = read_or_named(LRCurve.from_csv, "curve.csv", content)
    assert isinstance(found, (LRCurve, LRRTError))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LRRTError, match="nowhere.csv is no table"):
        LRCurve.from_csv(tmp_path / "nowhere.csv")
