from __future__ import annotations

import pytest

from pipeline.task.plan import ValidationOptions, full_evaluations


def test_the_sample_is_a_third_of_a_batch_unless_it_is_given():
    assert ValidationOptions("sample").sample_size(64) == 21
    assert ValidationOptions("sample").sample_size(1) == 1
    assert ValidationOptions("sample", 50).sample_size(64) == 50


def test_evaluations_of_the_full_set_keep_to_a_share_of_the_training_examples():
    assert full_evaluations(100 * 64, 360) == 2  # 0.15 · 6,400 / 360 = 2.7
    assert full_evaluations(97 * 512, 10_000) == 2  # 0.7, but two at the least
    assert full_evaluations(150 * 64, 360) == 4
    assert full_evaluations(1000 * 512, 100) == 5
    assert full_evaluations(10 * 8, 5000) == 2


def test_what_cannot_be_used_is_named(complains):
    with complains("unknown validation 'som'"):
        ValidationOptions("som")
    with complains("validation_sample=0 must be"):
        ValidationOptions("sample", 0)


def test_the_probe_is_a_third_of_a_batch_but_at_least_64_unless_it_is_given():
    assert ValidationOptions().probe_size(16) == 64
    assert ValidationOptions().probe_size(512) == 170
    assert ValidationOptions(probe=0).probe_size(64) == 0
    assert ValidationOptions(probe=10).probe_size(64) == 10


@pytest.mark.parametrize("probe", [1, -3])
def test_a_probe_that_batch_norm_could_not_take_is_refused(probe, complains):
    with complains(f"probe={probe}"):
        ValidationOptions(probe=probe)
