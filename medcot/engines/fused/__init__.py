"""Trains Llama-like models with a pass of our own: packed rows, joined LoRA products, own backward.

Start at :func:`medcot.engines.fused.stack.fused_forward`. ``decoder_layer`` computes one layer,
``lora_linear`` its matrix products, ``reference_ops`` and ``triton_ops`` the operations in
between.
"""
