"""Where mappings are kept and how training code gets them."""
