"""`make faults`: kill everything, again and again, and see whether anything that was acknowledged is lost."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from faults.campaign import Campaign, Plan
from faults.report import table, write_summary
from faults.victims import DiedError


def main() -> int:
    """Run a campaign; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the victims, moments and groups")
    parser.add_argument("--kills", type=int, help="default: 50, and 20 where a master has to be replaced each time")
    parser.add_argument("--deployment", choices=["standalone", "sentinel", "cluster"], default="standalone")
    parser.add_argument("--pace", type=float, default=4.0, help="mean seconds between two kills")
    parser.add_argument("--no-learner", action="store_true", help="without a real `groupreplay train`")
    parser.add_argument("--summary", type=Path, default=Path("runs/faults/summary.json"))
    options = parser.parse_args()
    plan = Plan(
        seed=options.seed,
        kills=options.kills or (50 if options.deployment == "standalone" else 20),
        deployment=options.deployment,
        pace_s=options.pace,
        learner=not options.no_learner,
    )
    folder = Path(tempfile.mkdtemp(prefix="groupreplay-faults-"))
    try:
        outcome = asyncio.run(Campaign(plan, folder, lambda line: print(line, flush=True)).run())
    except (DiedError, AssertionError) as error:
        print(f"the campaign broke off: {error}\nits files are in {folder}", file=sys.stderr)
        return 1
    write_summary(outcome, options.summary)
    print(f"\n{table(outcome)}\n\nwritten to {options.summary}")
    if not outcome.verdict.is_good:
        print(f"logs and journals are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
