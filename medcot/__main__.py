"""``python -m medcot`` is the command ``medcot``."""

from medcot.cli.main import main

if __name__ == "__main__":
    main()
