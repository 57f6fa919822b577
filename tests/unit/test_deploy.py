"""Deploy files: what they say is read as their tools read it, and the commands in them are run."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Mapping
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

from tracefactory import __version__
from tracefactory.cli import deploy as command
from tracefactory.cli import main
from tracefactory.cli.deploy import Target, filled
from tracefactory.config import load_pipeline

ROOT = Path(__file__).parents[2]
UNUSED = """\
name: Tiny_Mix
version: "1"
models:
  teacher: {use: openai, model: m, base_url: env:TEACHER_URL, api_key: env:TEACHER_KEY}
stages:
  - {id: sums, source: files, with: {paths: sums.jsonl}}
"""


PIPELINE = UNUSED + "  - {id: short, sample: chat, with: {model: teacher, prompt: short, samples: 1}}\n"
KEYS = {"TEACHER_URL": "http://127.0.0.1:9/v1", "TEACHER_KEY": "k-canary"}
PROMPT = "---\nstyle: short\n---\n{{ question }}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for folder in ("pipelines", "prompts", "filters"):
        (root / folder).mkdir(parents=True)
    (root / "pipelines" / "tiny.yaml").write_text(PIPELINE)
    (root / "prompts" / "short.md").write_text(PROMPT)
    (root / "sums.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    return root


def written(project: Path, target: Target) -> str:
    pipeline = load_pipeline(project / "pipelines" / "tiny.yaml", environ=KEYS)
    return filled(target, pipeline, file=f"deploy/{target}", image="tracefactory:test")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tracefactory", "deploy", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


class TestCommand:
    def test_a_file_is_written_once(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pipeline = str(project / "pipelines" / "tiny.yaml")
        assert run_main(monkeypatch, "slurm", pipeline) == 0
        assert capsys.readouterr().out.strip() == str(project / "deploy" / "slurm.sbatch")
        assert run_main(monkeypatch, "slurm", pipeline) == 2
        assert "exists" in capsys.readouterr().err
        assert run_main(monkeypatch, "slurm", pipeline, "--out", str(project / "other")) == 0

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("tiny.yml", [], "the folder has: tiny.yaml"),
            ("a b$(id).yaml", [], "shell scripts"),
            ("tiny.yaml", ["--image", "x\nRUN id"], "cannot be the name of an image"),
        ],
    )
    def test_what_cannot_be_written_is_a_mistake(
        self,
        name: str,
        options: list[str],
        message: str,
        project: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        if "$" in name:
            (project / "pipelines" / name).write_text(UNUSED)
        assert run_main(monkeypatch, "slurm", str(project / "pipelines" / name), *options) == 2
        assert message in capsys.readouterr().err
        assert not (project / "deploy").exists()

    @pytest.mark.parametrize("target", Target)
    def test_a_file_names_this_version_and_no_other(
        self, target: Target, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(command, "__version__", "98.76.54")
        text = written(project, target)
        assert "@@" not in text
        assert "98.76.54" in text
        assert set(re.findall(r"\d+\.\d+\.\d+", text)) <= {"98.76.54", version("ray")}


@pytest.mark.parametrize(
    ("name", "label"), [("no", "no"), ("123", "run-123"), ("A.b_C-", "a-b-c"), ("x" * 90, "x" * 40)]
)
def test_the_name_of_a_pipeline_is_one_for_every_tool(name: str, label: str, project: Path) -> None:
    file = project / "pipelines" / "tiny.yaml"
    file.write_text(file.read_text().replace("Tiny_Mix", f'"{name}"'))
    _, job = yaml.safe_load_all(written(project, Target.KUBERAY))
    assert job["metadata"]["name"] == label
    assert yaml.safe_load(written(project, Target.SKYPILOT))["name"] == label
    assert f"#SBATCH --job-name={label}\n" in written(project, Target.SLURM)


SBATCH_OPTIONS = {
    *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "time", "output", "open-mode", "requeue", "signal")
}
FAKES = {
    "sbatch": """\
