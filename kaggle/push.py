"""Run medcot on Kaggle's free GPUs: ``python kaggle/push.py --help``."""

from medcot.cli.kaggle import main

if __name__ == "__main__":
    main()
