"""Which checkpoint a run resumes from, and how they are removed."""

import json

from pipeline.training.checkpoints import find_last_checkpoint, remove_checkpoints


def make(folder, step, state):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_newest_whole_checkpoint_by_number(tmp_path):
    make(tmp_path, 9, json.dumps({"global_step": 9}))
    newest = make(tmp_path, 10, json.dumps({"global_step": 10}))
    make(tmp_path, 11, None)
    make(tmp_path, 12, '{"global_step": 12')
    make(tmp_path, 13, json.dumps({"global_step": 12}))
    (tmp_path / "checkpoint-best").mkdir()
    assert find_last_checkpoint(tmp_path) == newest


def test_none_without_a_whole_one(tmp_path):
    assert find_last_checkpoint(tmp_path) is None
    make(tmp_path, 3, None)
    assert find_last_checkpoint(tmp_path) is None


def test_only_checkpoints_are_removed(tmp_path):
    make(tmp_path, 3, "{}")
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "run.json").write_text("{}")
    remove_checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-notes", "run.json"}
