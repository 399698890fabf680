import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_has_its_test():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 15
    missing = [
        f"{file}::{test}"
        for file, test in named
        if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []
    rows = [line for line in page.splitlines() if line.startswith("| ") and "tests/" not in line]
    assert rows == ["| fault | what happens | test |"]
