"""The numeric core: losses, maps, schedule, guidance. torch and einops only; knows no host."""
