"""`python -m vgid` is the `vgid` command."""

from vgid.pipeline.cli import main

if __name__ == "__main__":
    main()
