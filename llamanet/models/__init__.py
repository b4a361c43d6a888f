"""Model files on this machine and on the Hugging Face hub: found, pulled, checked, measured. Needs no llama.cpp."""
