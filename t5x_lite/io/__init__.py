"""Files: paths and bucket URLs, atomic and append-only writes, checksums, locks, safe reading."""
