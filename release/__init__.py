"""How a release is made: `make wheels`. Not part of what is installed."""
