"""Runs on TPU VMs, against a `gcloud` that keeps its machines in a directory and runs on them what it is told to."""

import re
import shlex
import subprocess
import threading

import pytest

from launch import gcloud, tpu_vm

V4, V5E, TWO = (f"--machine=launch/machines/{name}.py" for name in ("v4_8", "v5e_16", "v5e_16x2"))
PAIR = (V4, "--set=type=v4-16", "--set=hosts=2")
COMMAND = ("--", "score", "--study=gs://bucket/study", "--batch_size=8")
OPTIMIZE = ("--", "optimize", "--study=gs://bucket/study", "--seed=1")
TOGETHER = "--coordinator=auto"
FLAGS = ("--name=pool", "--project=my-project", "--poll=0.01")
QUOTA = "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded. Limit: 0 in us-west4-a."


def verbs(calls):
    """`create`, `ssh 0` and the like, in their order."""
    return [
        f"{call[4]} {next(w for w in call if w.startswith('--worker='))[9:]}" if "tpu-vm" in call else call[4]
        for call in calls
        if call[1] != "auth"
    ]


def test_a_run_from_request_to_deletion(standins, launched):
    status, said = launched(tpu_vm, V5E, *FLAGS, *COMMAND)
    assert status == 0, said
    assert "worker 0, start 1" in said  # the log came back
    assert "worker 1, start 1" not in said
    calls = standins.calls()
    assert verbs(calls) == [
        "create",
        *["describe"] * 3,
        "scp all",
        *["ssh all"] * 2,
        "ssh 0",
        "ssh all",
        "delete",
    ]
    runs = standins.calls("runs")
    assert sorted(run["worker"] for run in runs) == ["0", "1", "2", "3"]
    assert {tuple(run["argv"]) for run in runs} == {("-m", "mde.cli", *COMMAND[1:], TOGETHER)}
    assert not (standins.home / "workers").exists()


def test_a_dry_run_prints_what_a_run_does(standins, launched):
    """The same commands, word for word; waiting for the machine takes any number of looks at its state."""
    two = (TWO, "--set=type=v4-16", "--set=hosts=2")
    _, printed = launched(tpu_vm, *two, *FLAGS, "--dry_run", *COMMAND)
    assert standins.calls() == []
    planned = [shlex.split(line[2:]) for line in printed.splitlines()]
    assert launched(tpu_vm, *two, *FLAGS, *COMMAND)[0] == 0
    made = standins.calls()
    once = [call for i, call in enumerate(made) if call not in made[:i]]
    assert [argv for argv in planned if argv[0] == "gcloud"] == once
    assert len(standins.calls("runs")) == 4


def test_a_preempted_machine_is_replaced(standins, launched):
    standins.scenario(preempt=1, exits={"0": ["hang", 0], "1": ["hang", 0]})
    status, said = launched(tpu_vm, *PAIR, *FLAGS, *COMMAND)
    assert status == 0, said
    assert "pool was taken away (1 of 20 attempts)" in said
    assert verbs(standins.calls()).count("create") == 2
    assert verbs(standins.calls()).count("delete") == 2
    assert "worker 0, start 2" in said


def test_a_machine_that_never_stays(standins, launched):
    standins.scenario(preempt=9, exits={"0": ["hang"]})
    status, said = launched(tpu_vm, V4, *FLAGS, "--attempts=2", *COMMAND)
    assert status == 2
    assert "pool was taken away 2 times; the same command goes on from here" in said
    assert not (standins.home / "workers").exists()


def test_a_run_that_was_stopped_goes_on(standins, launched):
    """Maintenance: the command saves its state and ends with 130; the machine stays."""
    standins.scenario(exits={"0": [130, 0], "1": [0]})
    status, said = launched(tpu_vm, *PAIR, *FLAGS, *COMMAND)
    assert status == 0, said
    assert "pool was stopped and goes on" in said
    assert "worker 0, start 2" in said
    assert verbs(standins.calls()).count("delete") == 1


def test_a_run_that_fails_on_one_worker(standins, launched):
    standins.scenario(exits={"1": [1], "0": [130]})
    status, said = launched(tpu_vm, *PAIR, *FLAGS, *COMMAND)
    assert status == 1
    assert "worker 1, start 1" in said  # its log is shown
    assert verbs(standins.calls())[-1] == "delete"


def test_refused_quota(standins, launched):
    standins.scenario(refuse=QUOTA)
    status, said = launched(tpu_vm, V5E, *FLAGS, *COMMAND)
    assert status == 2
    assert (
        f"launch.tpu_vm: error: v5litepod-16 was refused: ERROR: (gcloud.compute.tpus.queued-resources.create) {QUOTA}"
        in said
    )
    assert verbs(standins.calls()) == ["create"]


