"""A model whose frozen weights are split over processes (FSDP2). Start at ``model.load_base``."""