script=$1
exec env SLURM_SUBMIT_DIR="$PWD" SLURM_JOB_ID=77 SLURM_JOB_NUM_NODES="$NODES" SLURMD_NODENAME=first bash "$@"
""",
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": "",
    # Debian gives a machine its own name a second time.
    "getent": 'printf \'127.0.1.1 STREAM %s\\n10.0.0.7 STREAM %s\\n\' "$2" "$2"\n',
    "sleep": "exec /bin/sleep 0.1\n",
    # A cluster has the nodes that were started.
    "ray": """\
if [[ $1 == status ]]; then
    echo "Active:"; grep '^ray start' "$CALLS" | sed 's/.*/ 1 node_x/'; echo "Pending:"; echo " node_y"
fi
""",
}
RUN = """\
trap 'echo TERM >> "$CALLS"; exit 130' TERM
echo "tracefactory $* [$RAY_ADDRESS $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}]" >> "$CALLS"
for ((n = 0; n < 200; n++)); do /bin/sleep 0.05; done
"""


class TestSlurm:
    @pytest.fixture
    def cluster(self, tmp_path: Path, project: Path) -> dict[str, str]:
        """The environment of a machine with SLURM and Ray, of which every call is recorded."""
        bin_dir = tmp_path / "bin"
        bin_dir.mkdir()
        for name, script in FAKES.items():
            self.put(bin_dir / name, f'[[ {name} == sleep ]] || echo "{name} $*" >> "$CALLS"\n{script}')
        (project / "deploy").mkdir()
        (project / "deploy" / "slurm.sbatch").write_text(written(project, Target.SLURM))
        path = f"{bin_dir}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        return {**clean, "PATH": path, "CALLS": str(tmp_path / "calls"), "NODES": "1"}

    def put(self, file: Path, script: str) -> None:
        file.write_text(f"#!/bin/bash\n{script}")
        file.chmod(0o755)

    def start(self, cluster: Mapping[str, str], project: Path, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sbatch", "deploy/slurm.sbatch", *options],
            cwd=project,
            env=cluster,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def calls(self, cluster: Mapping[str, str]) -> list[str]:
        file = Path(cluster["CALLS"])
        return file.read_text().splitlines() if file.exists() else []

    def wait_for(self, cluster: Mapping[str, str], word: str) -> None:
        end = time.monotonic() + 60
        while not any(line.startswith(word) for line in self.calls(cluster)):
            assert time.monotonic() < end, self.calls(cluster)
            time.sleep(0.02)

    def test_bash_and_sbatch_can_read_it(self, project: Path) -> None:
        text = written(project, Target.SLURM)
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
        options = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
        assert {one.partition("=")[0] for one in options} == SBATCH_OPTIONS
        last = max(n for n, line in enumerate(text.splitlines()) if line.startswith("#SBATCH"))
        assert all(not line or line.startswith("#") for line in text.splitlines()[:last])  # sbatch stops at a command

    def test_it_runs_the_pipeline_with_the_options_of_the_user(self, cluster: dict[str, str], project: Path) -> None:
        (project / "pipelines" / "tiny.yaml").write_text(UNUSED)
        job = self.start(cluster, project, "--set", "run.executor=inline")
        message, _ = job.communicate(timeout=120)
        assert job.returncode == 0, message
        assert "1 " in message
        (outcome,) = (project / ".tracefactory" / "runs").glob("*/outcome.json")
        assert '"finished"' in outcome.read_text()
        assert not [line for line in self.calls(cluster) if line.startswith(("ray", "srun", "scontrol"))]

    @pytest.mark.parametrize(("number", "requeues"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
    def test_a_signal_drains_the_run_once_and_the_time_limit_requeues(
        self, number: signal.Signals, requeues: bool, cluster: dict[str, str], project: Path, tmp_path: Path
    ) -> None:
        self.put(tmp_path / "bin" / "tracefactory", RUN)
        job = self.start(cluster, project)
        self.wait_for(cluster, "tracefactory run")
        job.send_signal(number)
        self.wait_for(cluster, "TERM")
        job.send_signal(number)
        message, _ = job.communicate(timeout=60)
        assert job.returncode == 130, message
        calls = self.calls(cluster)
        assert calls.count("TERM") == 1
        assert ("scontrol requeue 77" in calls) is requeues

    @pytest.mark.parametrize(
        ("end", "code", "requeues"), [("kill -9 $$", 130, True), ("exit 0", 0, False), ("exit 1", 1, False)]
    )
    def test_only_a_run_that_was_interrupted_is_requeued(
        self, end: str, code: int, requeues: bool, cluster: dict[str, str], project: Path, tmp_path: Path
    ) -> None:
        self.put(tmp_path / "bin" / "tracefactory", RUN.replace("exit 130", end))
        job = self.start(cluster, project)
        self.wait_for(cluster, "tracefactory run")
        job.send_signal(signal.SIGUSR1)
        message, _ = job.communicate(timeout=60)
        assert job.returncode == code, message
        assert ("scontrol requeue 77" in self.calls(cluster)) is requeues

    def test_a_run_that_fails_is_not_requeued(self, cluster: dict[str, str], project: Path, tmp_path: Path) -> None:
        self.put(tmp_path / "bin" / "tracefactory", "exit 3")
        job = self.start(cluster, project)
        job.communicate(timeout=60)
        assert job.returncode == 3
        assert not [line for line in self.calls(cluster) if line.startswith("scontrol")]

    def test_several_nodes_become_one_ray_cluster(self, cluster: dict[str, str], project: Path, tmp_path: Path) -> None:
        self.put(tmp_path / "bin" / "tracefactory", f"{RUN.splitlines()[1]}\nexit 0")
        job = self.start({**cluster, "NODES": "2"}, project, "--limit", "8")
        message, _ = job.communicate(timeout=60)
        assert job.returncode == 0, message
        calls = [line for line in self.calls(cluster) if not line.startswith(("ray status", "sbatch"))]
        head, worker = (line for line in calls if line.startswith("srun"))
        assert "--nodes=1 --ntasks=1 --nodelist=first ray start --head --node-ip-address=10.0.0.7 --port=20077" in head
        assert "--nodes=1 --ntasks=1 --exclude=first ray start --address=10.0.0.7:20077" in worker
        assert calls[-1] == (
            "tracefactory run pipelines/tiny.yaml --progress plain --set run.grace_s=90 --set run.executor=ray "
            "--set run.ray_address=auto --limit 8 [10.0.0.7:20077 token 64]"
        )

    def test_nodes_that_do_not_join_end_it(self, cluster: dict[str, str], project: Path, tmp_path: Path) -> None:
        self.put(tmp_path / "bin" / "sleep", "exit 0")
        job = self.start({**cluster, "NODES": "5"}, project)  # its srun starts one of the other four
        message, _ = job.communicate(timeout=120)
        assert job.returncode == 1
        assert "2 of 5 nodes have joined" in message


def fields(value: Any, at: str = "") -> set[str]:
    """Return the paths of all fields of a YAML document; a list is written as []."""
    if isinstance(value, dict):
        return set().union(*({f"{at}.{name}"} | fields(one, f"{at}.{name}") for name, one in value.items()))
    if isinstance(value, list):
        return set().union(*(fields(one, f"{at}[]") for one in value)) if value else set()
    return set()


CONTAINER = {
    *("name", "image", "envFrom", "envFrom[].secretRef", "envFrom[].secretRef.name", "envFrom[].secretRef.optional"),
    *("resources", "volumeMounts", "volumeMounts[].name", "volumeMounts[].mountPath", "lifecycle"),
    *("lifecycle.preStop", "lifecycle.preStop.exec", "lifecycle.preStop.exec.command"),
    *(f"resources.{kind}{of}" for kind in ("requests", "limits") for of in ("", ".cpu", ".memory")),
}
POD = {
    *("terminationGracePeriodSeconds", "securityContext", "securityContext.fsGroup", "containers", "volumes"),
    *("volumes[].name", "volumes[].persistentVolumeClaim", "volumes[].persistentVolumeClaim.claimName"),
    *(f"containers[].{one}" for one in CONTAINER),
}
GROUP = {"rayStartParams", "template", "template.spec", *(f"template.spec.{one}" for one in POD)}
RAY_JOB = {  # of ray.io/v1, KubeRay 1.2 and newer
    *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "runtimeEnvYAML"),
    *("rayClusterSpec", "rayClusterSpec.rayVersion", "rayClusterSpec.headGroupSpec", "rayClusterSpec.workerGroupSpecs"),
    *(f"rayClusterSpec.headGroupSpec.{one}" for one in GROUP),
    *(
        f"rayClusterSpec.workerGroupSpecs[].{one}"
        for one in (*GROUP, "groupName", "replicas", "minReplicas", "maxReplicas")
    ),
}


class TestKubeRay:
    @pytest.fixture
    def documents(self, project: Path) -> tuple[Any, Any]:
        claim, job = yaml.safe_load_all(written(project, Target.KUBERAY))
        return claim, job

    def test_it_has_fields_of_the_ray_job_alone(self, documents: tuple[Any, Any]) -> None:
        claim, job = documents
        assert (job["apiVersion"], job["kind"], job["metadata"]) == ("ray.io/v1", "RayJob", {"name": "tiny-mix"})
        assert {one.removeprefix(".") for one in fields(job["spec"])} <= RAY_JOB
        assert job["spec"]["backoffLimit"] > 0
        assert job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]

    def test_all_pods_have_one_image_and_the_volume_of_the_project(self, documents: tuple[Any, Any]) -> None:
        claim, job = documents
        cluster = job["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            assert container["image"] == "tracefactory:test"
            assert container["volumeMounts"] == [{"name": "project", "mountPath": "/project"}]
            assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]

    def test_the_command_is_one_that_ray_job_submit_can_pass_on(
        self, documents: tuple[Any, Any], project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = documents[1]["spec"]
        words = shlex.split(spec["entrypoint"].replace("/project/", f"{project}/"))
        assert not set(spec["entrypoint"]) & set("&|;<>$'\"\n")
        assert words[:2] == ["tracefactory", "run"]
        sets = [value for option, value in pairwise(words) if option == "--set"]
        run = load_pipeline(Path(words[2]), sets=sets, environ=KEYS).run
        assert (run.executor, run.ray_address) == ("ray", "auto")
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        stops = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
        assert run.grace_s < min(float(stops), head["terminationGracePeriodSeconds"])

    def test_a_pod_that_is_taken_away_ends_the_run_first(
        self, documents: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (container,) = documents[1]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
        python, option, code = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (python, option) == ("python", "-c")
        (tmp_path / "tracefactory").write_text("print(flush=True); import time; time.sleep(60)")
        started = [
            subprocess.Popen([sys.executable, str(tmp_path / "tracefactory"), verb], stdout=subprocess.PIPE)
            for verb in ("run", "show")
        ]
        try:
            for one in started:
                assert one.stdout is not None
                one.stdout.readline()
            ours = {one.pid for one in started}
            # Of the machine, the test may end its own processes alone.
            mine = [one for one in psutil.process_iter(["cmdline"]) if one.pid in ours]
            monkeypatch.setattr(psutil, "process_iter", lambda wanted: mine)
            exec(code, {})
            assert [one.poll() is None for one in started] == [False, True]
        finally:
            for one in started:
                one.kill()
                one.communicate()


class TestSkyPilot:
    def test_it_has_known_fields_and_every_variable_of_the_pipeline(self, project: Path) -> None:
        task = yaml.safe_load(written(project, Target.SKYPILOT))
        known = {"name", "num_nodes", "resources", "workdir", "envs", "secrets", "setup", "run"}
        assert set(task) == known
        assert set(task["resources"]) <= {"cpus", "memory", "use_spot", "job_recovery"}
        assert set(task["resources"]["job_recovery"]) <= {"max_restarts_on_errors", "recover_on_exit_codes"}
        assert task["secrets"] == {"TEACHER_URL": None, "TEACHER_KEY": None}
        assert task["envs"] == {"TRACEFACTORY_SHARED": None}  # SkyPilot asks for what is null
        assert f"tracefactory[gym,local,objects]=={__version__}" in task["setup"]
        for script in (task["setup"], task["run"]):
            assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0

    def test_its_command_runs(self, project: Path) -> None:
        task = yaml.safe_load(written(project, Target.SKYPILOT))
        (project / "pipelines" / "tiny.yaml").write_text(UNUSED)
        words = shlex.split(task["run"])
        assert words[:2] == ["exec", "~/tracefactory/bin/tracefactory"]
        assert words[1].rpartition("/")[0] in task["setup"]
        run = [sys.executable, "-m", "tracefactory", *words[2:]]
        done = subprocess.run(run, cwd=project, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr

    def test_a_pipeline_without_variables_has_no_secrets(self, project: Path) -> None:
        (project / "pipelines" / "tiny.yaml").write_text(re.sub(r"models:\n.*\n", "", UNUSED))
        assert "secrets" not in yaml.safe_load(written(project, Target.SKYPILOT))


INSTRUCTIONS = {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "STOPSIGNAL", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Containerfile with their arguments."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    parted = (line.partition(" ") for line in lines.splitlines() if line.strip())
    return [(name, rest) for name, _, rest in parted]


class TestContainer:
    def test_it_has_instructions_alone_and_does_not_run_as_root(self, project: Path) -> None:
        found = instructions(written(project, Target.CONTAINER))
        assert {name for name, _ in found} == INSTRUCTIONS
        base = f"docker.io/library/python:3.{sys.version_info.minor}-slim"
        assert [rest for name, rest in found if name == "FROM"] == [f"{base} AS packages", base]
        order = [name for name, _ in found]
        assert order.index("RUN") < order.index("USER") < order.index("CMD")
        assert dict(found)["USER"] != "root"
        for name, rest in found:
            if name == "RUN":
                assert subprocess.run(["bash", "-n"], input=rest, text=True, check=False).returncode == 0

    def test_what_it_copies_is_the_wheel_and_pip_installs_it(self, project: Path, tmp_path: Path) -> None:
        found = instructions(written(project, Target.CONTAINER))
        (source, target), *installed = (rest.split() for name, rest in found if name == "COPY")
        assert installed == [["--from=packages", "/opt/tracefactory", "/opt/tracefactory"]]
        assert [rest for name, rest in found if name == "ENV"] == ["PATH=/opt/tracefactory/bin:$PATH"] * 2
        list(WheelBuilder(str(ROOT)).build(directory=str(tmp_path / "dist"), versions=["standard"]))
        assert (tmp_path / source).is_file(), list((tmp_path / "dist").iterdir())
        (install,) = (shlex.split(rest) for name, rest in found if name == "RUN" and rest.startswith("pip"))
        assert install[:2] == ["pip", "install"]
        environment = tmp_path / "env"
        venv.create(environment, with_pip=False)
        python = environment / "bin" / "python"
        wheel = [one.replace(target, f"{tmp_path / 'dist'}/") for one in install[2:] if not one.startswith("ray[")]
        # The packages that it depends on would come from the network.
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", *wheel]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (shipped,) = environment.glob("lib/python*/site-packages/tracefactory/deploy")
        assert {one.name for one in shipped.iterdir()} == {one.name for one in (ROOT / "tracefactory/deploy").iterdir()}
        assert (environment / "bin" / "tracefactory").is_file()
