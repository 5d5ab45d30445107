"""Three kills, as `kill.py` makes many; the figures of its full run are in docs/reliability.md."""

import random

import kill


def test_three_kills_change_nothing(tmp_path):
    moments = ["second starting", "saving", "one process"]
    killed, difference = kill.one("ict", "2 processes, 1 worker each", moments, tmp_path, random.Random(3), steps=70)
    assert difference == ""
    assert [each.split(":")[0] for each in killed] == moments
    assert not any("left behind" in each for each in killed)
