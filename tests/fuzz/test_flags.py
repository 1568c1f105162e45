"""Any line of flags ends in a value or in one line that says what to do, within 20 seconds."""

import argparse
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exajax.cli import dispatch
from tests.fuzz import EXAMPLES
from tests.fuzz.commands import REPOSITORY, Commands, check

BASE: dict[str, list[str]] = {
    "simulate": [
        *("--model=gpt-tiny", "--mesh=2x2", "--cluster=dgx-h100", "--engine=analytic", "--json"),
    ],
    "plan": [
        *("--model=gpt-tiny", "--cluster=dgx-h100", "--devices=8", "--global-batch=8", "--json"),
    ],
    "train": ["--model=gpt-tiny", "--mesh=2x1", "--global-batch=4", "--seq=64", "--data=text.txt"],
    "chaos": ["--model=gpt-tiny", "--mesh=2x1", "--hosts=2", "--data=text.txt", "--kills=1"],
    "validate": ["--table=table.csv", "--json"],
    "tokenise": ["--data=text.txt", "--seq=16", "--out=tokens"],
    "goodput": ["--run-dir=run", "--json"],
}
"""By command: a line that is right and soon done."""

SLOW = {"--verify", "--verify-all", "--engine", "--profile", "--plot", "--out-dir"}
"""Flags that are left as they are: what they ask for takes longer than a line may."""

TEXTS = (
    *("", " ", "0", "-1", "1", "2", "3", "7", "8", "1e3", "1e400", "nan", "inf", "-inf", "0x10"),
    *("1_000", "٣", "4294967296", "9223372036854775808", "9" * 30, "9" * 5000, "0.5", "1e-320"),
    *("../x", "/", ".", "run", "text.txt", "none.txt", "x" * 300, "x/" * 200, "a,b", "a=b"),
    *("data=2,data=2", "data=2,model=2,pipe=2", "999999999x1", "2x", "0x0", "fsdp=2", "auto"),
    *("bytes", "llama-tiny", "mixtral-tiny", "vit-tiny", "local", "tpu-v5p", "fp8", "full", "None"),
    *("\n", "\t", "é", "日本", "\ud800", "--", "-", "$\\frac$", "%s", "{}", "<b>", "0.5:text.txt"),
)


def subparsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = [
        action
        for action in dispatch.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(commands.choices)


def actions(command: str) -> list[argparse.Action]:
    return [
        action
        for action in subparsers()[command]._actions
        if action.option_strings and not SLOW & set(action.option_strings) and action.dest != "help"
    ]


@st.composite
def value(draw: st.DrawFn, action: argparse.Action) -> str:
    if action.choices and draw(st.booleans()):
        return str(draw(st.sampled_from(sorted(map(str, action.choices)))))
    return draw(
        st.sampled_from(TEXTS)
        | st.integers(-(10**6), 10**6).map(str)
        | st.floats().map(str)
        | st.text(max_size=8).filter(lambda text: "\0" not in text)
    )


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(sorted(BASE)))
    argv = list(BASE[command])
    for action in draw(st.lists(st.sampled_from(actions(command)), min_size=1, max_size=3)):
        flag = action.option_strings[-1]
        argv = [word for word in argv if word.partition("=")[0] != flag]
        argv.append(flag if action.nargs == 0 else f"{flag}={draw(value(action))}")
    return [command, *argv]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("flags")
    (folder / "text.txt").write_text("Some text to train on, which is read over and over.\n" * 400)
    table = (REPOSITORY / "meshes" / "published" / "megatron_sc21.csv").read_text()
    (folder / "table.csv").write_text("\n".join(table.splitlines()[:4]) + "\n")
    started = Commands(folder)
    yield started
    started.close()


@pytest.mark.parametrize("command", sorted(BASE))
def test_the_line_that_others_are_drawn_from_is_right(commands: Commands, command: str) -> None:
    ended = commands.run([command, *BASE[command]])
    check(ended)
    assert ended.code == (2 if command == "goodput" else 0), ended.err


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(line=lines())
def test_any_line_ends_in_a_value_or_in_one_line_of_error(
    commands: Commands, line: list[str]
) -> None:
    check(commands.run(line))
