"""Mean target size against the published figures, over enough images to tell."""

from __future__ import annotations

import pytest

from benchmarks.generator import (
    AUTHORS_LOGS,
    PUBLIC_GENERATOR,
    machine,
    measure,
    report,
)

IMAGES = 300


@pytest.mark.parametrize("name", sorted({*PUBLIC_GENERATOR, *AUTHORS_LOGS}))
def test_mean_target_is_within_three_percent_of_the_published(name):
    measured = measure(name, images=IMAGES, repeats=1, seed=11)
    assert measured.standard_error < 0.004 * measured.target_pixels
    for published in (PUBLIC_GENERATOR, AUTHORS_LOGS):
        if name in published:
            assert measured.target_pixels == pytest.approx(published[name], rel=0.03)


@pytest.mark.parametrize(("name", "pixels"), [("tiny", 37), ("small", 49.5)])
def test_quick_presets_have_the_size_they_were_designed_for(name, pixels):
    assert measure(name, images=IMAGES, repeats=1).target_pixels == pytest.approx(pixels, rel=0.03)


def test_report_sets_measured_beside_published():
    lines = report(["14@150", "tiny"], images=3, repeats=2).splitlines()
    assert machine() in lines[0]
    assert lines[2].startswith("14@150") and "64.9 (" in lines[2] and "66.2 (" in lines[2]
    assert lines[3].startswith("tiny") and lines[3].split()[-2:] == ["-", "-"]
