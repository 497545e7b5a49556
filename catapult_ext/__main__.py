"""python -m catapult_ext: the same as catapult-ext."""

from catapult_ext.cli import main

if __name__ == "__main__":
    main()
