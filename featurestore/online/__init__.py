"""The online store: packed rows under one key per (view version, entity) on a server that speaks the Redis protocol."""