def test_a_request_that_fails_later(standins, launched):
    standins.scenario(fail=QUOTA)
    status, said = launched(tpu_vm, V5E, *FLAGS, *COMMAND)
    assert status == 2
    assert f"error: v5litepod-16 could not be had: {QUOTA}" in said
    assert verbs(standins.calls())[-1] == "delete"


def test_a_worker_that_comes_late(standins, launched):
    standins.scenario(unreachable=[1, 2])
    assert launched(tpu_vm, *PAIR, *FLAGS, *COMMAND)[0] == 0


def test_a_worker_that_never_comes(standins, launched):
    standins.scenario(unreachable=[3, 99])
    status, said = launched(tpu_vm, V5E, *FLAGS, *COMMAND)
    assert status == 2
    assert "error: worker 3 of pool cannot be reached" in said
    assert verbs(standins.calls())[-1] == "delete"


def test_a_second_launcher_finds_the_run(standins, launched):
    assert launched(tpu_vm, V4, *FLAGS, "--keep", *COMMAND)[0] == 0
    assert (standins.home / "workers").exists()
    status, said = launched(tpu_vm, V4, *FLAGS, *COMMAND)
    assert status == 0, said
    assert "ALREADY_EXISTS" in said
    assert not (standins.home / "workers").exists()


def test_a_second_launcher_leaves_a_run_and_its_clone_alone(standins, launched):
    """One that still goes on was started from what was committed then."""
    worker = standins.home / "workers" / "pool" / "0"
    worker.mkdir(parents=True)
    (standins.home / "pool.json").write_text('["ACTIVE"]')
    run = subprocess.Popen(["sleep", "3"], start_new_session=True)
    (worker / "run.pid").write_text(str(run.pid))
    (worker / "run.log").write_text("a line of the first launcher's\n")
    (worker / "run.status").write_text("0")
    threading.Thread(target=run.wait).start()  # as init would
    status, said = launched(tpu_vm, V4, *FLAGS, "--keep", *COMMAND)
    assert status == 0, said
    assert "a line of the first launcher's" in said
    assert not (worker / "mde").exists()
    assert standins.calls("runs") == []


def test_a_connection_that_breaks_loses_no_line_of_the_log(standins, launched):
    """Not in the middle of a line, of a letter, or of a progress bar, whatever gcloud itself has to say."""
    log = "worker 0, start 1\nthe token is None\nstep 1\rstep 2\rstep 3, énd\n"
    letter = len(log[: log.index("é")].encode()) + 1
    standins.scenario(cuts=[5, 22, 10, letter - 37, 0])
    status, said = launched(tpu_vm, V4, *FLAGS, *COMMAND)
    assert status == 0, said
    own = ("$ ", "ERROR: ", "WARNING: ", gcloud.STATUS, "pool", "Create request")
    shown = [line for line in said.splitlines() if not line.startswith(own)]
    assert "".join(shown) == re.sub("[\r\n]", "", log).replace("é", "\ufffd\ufffd")


def test_a_state_that_is_not_told_once_ends_nothing(standins, launched):
    standins.scenario(cuts=[5], unseen=3)
    status, said = launched(tpu_vm, V4, *FLAGS, *COMMAND)
    assert status == 0, said
    assert verbs(standins.calls()).count("create") == verbs(standins.calls()).count("delete") == 1


def test_a_machine_whose_state_is_not_told_is_left_alone(standins, launched):
    """It may be at work; and it costs money, so that one has to be told."""
    standins.scenario(cuts=[5], unseen=99)
    status, said = launched(tpu_vm, V4, *FLAGS, *COMMAND)
    assert status == 2
    assert "cannot see the state of pool: ERROR: " in said
    assert "(503); it goes on, and the same command finds it" in said
    assert "still there and costs money. Delete it: gcloud compute tpus queued-resources delete pool" in said
    assert "delete" not in verbs(standins.calls())
    assert (standins.home / "workers").exists()


def test_secrets_reach_workers_and_no_log(standins, launched, monkeypatch):
    monkeypatch.setenv("TOKEN", "a'secret $(touch pwned)")
    status, said = launched(tpu_vm, V4, *FLAGS, "--secret=TOKEN", *COMMAND)
    assert status == 0, said
    assert standins.calls("runs")[0]["token"] == "a'secret $(touch pwned)"
    assert "the token is ***" in said
    assert "secret $(" not in said + str(standins.calls())
    assert not list(standins.home.rglob("pwned"))


