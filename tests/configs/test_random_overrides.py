"""Whatever is typed: a configuration that passes, or a ConfigError; never anything else."""

import pytest
from commands import CONF, GROUPS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consistency_models.app.checks import check
from consistency_models.app.checks.table import FREE, TRAIN
from consistency_models.errors import ConfigError

KEYS = st.sampled_from(sorted(key.replace(".*", ".0") for key in (TRAIN | FREE)))
NAMES = st.sampled_from(sorted(GROUPS))
WORDS = st.text(st.characters(codec="ascii", exclude_characters="\x00"), max_size=12)
VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.booleans().map(str),
    st.sampled_from(
        ["null", "???", "[]", "{}", "''", "[1,2]", "{a:1}", "${seed}", "${model}", "${nothing.at.all}", "1,2"]
    ),
    st.sampled_from(["last", ".", "..", "/", "~", str(CONF), "'${oc.env:HOME}'", "range(3)", "choice(1,2)", "int(3)"]),
    st.sampled_from(sorted({option for options in GROUPS.values() for option in options})),
    WORDS,
)
OVERRIDES = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), KEYS, VALUES),
    st.builds("{}{}={}".format, st.sampled_from(["", "", "+", "~"]), WORDS, VALUES),
    st.builds("{}.{}={}".format, KEYS, WORDS, VALUES),
    st.builds("~{}".format, KEYS),
    WORDS,
)
COMMON = st.sampled_from(["", "model=ct", "data=mixture", "model=cd"])  # groups are composed anew, so there are few


COMMANDS = given(
    common=COMMON, overrides=st.lists(OVERRIDES, min_size=1, max_size=3), multirun=st.sampled_from([False] * 9 + [True])
)
ANY = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@settings(ANY, max_examples=150, derandomize=True)
@COMMANDS
def test_never_anything_but_an_error_of_ours(composer, common, overrides, multirun):
    passes_or_is_told(composer, common, overrides, multirun)


@pytest.mark.slow
@settings(ANY, max_examples=3000)
@COMMANDS
def test_never_in_many_other_commands_each_time(composer, common, overrides, multirun):
    passes_or_is_told(composer, common, overrides, multirun)


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_never_with_any_option_name(group, composer):
    for value in ("", "x y", "5", "[a,b]", "null", "???", "../data/digits", "/", "a/b", "*"):
        handed, told = outcome(composer, [f"{group}={value}"], False)
        assert handed is None
        assert told
        assert all(" is not allowed" in line and "\n" not in line for line in told)


def passes_or_is_told(composer, common, overrides, multirun):
    lines = [line for line in [common, *overrides] if line]
    handed, told = outcome(composer, lines, multirun)
    assert handed is None or handed[: len(lines)] == lines
    assert all(" is not allowed" in line and "\n" not in line for line in told)


def outcome(composer, lines, multirun):
    """What is handed on to Hydra, or the lines of a ConfigError."""
    try:
        return check("train", composer, lines, multirun), []
    except ConfigError as error:
        return None, str(error).split("\nerror: ")
