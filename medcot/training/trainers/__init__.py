"""TRL's ``SFTTrainer`` for each engine. Start at ``choose.make_trainer``."""
