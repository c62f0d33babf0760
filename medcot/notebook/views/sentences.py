"""The engine's own sentences in Chinese; a test sees that none of the planner's is missing.

They are made in English where they are decided, with the numbers in them. A sentence that is not
known here is shown as it is.
"""

from __future__ import annotations

import re

_CHINESE = {
    r"Device cuda: (.+) with ([\d.]+) GiB\.": r"设备 cuda：\1，\2 GiB。",
    r"Device mps: this Mac's GPU\.": "设备 mps：这台 Mac 的 GPU。",
    r"Device cpu: no usable GPU was found\.": "设备 cpu：没有找到可用的 GPU。",
    r"(Engine|Precision|Packing|Weights) (\S+): as asked for\.": r"\1 \2：按要求设定。",
    r"Engine unsloth: about twice as fast .+": "引擎 unsloth：在 CUDA 上大约快一倍。",
    r"Engine fused: this project's own training pass.+": (
        "引擎 fused：本项目自己的训练实现，在 CUDA 上最快。"
    ),
    r"Engine unsloth: the fused one does not do (.+)\.": r"引擎 unsloth：fused 引擎不支持\1。",
    r"Engine transformers: the only one whose weights .+": (
        "引擎 transformers：只有它的权重可以分给多个进程（FSDP）。"
    ),
    r"Weights split: each process keeps 1/(\d+) .+": (
        r"权重分开存放：每个进程保留 1/\1，用到哪一层就收集哪一层。"
    ),
    r"Engine transformers: unsloth is not installed\.": "引擎 transformers：没有安装 unsloth。",
    r"Engine transformers: unsloth needs a CUDA GPU\.": "引擎 transformers：unsloth 需要 CUDA。",
    r"Precision fp32: on this device .+": "精度 fp32：在这种设备上比 16 位更快，而且精确。",
    r"Precision bf16: the GPU has it.+": "精度 bf16：这块 GPU 支持，而且不需要缩放损失。",
    r"Precision fp16: (.+) has no bfloat16\.": r"精度 fp16：\1 不支持 bfloat16。",
    r"Attention flash_attention_2: .+": "注意力 flash_attention_2：已经安装，打包的行需要它。",
    r"Attention sdpa: .+": "注意力 sdpa：PyTorch 自带的实现。",
    r"Packing on: rows lie end to end.+": "打包：各行首尾相接，不需要填充。",
    r"Packing off: no attention kernel .+": "不打包：这里没有能低成本隔开各行的注意力实现。",
    r"(\d+) processes, each with (\d+) samples of a step\.": r"\1 个进程，每步各处理 \2 个样本。",
    r"Weights not in 4 bits: that needs .+": "权重不用 4 位：那需要 bitsandbytes，这里没有安装。",
    r"Rounding to 8 bits cost 3 % of what training won .+": (
        "舍入到 8 位浮点数有代价：在实测过的 SmolLM2-135M 上，损失的改善因此少了 3 %，"
        "4 位权重则损失得多得多；--quantization none 没有这个代价。"
    ),
    r"Times are estimates: how fast the weights are gathered .+": (
        "时间是估计值：收集各进程的权重有多快，取决于它们之间的连接。"
    ),
    r"(\d+) rows? per forward pass: .+": r"每次前向计算 \1 行：再多不会更快，或者放不下。",
    r"Keeping all activations: they fit, .+": "保留全部激活值：放得下，而重新计算要花时间。",
    r"Recomputing (\d+) of (\d+) layers: keeping all would take ([\d.]+) GiB of ([\d.]+) GiB\.": (
        r"\2 层中有 \1 层重新计算：全部保留需要 \3 GiB，而可用的只有 \4 GiB。"
    ),
    r"(.+): (.+) would take ([\d.]+) GiB of ([\d.]+) GiB\.": (
        r"\1：\2需要 \3 GiB，而可用的只有 \4 GiB。"
    ),
    r"(.+): (\d+%) faster than (.+), which would fit too\.": r"\1：比\3快 \2，虽然后者也放得下。",
    r"(.+): about as fast as (.+), and they are the published ones\.": (
        r"\1：与\2差不多快，而且就是公开发布的权重。"
    ),
    r"(.+): about as fast as (.+), in less memory\.": r"\1：与\2差不多快，占用的内存更少。",
    r"The GPU is left unused: (.+) is too old \(below 7\.0\)\.": (
        r"没有使用 GPU：\1 太旧（计算能力低于 7.0）。"
    ),
    r"One of (\d+) GPUs is used: (`.+`) uses all\.": r"\1 块 GPU 只用了一块：\2 可以全用上。",
    r"Times are estimates: no run on (.+) was measured.+": (
        r"时间是估计值：没有在 \1 上实测过，误差可能达到一半。"
    ),
    r"Each row is seen (\d+) times: .+": r"每行会被看到 \1 次：模型可能只是把它们背下来。",
    r"About (\d+) hours: a Kaggle session ends after 12\.": (
        r"大约 \1 小时：Kaggle 的会话最长 12 小时。"
    ),
    r"no GPU was found": "没有找到 GPU",
    r"(.+) with (\d+) GiB was found": r"找到了 \1，显存 \2 GiB",
    r"(.+) with (\d+) GiB was found, which is too little for the 8B model": (
        r"找到了 \1，显存只有 \2 GiB，放不下 8B 模型"
    ),
    r"(.+) \(compute capability ([\d.]+)\) is too old for training": (
        r"\1（计算能力 \2）太旧，不能用于训练"
    ),
    # What went wrong, and what to do.
    r"it needs at least ([\d.]+) GiB of ([\d.]+) GiB usable (GPU memory|RAM)": (
        r"至少需要 \1 GiB，而可用的\3只有 \2 GiB"
    ),
    r"use a smaller model such as --model (\S+), or --preset demo": (
        r"换一个更小的模型，例如 --model \1，或者使用 --preset demo"
    ),
    r"use (--\S+ \S+) or (--\S+ \S+)": r"使用 \1 或者 \2",
    r"use (--\S+ \S+) or (--\S+ \S+) or (--\S+ \S+)": r"使用 \1、\2 或者 \3",
    r"use (--\S+ \S+)": r"使用 \1",
    r"use a larger machine, or --model (\S+) \(--preset demo\)": (
        r"换一台更大的机器，或者使用 --model \1（--preset demo）"
    ),
    r"use a machine with more memory": "换一台内存更大的机器",
    r"use a CUDA GPU, or --preset demo": "使用 CUDA GPU，或者使用 --preset demo",
    r"run (pip install \S+), or --preset demo": r"运行 \1，或者使用 --preset demo",
    r"needs a CUDA GPU": "需要 CUDA GPU，而这里没有",
    r"its (--\S+ \S+) needs a CUDA GPU": r"它的 \1 需要 CUDA GPU，而这里没有",
    r"needs bitsandbytes, which is not installed": "需要 bitsandbytes，而这里没有安装",
    r"its (--\S+ \S+) needs bitsandbytes, which is not installed": (
        r"它的 \1 需要 bitsandbytes，而这里没有安装"
    ),
    r"is not installed": "没有安装",
    r"its (--\S+ \S+) is not installed": r"它的 \1 没有安装",
    r"run (pip install \S+)": r"运行 \1",
    r"run (pip install \S+), or use (--\S+ \S+)": r"运行 \1，或者使用 \2",
    r"every row is longer; the shortest has (\d+) tokens": r"每一行都更长；最短的一行有 \1 个词元",
    r"use (\d+) or more": r"使用不小于 \1 的值",
    r"every row also appears in the evaluation": "每一行都与评测题重复",
    r"use other rows": "换用别的数据",
    r"found (\S+)": r"得到的是 \1",
    r"expected a whole number from (\d+) to (\d+)": r"应当是从 \1 到 \2 的整数",
    r"it cannot be divided equally": "不能平均分配",
    r"use a multiple of (\d+), the number of training processes": (
        r"使用 \1 的倍数：有 \1 个进程同时训练"
    ),
    r"no connection to the hub": "连不上 Hugging Face",
    r"a hub name cannot be loaded with HF_HUB_OFFLINE=1": (
        "这是 Hugging Face 上的名称，但设置了 HF_HUB_OFFLINE=1"
    ),
    r"use a local f(?:ile|older) or --preset demo, which need no network": (
        "使用本地文件或 --preset demo，两者都不需要网络"
    ),
    r"no such file": "没有这个文件",
    r"expected an existing (.+) file": r"应当是一个存在的文件（\1）",
    r"expected an existing folder, a hub name \(owner/model\) or (\S+)": (
        r"应当是存在的文件夹、Hugging Face 上的名称（owner/model）或 \1"
    ),
    r"the model does not fit into memory\.": "内存放不下这个模型。",
    r"out of memory\.": "内存用尽了。",
    r"one row does not fit into memory\.": "一行数据内存也放不下。",
    r"Try --quantization 4bit\.": "试试 --quantization 4bit。",
    r"Try --quantization 4bit or a shorter --max-length\.": (
        "试试 --quantization 4bit，或者更小的 --max-length。"
    ),
    r"Start a new run with a shorter --max-length, a smaller --rank or --quantization 4bit\.": (
        "用更小的 --max-length、更小的 --rank 或 --quantization 4bit 开始新的运行。"
    ),
    r"See error\.json for details; --resume continues the run\.": (
        "详情见 error.json；--resume 可以继续。"
    ),
    r"another training or answer is running on this server\.": (
        "这台服务器上正在训练或回答别的问题。"
    ),
    r"Wait until it ends, or cancel it on the page that started it\.": (
        "等它结束，或者在启动它的页面上取消。"
    ),
    r"you have no training to resume\.": "没有可以继续的训练。",
    r"Start one\.": "开始一次训练。",
    r"the text is empty": "内容是空白的",
    r"ask a question": "提一个问题",
    r"same question as (.+), and answer": r"问题和答案都与 \1 相同",
    r"same question as (.+), with another answer": r"问题与 \1 相同，答案不同",
}
_WORDS = {
    "Engine": "引擎",
    "Precision": "精度",
    "Packing": "打包",
    "Weights": "权重",
    "16-bit weights": "16 位权重",
    "norms of queries and keys": "查询和键的归一化",
    "LoRA dropout": "LoRA 的随机失活（dropout）",
    "padded rows": "填充的行",
    "8-bit weights": "8 位权重",
    "products in 8-bit floats": "8 位浮点乘法",
    "Products in 8-bit floats": "8 位浮点乘法",
    "4-bit weights": "4 位权重",
    "Recomputing activations": "重新计算激活值",
    "recomputing activations": "重新计算激活值",
    "GPU memory": "显存",
    "RAM": "内存",
    "Keeping all activations": "保留全部激活值",
    "keeping all activations": "保留全部激活值",
}
_PATTERNS = [(re.compile(pattern), chinese) for pattern, chinese in _CHINESE.items()]


def in_language(sentence: str, language: str) -> str:
    """``sentence`` in ``language``."""
    if language == "en":
        return sentence
    for pattern, chinese in _PATTERNS:
        if found := pattern.fullmatch(sentence):
            return _filled(chinese, found)
    return sentence


def _filled(chinese: str, found: re.Match[str]) -> str:
    def part(number: re.Match[str]) -> str:
        value = found[int(number[1])]
        return _WORDS.get(value, value)

    return re.sub(r"\\(\d)", part, chinese)
