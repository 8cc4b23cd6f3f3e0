"""What a URL of Redis says, and what is said about one that cannot be used."""

import re

import pytest

from groupreplay_server.store.address import Deployment, read_address


@pytest.mark.parametrize(
    ("url", "deployment", "tls", "hosts", "service_name"),
    [
        ("redis://localhost:6379/0", Deployment.STANDALONE, False, (), ""),
        ("rediss://localhost", Deployment.STANDALONE, True, (), ""),
        ("unix:///run/redis@0.sock?db=1", Deployment.STANDALONE, False, (), ""),
        ("redis+sentinel://a:1,b:2/replay", Deployment.SENTINEL, False, (("a", 1), ("b", 2)), "replay"),
        ("rediss+sentinel://a:1/my%20master", Deployment.SENTINEL, True, (("a", 1),), "my master"),
        ("redis+cluster://a.b-c_d:1,[::1]:2", Deployment.CLUSTER, False, (("a.b-c_d", 1), ("::1", 2)), ""),
        ("rediss+cluster://10.0.0.1:6379", Deployment.CLUSTER, True, (("10.0.0.1", 6379),), ""),
    ],
)
def test_a_url_says_how_redis_is_deployed(
    url: str, deployment: Deployment, tls: bool, hosts: tuple[tuple[str, int], ...], service_name: str
) -> None:
    """Standalone, behind Sentinels, or a cluster; encrypted or not."""
    address = read_address(url)
    assert (address.deployment, address.tls, address.hosts, address.service_name) == (
        deployment,
        tls,
        hosts,
        service_name,
    )


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "rediss+cluster"])
def test_user_and_password_are_decoded_and_the_password_is_not_shown(scheme: str) -> None:
    """Percent signs stand for what a URL has another use for."""
    end = "/name" if "sentinel" in scheme else ""
    address = read_address(f"{scheme}://some%40body:s3%2Fcret%23@host:1234{end}")
    assert (address.username, address.password) == ("some@body", "s3/cret#")
    assert address.shown == f"{scheme}://some%40body@host:1234{end}"
    assert "cret" not in repr(address)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "does not start with redis://"),
        ("http://host:1", "http://host:1 does not start with redis://"),
        ("redis+sharded://host:1", "does not start with redis://"),
        ("unix+cluster:///tmp/x", "does not start with redis://"),
        ("redis://host:port", "is not redis://USER:PASSWORD@HOST:PORT/DATABASE"),
        ("redis+sentinel://host:1", "names no master; end it with /SERVICE-NAME"),
        ("redis+cluster://host:1/0", "ends with /0, but a cluster has neither databases"),
        ("redis+cluster://host", "'host' is not HOST:PORT"),
        ("redis+cluster://host:1,", "'' is not HOST:PORT"),
        ("redis+cluster://host:65536", "'host:65536' is not HOST:PORT"),
        ("redis+cluster://host:1?ssl=no", "takes no options after its hosts"),
    ],
)
def test_a_url_that_cannot_be_used_is_told_why(url: str, said: str) -> None:
    """What is wrong with it, and how it is written."""
    with pytest.raises(ValueError, match=re.escape(said)):
        read_address(url)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "redis+cluster"])
@pytest.mark.parametrize("mark", "@/?#")
def test_a_password_that_should_have_been_encoded_is_not_shown_in_the_error(scheme: str, mark: str) -> None:
    """It is cut in two by the mark in it, and neither half comes out."""
    with pytest.raises(ValueError, match="write them as %40 %2F %3F %23") as raised:
        read_address(f"{scheme}://user:first{mark}second@host:1234")
    assert "first" not in str(raised.value)
    assert "second" not in str(raised.value)
