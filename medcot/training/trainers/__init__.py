"""Adapts TRL's ``SFTTrainer`` to each engine. Start at ``choose.make_trainer``."""
