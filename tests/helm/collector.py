"""A collector of traces on the cluster, as a Pod with a name: prints who sends it spans."""

import json
from pathlib import Path

from helm.release import Release

TESTS = Path(__file__).resolve().parent.parent
FILES = ("certificates.py", "tracing/collector.py", "tracing/print_services.py")
NAME, PORT = "collector", 4317


class Collector:
    """It, in the namespace of a release."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self.endpoint = f"http://{NAME}.{release.namespace}.svc:{PORT}"

    def start(self) -> None:
        """Start it with the image of the service, which has what it needs."""
        paths = {path.replace("/", "-"): path for path in FILES}
        files = [f"--from-file={key}={TESTS / path}" for key, path in paths.items()]
        self._release.kubectl("create", "configmap", NAME, *files)
        [image] = self._release.images("server")
        container = {
            "name": NAME,
            "image": image,
            "command": ["python", "-m", "tracing.print_services"],
            "env": [{"name": "PYTHONPATH", "value": "/tests"}],
            "volumeMounts": [{"name": "tests", "mountPath": "/tests"}],
        }
        items = [{"key": key, "path": path} for key, path in paths.items()]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": NAME, "labels": {"app": NAME}},
            "spec": {
                "containers": [container],
                "volumes": [{"name": "tests", "configMap": {"name": NAME, "items": items}}],
            },
        }
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME},
            "spec": {"selector": {"app": NAME}, "ports": [{"port": PORT, "protocol": "TCP"}]},
        }
        objects = {"apiVersion": "v1", "kind": "List", "items": [pod, service]}
        self._release.kubectl("apply", "--filename", "-", given=json.dumps(objects))
        self._release.kubectl("wait", "--for=condition=Ready", f"pod/{NAME}", "--timeout", "120s")

    def services(self) -> set[str]:
        """Return the names under which it got spans."""
        return set(self._release.kubectl("logs", NAME).split())
