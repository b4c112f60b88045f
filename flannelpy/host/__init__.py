"""What the networks of one host share: the external interface, the firewall, isolation, readiness."""
