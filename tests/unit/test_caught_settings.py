"""What counts where a setting is named more than once."""

from __future__ import annotations

from bluedit.methods import MEMIT


def test_what_is_asked_for_counts_most_and_of_presets_the_last() -> None:
    first, second = {"lambda": 5, "v_lr": 0.1, "kl_factor": 0.25}, {"lambda": 6, "v_lr": 0.2}
    found = MEMIT.override(first, second, {"lambda": 7}).as_dict()
    assert (found["lambda"], found["v_lr"], found["kl_factor"]) == (7, 0.2, 0.25)
    assert found["clamp_norm_factor"] == MEMIT.settings.as_dict()["clamp_norm_factor"]
