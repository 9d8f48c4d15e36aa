"""aiosmtpd's own tests against our two engines: `make test-aiosmtpd`."""
