"""The status page, the JSON behind it, what Prometheus scrapes: read only, and nothing is looked at for a request."""
