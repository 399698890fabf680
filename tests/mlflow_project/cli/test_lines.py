import json
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from mlflow_project.cli.lines import error_line

LONG = st.text(min_size=201, max_size=300) | st.integers(201, 3000).map("ab ".__mul__)


@given(st.text(max_size=300) | LONG, st.lists(st.text() | LONG, max_size=3))
def test_any_reason_becomes_a_line_that_a_terminal_can_show(reason, arguments):
    line = error_line(reason, arguments)
    assert len(line) <= 2_000
    assert line.isprintable()


@given(LONG, st.sampled_from([str, repr, lambda text: f"'{text[2:]}'", lambda text: text * 2]))
def test_of_a_long_argument_a_line_repeats_200_characters_at_most(argument, written):
    line = error_line(f"model {written(argument)} is not known: choose one", [argument])
    assert line.startswith("model ")
    assert line.endswith("is not known: choose one")
    # Twice as long, where the argument stands there twice.
    assert len(line) <= len("model is not known: choose one") + 2 * 200 + 10


@given(st.text(st.characters(categories=["L", "N", "P"]), max_size=200))
def test_what_is_short_is_repeated_whole(argument):
    reason = f"{argument!r} is not known"
    assert error_line(reason, [argument, "x" * 999]) == reason


def test_an_object_of_many_names_is_shortened_as_python_and_as_json_write_it():
    arguments = {f"name{index}": index for index in range(100)}
    for shown in (repr(arguments), json.dumps(arguments, sort_keys=True)):
        line = error_line(f"check {shown}: or not", ["--model-args", json.dumps(arguments)])
        assert len(line) <= 220
        assert "…" in line


def test_what_others_say_at_length_is_cut_in_the_middle():
    line = error_line("first " + "other words " * 1000 + "last", [])
    assert (line[:6], line[-5:], len(line)) == ("first ", " last", 1999)


def test_ctrl_c_while_the_command_is_imported_is_one_line():
    script = """
import os, signal, sys

# Ignored where the tests run in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupted())
from mlflow_project.cli import main
main(["lrrt"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted: stopped\n")
