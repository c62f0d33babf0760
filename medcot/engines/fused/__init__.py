"""A forward and backward pass of our own for LoRA training of Llama-like models.

Start at :func:`.stack.fused_forward`. ``packing`` lays out the rows of a micro-batch,
``decoder_layer`` computes a layer, ``lora_linear`` its matmuls (frozen weights in ``nf4`` and
``fp8``), ``varlen_attention`` its attention, and ``ops`` what is between: ``reference_ops`` in
plain PyTorch, ``triton_ops`` in Triton.
"""
