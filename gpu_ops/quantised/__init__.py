"""Weights of linear layers as blocks of few bits: what files hold, how kernels read it, and the ops."""
