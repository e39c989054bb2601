"""Names and layouts of each parameter in the formats of other libraries."""
