"""An agent fuzzed: what is sent, what must come of it, and what really did.

What a message should do is decided by `model`, which shares no code with the product.
"""
