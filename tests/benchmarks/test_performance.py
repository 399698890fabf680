import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from math import inf

import pytest
import torch
from click.testing import CliRunner

from benchmarks.performance import (
    __main__ as command,
)
from benchmarks.performance import (
    confidence,
    gpu,
    growth,
    imports,
    memory,
    peers,
    prompt,
    rounds,
    server,
    stage,
    steps,
    workers,
)
from benchmarks.performance.baselines import bare_loop
from benchmarks.performance.problems import tiny_problem
from benchmarks.performance.rounds import Settings, Timing, interleaved
from benchmarks.performance.rows import Row, compared, table, unmeasured
from lrrt_stage import range_test

CPU = torch.device("cpu")


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path, rounds=1, threads=torch.get_num_threads())


def test_a_ratio_is_the_median_of_the_rounds_and_not_of_all_times():
    row = compared("a", "b", Timing([4.0, 2.0, 9.0]), Timing([1.0, 1.0, 9.0]), target=2, per=2)
    assert (row.measured, row.baseline, row.ratio, row.rounds) == (2.0, 0.5, 2.0, 3)
    assert row.spread == (1.0, 4.0)
    assert row.met
    alone = compared("a", "b", Timing([4.0, 2.0, 9.0]), Timing([1.0] * 3), compares="measured")
    assert (alone.ratio, alone.spread) == (4.0, (2.0, 9.0))


@pytest.mark.parametrize(
    ("compares", "target", "met"),
    [
        ("ratio", 2.0, True),
        ("ratio", 1.9, False),
        ("measured", 4.0, True),
        ("measured", 3.9, False),
        ("ratio, at least", 2.0, True),
        ("ratio, at least", 2.1, False),
        ("ratio", None, None),
    ],
)
def test_a_target_is_met_or_missed(compares, target, met):
    assert Row("a", "b", 4.0, 2.0, target, compares=compares, ratio=2.0).met is met


def test_what_was_not_measured_says_why():
    failed = compared("a", "b", Timing([1.0], "ValueError: no"), Timing([1.0]))
    assert (failed.measured, failed.error, failed.met) == (None, "ValueError: no", None)
    assert compared("a", "b", Timing([])).note == "unmeasured: no time left"
    assert unmeasured("a", "b", "no CUDA device").note == "unmeasured: no CUDA device"


def test_the_table_has_a_line_for_each_row():
    lines = [
        *table(
            [Row("one", "b", 2.5, 2.0, 1.1, "ms", 5, ratio=1.25), unmeasured("another", "b", "why")]
        )
    ]
    assert [line.split() for line in lines] == [
        ["name", "measured", "baseline", "ratio", "target", "unit", "rounds"],
        ["one", "2.5", "2", "1.250x", "≤", "1.1x", "ms", "5", "missed"],
        ["another", "s", "unmeasured:", "why"],
    ]


def test_cases_take_turns_and_an_error_of_one_loses_none_of_the_others(settings):
    called = []

    def case(name):
        called.append(name)
        if name == "bad" and len(called) > 3:
            raise ValueError("no more")

    cases = {name: lambda name=name: case(name) for name in ("good", "bad", "last")}
    timings = interleaved(cases, replace(settings, rounds=2), inf)
    # Backwards in every second round, the first of which warms up.
    assert called == ["last", "bad", "good", "good", "bad", "last", "last", "good"]
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {
        "good": 2, "bad": 0, "last": 2,
    }  # fmt: skip
    assert timings["bad"].error == "ValueError: no more"


def test_rounds_end_in_time_but_one_is_counted(settings):
    settings = replace(settings, rounds=5)
    timings = interleaved({"slow": lambda: time.sleep(0.05)}, settings, 0.01)
    assert len(timings["slow"].seconds) == 1
    measured = interleaved({"own": lambda: 7.0}, settings, inf)
    assert measured["own"].seconds == [7.0] * 5
    assert len(interleaved({"own": lambda: 7.0}, settings, inf, rounds=2)["own"].seconds) == 10


def test_a_process_must_end_as_expected(settings):
    assert rounds.process(rounds.python("-c", "print('yes')"), settings) == "yes\n"
    failing = rounds.python("-c", "import sys; sys.exit('no such thing')")
    with pytest.raises(RuntimeError, match="exit code 1 in place of 0: no such thing"):
        rounds.process(failing, settings)
    rounds.process(failing, settings, code=1)


def test_the_bare_loop_takes_the_steps_of_a_range_test():
    losses = []
    for _ in range(2):
        problem = tiny_problem(256, CPU)
        torch.manual_seed(0)
        losses.append(
            bare_loop.bare_loop(problem.model, problem.optimizer, problem.batches, 12, CPU)
        )
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12
    problem = tiny_problem(256, CPU)
    torch.manual_seed(0)
    loss = torch.nn.functional.cross_entropy
    curve = range_test(problem.model, problem.optimizer, loss, problem.batches, iterations=12)
    # The first steps are too small to tell the two ramps apart.
    assert curve.loss[:3].tolist() == pytest.approx(losses[0][:3], rel=1e-4)


