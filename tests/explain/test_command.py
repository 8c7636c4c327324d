"""`manualbp explain` as users meet it: what it prints, its exit codes, its files."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Picture
from rich.cells import cell_len
from small_runs import call, contents, events

from manualbp import cli
from manualbp.explain import command
from manualbp.explain.page import Page
from manualbp.explain.registry import Topic, topics

Plant = Callable[..., None]


def right(page: Page) -> None:
    page.heading("A sum")
    page.line("y", "a + b", 3.0, numbers="1 + 2", equals=3.0, because="counting")


def wrong(page: Page) -> None:
    right(page)
    page.line("z", "a · b", 4.0, numbers="1 · 2", equals=2.0, because="counting")
    page.claim("one is two", False, "1 ≠ 2")


def drawn(page: Page) -> None:
    right(page)
    page.picture("slope", "a straight line", straight_line)


def straight_line() -> Picture:
    picture = Picture()
    picture.add_subplot().plot([0, 1], [0, 1])
    return picture


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Let there be other topics than there are: plant(name=function, ...)."""

    def replace(**writers: Callable[[Page], None]) -> None:
        planted = {name: Topic(name, f"About {name}", ("R01",), w) for name, w in writers.items()}
        monkeypatch.setattr(command, "topics", lambda: planted)

    return replace


def refused(*words: object) -> str:
    code, out, err = call("explain", *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"manualbp: .{10,}\n", err)
    return err.removeprefix("manualbp: ").rstrip("\n")


# Pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(topics()))
def test_every_topic_holds_and_keeps_within_80_columns(name: str) -> None:
    code, out, err = call("explain", name)
    assert (code, err) == (0, "")
    assert "all hold." in out
    assert max(map(cell_len, out.splitlines())) <= 80
    assert not re.search(r"\x1b|[─━│╭✗]", out)  # no colours, no frames
    assert not re.search(r" $", out, re.MULTILINE)


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_other_seeds_give_other_numbers_that_hold(seed: int) -> None:
    names = ("linear", "maxout", "softmax", "cross-entropy", "relu", "dropout")
    code, out, _ = call("explain", *names, "--seed", seed)
    assert code == 0
    assert out != call("explain", *names)[1]
    assert f"--seed {seed}" in out


def test_a_page_has_title_and_verdict(plant: Plant) -> None:
    plant(sums=right)
    code, out, err = call("explain", "sums")
    assert (code, err) == (0, "")
    assert out.startswith("About sums\nmanualbp explain sums  (R01)\n------")
    assert "  y = a + b\n    = 1 + 2\n    = 3 " in out
    assert out.endswith("✓ 1 line checked, all hold.\n\n")


