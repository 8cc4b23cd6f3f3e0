"""The chart on a cluster: installed, tested, rolled and killed under load without a failed call, and removed.

The tests of this file are one story, in order, about one release.
"""

from collections.abc import Iterator

import pytest
import yaml
from faults.audit import Audit, Verdict, trained_steps
from faults.journal import group_ids
from helm.collector import Collector
from helm.release import FULL, RELEASE, Release
from helm.workers import RUN, TABLE, Workers
from ops.rule_files import CHART
from processes import wait_until

pytestmark = [pytest.mark.helm, pytest.mark.timeout(1200)]

STAYS = {
    f"secret/{FULL}-admin",
    f"secret/{FULL}-redis",
    f"persistentvolumeclaim/data-{FULL}-redis-0",
    f"persistentvolumeclaim/{FULL}-weights",
}
LOOP = "generator.run=loop,trainer.run=loop,trainer.steps=5,trainer.batchSize=16"
WITHOUT_OPERATORS = ",".join((
    "tls.certManager.enabled=false", "tls.existingSecret=tls", "gateway.enabled=false",
    "monitoring.rules.enabled=false", "monitoring.serviceMonitor.enabled=false",
))  # fmt: skip
"""Values without what cert-manager, the Gateway API and the Prometheus operator bring to a cluster."""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Release]:
    """The release, in a namespace that is removed at the end."""
    values = pytestconfig.getoption("--chart-values")
    installed = Release(
        tmp_path_factory.mktemp("chart"),
        values.resolve() if values else None,
        helm_version=pytestconfig.getoption("--helm-version"),
    )
    try:
        print(f"\ninstalled and ready in {installed.install():.0f} s")
        yield installed
    finally:
        installed.remove()


@pytest.fixture(scope="module")
def workers(release: Release) -> Workers:
    """Producers and a trainer at work on the release, from inside the cluster."""
    started = Workers(release)
    started.start()
    started.wait_for_progress()
    return started


def test_the_api_server_takes_every_values_file_of_the_chart(release: Release) -> None:
    """What Helm renders for this version of Kubernetes is valid there, to the last field."""
    for values in sorted((CHART / "ci").glob("*-values.yaml")):
        options = ("--validate", "--values", str(values), "--set", WITHOUT_OPERATORS)
        documents = [it for it in yaml.safe_load_all(release.helm("template", "r", str(CHART), *options)) if it]
        # The Pod of `helm test` would be refused until its service account is there.
        native = [it for it in documents if it["kind"] != "Pod"]
        assert len(native) > 3
        release.kubectl("apply", "--dry-run=server", "--filename", "-", given=yaml.safe_dump_all(native))


def test_the_tests_of_the_chart_pass(release: Release) -> None:
    """`helm test`: a group is inserted, delivered and committed, with the token, by the name for all replicas."""
    said = release.helm("test", RELEASE, "--timeout", "5m")
    assert "Phase:          Succeeded" in said


def test_a_rolling_update_fails_no_call(release: Release, workers: Workers, pytestconfig: pytest.Config) -> None:
    """All Pods of the service are replaced, one after the other, while groups and batches flow."""
    before = release.names("server")
    other = pytestconfig.getoption("--other-images")
    options = ["--set-string", "server.podAnnotations.rolled=once"]
    release.upgrade(*options, *(["--set-string", f"server.image.tag={other}"] if other else []))
    after = release.names("server")
    assert all(image.endswith(f":{other}") for image in release.images("server") if other)
    assert len(after) == len(before) == 2
    assert not after & before
    workers.wait_for_progress()


def test_a_pod_that_is_killed_fails_no_call(release: Release, workers: Workers) -> None:
    """One of two replicas is gone at once; clients go on with the other, and find its successor."""
    release.kill("server")
    workers.wait_for_progress()


def test_a_redis_that_is_killed_fails_no_call(release: Release, workers: Workers) -> None:
    """Its Pod comes back with the same volume, and so with all that was acknowledged."""
    release.kill("redis")
    workers.wait_for_progress()


def test_a_rollback_fails_no_call(release: Release, workers: Workers) -> None:
    """`helm rollback` is a rolling update too."""
    before = release.names("server")
    release.helm("rollback", RELEASE, "1", "--wait", "--timeout", "10m")
    assert not release.names("server") & before
    workers.wait_for_progress()


def test_nothing_that_was_acknowledged_is_lost(release: Release, workers: Workers) -> None:
    """Nobody saw a call fail for good; every group and every step is accounted for, once."""
    journals = workers.finish()
    producers = {name: records for name, records in journals.items() if name.startswith("producer")}
    trainers = {name: records for name, records in journals.items() if name.startswith("trainer")}
    verdict = Verdict()
    with release.client() as client:
        audit = Audit(client, verdict, run=RUN, table=TABLE)
        audit.check_groups(producers)
        steps = trained_steps(trainers, verdict)
        audit.check_steps(steps)
        audit.check_clock(len(steps))
    assert verdict == Verdict()
    acknowledged = sum(len(group_ids(records, "acknowledged")) for records in producers.values())
    calls = [record for records in journals.values() for record in records if record["kind"] == "call"]
    slowest = max(calls, key=lambda record: record["took_s"])
    print(
        f"\n{acknowledged} groups, {len(steps)} steps, {len(calls)} timed calls of which "
        f"{sum(record['retries'] > 0 for record in calls)} were made again; slowest {slowest['took_s']:.1f} s"
    )


def test_a_generator_and_a_trainer_of_the_chart_train(release: Release) -> None:
    """They share the volume of weights; the trainer is a Job that ends with its last step. All send their traces."""
    collector = Collector(release)
    collector.start()
    traced = f"tracing.endpoint={collector.endpoint}"
    release.upgrade("--set", f"generator.enabled=true,trainer.enabled=true,{LOOP},{traced}")
    [job] = release.get("jobs")
    release.kubectl("wait", "--for=condition=complete", f"job/{job['metadata']['name']}", "--timeout", "600s")
    with release.client() as client:
        assert client.get_policy(run="loop").version == 5
    wanted = {f"groupreplay-{name}" for name in ("server", "generator", "trainer")}
    wait_until(lambda: collector.services() == wanted, f"spans of {wanted}", 60)


def test_an_uninstalled_release_leaves_what_it_says(release: Release) -> None:
    """The volumes of Redis and of weights, and the passwords, and nothing else."""
    release.helm("uninstall", RELEASE, "--wait", "--timeout", "5m")
    kinds = (
        "all,pvc,secret,configmap,serviceaccount,role,rolebinding,ingress,networkpolicy,poddisruptionbudget,"
        "horizontalpodautoscaler"
    )

    def left() -> set[str]:
        found = release.get(kinds, "--selector", f"app.kubernetes.io/instance={RELEASE}")
        return {f"{it['kind'].lower()}/{it['metadata']['name']}" for it in found}

    wait_until(lambda: left() == STAYS, f"only {STAYS} are left", 120)  # Pods end after what Helm waits for
