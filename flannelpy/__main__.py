"""``python -m flannelpy`` is the console script."""

from flannelpy.cli import main

if __name__ == "__main__":
    main()
