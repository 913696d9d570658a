"""A name to decoder blocks that run one by one. Start at `loading.load` and `blocks.BlockStack`; `families` has what differs by family."""
