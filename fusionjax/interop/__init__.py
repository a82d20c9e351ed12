"""Other people's formats: PyTorch checkpoints in, a PyTorch adapter out.

Only the modules named `torch_*` import torch.
"""
