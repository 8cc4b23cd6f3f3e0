"""The whole stack on a Docker engine: it starts, trains, and goes on through kills, an upgrade and more containers.

The tests of this file are one story, in order, about one stack.
"""

import json
import re
from collections.abc import Iterator
from datetime import datetime

import httpx
import pytest
from compose.docker import IMAGES, VERSION, docker, has_image
from compose.stack import RUN, SERVICES, SLOW_S, TABLE, Stack
from faults.audit import Audit, Verdict, logged_steps
from ops.rule_files import DASHBOARD, ROOT, panel_expressions
from processes import wait_until
from prometheus_api import PrometheusApi, as_grafana_sends_it

from groupreplay import Client, UnauthenticatedError
from groupreplay_demo.ledger import count_lost

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

OTHER = "same"
"""Tag of the present images under another name, where --other-images names none."""
LINEAGE = 500
"""Steps whose groups are compared with the service's record, which keeps 1000."""
JOBS = {"server": 8080, "generator": 9102, "trainer": 9101}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, removed at the end."""
    started = Stack(tmp_path_factory.mktemp("ledger"))
    try:
        started.watch()
        started.up()
        yield started
    finally:
        started.down()


def test_containers_start_once_what_they_need_is_healthy(stack: Stack) -> None:
    """Passwords, Redis, the service, then those who use it; after that all become healthy."""
    stack.wait_for_health(*SERVICES)
    healthy = stack.first_healthy()
    [secrets] = stack.containers("secrets")
    assert secrets["State"]["ExitCode"] == 0
    order = {"redis": moment(secrets["State"]["FinishedAt"]), "server": healthy["redis"]}
    for service, ready in {**order, "generator": healthy["server"], "trainer": healthy["server"]}.items():
        [container] = stack.containers(service)
        assert moment(container["State"]["StartedAt"]) >= ready, service
    for service, ready in healthy.items():
        print(f"{service} healthy after {(ready - moment(secrets['Created'])).total_seconds():.1f} s")


def moment(text: str) -> datetime:
    """Return a time that the engine writes, without its nanoseconds."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text))


def test_containers_are_confined_and_ports_are_this_machines(stack: Stack) -> None:
    """As the engine has it, rather than as the file says it."""
    for service in SERVICES:
        [container] = stack.containers(service)
        host = container["HostConfig"]
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False), service
        assert stack.compose("exec", "-T", service, "id", "-u").strip() != "0"
        bound = [entry["HostIp"] for ports in container["NetworkSettings"]["Ports"].values() for entry in ports or ()]
        assert set(bound) <= {"127.0.0.1"}, service


def test_nobody_gets_in_without_the_token(stack: Stack) -> None:
    """Neither by gRPC nor by REST; with it the doctor has nothing to say about access."""
    [grpc], [http] = stack.published("server", 50051), stack.published("server", 8080)
    with Client(grpc, timeout_s=10.0) as stranger, pytest.raises(UnauthenticatedError):
        stranger.list_tables()
    assert httpx.get(f"http://{http}/v1/tables").status_code == 401
    with stack.client() as client:
        assert [table.table for table in client.list_tables()] == [TABLE]


def test_the_run_trains_through_the_death_of_each_container(stack: Stack) -> None:
    """Killed without warning, each is started again by its policy, and the policy version goes on."""
    stack.wait_for_steps(2)
    for service in SERVICES:
        [before] = stack.containers(service)
        stack.kill(service)
        wait_until(lambda: restarts(stack, service) > before["RestartCount"], f"{service} is started again", 60)  # noqa: B023
        stack.wait_for_health(service)
        stack.wait_for_steps(2)


def restarts(stack: Stack, service: str) -> int:
    """Return how often the engine has started the container of a service again."""
    [container] = stack.containers(service)
    return int(container["RestartCount"])


def test_another_version_takes_over_a_run_that_trains_and_hands_it_back(
    stack: Stack, pytestconfig: pytest.Config
) -> None:
    """`docker compose up` with other images replaces our containers, and the run goes on where it was; both ways."""
    other = pytestconfig.getoption("--other-images") or OTHER
    if other == OTHER:
        for image in IMAGES:
            content = f"FROM groupreplay/{image}:{VERSION}\nLABEL org.opencontainers.image.version={OTHER}\n"
            docker("build", "--quiet", "--tag", f"groupreplay/{image}:{OTHER}", "-", given=content)
    redis = stack.containers("redis")[0]["Id"]
    for tag in (other, VERSION):
        before = stack.version()
        stack.up(GROUPREPLAY_VERSION=tag)
        stack.wait_for_health(*SERVICES)
        for image in IMAGES:
            [container] = stack.containers(image)
            assert container["Config"]["Image"] == f"groupreplay/{image}:{tag}"
        assert stack.containers("redis")[0]["Id"] == redis
        stack.wait_for_steps(2)
        assert stack.version() > before
    if other == OTHER:
        docker("rmi", *(f"groupreplay/{image}:{OTHER}" for image in IMAGES))


