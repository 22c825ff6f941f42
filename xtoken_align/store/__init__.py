"""Mappings on disk: `store` is the folder of named versions, `load` opens one by name, path or address."""
