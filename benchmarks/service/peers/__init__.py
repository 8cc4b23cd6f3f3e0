"""Each module runs in an environment of its own, where neither the SDK nor the service is installed."""
