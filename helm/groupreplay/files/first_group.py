"""Insert a group, take it as a batch, and commit it: what `helm test` runs."""

import argparse
import time
import uuid
from pathlib import Path

from groupreplay import Client, Fill, Rollout, RolloutGroup, TableConfig

NAMES = {"run": "helm-test", "table": "first-group"}


def main() -> None:
    """Use the service as its users do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    for flag in ("--token-file", "--ca-file", "--cert-file", "--key-file"):
        parser.add_argument(flag, type=Path)
    args = parser.parse_args()
    token = args.token_file.read_text().strip() if args.token_file else ""
    login = {"token": token, "ca_file": args.ca_file, "cert_file": args.cert_file, "key_file": args.key_file}
    group_id = uuid.uuid4().hex
    with Client(args.server, timeout_s=60.0, **login) as client:
        client.create_table(**NAMES, config=TableConfig(fill=Fill.KEEP, ttl_s=3600.0))
        rollouts = [Rollout(token_ids=[1, 2], behaviour_logprobs=[-0.5, -0.1], reward=it) for it in (0.0, 1.0)]
        group = RolloutGroup.from_rollouts(
            rollouts, group_id=group_id, prompt_id=group_id, prompt_token_ids=[3], policy_version=0
        )
        client.insert(group, **NAMES)
        while True:  # what another test left is taken on the way
            batch = client.next_batch(**NAMES, batch_size=1, timeout_s=60.0)
            client.commit(**NAMES, lease_id=batch.lease_id, step=time.time_ns() // 1_000_000)
            if group_id in {delivered.group.group_id for delivered in batch.groups}:
                print(f"group {group_id} was inserted, delivered and committed")
                return


if __name__ == "__main__":
    main()
