"""A real model on real text, before and after fusing: `addnorm fuse` and the demonstration."""
