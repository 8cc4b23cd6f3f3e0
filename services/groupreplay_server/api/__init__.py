"""Front doors: decode a request, call the service, encode the answer."""
