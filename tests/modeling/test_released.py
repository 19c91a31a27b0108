"""Options that give the released code's models and losses."""

from __future__ import annotations

import pytest

from crbp_d2.core import LipschitzCoefficientPenalty, Neumann, Unroll
from crbp_d2.modeling.build import recurrence

BPTT = ("CRBP.ALGORITHM", "bptt+lcp", "CRBP.SOLVER.STEPS", 6)


@pytest.mark.parametrize(
    ("overrides", "adjoint"), [((), Neumann(blocks="first")), (BPTT, Unroll())]
)
def test_the_papers_conv_lstm_is_trained_through_blocks(overrides, adjoint, load_config):
    found = recurrence(load_config("pathfinder/conv_lstm_14.yaml", *overrides).CRBP)
    assert found.adjoint == adjoint
    assert found.penalties == (LipschitzCoefficientPenalty(blocks="diagonal"),)
