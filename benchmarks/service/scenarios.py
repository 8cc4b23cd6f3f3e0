"""What is measured. The subjects of a scenario take turns, so that whatever disturbs one disturbs the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from groupreplay import Durability
from service.access import Access
from service.index import draw_from_index, lease_from_index
from service.page_trials import draw_beside_page, insert_beside_page
from service.trials import (
    STREAMED,
    Trial,
    at_load,
    atropos_pull,
    atropos_push,
    draw,
    grpc_down,
    grpc_up,
    idle_service,
    index_trial,
    insert_each,
    insert_stream,
    large_batch,
    mixed,
    next_batches,
    redis_up,
    reverb_draw,
    reverb_insert,
    sdk_import,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One comparison."""

    name: str
    subjects: Mapping[str, Trial]
    quick: bool = False
    """Whether bench-quick runs it."""
    rounds: int | None = None
    """Most rounds, where one takes long."""

    @property
    def peers(self) -> set[str]:
        """Other systems that it needs."""
        return {word for subject in self.subjects for word in subject.split() if word in {"reverb", "atropos"}}


_ACCESSES: Final[tuple[Access, ...]] = ("open", "tls", "tokens")
SCENARIOS: Final = (
    Scenario(
        name="insert-M",
        quick=True,
        subjects={"stream": insert_stream("M"), "each": insert_each("M"), "reverb": reverb_insert("M")},
    ),
    Scenario(name="draw-M", quick=True, subjects={"draw": draw("M", batch_size=32), "reverb": reverb_draw("M", 32)}),
    *(
        Scenario(
            name=f"insert-{shape}",
            quick=shape != "A",
            subjects={"stream": insert_stream(shape), "grpc": grpc_up(shape), "redis": redis_up(shape)},
        )
        for shape in "DLA"
    ),
    *(
        Scenario(
            name=f"draw-{shape}",
            quick=shape != "A",
            subjects={
                "draw, one ahead": draw(shape, batch_size=STREAMED[shape], ahead=1),
                "draw": draw(shape, batch_size=STREAMED[shape]),
                "draw, all from Redis": draw(shape, batch_size=STREAMED[shape], cached=False),
                "grpc": grpc_down(shape, STREAMED[shape]),
            },
        )
        for shape in "DLA"
    ),
    Scenario(
        name="atropos-M",
        quick=True,
        rounds=3,
        subjects={
            "push": insert_stream("M"),
            "push each": insert_each("M"),
            "pull": next_batches("M", batch_size=32, groups=1024),
            "atropos push": atropos_push("M"),
            "atropos pull": atropos_pull("M"),
        },
    ),
    Scenario(
        name="durability-M",
        quick=True,
        subjects={
            "memory": insert_stream("M"),
            "everysec": insert_stream("M", keeping="everysec"),
            # Valkey cannot say what is on disk under everysec, so that durability aof needs this.
            "aof, synced always": insert_stream("M", keeping="always", durability=Durability.AOF),
        },
    ),
    Scenario(
        name="replicas-M",
        rounds=3,
        subjects={
            "memory": insert_stream("M"),
            "replicas": insert_stream("M", keeping="replicas", durability=Durability.REPLICAS),
        },
    ),
    Scenario(name="access-insert-M", subjects={access: insert_stream("M", access=access) for access in _ACCESSES}),
    Scenario(name="access-draw-M", subjects={access: draw("M", batch_size=32, access=access) for access in _ACCESSES}),
    Scenario(
        name="page-insert-M",
        subjects={"without": insert_beside_page("M", pages=0), "with": insert_beside_page("M", pages=1)},
    ),
    Scenario(
        name="page-draw-M",
        subjects={
            "without": draw_beside_page("M", batch_size=32, pages=0),
            "with": draw_beside_page("M", batch_size=32, pages=1),
        },
    ),
    *(
        Scenario(
            name=name,
            quick=True,
            subjects={
                "1e3": index_trial(call, 1_000),
                "1e4": index_trial(call, 10_000),
                "1e5": index_trial(call, 100_000),
                "largest": index_trial(call, None),
            },
        )
        for name, call in (("index-lease", lease_from_index), ("index-draw", draw_from_index))
    ),
    Scenario(name="memory-D", quick=True, rounds=3, subjects={"batch": large_batch}),
    Scenario(name="idle", quick=True, subjects={"service": idle_service, "sdk": sdk_import}),
    Scenario(
        name="producers-M",
        subjects={str(count): insert_stream("M", producers=count) for count in (1, 4, 16)},
    ),
    Scenario(
        name="shapes",
        subjects={shape: insert_stream(shape) for shape in "SMDLA"},
    ),
    Scenario(
        name="batches-M",
        subjects={str(size): next_batches("M", batch_size=size, groups=2048) for size in (32, 256, 512)},
    ),
    Scenario(
        name="feedback-M",
        subjects={"without": draw("M", batch_size=32), "with": draw("M", batch_size=32, feedback=True)},
    ),
    Scenario(
        name="ineffective-M",
        subjects={"none": insert_stream("M"), "half": insert_stream("M", ineffective=0.5)},
    ),
    Scenario(
        name="mixed-M", subjects={"1 sample per insert": mixed("M", 1.0), "4 samples per insert": mixed("M", 4.0)}
    ),
    Scenario(
        name="latency-M",
        subjects={
            "capacity": insert_each("M", clients=4),
            "1 %": at_load("M", 0.01),
            "50 %": at_load("M", 0.5),
            "90 %": at_load("M", 0.9),
        },
    ),
)
