"""``python -m geounet``."""

from geounet.cli import main

if __name__ == "__main__":
    main()
