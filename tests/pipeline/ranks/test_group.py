"""What ranks tell each other when one of them ends, as far as one process can tell."""

import os
import signal
import threading

import pytest
from torch import distributed

from lrrt_stage import LRRTError
from pipeline.ranks import group
from pipeline.ranks.group import Ranks
from pipeline.ranks.options import RankOptions
from pipeline.ranks.share import Share

BROKEN = RuntimeError("[gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:54321")


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(group, "NOTICE_SECONDS", 0.1)
    return distributed.HashStore()


def rank(number, store, ended=()):
    return Ranks(Share(number, 3), RankOptions(3), store, lambda: list(ended))


def explained(ranks, error):
    """What the command says for an error of this rank."""
    with pytest.raises(LRRTError) as raised:
        ranks.explain(error)
    return str(raised.value)


def test_a_rank_whose_connection_broke_is_not_the_cause(store):
    rank(2, store).fail(BROKEN)
    assert explained(rank(0, store, ended=[1, 2]), BROKEN).startswith(
        "rank 1 was ended from outside"
    )
    rank(1, store).fail(ValueError("bad example"))
    rank(2, store).fail(BROKEN)
    assert explained(rank(0, store, ended=[1, 2]), BROKEN) == "on rank 1: bad example"


def test_the_first_cause_is_kept(store):
    rank(1, store).fail(ValueError("first"))
    rank(2, store).fail(ValueError("second"))
    assert rank(0, store).failure()["reason"] == "first"


def test_an_error_that_only_sounds_like_a_connection_is_shown(store):
    line = explained(rank(0, store), RuntimeError("NCCL: Duplicate GPU detected"))
    assert line.startswith("NCCL: Duplicate GPU detected; perhaps another rank")


def test_other_errors_are_left_alone(store):
    rank(0, store).explain(ValueError("bad"))


def test_ctrl_c_while_rank_0_waits_for_a_rank_is_told_to_all(store, monkeypatch):
    """The main thread is in a collective: its handler would be called when that is over."""
    monkeypatch.setattr(group, "WATCH_SECONDS", 0.05)
    left = threading.Event()
    monkeypatch.setattr(group, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(group, "_leave", lambda *how: (told.append(how), left.set()))
    told = []
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        ranks = rank(0, store)
        with group.member_of(ranks):
            ranks.is_calling = True
            os.kill(os.getpid(), signal.SIGINT)
            assert left.wait(5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ranks.failure()["interrupted"]
    assert told[0] == ("Interrupted: another process does not answer\n", 130)
