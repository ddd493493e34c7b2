"""What is derived from a second moment, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bluedit.statistics import SecondMoment


def test_every_shrinkage_has_a_stored_inverse_of_its_own(tmp_path: Path) -> None:
    """C = diag(1, 3). Shrunk by half: diag(1/2 + 1, 3/2 + 1). Each is asked for twice, computed and then read."""
    moment = SecondMoment(torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)), 10, tmp_path / "moment.safetensors")
    for _ in range(2):
        plain, condition = moment.inverse()
        assert plain.diagonal().tolist() == pytest.approx([1, 1 / 3])
        assert condition == pytest.approx(3, rel=0.02)
        shrunk, condition = moment.inverse(0.5)
        assert shrunk.diagonal().tolist() == pytest.approx([1 / 1.5, 1 / 2.5])
        assert condition == pytest.approx(2.5 / 1.5, rel=0.02)
