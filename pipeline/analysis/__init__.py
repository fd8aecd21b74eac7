"""The paper's tables as data, layer responses, figures, and the report that puts ours beside them."""
