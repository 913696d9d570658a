"""Other tools' files: llama.cpp, repeng, lm-evaluation-harness, the first system's pickle."""
