"""What Prometheus answers, for tests that run one."""

from typing import Any

import httpx


class PrometheusApi:
    """A Prometheus that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return httpx.get(f"{self.url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[Any]:
        """Return what an expression gives now."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        result: list[Any] = answer["data"]["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules as it has evaluated them."""
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


def as_grafana_sends_it(expression: str) -> str:
    """Return a dashboard's expression, with all runs and tables chosen."""
    filled = expression.replace("$__rate_interval", "1m").replace("$run", ".+").replace("$table", ".+")
    assert "$" not in filled, expression
    return filled
