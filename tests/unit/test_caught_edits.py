"""Which of several equal edits is taken back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bluedit.edits import Patch, applied_patches
from bluedit.models import EditableModel


def test_of_equal_edits_the_last_is_taken_back(
    own_gpt2: EditableModel, make_patch: Callable[..., Patch], tmp_path: Path
) -> None:
    """Applied are an edit, another, and the first one again, each read from its file; a third copy takes the last one back."""
    path = make_patch(own_gpt2).save(tmp_path / "one")
    first, again, copy = (Patch.load(path) for _ in range(3))
    other = make_patch(own_gpt2, seed=1)
    for patch in (first, other, again):
        patch.apply(own_gpt2, check=False)
    copy.revert(own_gpt2)
    left = applied_patches(own_gpt2)
    assert [id(patch) for patch in left] == [id(first), id(other)]