def test_no_binding_is_a_command(standins, launched):
    """Whatever it holds comes to `mde` on the worker, through three shells, as it was typed here."""
    text = "'; touch pwned; '\" $(touch pwned) `touch pwned` \n& touch pwned; ${HOME} \\"
    binding = f"--gin_bindings=fit.mixtures = {text!r}"
    command = ["fit", "--study=gs://bucket/study", binding, f"--losses={text}"]
    status, said = launched(tpu_vm, V4, *FLAGS, "--", *command)
    assert status == 0, said
    assert [run["argv"] for run in standins.calls("runs")] == [["-m", "mde.cli", *command]]
    assert not list(standins.home.rglob("pwned"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([V5E, "--name=pool", *COMMAND], "--project="),
        ([V5E, "--name=pool", "--project=-x; rm", *COMMAND], "--project=-x; rm"),
        ([V5E, "--name=Pool", "--project=my-project", *COMMAND], "--name=Pool: expected"),
        ([V5E, *FLAGS, "--secret=NOWHERE", *COMMAND], "--secret=NOWHERE: expected"),
        ([V5E, *FLAGS, "--set=zone=", *COMMAND], "needs the machine's zone"),
        ([V5E, *FLAGS, "--set=hosts=0", *COMMAND], "hosts = 0 must be positive"),
        ([V5E, *FLAGS, "--set=spot=perhaps", *COMMAND], "spot = 'perhaps': expected bool"),
        ([V5E, *FLAGS, "--set=zones=x", *COMMAND], "did you mean 'zone'"),
        ([V5E, *FLAGS, "--set=zone", *COMMAND], "expected field=value"),
        (["--machine=launch/machines/v5e16.py", *FLAGS, *COMMAND], "did you mean 'launch/machines/v5e_16.py'"),
        (["--machine=launch/machine.py", *FLAGS, *COMMAND], "get_config()"),
        (["--machine=launch/machines/h100_8.py", *FLAGS, *COMMAND], "H100 is a gpu"),
        ([V5E, *FLAGS, "--", "optimise", "--study=gs://b/s"], "did you mean 'optimize'"),
        ([V4, *FLAGS, "--", "scale", "--study=gs://b/s"], "`mde scale` is not launched; what is: demo, prepare, train"),
        ([V4, *FLAGS, "--", "models"], "`mde models` is not launched"),
        ([V5E, *FLAGS, *OPTIMIZE], "'optimize' is run by one host and the machine has 4"),
        ([V4, *FLAGS, "--", "optimize"], "--study=None: expected"),
        ([V4, *FLAGS, "--", "optimize", "--study=studies/demo"], "in a bucket"),
        ([V4, *FLAGS, *OPTIMIZE, "--refit=3"], "did you mean '--refits'"),
        ([V4, *FLAGS, *OPTIMIZE, "--gin_bindings=optimize.refit = 3"], "did you mean 'refits'"),
        ([V4, *FLAGS, *OPTIMIZE, "--refits=many"], "--refits=many: expected a whole number"),
        ([V5E, *FLAGS, "--", "train", "--study=gs://b/s"], "'train' needs preset"),
        ([V5E, *FLAGS, "--", "train", "--study=gs://b/s", "--mixture=recommended"], "'final' needs steps"),
        ([V5E, *FLAGS, *COMMAND, "--gin_file=nowhere.gin"], "no gin file 'nowhere.gin'"),
    ],
)
def test_bad_input_costs_nothing(standins, launched, arguments, expected):
    status, said = launched(tpu_vm, *arguments)
    assert status == 2
    assert expected in said
    assert len([line for line in said.splitlines() if "error: " in line]) == 1
    assert standins.calls() == []


def test_gin_files_that_are_not_committed(standins, launched, tmp_path):
    (tmp_path / "own.gin").write_text("optimize.seed = 3\n")
    status, said = launched(tpu_vm, V5E, *FLAGS, *COMMAND, f"--gin_file={tmp_path}/own.gin")
    assert status == 2
    assert "expected a file that is committed" in said


def test_a_model_that_does_not_fit(standins, launched, monkeypatch):
    from mde.models import config

    large = config._preset(d_model=8192, n_layers=80, n_heads=64, d_ff=28672)
    monkeypatch.setitem(config.PRESETS, "large", large)
    command = ["train", "--study=gs://b/s", "--gin_file=configs/demo.gin", "--preset=large"]
    status, said = launched(tpu_vm, V5E, *FLAGS, "--", *command)
    assert status == 2
    assert "preset 'large' does not fit on v5litepod-16" in said
    assert "16 chips have 256 GB" in said
    assert launched(tpu_vm, "--machine=launch/machines/v6e_64.py", *FLAGS, "--dry_run", "--", *command)[0] == 0
    full = ["train", "--study=gs://b/s", "--mixture=recommended", "--steps=9", "--preset=large"]
    assert "preset 'large' does not fit on v5litepod-16" in launched(tpu_vm, V5E, *FLAGS, "--", *full)[1]


def test_no_credentials_and_no_gcloud(standins, launched, monkeypatch):
    standins.scenario(account="")
    status, said = launched(tpu_vm, V5E, *FLAGS, *COMMAND)
    assert status == 2
    assert "no Google Cloud credentials: run `gcloud auth login`" in said
    assert len(standins.calls()) == 1
    (standins.programs / "gcloud").unlink()
    status, said = launched(tpu_vm, V5E, *FLAGS, *COMMAND)
    assert status == 2
    assert "gcloud is not installed" in said
