"""Lint the chart with Helm 3 and 4, render it with each file of ci/, hold what comes out to Kubernetes' schemas.

Every resource is validated strictly (unknown fields are errors) against each minor version that is supported.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from get_helm import helm

CHART = Path(__file__).resolve().parent.parent / "helm/groupreplay"
KUBERNETES = [f"1.{minor}" for minor in range(25, 36)]
OTHER_APIS = ("cert-manager.io/", "gateway.networking.k8s.io/", "monitoring.coreos.com/")
"""Of operators, which bring their own schemas to a cluster."""


def main() -> int:
    """Return 0 when all is well."""
    faults = [fault for version in ("3", "4") for fault in _lint(version)]
    rendered = 0
    for values in sorted((CHART / "ci").glob("*-values.yaml")):
        outputs = [template(version, values) for version in ("3", "4")]
        if outputs[0] != outputs[1]:
            faults.append(f"{values.name}: Helm 3 and 4 render different things")
        rendered += 1
        faults += [f"{values.name}: {fault}" for fault in validate(outputs[0])]
    for fault in faults:
        print(fault)
    print(f"{rendered} values files, Helm 3 and 4, Kubernetes {KUBERNETES[0]} to {KUBERNETES[-1]}: ", end="")
    print(f"{len(faults)} faults" if faults else "all is well")
    return 1 if faults else 0


def _lint(version: str) -> Iterator[str]:
    files = sorted((CHART / "ci").glob("*-values.yaml"))
    for values in files:
        done = subprocess.run(
            [helm(version), "lint", "--strict", CHART, "--values", values], capture_output=True, text=True, check=False
        )
        if done.returncode:
            yield f"helm {version} lint {values.name}: {done.stdout}{done.stderr}"


def template(version: str, values: Path) -> str:
    """Return what is rendered; random passwords are the same for both."""
    done = subprocess.run(
        [helm(version), "template", "r", CHART, "--namespace", "ns", "--values", values],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"helm {version} template {values.name}: {done.stderr}")
    documents = [it for it in yaml.safe_load_all(done.stdout) if it]
    for document in documents:
        if document["kind"] == "Secret":
            document["data"] = dict.fromkeys(document["data"], "cmFuZG9t")
    rendered: str = yaml.safe_dump_all(sorted(documents, key=_name))
    return rendered


def _name(document: dict[str, Any]) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def validate(output: str) -> Iterator[str]:
    """Yield what is wrong with rendered YAML."""
    for document in yaml.safe_load_all(output):
        if document["apiVersion"].startswith(OTHER_APIS):
            continue
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                yield f"{'/'.join(_name(document))}, Kubernetes {version}: {error}"


if __name__ == "__main__":
    sys.exit(main())
