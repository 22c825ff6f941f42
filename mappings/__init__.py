"""The mappings that ship with the package: a read-only store."""
