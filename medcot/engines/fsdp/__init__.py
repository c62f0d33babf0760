"""Shards a model's frozen weights over processes (FSDP2). Start at ``model.build_split``."""
