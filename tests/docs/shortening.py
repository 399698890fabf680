"""The commands of a page: which there are, and what of them is not run as it is written."""

import re

SMALL = "--iterations 60 --model mlp"
# A command's beginning -> what is appended to it. The first that matches is taken.
SHORTENED = {
    # As few tests as a kind can do with; three have no number of tests to choose.
    r"lrrt-stage study --kind (grouped|smoothing|validation)\b": f"{SMALL} --workers 1",
    r"lrrt-stage study --kind batch-size\b": f"--tests 2 --batch-sizes 64,128 {SMALL} --workers 1",
    r"lrrt-stage study\b": f"--tests 2 --epochs 1 {SMALL} --workers 1",
    r"lrrt-stage lrrt .*--tests": f"--tests 2 {SMALL} --workers 1",
    r"mlflow run \. -e study\b": "-P tests=2 -P iterations=60 -P model=mlp -P workers=1",
    # One epoch in place of 20, one trial in place of eight.
    r"(PATH=\S+ )?mlflow run \. -e main\b": "-P trials=1 -P epochs=1",
    r"mlflow run \. -e train\b": "-P epochs=1",
    r"lrrt-stage main\b": "--trials 1 --epochs 1",
    r"lrrt-stage train\b": "--epochs 1",
    # Processes, not work.
    r"mlflow (ui|server)\b": "--workers 1",
}
# A command's beginning -> why it is not run.
LEFT_OUT = {
    r"pip install\b": "the environment of the tests is installed already",
    r"python3 -m venv\b": "the environment of the tests is installed already",
    r"\. \.venv/bin/activate": "the environment of the tests is active already",
    r"make test\b": "it runs this very test",
    r"dvc\b": "DVC is no dependency; tests/examples carries its stages out",
}
OPERATOR = re.compile(r" (?=2>&1|\|\|? |&& |; |#)")


def commands_of(content: str) -> list[str]:
    """Return a block's commands, with continued lines joined and without comments."""
    lines = content.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def shortened(command: str) -> str:
    """Return a command with the options that make it short, in front of what follows it."""
    for pattern, options in SHORTENED.items():
        if re.match(pattern, command):
            call, *after = OPERATOR.split(command, maxsplit=1)
            for name in re.findall(r"-P (\w+)=", options):
                # `mlflow run` refuses a parameter that is given twice.
                call = re.sub(rf" -P {name}=\S+", "", call)
            return " ".join([call, options, *after])
    return command
