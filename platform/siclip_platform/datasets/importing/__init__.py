"""Import of foreign image–caption pairs into one schema, with a ledger of rejected rows and duplicates."""
