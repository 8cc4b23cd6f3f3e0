"""A collector in a container: prints the name of each service that sends it spans. python -m tracing.print_services"""

import time

from tracing.collector import collecting

if __name__ == "__main__":
    with collecting(listen="0.0.0.0:4317") as collector:
        printed: set[str] = set()
        while True:
            for service in collector.services() - printed:
                print(service, flush=True)
                printed.add(service)
            time.sleep(0.1)
