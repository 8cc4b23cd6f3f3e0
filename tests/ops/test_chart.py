"""The chart: what is rendered is safe, complete, and made of flags that exist."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from get_helm import helm
from ops.rule_files import CHART, alerts
from processes import ServerProcess, plain_environment

from groupreplay import Client
from groupreplay_cli import COMMANDS, setting_names

FILES = sorted((CHART / "ci").glob("*-values.yaml"))


def render(*options: str) -> list[dict[str, Any]]:
    """Return what Helm makes of the chart with these options."""
    command = [str(helm("3")), "template", "r", str(CHART), "--namespace", "ns", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and specification of each Pod."""
    for document in documents:
        if document["kind"] == "Pod":
            yield document["metadata"]["name"], document["spec"]
        elif "template" in document.get("spec", {}):
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def pick(documents: list[dict[str, Any]], kind: str, end: str = "") -> dict[str, Any]:
    """Return the one document of a kind whose name ends so."""
    [found] = [it for it in documents if it["kind"] == kind and it["metadata"]["name"].endswith(end)]
    return found


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the path of each value that is not a section."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_value_is_set_in_one_of_the_files_that_are_linted() -> None:
    """So what `make lint-helm` holds to the schemas of Kubernetes has all that the chart can make."""
    set_somewhere = {path for file in FILES for path in leaves(yaml.safe_load(file.read_text()))}
    for path in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        assert path in set_somewhere or any(it.startswith(f"{path}.") for it in set_somewhere), path


@pytest.mark.ops
@pytest.mark.parametrize("values", FILES, ids=lambda path: path.stem)
def test_every_pod_may_do_as_little_as_possible(values: Path) -> None:
    """No root, no writes to the image, no capabilities, no token of Kubernetes, no variables that settings refuse."""
    found = list(pods(render("--values", str(values))))
    assert found
    for name, pod in found:
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, f"{name}: GROUPREPLAY_PORT would be an unknown setting"
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False), name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"], name
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]} | ({"data"} if "redis" in name else set())


@pytest.mark.ops
@pytest.mark.parametrize("values", FILES, ids=lambda path: path.stem)
def test_containers_are_started_with_flags_that_exist(values: Path) -> None:
    """A setting that was renamed breaks this rather than a deployment."""
    seen = set()
    for _, pod in pods(render("--values", str(values))):
        for container in pod["containers"]:
            command, *flags = container.get("args", [""])
            if command in COMMANDS:
                seen.add(command)
                known = {f"--{name.replace('_', '-')}" for name in setting_names(COMMANDS[command].settings)}
                assert {flag.partition("=")[0].replace("--no-", "--") for flag in flags} <= known
    assert "serve" in seen