def test_steps_of_every_kind_are_measured(settings, monkeypatch):
    for name in ("digits_problem", "resnet_problem"):
        monkeypatch.setattr(steps, name, lambda batch, device: tiny_problem(256, device))
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    found = {row.name: row for row in steps.rows(settings, 12, 10, 10, 1)}
    assert len(found) == 11
    for name, row in found.items():
        if name.partition("DataLoader, ")[2] in peers.PEERS:
            assert row.note == "unmeasured: not installed"
        else:
            assert row.measured > 0
            assert row.baseline > 0
            assert (row.rounds, row.error) == (1, "")


def test_iterations_and_rows_of_data_grow(settings):
    found = [*growth._iterations(settings, (10, 20), 1), *growth._data(settings, (64, 640), 1)]
    assert [row.name for row in found] == ["growth: 20 iterations", "growth: 640 rows of data"]
    assert all(row.ratio > 0 for row in found)


def test_a_store_is_filled_with_copies_of_its_run(tmp_path):
    store = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(store)) as database, database:
        database.execute("CREATE TABLE runs (run_uuid TEXT, name TEXT, start_time, status TEXT)")
        database.execute("INSERT INTO runs VALUES ('source', 'lrrt', 100, 'FINISHED')")
        for table_name in growth.TABLES:
            database.execute(f"CREATE TABLE {table_name} (key TEXT, value TEXT, run_uuid TEXT)")
            for key in ("lrrt.fingerprint", "lrrt.stage", "lrrt.uuid"):
                values = (key, "lrrt", "source")
                database.execute(f"INSERT INTO {table_name} VALUES (?, ?, ?)", values)
    growth.fill_store(store, 10)
    with closing(sqlite3.connect(store)) as database:
        assert database.execute("SELECT COUNT(*) FROM runs").fetchone() == (10,)
        assert database.execute("SELECT COUNT(*) FROM params").fetchone() == (30,)
        stages = "SELECT value, COUNT(*) FROM tags WHERE key = 'lrrt.stage' GROUP BY value"
        assert dict(database.execute(stages)) == {"lrrt": 3, "study": 1, "test": growth.TESTS}
        same = "SELECT COUNT(*) FROM tags WHERE key = 'lrrt.fingerprint' AND value = 'same'"
        assert database.execute(same).fetchone() == (1,)


def test_host_reads_are_counted():
    counts = gpu.host_reads(lambda: [torch.ones(1).item() for _ in range(3)])
    assert counts["aten::_local_scalar_dense"] == 3


def test_imports_are_summed_by_package(settings, monkeypatch):
    printed = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       100 |        100 |     inner.part\n"
        "import time:        50 |        150 |   outer.one\n"
        "import time:        10 |        160 | outer\n"
    )

    class Ended:
        returncode, stderr = 0, printed

    monkeypatch.setattr(imports.subprocess, "run", lambda *_, **__: Ended)
    assert imports.expensive_imports(["-c", ""], settings) == {
        "inner": {"self": 0.0001, "cumulative": 0.0001},
        "outer": {"self": 0.0001, "cumulative": 0.0002},
    }


def test_uploads_and_requests_are_counted(settings, monkeypatch):
    file = "/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts/curve.csv"
    made = [("PUT", file, 0.1), ("PUT", file, 0.1), ("POST", "/api/2.0/mlflow/runs/create", 0.3)]

    class Serving:
        def __enter__(self):
            return "http://127.0.0.1:1"

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(server, "mlflow_server", lambda _: Serving())
    monkeypatch.setattr(server, "process", lambda *_: json.dumps(made))
    found = [*server.rows(settings)]
    assert [row.measured for row in found] == [1, pytest.approx(0.5), 2]
    assert found[2].listing == {"curve.csv": 2}


def test_every_group_has_rows_with_names():
    for module in (confidence, gpu, growth, imports, memory, prompt, server, stage, steps, workers):
        assert callable(module.rows)
    names = {module.__name__.rpartition(".")[2] for module in (confidence, memory, stage, workers)}
    assert names < {*command.GROUPS}


def test_the_command_writes_rows_versions_and_machine(tmp_path, monkeypatch):
    def failing(_):
        yield Row("prompt: kept", "before the error", 1.0)
        raise ValueError("it cannot")

    monkeypatch.setattr(prompt, "rows", failing)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    output = tmp_path / "results.json"
    options = ["--rows", "gpu", "--rows", "prompt", "--device", "cpu", "--threads", "1"]
    ended = CliRunner().invoke(command.main, [*options, "--output", str(output)])
    assert ended.exit_code == 1
    assert "error: ValueError: it cannot" in ended.stdout
    content = json.loads(output.read_text())
    assert [row["name"] for row in content["rows"]] == ["prompt: kept", "prompt", *gpu.NAMES]
    fields = {"name", "what", "measured", "baseline", "ratio", "target", "unit", "rounds"}
    assert all(fields <= {*row} for row in content["rows"])
    assert {"python", "torch", "mlflow", "numpy", "optuna", "pandas"} < {*content["versions"]}
    assert {"cpu", "cores", "threads", "gpu"} < {*content["machine"]}
    assert content["machine"]["gpu"] is None


def test_a_group_without_time_says_so(settings):
    (row,) = command.measured("growth", replace(settings, end=time.monotonic() - 1))
    assert row.note == "unmeasured: 10 minutes were over before"
