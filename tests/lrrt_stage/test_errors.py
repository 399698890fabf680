"""The verdicts, and the words that runs had for them before."""

import pytest

from lrrt_stage import Verdict


@pytest.mark.parametrize("verdict", Verdict)
def test_a_verdict_is_read_back_by_its_words(verdict):
    assert Verdict(str(verdict)) is verdict


def test_a_verdict_of_an_earlier_run_is_read_by_its_words():
    assert Verdict("clear") is Verdict.CLEAR
    assert Verdict("uncertain: noisy curve") is Verdict.NOISY
    assert Verdict("uncertain: the tests differ") is Verdict.APART
    assert Verdict("uncertain: unusual ramp") is Verdict.RAMP


@pytest.mark.parametrize("words", ["", "clearly", "uncertain", "noisy curve", None])
def test_other_words_are_no_verdict(words):
    with pytest.raises(ValueError, match="not a valid Verdict"):
        Verdict(words)