@pytest.mark.ops
def test_a_rolling_update_takes_no_pod_before_its_successor_is_ready_and_its_calls_have_ended() -> None:
    """No new calls, then SIGTERM, then the drain; SIGKILL comes after all of them."""
    deployment = pick(render(), "Deployment", "-server")["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    pod = deployment["template"]["spec"]
    [server] = pod["containers"]
    pause_s = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    [drain] = [flag for flag in server["args"] if flag.startswith("--drain-s=")]
    assert pod["terminationGracePeriodSeconds"] > pause_s + int(drain.partition("=")[2])
    assert server["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert server["livenessProbe"]["httpGet"]["path"] == "/healthz"


@pytest.mark.ops
def test_clients_get_the_addresses_of_all_replicas() -> None:
    """By a Service without an address of its own, which the SDK looks up."""
    documents = render("--values", str(CHART / "ci/demo-values.yaml"))
    headless = pick(documents, "Service", "-headless")
    assert headless["spec"]["clusterIP"] == "None"
    address = f"dns:///{headless['metadata']['name']}.ns.svc:50051"
    for kind, end in (("Deployment", "-generator"), ("Job", "")):
        [container] = pick(documents, kind, end)["spec"]["template"]["spec"]["containers"]
        assert f"--server={address}" in container["args"]


@pytest.mark.ops
def test_trainer_and_generators_see_weights_at_the_same_path() -> None:
    """Policies name their weights by path, so a generator that mounts them elsewhere would find none."""
    documents = render("--values", str(CHART / "ci/demo-values.yaml"))
    places = set()
    for kind, end in (("Deployment", "-generator"), ("Job", "")):
        pod = pick(documents, kind, end)["spec"]["template"]["spec"]
        [claim] = [it["persistentVolumeClaim"]["claimName"] for it in pod["volumes"] if it["name"] == "weights"]
        [mount] = [it for it in pod["containers"][0]["volumeMounts"] if it["name"] == "weights"]
        places.add((claim, mount["mountPath"]))
        assert mount.get("readOnly", False) is (kind == "Deployment")
    assert len(places) == 1


@pytest.mark.ops
@pytest.mark.parametrize(("tls", "protocols"), [(False, {"HTTP", "GRPC"}), (True, {"HTTPS", "GRPCS"})])
def test_an_ingress_speaks_the_protocol_that_the_service_speaks(tls: bool, protocols: set[str]) -> None:
    """With TLS on, and without."""
    options = ["--set", "ingress.enabled=true,ingress.httpHost=a.example,ingress.grpcHost=b.example"]
    documents = render(*options, *(["--set", "tls.enabled=true,tls.existingSecret=t"] if tls else []))
    ingresses = [it for it in documents if it["kind"] == "Ingress"]
    key = "nginx.ingress.kubernetes.io/backend-protocol"
    assert {it["metadata"]["annotations"][key] for it in ingresses} == protocols
    [grpc, _] = pick(documents, "Service", "groupreplay")["spec"]["ports"]
    assert ("appProtocol" in grpc) is not tls


@pytest.mark.ops
def test_the_program_of_helm_test_reaches_python_whole() -> None:
    """Its lines are indented by the template, and must come out as they were."""
    [container] = pick(render(), "Pod", "-test")["spec"]["containers"]
    program, *flags = container["args"]
    assert program == (CHART / "files/first_group.py").read_text()
    assert [flag.partition("=")[0] for flag in flags] == ["--server", "--token-file"]


@pytest.mark.ops
def test_alerts_lead_to_their_pages() -> None:
    """With the place where the pages are published put before their path."""
    rule = pick(render("--values", str(CHART / "ci/production-values.yaml")), "PrometheusRule")
    rendered = [it for group in rule["spec"]["groups"] for it in group["rules"] if "alert" in it]
    assert len(rendered) == len(alerts())
    for alert in rendered:
        assert alert["annotations"]["runbook_url"].startswith("https://example.com/groupreplay/docs/howto/alerts/")


@pytest.mark.ops
def test_all_of_our_processes_send_traces_to_the_collector() -> None:
    """Service, generator and trainer, with the same flags, headers and certificates; vLLM beside them has none."""
    documents = render("--values", str(CHART / "ci/production-values.yaml"))
    for end in ("-server", "-generator", ""):
        pod = pick(documents, "Deployment" if end else "Job", end)["spec"]["template"]["spec"]
        container, *others = pod["containers"]
        assert "--trace.endpoint=https://collector.observability:4317" in container["args"]
        assert "--trace.ratio=0.1" in container["args"]
        variables = {it["name"]: it for it in container["env"]}
        wanted = {"key": "headers", "name": "otlp"}
        assert variables["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"] == {"secretKeyRef": wanted}
        [mount] = [it["mountPath"] for it in container["volumeMounts"] if it["name"] == "otlp"]
        assert [it["secret"]["secretName"] for it in pod["volumes"] if it["name"] == "otlp"] == ["otlp-tls"]
        for name, file in {"": "ca.crt", "CLIENT_": "tls.crt", "CLIENT_KEY": "tls.key"}.items():
            variable = f"OTEL_EXPORTER_OTLP_{name}{'' if name.endswith('KEY') else 'CERTIFICATE'}"
            assert variables[variable]["value"] == f"{mount}/{file}"
        assert not any("OTEL" in str(other) for other in others)


@pytest.mark.ops
def test_without_a_collector_nothing_is_traced() -> None:
    """No flag, no variable, no file."""
    text = yaml.safe_dump_all(render("--set", "generator.enabled=true,trainer.enabled=true"))
    assert not re.search("trace|otel|otlp", text, re.IGNORECASE)


REFUSED = {
    "an unknown value": (["--set", "servr.replicas=3"], "servr"),
    "an unknown value in a section": (["--set", "redis.bundled.replica=3"], "replica"),
    "a value of the wrong kind": (["--set", "server.replicas=many"], "replicas"),
    "an image digest that is none": (["--set", "server.image.digest=latest"], "digest"),
    "TLS without a certificate": (["--set", "tls.enabled=true"], "tls.existingSecret"),
    "two certificates": (
        ["--set", "tls.enabled=true,tls.existingSecret=a,tls.certManager.enabled=true"],
        "keep one of them",
    ),
    "vLLM nowhere": (["--set", "generator.enabled=true,generator.engine=vllm-http"], "generator.vllm.url"),
    "a sidecar without a model": (
        ["--set", "generator.enabled=true,generator.engine=vllm-http,generator.vllm.sidecar=true"],
        "generator.vllm.model",
    ),
    "a sidecar that nobody asks": (
        ["--set", "generator.enabled=true,generator.vllm.sidecar=true,generator.vllm.model=m"],
        "generator.engine vllm-http",
    ),
    "a scrape without a token": (
        ["--set", "monitoring.serviceMonitor.enabled=true,server.openMetrics=false"],
        "server.openMetrics",
    ),
    "a collector that is no address": (["--set", "tracing.endpoint=collector"], "endpoint"),
    "traces of more than all": (["--set", "tracing.ratio=2"], "ratio"),
    "TLS to a collector that is called without": (
        ["--set", "tracing.endpoint=http://c:4317,tracing.tls.existingSecret=a"],
        "begins with https://",
    ),
    "headers for nobody": (["--set", "tracing.headersSecret=a"], "tracing.endpoint"),
    "routes of no gateway": (["--set", "gateway.enabled=true"], "gateway.parentRefs"),
}


@pytest.mark.ops
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_with_what_to_set(what: str) -> None:
    """Before anything reaches the cluster."""
    options, said = REFUSED[what]
    with pytest.raises(subprocess.CalledProcessError) as raised:
        render(*options)
    assert said in raised.value.stderr


@pytest.mark.ops
def test_the_check_against_the_schemas_of_kubernetes_can_fail() -> None:
    """A field that no version knows, and one of the wrong kind, are found."""
    from lint_chart import validate  # noqa: PLC0415  its schemas are installed for the tests marked ops only

    service = pick(render(), "Service", "-headless")
    assert list(validate(yaml.safe_dump(service))) == []
    service["spec"]["clusterIPP"] = "None"
    assert len(list(validate(yaml.safe_dump(service)))) == 11
    del service["spec"]["clusterIPP"]
    service["spec"]["ports"] = "50051"
    assert len(list(validate(yaml.safe_dump(service)))) == 11


def test_the_program_of_helm_test_uses_the_service(server_process: ServerProcess, sync_client: Client) -> None:
    """It inserts, takes and commits a group, also beside what an earlier one left."""
    program = CHART / "files/first_group.py"
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, program, "--server", server_process.grpc_address],
            env=plain_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "inserted, delivered and committed" in done.stdout
    assert sync_client.describe_table(run="helm-test", table="first-group").counters["leases_committed"] == 2


def test_the_notes_push_a_group_that_the_service_takes(
    server_process: ServerProcess, sync_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What NOTES.txt tells newcomers to paste works as it stands there."""
    notes = (CHART / "templates/NOTES.txt").read_text()
    pasted = notes.partition("<<'EOF'\n")[2].partition("    EOF")[0]
    code = "\n".join(line.removeprefix("    ") for line in pasted.splitlines())
    monkeypatch.delenv("GROUPREPLAY_TOKEN", raising=False)
    exec(compile(code.replace("127.0.0.1:50051", server_process.grpc_address), "NOTES.txt", "exec"), {})
    assert sync_client.describe_table(run="default", table="rollouts").fresh == 1
