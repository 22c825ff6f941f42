"""`python -m xtoken_align`: the command line, where the installed script is not on the PATH."""

from importlib import import_module

if __name__ == "__main__":
    # The command line stands at the top of the repository, so a type checker finds it under its installed name only.
    import_module(".cli.main", __package__).main()
