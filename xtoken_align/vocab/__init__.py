"""What everything after the readers works on: `vocab` with its ids, each with a surface, a kind and roles."""
