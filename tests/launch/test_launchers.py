"""The launchers: what --dry-run prints, and what they do with programs that are not here.

Those programs (gcloud, srun, ...) are stood in for by a script that notes how it was called
and gives the exit codes of a list, one a call. Its file STATE is the state of the queued
resource, and what docker and kubectl were given to read.
"""

import json
import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
RUN = ["run", "--config=q:a=b c", "--workdir=/mnt/flax_adapt/x"]
# Notes its call; a call whose words contain WHEN takes the next exit code of the file CODES.
STAND_IN = """#!/usr/bin/env bash
printf '%q ' "$(basename "$0")" "$@" >>"$CALLS"; echo >>"$CALLS"
case $(basename "$0") in docker | kubectl) cat >>"$STATE" ;; esac
case "$*" in
    *describe*) cat "$STATE" ;;
    *"$WHEN"*)
        code=$(head -n 1 "$CODES"); sed -i 1d "$CODES"
        case $code in *:*) echo "${code#*:}" >"$STATE" ;; esac
        exit "${code%%:*}" ;;
    *create*) echo ACTIVE >"$STATE" ;;
esac
"""


def launch(script, *arguments, **settings):
    done = subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=60,
        env={**os.environ, "TMPDIR": "/tmp", **settings},
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.fixture
def stand_ins(tmp_path):
    """Returns a function that gives the settings with which a launcher meets the stand-ins."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("gcloud", "srun", "scontrol", "kubectl", "docker"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    paths = {name: tmp_path / name for name in ("CALLS", "CODES", "STATE")}

    def settings(when, codes, state="ACTIVE"):
        paths["CALLS"].write_text("")
        paths["CODES"].write_text("".join(f"{code}\n" for code in codes))
        paths["STATE"].write_text(state + "\n")
        return {
            **{name: str(path) for name, path in paths.items()},
            "WHEN": when,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(tmp_path),
        }

    settings.calls = lambda: paths["CALLS"].read_text().splitlines()
    return settings


POD = ["--name=pod", "--zone=z", "--accelerator=v5litepod-16", "--spot", "--poll=0"]


def test_tpu_pod_dry_run_prints_every_command():
    code, lines, error = launch(
        "tpu_pod.sh", "--dry-run", *POD, "--nfs=10.0.0.2:/share", "--delete", *RUN
    )
    assert (code, error) == (0, "")
    assert lines[0] == (
        "gcloud compute tpus queued-resources create pod --node-id=pod "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot --zone=z"
    )
    commands = [shlex.split(line) for line in lines if line[:1] != "#"]
    steps = [words[3:5] if words[0] == "gcloud" else words[:1] for words in commands]
    assert steps == [
        ["queued-resources", "create"],
        ["queued-resources", "describe"],
        ["git"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]
    assert "mount -t nfs 10.0.0.2:/share /mnt/flax_adapt" in commands[4][-1]
    remote = shlex.split(commands[5][-1].removeprefix("--command="))
    assert remote == [
        "flax_adapt_venv/bin/flax-adapt",
        *RUN,
        "--coordinator=auto",
        "--stop_code=75",
    ]
    assert "--worker=all" in commands[5]


@pytest.mark.parametrize(
    ("codes", "code", "creates", "runs"),
    [
        ([0], 0, 0, 1),
        ([2], 2, 0, 1),  # a mistake is not made twice
        ([75, 0], 0, 0, 2),  # stopped by SIGTERM
        (["255:SUSPENDED", 0], 0, 1, 2),  # the spot slice was taken away
        ([1, 1, 1], 1, 0, 3),  # --restarts=2
    ],
)
def test_tpu_pod_restarts_what_a_restart_can_help(
    stand_ins, codes, code, creates, runs
):
    settings = stand_ins("flax_adapt_venv/bin/flax-adapt", codes)
    found, _, _ = launch("tpu_pod.sh", *POD, "--restarts=2", *RUN, **settings)
    calls = stand_ins.calls()
    assert found == code
    assert sum("bin/flax-adapt" in call for call in calls) == runs
    assert sum("queued-resources create" in call for call in calls) == creates
    assert sum("queued-resources delete" in call for call in calls) == creates
    assert sum("scp" in call for call in calls) == 1 + creates


def test_slurm_dry_run_prints_the_step(tmp_path):
    settings = dict(FLAX_ADAPT_VENV="/venv", SLURM_JOB_ID="7")
    code, lines, _ = launch("slurm.sbatch", "--dry-run", *RUN, **settings)
    commands = [shlex.split(line) for line in lines if line[:1] != "#"]
    assert code == 0
    assert commands == [
        [
            *("srun", "--kill-on-bad-exit=1", "--wait=120", "/venv/bin/flax-adapt"),
            *(*RUN, "--coordinator=auto", "--stop_code=75"),
        ],
        ["scontrol", "requeue", "7"],
    ]


@pytest.mark.parametrize(
    ("codes", "restarts_before", "code", "requeued"),
    [([0], 0, 0, 0), ([2], 0, 2, 0), ([75], 0, 0, 1), ([1], 9, 0, 1), ([1], 10, 1, 0)],
)
def test_slurm_queues_again_what_is_not_done(
    stand_ins, tmp_path, codes, restarts_before, code, requeued
):
    program = tmp_path / "venv" / "bin" / "flax-adapt"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    found, _, _ = launch(
        "slurm.sbatch",
        *RUN,
        **stand_ins("flax-adapt", codes),
        FLAX_ADAPT_VENV=str(tmp_path / "venv"),
        SLURM_RESTART_COUNT=str(restarts_before),
        SLURM_JOB_ID="7",
    )
    assert found == code
    again = [call for call in stand_ins.calls() if call.startswith("scontrol")]
    assert again == ["scontrol requeue 7 "] * requeued


def test_docker_dry_run_and_push(stand_ins):
    arguments = ["--hardware=tpu", "--push"]
    code, lines, _ = launch("docker.sh", "--dry-run", *arguments)
    assert code == 0
    assert lines[0].endswith(
        "archive HEAD | docker build -f launch/Dockerfile --build-arg HARDWARE=tpu "
        "-t flax_adapt:tpu -"
    )
    assert lines[1:] == ["docker push flax_adapt:tpu"]
    launch("docker.sh", *arguments, **stand_ins("no such word", []))
    assert [call.split()[:2] for call in stand_ins.calls()] == [
        ["docker", "build"],
        ["docker", "push"],
    ]


TPU = ["--tpu=tpu-v5-lite-podslice", "--topology=4x4", "--hosts=4"]
GPU = ["--gpu=nvidia-h100-80gb", "--chips=8", "--hosts=2"]
NAMED = ["--name=x", "--image=r/f:1"]
SETS = {
    "a TPU slice": [*TPU, "--claim=shared", "--spot", "--account=a"],
    "one TPU host": ["--tpu=tpu-v5-lite-podslice", "--topology=2x2"],
    "GPU hosts": [*GPU, "--claim=shared"],
    "one GPU host": ["--gpu=nvidia-l4", "--chips=1", "--spot"],
}


@pytest.fixture(scope="module")
def manifests():
    """What `gke.sh --dry-run` prints, by name of SETS."""
    yaml = pytest.importorskip("yaml")
    command = ["run", '--config=q:a="b" \\ &c', "--workdir=/w"]
    found = {}
    for name, arguments in SETS.items():
        code, lines, error = launch("gke.sh", "--dry-run", *NAMED, *arguments, *command)
        assert (code, error) == (0, "")
        assert lines[-1] == "# kubectl apply -f -"
        found[name] = yaml.safe_load("\n".join(lines))
    return found


@pytest.mark.parametrize("name", SETS)
def test_a_manifest_fits_the_schemas(manifests, name):
    kubernetes = pytest.importorskip("kubernetes_validate")
    import jsonschema

    schema = json.loads((Path(__file__).parent / "jobset.schema.json").read_text())
    manifest = manifests[name]
    jsonschema.Draft202012Validator(schema).validate(manifest)
    for one in manifest["spec"]["replicatedJobs"]:
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "x"},
            **one["template"],
        }
        kubernetes.validate(job, kubernetes.latest_version(), strict=True)
        job["spec"]["paralelism"] = 1
        with pytest.raises(kubernetes.ValidationError):
            kubernetes.validate(job, kubernetes.latest_version(), strict=True)


def test_a_manifest_holds_what_the_options_say(manifests):
    pods = {
        name: manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
        for name, manifest in manifests.items()
    }
    specs = {name: job["template"]["spec"] for name, job in pods.items()}
    (tpu,) = specs["a TPU slice"]["containers"]
    (gpu,) = specs["GPU hosts"]["containers"]
    words = ["run", '--config=q:a="b" \\ &c', "--workdir=/w"]
    assert tpu["args"] == [*words, "--coordinator=auto", "--stop_code=75"]
    for name in ("one TPU host", "one GPU host"):
        assert specs[name]["containers"][0]["args"] == [*words, "--stop_code=75"]
    assert tpu["resources"]["limits"] == {"google.com/tpu": 4}
    assert gpu["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert {one["name"]: one["value"] for one in gpu["env"]} == {
        "JAX_COORDINATOR_ADDRESS": "x-workers-0-0.x:1234",
        "JAX_NUM_PROCESSES": "2",
    }
    spot = "cloud.google.com/gke-spot"
    assert [spot in specs[name]["nodeSelector"] for name in SETS] == [1, 0, 0, 1]
    assert ["volumes" in specs[name] for name in SETS] == [1, 0, 1, 1]
    assert specs["a TPU slice"]["serviceAccountName"] == "a"
    assert "serviceAccountName" not in specs["GPU hosts"]


def test_gke_applies_the_manifest(stand_ins):
    settings = stand_ins("no such word", [])
    code, _, _ = launch("gke.sh", *NAMED, *SETS["GPU hosts"], *RUN, **settings)
    assert code == 0
    assert "kind: JobSet" in Path(settings["STATE"]).read_text()
    assert stand_ins.calls() == ["kubectl apply -f - "]


REFUSED = {
    "tpu_pod.sh --name=x run": "--zone=... is missing",
    "tpu_pod.sh --name=x --zone=z": "a flax-adapt command is missing",
    "tpu_pod.sh --nmae=x run": "--nmae is unknown; there are: ",
    "gke.sh --name=x --image=i run": "--tpu=TYPE or --gpu=TYPE is missing",
    "gke.sh --name=x --image=i --tpu=t run": "--topology=... is missing",
    "gke.sh --name=x --image=i --gpu=g --hosts=two run": "must be a number",
    "gke.sh --name=x --image=i --gpu=g --hosts=2 run": "share the workdir",
    "gke.sh --name=X_ --image=i --gpu=g run": "must be a short name",
    "docker.sh --hardware=gpu": "must be cpu, cuda or tpu",
    "slurm.sbatch": "a flax-adapt command is missing",
    "slurm.sbatch run": "there is no ",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_mistake_is_one_line_and_exit_code_2(line, tmp_path):
    script, *arguments = line.split()
    code, lines, error = launch(script, *arguments, FLAX_ADAPT_VENV=str(tmp_path))
    assert (code, lines, error.count("\n")) == (2, [], 1)
    assert error.startswith(f"{script}: ")
    assert REFUSED[line] in error
