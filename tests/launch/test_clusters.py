"""Slurm, SkyPilot and Kubernetes: what is generated from machines, and what the launchers make of the answers."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from launch import gke, machine, skypilot, slurm

MACHINES = Path(__file__).parents[2] / "launch" / "machines"
H100, V4, V5E, TWO, CPU = (
    f"--machine={MACHINES / name}.py" for name in ("h100_8", "v4_8", "v5e_16", "v5e_16x2", "cpu")
)
COMMAND = ("--", "score", "--study=gs://bucket/study", "--batch_size=8")
MDE = [".venv/bin/python", "-m", "mde.cli", *COMMAND[1:]]
TOGETHER = [*MDE, "--coordinator=auto"]
NASTY = "'; touch pwned; '\" $(touch pwned) `touch pwned` \n& touch pwned; ${HOME} \\"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Launchers write their files where they are started."""
    monkeypatch.chdir(tmp_path)


def calls_of(standins, *programs):
    return [call for call in standins.calls() if call[0] in programs]


@pytest.mark.parametrize("path", sorted(MACHINES.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_shipped_machines(path):
    described = machine.load(str(path))
    chips = described.hosts * described.chips_per_host
    if described.accelerator == "tpu":
        # A topology has a chip at each point; v4 and v5p are named by their cores, of which a chip has two.
        sides = [int(side) for side in described.topology.split("x")]
        assert chips == {2: lambda a, b: a * b, 3: lambda a, b, c: a * b * c}[len(sides)](*sides)
        named = int(described.type.rsplit("-", 1)[1])
        assert named == chips * (2 if described.type.startswith(("v4", "v5p")) else 1)


def test_slurm_runs_and_follows(standins, launched):
    standins.scenario(states=["PENDING", "RUNNING"], exits=[130, 0])
    flags = ("--set=partition=gpu", "--set=hosts=2", "--name=pool", "--poll=0.01")
    status, said = launched(slurm, H100, *flags, *COMMAND)
    assert status == 0, said
    assert "job 7: RUNNING" in said
    assert "srun ends with 0" in said
    assert said.rstrip().endswith("job 7: COMPLETED")
    options = [line for line in Path("pool.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    for option in (
        "nodes=2",
        "ntasks-per-node=8",
        "cpus-per-task=4",
        "gpus-per-node=8",
        "partition=gpu",
        "signal=TERM@120",
        "requeue",
    ):
        assert f"#SBATCH --{option}" in options
    assert calls_of(standins, "srun") == [["srun", "--cpus-per-task=4", "--kill-on-bad-exit=1", *TOGETHER]] * 2
    assert calls_of(standins, "scontrol") == [["scontrol", "requeue", "7"]]


@pytest.mark.parametrize(
    ("flag", "command", "cpus"),
    [(CPU, ("score", "--study=s"), 8), (H100, ("score", "--study=s"), 4), (H100, ("optimize", "--study=s"), 32)],
)
def test_a_task_of_slurm_has_the_cores_of_its_chips(flag, command, cpus):
    """By default it has one. Since 22.05 srun has to be told as well."""
    lines = slurm.script(_job(flag, command)).splitlines()
    assert f"#SBATCH --cpus-per-task={cpus}" in lines
    (srun,) = (line for line in lines if line.startswith("srun"))
    assert f" --cpus-per-task={cpus} " in srun


def test_slurm_says_when_a_job_fails(standins, launched):
    standins.scenario(states=["RUNNING"], exits=[1])
    status, said = launched(slurm, CPU, "--name=pool", "--poll=0.01", *COMMAND)
    assert status == 1
    assert "job 7: FAILED" in said
    assert "gpus-per-node" not in Path("pool.sbatch").read_text()


def test_a_queue_that_is_silent_for_a_while_ends_nothing(standins, launched):
    standins.scenario(states=["PENDING", "RUNNING"], deaf=4)
    status, said = launched(slurm, CPU, "--name=pool", "--poll=0.01", *COMMAND)
    assert status == 0, said
    assert "job 7: RUNNING" in said
    standins.scenario(states=["", "Completed"], deaf=4)
    status, said = launched(gke, V5E, "--image=i", "--name=pool", "--poll=0.01", *COMMAND)
    assert status == 0, said


def test_a_queue_that_stays_silent_is_not_the_end_of_a_job(standins, launched):
    standins.scenario(states=["PENDING", "RUNNING"], deaf=99)
    status, said = launched(slurm, CPU, "--name=pool", "--poll=0.01", *COMMAND)
    assert status == 2
    expected = "Unable to contact slurm controller (connect failure); it goes on, and writes pool-7.log"
    assert said.splitlines()[-1].endswith(f"cannot see job 7: slurm_load_jobs error: {expected}")
    standins.scenario(states=["", "Completed"], deaf=99)
    status, said = launched(gke, V5E, "--image=i", "--name=pool", "--poll=0.01", *COMMAND)
    assert status == 2
    assert "cannot see the state of pool: " in said
    assert said.splitlines()[-1].endswith("; it goes on, and the same command finds it")


@pytest.mark.parametrize("warning", ["sbatch: lua: no QOS given; using normal", "sbatch: 3 of 12 GPUs are free"])
def test_the_number_of_a_job_is_not_looked_for_in_warnings(standins, launched, warning):
    standins.scenario(states=["RUNNING"], warning=warning)
    status, said = launched(slurm, CPU, "--name=pool", "--poll=0.01", *COMMAND)
    assert status == 0, said
    assert calls_of(standins, "squeue")[0][1] == "--jobs=7"


def test_slurm_hands_on_secrets_by_name(standins, launched, monkeypatch):
    monkeypatch.setenv("TOKEN", "very secret")
    standins.scenario(states=["RUNNING"])
    status, said = launched(slurm, CPU, "--name=pool", "--poll=0.01", "--secret=TOKEN", *COMMAND)
    assert status == 0
    assert "TOKEN=***" in said
    assert "#SBATCH --export=ALL,TOKEN" in Path("pool.sbatch").read_text()
    assert "very secret" not in said + Path("pool.sbatch").read_text()


def test_skypilot(standins, launched):
    status, said = launched(skypilot, H100, "--set=hosts=2", "--name=pool", *COMMAND)
    assert status == 0, said
    task = yaml.safe_load(Path("pool.sky.yaml").read_text())
    assert task["num_nodes"] == 2
    assert task["resources"] == {"use_spot": False, "accelerators": "H100:8"}
    assert shlex.split(task["run"]) == TOGETHER
    assert "'.[demo,gcs,cuda]'" in task["setup"]
    assert standins.calls() == [["sky", "jobs", "launch", "--yes", "--name", "pool", "pool.sky.yaml"]]
    v5e = machine.load(V5E.removeprefix("--machine="))
    tpu = skypilot.task("pool", v5e, "true", "gs://bucket/study")
    assert tpu["resources"]["accelerators"] == "tpu-v5litepod-16:1"
    assert tpu["resources"]["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv5-lite"}
    assert tpu["num_nodes"] == 1


def test_kubernetes_runs_and_follows(standins, launched):
    standins.scenario(states=["", "", "Completed"])
    flags = ("--image=registry/mde:1", "--name=pool", "--poll=0.01", "--secret_ref=tokens")
    status, said = launched(gke, TWO, *flags, *COMMAND)
    assert status == 0, said
    assert "a line of the log" in said
    made = yaml.safe_load(Path("pool.jobset.yaml").read_text())
    (slices,) = made["spec"]["replicatedJobs"]
    pods = slices["template"]["spec"]
    pod = pods["template"]["spec"]
    assert slices["replicas"] == 2
    # As in JobSet's own description: an error of the user's is not tried again.
    (of_pods,), (of_jobs,) = pods["podFailurePolicy"]["rules"], made["spec"]["failurePolicy"]["rules"]
    assert of_pods == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
    assert of_jobs == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert pod["restartPolicy"] == "Never"  # without which there is no podFailurePolicy
    assert pods["parallelism"] == pods["completions"] == 4
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["command"] == TOGETHER
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
    assert [call[1] for call in standins.calls()] == ["apply", *["logs", "get"] * 3]


def test_gpu_hosts_of_a_jobset_are_told_where_the_first_is(standins, launched):
    standins.scenario(states=["Completed"])
    status, said = launched(gke, H100, "--set=hosts=2", "--image=i", "--name=pool", "--poll=0.01", *COMMAND)
    assert status == 0, said
    pods = yaml.safe_load(Path("pool.jobset.yaml").read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
    # pod n of job 0 of the JobSet's only list is pool-slice-0-n, in the domain of its headless service
    expected = ["--coordinator=pool-slice-0-0.pool:8476", "--processes=2", "--process=$(JOB_COMPLETION_INDEX)"]
    assert pods["template"]["spec"]["containers"][0]["command"] == [*MDE, *expected]


def test_a_command_of_one_process_has_all_gpus_of_a_slurm_node(standins, launched):
    standins.scenario(states=["RUNNING"])
    status, said = launched(slurm, H100, "--name=pool", "--poll=0.01", "--", "fit", "--study=/shared/study")
    assert status == 0, said
    assert "#SBATCH --ntasks-per-node=1\n" in Path("pool.sbatch").read_text()
    assert calls_of(standins, "srun") == [
        ["srun", "--cpus-per-task=32", "--kill-on-bad-exit=1", *MDE[:3], "fit", "--study=/shared/study"]
    ]


def test_kubernetes_says_when_a_jobset_fails(standins, launched):
    standins.scenario(states=["Failed"])
    status, said = launched(gke, H100, "--image=i", "--name=pool", "--poll=0.01", *COMMAND)
    assert status == 1
    assert "pool: Failed" in said


def test_xpk(standins, launched):
    flags = ("--image=i", "--cluster=c", "--project=p", "--name=pool")
    assert launched(gke, TWO, *flags, *COMMAND)[0] == 0
    (call,) = standins.calls()
    assert call[:3] == ["xpk", "workload", "create"]
    for flag in ("--workload=pool", "--cluster=c", "--tpu-type=v5litepod-16", "--num-slices=2", "--docker-image=i"):
        assert flag in call
    assert shlex.split(call[-1].removeprefix("--command=")) == TOGETHER


@pytest.mark.parametrize(
    ("launcher", "flags", "message"),
    [
        (slurm, (H100,), "sbatch: error: Batch job submission failed: Invalid account or partition"),
        (skypilot, (H100,), "sky.exceptions.ResourcesUnavailableError: Failed to provision: quota"),
        (gke, (V5E, "--image=i"), 'error: resource mapping not found for name: "pool": no matches for kind "JobSet"'),
        (gke, (V5E, "--image=i", "--cluster=c", "--project=p"), "[XPK] Error: cluster c is not there"),
    ],
)
def test_refusals_are_passed_on(standins, launched, launcher, flags, message):
    standins.scenario(refuse=message)
    status, said = launched(launcher, *flags, "--name=pool", *COMMAND)
    assert status == 2
    assert said.splitlines()[-1].endswith(message)


@pytest.mark.parametrize(
    ("launcher", "flags", "expected"),
    [
        (slurm, (V5E,), "v5litepod-16 is a tpu"),
        (skypilot, (TWO,), "SkyPilot launches single slices"),
        (gke, (V5E, "--image=i", "--set=topology="), "needs the machine's topology"),
        (gke, (V5E, "--image=i", "--cluster=c"), "xpk needs --project"),
        (gke, (CPU, "--image=i", "--cluster=c"), "cpu is a cpu"),
        (gke, (H100, "--set=hosts=2", "--image=i", "--cluster=c", "--project=p"), "launch with kubectl"),
        (gke, (V5E, "--image=i", "--secret=PATH"), "name it with --secret_ref"),
        (gke, (H100, "--set=slices=2", "--image=i"), "H100 has no slices, but hosts"),
    ],
)
def test_bad_input_costs_nothing(standins, launched, launcher, flags, expected):
    status, said = launched(launcher, *flags, "--name=pool", *COMMAND)
    assert status == 2
    assert expected in said
    assert standins.calls() == []


@pytest.mark.parametrize(
    ("launcher", "flags"),
    [
        (slurm, (H100,)),
        (skypilot, (H100,)),
        (gke, (V5E, "--image=i")),
        (gke, (V5E, "--image=i", "--cluster=c", "--project=p")),
    ],
)
def test_a_dry_run_does_nothing(standins, launched, tmp_path, launcher, flags):
    before = sorted(tmp_path.iterdir())
    status, said = launched(launcher, *flags, "--name=pool", "--dry_run", *COMMAND)
    assert status == 0
    assert "gs://bucket/study" in said
    assert any(line.startswith(("$ sbatch", "$ sky", "$ kubectl", "$ xpk")) for line in said.splitlines())
    assert standins.calls() == []
    assert sorted(tmp_path.iterdir()) == before


def _sky_task(described):
    return skypilot.task(described.name, described.machine, shlex.join(described.argv()), described.study)


def _job(flag, command=COMMAND[1:]):
    from launch.job import Job

    return Job("pool", machine.load(flag.removeprefix("--machine=")), tuple(command), "gs://bucket/study")


def test_no_binding_is_a_command(standins, launched, tmp_path):
    """Every text that a shell reads gives back the words that were typed, and runs nothing else."""
    command = ("fit", "--study=gs://bucket/study", f"--losses={NASTY}")
    standins.scenario(states=[])
    status, said = launched(slurm, CPU, "--name=pool", "--poll=0.01", "--", *command)
    assert status == 0, said
    assert calls_of(standins, "srun") == [["srun", "--cpus-per-task=8", "--kill-on-bad-exit=1", *MDE[:3], *command]]
    described = _job(CPU, command)
    xpk = gke.workload(_job(V4, command), "i", "c", "p")[-1].removeprefix("--command=")
    sky = yaml.safe_load(yaml.safe_dump(_sky_task(described)))["run"]
    for text in (xpk, sky):
        # The program's place is taken by one that prints its arguments, each ended by a zero byte.
        printed = subprocess.run(
            ["bash", "-c", text.replace(MDE[0], "printf '%s\\0'", 1)], capture_output=True, text=True
        )
        assert printed.stdout.split("\0")[:-1] == [*MDE[1:3], *command]
    pods = gke.jobset(described, "i")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert [word.replace("$$", "$") for word in pods["containers"][0]["command"]] == [*MDE[:3], *command]
    assert "$$(touch pwned)" in pods["containers"][0]["command"][-1]
    assert not list(tmp_path.rglob("pwned"))
