"""Both halves of what reads strangers' bytes, given the same bytes in different chunks, must find the same."""
