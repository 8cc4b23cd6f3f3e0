"""The web page: files that a browser reads, and no data. Those it asks for under /v1."""