def test_more_containers_share_the_work_behind_one_address(stack: Stack) -> None:
    """Three generators and two servers: both servers are called, and groups of all generators come in."""
    stack.up("--scale", "generator=3", "--scale", "server=2")
    stack.wait_for_health("server", "generator")
    assert (len(stack.containers("server")), len(stack.containers("generator"))) == (2, 3)
    for address in stack.published("server", 8080):
        wait_until(lambda: calls(address, "Insert") > 0, f"{address} gets groups", SLOW_S)  # noqa: B023

    def producers() -> set[str]:
        with stack.client() as client:
            found = client.diagnose(run=RUN, table=TABLE, batch_size=16).producers
        return {it.producer_id.rpartition("-")[0] for it in found if it.inserted}

    names = {container["Config"]["Hostname"] for container in stack.containers("generator")}
    wait_until(lambda: names <= producers(), "groups of all generators", SLOW_S)


def calls(address: str, method: str) -> float:
    """Return how many calls of a method a server has ended well, by its metrics."""
    pattern = rf'^groupreplay_call_seconds_count\{{method="{method}".*\}} (\S+)$'
    return sum(float(count) for count in re.findall(pattern, httpx.get(f"http://{address}/metrics").text, re.M))


def test_prometheus_finds_every_container_and_has_what_the_dashboard_asks(stack: Stack) -> None:
    """Of scaled services too; every query of the dashboard is understood, and no rule has an error."""
    prometheus = PrometheusApi(stack.prometheus_url)

    def scraped() -> dict[str, int]:
        up = prometheus.query("count by (job) (up == 1)")
        return {it["metric"]["job"]: int(it["value"][1]) for it in up}

    wanted = {job: len(stack.containers(job)) for job in JOBS}
    assert wanted == {"server": 2, "generator": 3, "trainer": 1}
    wait_until(lambda: scraped() == wanted, f"{wanted} are scraped", 120)
    for _, expression in panel_expressions():
        prometheus.query(as_grafana_sends_it(expression))
    assert prometheus.query("groupreplay_trainer_step")
    wait_until(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()), "every rule is evaluated", 60)


def test_grafana_shows_the_dashboard(stack: Stack) -> None:
    """It starts with its data source and the dashboard."""
    image = stack.image_of("grafana")
    if not has_image(image):
        pytest.skip(f"no image {image} here, so Grafana was not run: docker compose pull grafana")
    stack.compose("up", "--detach", "grafana")
    stack.wait_for_health("grafana")
    [address] = stack.published("grafana", 3000)
    found = httpx.get(f"http://{address}/api/search", params={"type": "dash-db"}).json()
    assert [it["title"] for it in found] == [json.loads(DASHBOARD.read_text())["title"]]


def test_traces_of_all_processes_reach_a_collector(stack: Stack) -> None:
    """With the second file of compose; the run goes on meanwhile."""
    stack.trace()
    stack.up("--scale", "generator=3", "--scale", "server=2")
    wanted = {f"groupreplay-{image}" for image in IMAGES}
    wait_until(lambda: stack.traced() >= wanted, f"spans of {wanted}", SLOW_S)


@pytest.mark.parametrize("more", [["--file", str(ROOT / "docker-compose.gpu.yml")], ["--profile", "vllm"]])
def test_compose_understands_what_takes_gpus(more: list[str]) -> None:
    """The file for GPUs, and the profile with a vLLM server."""
    docker("compose", "--file", str(ROOT / "docker-compose.yml"), *more, "config", "--quiet")


def test_the_run_ends_and_nothing_is_lost(stack: Stack) -> None:
    """With its last step the trainer is done and stays so; every group that was acknowledged is accounted for."""
    stack.compose("stop", "trainer")
    last = stack.run_file("train.jsonl")[-1]["step"] + 5
    stack.up("--scale", "generator=3", "--scale", "server=2", STEPS=str(last))
    wait_until(lambda: stack.containers("trainer")[0]["State"]["Status"] == "exited", "the run ends", SLOW_S)
    assert stack.containers("trainer")[0]["State"]["ExitCode"] == 0
    stack.compose("stop", "generator")
    with stack.client() as client:
        assert client.get_policy(run=RUN).version == last
        lost = count_lost(client, run=RUN, table=TABLE, inserted_log=stack.inserted_log)
        verdict = Verdict()
        steps = logged_steps(stack.run_file("groups.jsonl"))
        Audit(client, verdict, run=RUN, table=TABLE).check_steps(steps, newest=LINEAGE)
    acknowledged = len(stack.inserted_log.read_text().split())
    print(f"{acknowledged} groups acknowledged, {last} steps, {lost} groups lost")
    assert acknowledged > 16 * last / 2
    assert (lost, verdict) == (0, Verdict())


def test_what_is_taken_down_leaves_its_volumes_until_they_are_removed_too(stack: Stack) -> None:
    """`down` keeps groups and passwords: the stack that comes up again has the same token and the same run."""
    token = stack.token
    stack.compose("down")
    stack.up()
    assert stack.token == token
    with stack.client() as client:
        assert client.describe_table(run=RUN, table=TABLE).counters["inserted"] > 0
    stack.down()
    assert stack.leftovers() == ""
