"""The chart's manifests: each machine has one node and its key, and no more stop than may fail.

The manifests that are tested are those in the repository; that they are the chart's, a digest in
their header shows. Helm itself renders them again where it is installed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bftfs.cluster import Durability
from bftfs.crypto.keys import Identity, read_identity, write_identity
from nodes.__main__ import node_command
from nodes.configuration import NodeConfiguration
from tests.unit.nodes.test_exposition import Node, exposition_of

yaml: Any = pytest.importorskip("yaml", reason="needs pyyaml")

KUBERNETES = Path(__file__).parents[3] / "docs" / "packaging" / "kubernetes"
CHART = KUBERNETES / "bftfs"
RENDERED = KUBERNETES / "six-nodes.yaml"
MANIFESTS: list[dict[str, Any]] = [
    each for each in yaml.safe_load_all(RENDERED.read_text()) if each
]
SETS = [each for each in MANIFESTS if each["kind"] == "StatefulSet"]


def the(kind: str) -> dict[str, Any]:
    found = [each for each in MANIFESTS if each["kind"] == kind]
    assert len(found) == 1, kind
    return found[0]


def pod(node: int) -> dict[str, Any]:
    spec: dict[str, Any] = SETS[node]["spec"]["template"]["spec"]
    return spec


def digest_of_chart() -> str:
    digest = hashlib.sha256()
    for path in sorted(CHART.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(CHART)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def test_the_manifests_are_those_of_the_chart() -> None:
    """If not: render it anew (docs/packaging/README.md), and put the digest into the header."""
    assert f"sha256 {digest_of_chart()}" in RENDERED.read_text().splitlines()[1]


@pytest.mark.skipif(shutil.which("helm") is None, reason="needs helm")
def test_helm_renders_the_same() -> None:
    subprocess.run(["helm", "lint", "--strict", str(CHART)], check=True)
    rendered = subprocess.run(
        ["helm", "template", "bftfs", str(CHART)], capture_output=True, text=True, check=True
    )
    helms = [each for each in yaml.safe_load_all(rendered.stdout) if each]
    assert sorted(map(repr, helms)) == sorted(map(repr, MANIFESTS))


@pytest.mark.parametrize("version", ["1.25", "1.30", "1.37"])
def test_kubernetes_would_accept_them(version: str) -> None:
    validation = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for manifest in MANIFESTS:
        validation.validate(manifest, version, strict=True)


def test_the_default_values_are_as_their_schema_wants_them() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "replicas": 6}, schema)


def test_a_machine_is_given_the_key_of_one_node() -> None:
    named = [
        [volume["secret"]["secretName"] for volume in pod(node)["volumes"] if "secret" in volume]
        for node in range(6)
    ]
    assert named == [[f"bftfs-node-{node}"] for node in range(6)]
    for node, each in enumerate(SETS):
        assert each["spec"]["replicas"] == 1
        (term,) = pod(node)["affinity"]["podAntiAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert term["labelSelector"]["matchLabels"].items() <= labels.items()


def test_no_more_stop_on_purpose_than_may_fail() -> None:
    budget = the("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    for each in SETS:
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert budget["selector"]["matchLabels"].items() <= labels.items()
        assert each["spec"]["updateStrategy"] == {"type": "OnDelete"}


def test_nodes_find_each_other_before_they_are_ready() -> None:
    service = the("Service")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"]
    assert all(each["spec"]["serviceName"] == the("Service")["metadata"]["name"] for each in SETS)


@pytest.mark.parametrize("node", range(6))
def test_a_node_is_started_as_its_command_line_wants_it(node: int) -> None:
    (container,) = pod(node)["containers"]
    assert container["args"][:2] == ["node", "run"]
    context = node_command.make_context("node", container["args"][2:])
    assert context.params["data"] == Path(f"/var/lib/bftfs/nodes/{node}")
    assert any(
        context.params["data"].is_relative_to(mount["mountPath"])
        for mount in container["volumeMounts"]
        if mount["name"] == "store"
    )


def test_probes_ask_for_pages_that_there_are() -> None:
    (container,) = pod(0)["containers"]
    with exposition_of(Node()) as exposition:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert exposition.page(container[probe]["httpGet"]["path"])[0] == 200


def test_a_restart_touches_no_file_of_the_store() -> None:
    assert pod(0)["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_the_settings_are_those_of_a_node(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(the("ConfigMap")["data"]["node.toml"])
    settings = NodeConfiguration.load(
        tmp_path / "node.toml", durability=Durability.SYNC, metrics="unix:/nowhere"
    )
    assert settings.metrics == "tcp:0.0.0.0:9100"


def test_the_key_becomes_the_node_s_own(tmp_path: Path) -> None:
    """What is done before a node is started, done here: twice, as after a restart."""
    (preparation,) = pod(3)["initContainers"]
    shell, flags, script = preparation["command"]
    (tmp_path / "run" / "key").mkdir(parents=True)
    (tmp_path / "run" / "settings").mkdir()
    (tmp_path / "var" / "nodes").mkdir(parents=True)
    identity = Identity(bytes(range(32)))
    write_identity(tmp_path / "run" / "key" / "node.key", identity)
    (tmp_path / "run" / "key" / "node.key").chmod(0o440)  # as of a Secret
    (tmp_path / "run" / "settings" / "node.toml").write_text("")
    for absolute, here in (("/run/bftfs", "run"), ("/var/lib/bftfs", "var")):
        assert absolute in script
        script = script.replace(absolute, str(tmp_path / here))
    for _ in range(2):
        subprocess.run([shell, flags, script], check=True)
        kept = read_identity(tmp_path / "var" / "nodes" / "3" / "node.key")
        assert kept.public_key == identity.public_key
