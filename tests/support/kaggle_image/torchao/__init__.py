"""What a Kaggle image has under this name: too old for peft, which raises at its sight."""
