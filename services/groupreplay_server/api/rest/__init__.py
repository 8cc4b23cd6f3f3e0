"""The REST door: the operations of the gRPC door over HTTP, in plain JSON."""
