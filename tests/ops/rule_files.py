"""The files of the operations side, as the tests read them."""

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm/groupreplay"
RULES = CHART / "files/rules.yaml"
DASHBOARD = CHART / "files/dashboard.json"
PAGES = ROOT / "docs/howto/alerts"


def rule_groups() -> list[dict[str, Any]]:
    """Return the groups of rules."""
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return groups


def rules() -> list[dict[str, Any]]:
    """Return all rules."""
    return [rule for group in rule_groups() for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Return the rules that alert."""
    return [rule for rule in rules() if "alert" in rule]


def panel_expressions() -> list[tuple[str, str]]:
    """Return (title, expression) of every query of the dashboard."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        found += [(panel["title"], target["expr"]) for target in panel.get("targets", ())]
    return found
