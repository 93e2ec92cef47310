"""What [schedule] says, as cron, systemd, Docker and Kubernetes want it; and whether it is set up there."""
