"""A training pass of our own for Llama-like models: packed rows, LoRA-aware products, own backward.

Start at :func:`medcot.engines.fused.stack.fused_forward`; a layer is in ``decoder_layer``, its
products in ``lora_linear``, what lies between them in ``reference_ops`` and ``triton_ops``.
"""
