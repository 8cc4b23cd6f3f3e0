"""`groupreplay policy`: the policy clock of a run."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from groupreplay import Policy
from groupreplay.groups import check_name, now_ms
from groupreplay_admin.connection import ServiceSettings, open_client
from groupreplay_admin.keeping import ARGUMENT
from groupreplay_admin.output import age, clean, to_json


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings(ServiceSettings):
    """Whose clock.

    Raises:
        InvalidRequestError: the name has characters that the service refuses.
    """

    run: str = "default"
    """Training run."""
    json: bool = False
    """Print a JSON object for each version, one a line under watch, for programs."""

    def __post_init__(self) -> None:
        check_name(self.run, "run")


_DEFAULTS = PolicySettings()


def policy(
    what: Annotated[Literal["show", "watch"], ARGUMENT] = "show", /, *, settings: PolicySettings = _DEFAULTS
) -> int:
    """Show the policy version that a run stands at, or watch it change.

    Only the trainer publishes versions and moves the clock back.

    Parameters
    ----------
    what
        show = the current version; watch = each newer one too, until Ctrl-C.
    """
    with open_client(settings) as client:
        current = client.get_policy(run=settings.run)
        if what == "show":
            print(to_json(current) if settings.json else describe(current))
            return 0
        try:
            for published in client.watch_policy(run=settings.run):
                print(to_json(published, indent=None) if settings.json else describe(published), flush=True)
        except KeyboardInterrupt:
            pass
    return 0


def describe(found: Policy) -> str:
    """Return a policy version in a line."""
    parts = [f"{found.run}: policy version {found.version}"]
    if found.published_at_ms:
        parts.append(f"published {age((now_ms() - found.published_at_ms) / 1000)} ago")
    if found.label:
        parts.append(f"label {found.label}")
    parts.append(f"weights {found.weights_uri}" if found.weights_uri else "no weights named")
    if found.weights_sha256:
        parts.append(f"SHA-256 {found.weights_sha256[:12]}")
    if found.rewinds:
        parts.append(f"moved back {found.rewinds} times")
    return clean(", ".join(parts))
