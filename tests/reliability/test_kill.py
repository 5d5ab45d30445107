"""Three kills at random moments, as `kill.py` makes many; the figures of its full run are in docs/reliability.md."""

import kill


def test_three_kills_change_nothing(capsys):
    variant = "2 processes, 1 worker each"
    assert kill.main(["--methods", "ict", "--kills", "3", "--variants", variant, "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"ict, {variant}: ") for line in lines) == 3
    assert lines[-1].startswith("3 kills, ")
    assert lines[-1].endswith(" 0 runs that differ")
