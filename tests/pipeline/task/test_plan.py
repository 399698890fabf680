from __future__ import annotations

from pipeline.task.plan import ValidationOptions


def test_the_sample_is_a_third_of_a_batch_unless_it_is_given():
    assert ValidationOptions("sample").sample_size(64) == 21
    assert ValidationOptions("sample").sample_size(1) == 1
    assert ValidationOptions("sample", 50).sample_size(64) == 50


def test_what_cannot_be_used_is_named(complains):
    with complains("unknown validation 'som'"):
        ValidationOptions("som")
    with complains("validation_sample=0 must be"):
        ValidationOptions("sample", 0)
    with complains("probe=-3"):
        ValidationOptions(probe=-3)
    with complains("probe=1 is not enough"):
        ValidationOptions(probe=1)


def test_the_probe_is_a_third_of_a_batch_but_at_least_64_unless_it_is_given():
    assert ValidationOptions().probe_size(16) == 64
    assert ValidationOptions().probe_size(512) == 170
    assert ValidationOptions(probe=0).probe_size(64) == 0
    assert ValidationOptions(probe=10).probe_size(64) == 10
