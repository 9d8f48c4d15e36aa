"""Mail out: schedule, routes, SMTP and LMTP client, Maildir, bounces."""
