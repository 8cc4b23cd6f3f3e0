"""Write the Grafana dashboard of the chart and of compose; --check fails when the committed file differs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dashboard_rows import NOW, ROWS, Panel

FILE = Path(__file__).resolve().parent.parent / "helm/groupreplay/files/dashboard.json"
COLUMNS = 24
HEIGHT = 8


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(_row(title, top, len(panels) + 1))
        left, top = 0, top + 1
        height = 4 if title == NOW else HEIGHT
        for panel in row:
            if left + panel.width > COLUMNS:
                left, top = 0, top + height
            place = {"x": left, "y": top, "w": panel.width, "h": height}
            panels.append(_panel(panel, place, len(panels) + 1))
            left += panel.width
        top += height
    return {
        "title": "groupreplay",
        "uid": "groupreplay",
        "tags": ["groupreplay"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _variable("run", ""), _variable("table", '{run=~"$run"}')]},
        "annotations": {"list": []},
        "panels": panels,
    }


def _row(title: str, top: int, number: int) -> dict[str, Any]:
    place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(panel: Panel, place: dict[str, int], number: int) -> dict[str, Any]:
    custom = {"fillOpacity": 20, "stacking": {"mode": "normal"}} if panel.stacked else {"fillOpacity": 0}
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.high is not None:
        steps.append({"color": "red", "value": panel.high})
    drawn = {"custom": custom} if panel.kind == "timeseries" else {}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "gridPos": place,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}, **drawn},
            "overrides": [],
        },
        "options": {"tooltip": {"mode": "multi"}} if panel.kind == "timeseries" else {"colorMode": "value"},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query.expression, "legendFormat": query.legend}
            for index, query in enumerate(panel.queries)
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(name: str, among: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": f"label_values(groupreplay_table_fresh_groups{among}, {name})",
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }


def main() -> int:
    """Write, or compare with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file differs")
    text = json.dumps(dashboard(), indent=2) + "\n"
    if parser.parse_args().check:
        if not FILE.exists() or FILE.read_text() != text:
            print(f"{FILE.name} is not what scripts/generate_dashboard.py gives: run `make reference`")
            return 1
        return 0
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
