"""What the cluster files say: read by Ray's own code and by the clouds' own descriptions of what they take."""

import re
import subprocess
import sys
from pathlib import Path
from shlex import split

import pytest
import yaml
from click import ClickException
from jsonschema import ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

ROOT = Path(__file__).parents[2]
AWS, GCP, ON_PREMISES = FILES = "cluster.yaml", "clusters/gcp.yaml", "clusters/on-premises.yaml"
KUBERAY = "clusters/kuberay.yaml"
RAY = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def read(file: str) -> dict:
    return yaml.safe_load((ROOT / file).read_text())


def prepared(config: dict) -> dict:
    """As `ray up` has it, and the autoscaler on the head."""
    config = prepare_config(config)
    validate_config(config)
    return config


def kuberay() -> dict:
    """As the autoscaler in the head's pod reads the cluster that KubeRay makes for the job."""
    job = read(KUBERAY)
    cluster = {"metadata": job["metadata"] | {"namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
    return _derive_autoscaling_config_from_ray_cr(cluster)


@pytest.mark.parametrize("file", FILES)
def test_ray_takes_it(file):
    prepared(read(file))


def test_ray_refuses_what_is_wrong():
    for part in ({"max_workers": "four"}, {"dockr": {}}, {"head_node_type": "tail"}, {"max_workers": -1}):
        with pytest.raises((ValidationError, ValueError)):
            prepared(read(AWS) | part)


@pytest.mark.parametrize("config", [prepared(read(AWS)), prepared(read(GCP)), kuberay()], ids=[AWS, GCP, KUBERAY])
def test_workers_with_a_gpu_come_and_go(config):
    types = config["available_node_types"]
    assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"] == config["max_workers"]
    assert types["gpu"]["resources"]["GPU"] == 1 and "GPU" not in types[config["head_node_type"]]["resources"]
    assert 0 < config["idle_timeout_minutes"] <= 10


@pytest.mark.parametrize("file", FILES)
def test_every_machine_asks_for_the_token(file):
    config = read(file)
    everywhere = " ".join(config.get("docker", {}).get("run_options", []))
    for part in ("head_start_ray_commands", "worker_start_ray_commands"):
        stop, command = config[part]
        assert stop == "ray stop" and "ray start" in command
        assert "RAY_AUTH_MODE=token" in command or "-e RAY_AUTH_MODE=token" in everywhere
    tokens = {there: here for there, here in config["file_mounts"].items() if there.endswith("/.ray/auth_token")}
    assert list(tokens.values()) == ["~/.ray/auth_token"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ray_start_knows_the_flags_and_no_dashboard_is_started(file):
    from ray.scripts.scripts import start

    config = read(file)
    for part in ("head_start_ray_commands", "worker_start_ray_commands"):
        [flags] = re.findall(r"ray start( [^|\"&]*)", config[part][1])
        context = start.make_context("start", split(flags.replace("$RAY_HEAD_IP", "10.0.0.1")))
        assert context.params["head"] == (part == "head_start_ray_commands")
        assert not context.params["head"] or context.params["include_dashboard"] is False


def test_kubernetes_makes_the_token_and_no_service():
    job = read(KUBERAY)
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    groups = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        [container] = group["template"]["spec"]["containers"]
        assert "ports" not in container and "hostNetwork" not in group["template"]["spec"]
    assert "serviceType" not in groups[0]


def test_nothing_but_ssh_is_let_in_on_aws():
    from ray.autoscaler._private.aws.config import _create_default_inbound_rules

    provider = read(AWS)["provider"]
    rules = _create_default_inbound_rules({"own"}, provider.get("security_group", {}).get("IpPermissions"))
    from_outside = [rule for rule in rules if rule.get("UserIdGroupPairs") != [{"GroupId": "own"}]]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [("tcp", 22, 22)]
    for machine in read(AWS)["available_node_types"].values():
        assert not {"SecurityGroupIds", "SecurityGroups", "NetworkInterfaces"} & set(machine["node_config"])


def wrong_on_aws(node_config: dict) -> str:
    """What EC2's own description of RunInstances finds wrong."""
    import botocore.session
    from botocore.validate import ParamValidator

    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report = ParamValidator().validate(node_config | {"MinCount": 1, "MaxCount": 1}, shape).generate_report()
    known = node_config["InstanceType"] in shape.members["InstanceType"].enum
    return report if known else f"{report} {node_config['InstanceType']} is unknown"


def test_aws_takes_the_machines():
    types = read(AWS)["available_node_types"]
    assert [wrong_on_aws(machine["node_config"]) for machine in types.values()] == ["", ""]
    assert types["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    for part in (
        {"InstanceType": "g6.tiny"},
        {"Spot": True},
        {"BlockDeviceMappings": [{"Ebs": {"VolumeSize": "big"}}]},
    ):
        assert wrong_on_aws(types["gpu"]["node_config"] | part)


@pytest.mark.slow
def test_google_takes_the_machines():
    from google.cloud.compute_v1.types import Instance
    from google.protobuf.json_format import ParseDict, ParseError

    types = read(GCP)["available_node_types"]
    gpu = [ParseDict(machine["node_config"], Instance.pb()()) for machine in types.values()][1]
    assert gpu.scheduling.provisioning_model == "SPOT" and gpu.scheduling.on_host_maintenance == "TERMINATE"
    assert gpu.service_accounts[0].email.endswith(f"@{read(GCP)['provider']['project_id']}.iam.gserviceaccount.com")
    for part in ({"machinetype": "n2-standard-4"}, {"scheduling": [{"preemptible": True}]}):
        with pytest.raises(ParseError):
            ParseDict(types["gpu"]["node_config"] | part, Instance.pb()())


@pytest.mark.parametrize("file", [AWS, GCP, "clusters/Dockerfile"])
def test_images_have_the_ray_of_constraints(file):
    text = (ROOT / file).read_text()
    assert set(re.findall(r"rayproject/ray:([\d.]+)-py311-[cg]pu", text)) == {RAY} and text.count("rayproject/") <= 2


def test_kubernetes_is_told_the_ray_of_constraints():
    assert read(KUBERAY)["spec"]["rayClusterSpec"]["rayVersion"] == RAY


@pytest.mark.parametrize("file", FILES)
def test_what_is_copied_and_installed_is_there(file):
    config = read(file)
    [folder] = [there for there, here in config["file_mounts"].items() if here == "."]
    [install] = [command for command in config["setup_commands"] if "pip install" in command]
    assert install.startswith(f"cd {Path(folder).name} && ") and install.endswith(" -c constraints.txt -e .")
    assert (ROOT / "constraints.txt").exists() and (ROOT / "pyproject.toml").exists()
    assert config["rsync_filter"] == [".gitignore"] and (ROOT / ".gitignore").exists()


def commands(file: str) -> list[str]:
    """The lines in a file's head that a person types."""
    return re.findall(r"^#   (\S.*?)(?:\s{4,}.*)?$", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("file", [*FILES, KUBERAY, "clusters/slurm.sh", "clusters/aws-role.sh"])
def test_commands_in_the_head_name_files_that_are_there(file):
    named = {word for line in commands(file) for word in re.findall(r"[\w./-]+\.(?:yaml|py|sh)\b", line)}
    assert file in named and all((ROOT / name).exists() for name in named)


@pytest.mark.parametrize("file", ["clusters/slurm.sh", "clusters/aws-role.sh"])
def test_scripts_are_sound(file):
    subprocess.run([Path(sys.executable).with_name("shellcheck"), ROOT / file], check=True)


def test_ray_takes_the_slurm_line():
    line = (ROOT / "clusters" / "slurm.sh").read_text().replace("\\\n", " ").split("srun ray symmetric-run ")[1]
    flags = curate_and_validate_ray_start_args(split(line))
    assert flags[: flags.index("env")] == ["--num-cpus=$SLURM_CPUS_PER_TASK"]  # nothing that the head alone takes
    with pytest.raises(ClickException):
        curate_and_validate_ray_start_args(split(f"--head {line}"))
