"""What can be built: spaces, networks, export. A regular package: found first."""