def test_a_terminal_gets_colours_and_rules(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(sums=right)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = call("explain", "sums")
    assert "\x1b[1;36mA sum" in out
    assert "─" * 80 in out
    assert "─" * 81 not in out


def test_an_output_without_greek_letters_gets_question_marks(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(sums=lambda page: page.say("Σ is a sum."))
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert cli.main(["explain", "sums"]) == 0
    ascii_only.seek(0)
    assert "? is a sum." in ascii_only.read()


def test_several_topics_come_in_the_order_asked_for(plant: Plant) -> None:
    plant(a=right, b=right)
    assert re.findall(r"About \w", call("explain", "b", "a")[1]) == ["About b", "About a"]
    assert re.findall(r"About \w", call("explain", "--all")[1]) == ["About a", "About b"]


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    code, out, err = call("explain", "--net", "3-4-2", "--activation", "tanh", "--loss", "mse")
    assert (code, err) == (0, "")
    assert out.startswith("The network 3-4-2 with tanh and mse\nmanualbp explain --net 3-4-2\n")
    assert max(map(cell_len, out.splitlines())) <= 80
    assert "all hold." in out
    assert "Traceback" not in refused("--net", "3-4-2", "--values", tmp_path / "none.json")
    assert "did you mean tanh" in refused("--net", "3-4-2", "--activation", "tahn")


# What is wrong -----------------------------------------------------------------------------------


def test_a_wrong_line_ends_with_1_and_says_what_it_should_be(plant: Plant) -> None:
    plant(sums=wrong)
    code, out, _ = call("explain", "sums")
    assert code == 1
    assert "✗ WRONG: it should be 2" in out
    assert "✗ WRONG: one is two" in out
    assert "✗ 2 of 3 lines checked are wrong." in out


def test_check_prints_a_line_a_topic_and_what_is_wrong(plant: Plant) -> None:
    plant(good=right, bad=wrong)
    code, out, _ = call("explain", "--all", "--check")
    assert code == 1
    good, bad, *details = out.splitlines()
    assert re.fullmatch(r"good +1 checked   all hold", good)
    assert re.fullmatch(r"bad +3 checked   2 WRONG", bad)
    assert details[:4] == ["  z = a · b", "    = 1 · 2", "    = 4", "      ✗ WRONG: it should be 2"]
    assert details[-1] == "✗ 2 of 4 lines on 2 pages are wrong."
    code, out, _ = call("explain", "good", "--check")
    assert code == 0
    assert out.splitlines()[-1] == "✓ 1 lines on 1 page checked, all hold."


def test_a_wrong_line_ends_json_with_1_too(plant: Plant) -> None:
    plant(good=right, bad=wrong)
    code, out, _ = call("explain", "--all", "--check", "--json")
    assert code == 1
    good, bad = json.loads(out)
    assert (good["checked"], good["wrong"], good["items"]) == (1, 0, [])
    assert [item["kind"] for item in bad["items"]] == ["line", "claim"]
    assert not any(item["holds"] for item in bad["items"])
    assert call("explain", "bad", "--json")[0] == 1


# Data, lists, help -------------------------------------------------------------------------------


def test_json_is_a_list_of_pages_with_the_same_content() -> None:
    code, out, err = call("explain", "softmax", "mse", "--json", "--seed", 3)
    assert (code, err) == (0, "")
    softmax, mse = json.loads(out)
    assert (softmax["topic"], mse["topic"], mse["seed"]) == ("softmax", "mse", 3)
    assert softmax["rows"] == ["R13"]
    lines = [item for item in softmax["items"] if item["kind"] == "line"]
    assert len(lines) + sum(i["kind"] == "claim" for i in softmax["items"]) == softmax["checked"]
    for line in lines:
        assert line["holds"] is True
        assert line["because"]


def test_the_list_has_every_topic_under_a_heading() -> None:
    code, out, err = call("explain", "--list")
    assert (code, err) == (0, "")
    assert max(map(cell_len, out.splitlines())) <= 80
    assert set(re.findall(r"^  (\S+)(?= |$)", out, re.MULTILINE)) == set(topics())
    words = " ".join(out.split())  # titles go on in further lines
    assert all(" ".join(entry.title.split()) in words for entry in topics().values())
    headings = re.findall(r"^(?=\S)(.+)$", out, re.MULTILINE)
    assert headings[-3:] == ["Layers", "Losses", "Read one with: manualbp explain TOPIC"]
    assert call("explain")[1] == out
    listed = json.loads(call("explain", "--list", "--json")[1])
    assert {entry["topic"] for entry in listed} == set(topics())
    assert {entry["group"] for entry in listed} == set(headings[:-1])


def test_errata_is_short_for_explain_errata(plant: Plant) -> None:
    plant(errata=right)
    assert call("errata") == call("explain", "errata")
    assert call("errata", "--json") == call("explain", "errata", "--json")
    plant(errata=wrong)
    assert call("errata").code == 1


@pytest.mark.parametrize("verb", ["explain", "errata"])
def test_the_help_fits_80_columns(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code in (0, None)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "--json" in out


# Bad input ---------------------------------------------------------------------------------------


def test_an_unknown_topic_is_refused_with_a_near_miss() -> None:
    assert "did you mean softmax?" in refused("sofmax")
    assert "did you mean leaky-relu?" in refused("relu", "LeakyReLU")


@pytest.mark.parametrize(
    "words",
    [
        ("--list", "--all"),
        ("--list", "relu"),
        ("--all", "relu"),
        ("--all", "--net", "3-4-2"),
        ("relu", "--net", "3-4-2"),
        ("--check",),
        ("--list", "--check"),
        ("--save", "pictures"),
        ("--list", "--save", "pictures"),
        ("relu", "--activation", "tanh"),
        ("--loss", "mse"),
        ("--all", "--values", "values.json"),
        ("relu", "--seed", "-1"),
        ("relu", "--seed", 2**32),
        ("relu", "--colour"),
    ],
)
def test_contradictions_are_refused_in_one_line(words: tuple[object, ...]) -> None:
    refused(*words)


# Pictures ----------------------------------------------------------------------------------------


def test_save_writes_pictures_and_event_files(plant: Plant, tmp_path: Path) -> None:
    plant(lines=drawn, sums=right)
    directory = tmp_path / "my pictures"
    code, out, err = call("explain", "--all", "--save", directory)
    assert (code, err) == (0, "")
    path = directory / "lines" / "slope.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"Picture: {path}\n" in out
    assert f"tensorboard --logdir '{directory}'\n" in out
    assert "Picture 'slope': a straight line" in out
    assert events(directory).Tags()["images"] == ["lines/slope"]


def test_save_leaves_json_alone(plant: Plant, tmp_path: Path) -> None:
    plant(lines=drawn)
    code, out, err = call("explain", "lines", "--save", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)[0]["items"][-1] == {
        "kind": "drawing",
        "name": "slope",
        "caption": "a straight line",
    }
    assert "tensorboard --logdir" in err


def test_without_save_nothing_is_drawn_and_one_is_told_how(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> Picture:
        raise AssertionError

    plant(lines=lambda page: page.picture("slope", "a straight line", never))
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("explain", "lines")
    assert code == 0
    assert out.endswith("There is a picture: add --save DIR to draw.\n")
    assert contents(tmp_path) == {}


def test_where_there_is_no_picture_no_directory_is_made(plant: Plant, tmp_path: Path) -> None:
    plant(sums=right)
    _, out, _ = call("explain", "sums", "--save", tmp_path / "pictures")
    assert "No picture saved" in out
    assert contents(tmp_path) == {}


def test_a_directory_that_cannot_be_is_one_line(plant: Plant, tmp_path: Path) -> None:
    plant(lines=drawn)
    (tmp_path / "file").write_text("")
    code, _, err = call("explain", "lines", "--save", tmp_path / "file")
    assert code == 2
    assert re.fullmatch(r"manualbp: --save \S+: .+\n", err)
