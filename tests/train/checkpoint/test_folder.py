"""How many checkpoints stay in a folder."""

import pytest

from exajax.train.checkpoint import folder


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [3]), (2, [3, 2]), (9, [3, 2, 1]), (None, [3, 2, 1])]
)
def test_as_many_of_the_newest_stay_as_were_asked_for(tmp_path, keep, left):
    for step in (1, 2, 3):
        saving = tmp_path / f"{step}.token.saving"
        saving.mkdir()
        folder.commit(saving, step, keep)
    assert folder.steps_in(tmp_path) == left
