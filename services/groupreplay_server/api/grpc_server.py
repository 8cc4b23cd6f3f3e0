"""The gRPC server: ReplayService, health and reflection on one port."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from groupreplay_server.api.grpc_access import MAX_METADATA_BYTES, AccessInterceptor
from groupreplay_server.api.grpc_api import MAX_MESSAGE_BYTES, GrpcApi
from groupreplay_server.api.operations import SERVICE
from groupreplay_server.certificates import Certificates

CORE_MESSAGE_BYTES = 4 * MAX_MESSAGE_BYTES
CORE_METADATA_BYTES = 8 * MAX_METADATA_BYTES
"""Where gRPC itself stops reading. What lies between our limits and these is answered with a reason, which gRPC's own
refusals have not; what a call can make us keep stays bounded all the same."""


class GrpcServer:
    """The listening server. Health is per process: SERVING from start to drain."""

    def __init__(
        self, api: GrpcApi, interceptor: AccessInterceptor, *, max_connection_age_s: float | None = None
    ) -> None:
        """max_connection_age_s: connections take no new calls after that, give or take a tenth; None = they last."""
        age = (
            [] if max_connection_age_s is None else [("grpc.max_connection_age_ms", round(max_connection_age_s * 1000))]
        )
        self._server = grpc.aio.server(
            interceptors=[interceptor],
            options=[
                ("grpc.max_receive_message_length", CORE_MESSAGE_BYTES),
                ("grpc.max_metadata_size", CORE_METADATA_BYTES),  # between the two it would refuse by chance
                ("grpc.absolute_max_metadata_size", CORE_METADATA_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                *age,
            ],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._server.add_generic_rpc_handlers((api.handlers(), api.unknown_calls()))  # asked in this order

    def bind(self, address: str, certificates: Certificates | None = None) -> int:
        """Listen on host:port (0 = any free port), on :port everywhere, or on unix:path; return the port."""
        address = f"[::]{address}" if address.startswith(":") else address
        try:
            if certificates is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, certificates.grpc_credentials())
        except RuntimeError as error:
            raise OSError(
                f"gRPC cannot listen on {address}: another process has the port, or the address is not ours; "
                "stop it or pass --grpc-listen"
            ) from error

    async def start(self) -> None:
        """Serve, and say so to health checks."""
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def refuse(self) -> None:
        """Tell health checks to send no more calls."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls; let running ones end within grace_s."""
        await self._server.stop(grace_s)

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE.full_name):
            await self._health.set(name, status)
